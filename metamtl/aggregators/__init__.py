"""Aggregators combine the per-task gradients into one update.

`names()` lists all methods. Methods of [TorchJD](https://torchjd.org) have TorchJD's options:
`aggregators.PCGrad()`, `aggregators.CAGrad(c=0.5)`, `aggregators.UW(3)`, ... Some need the packages that
`pip install 'metamtl[aggregators]'` installs.
"""

import inspect
import textwrap
from typing import Any

from torch import nn

from . import formulas, scalarized, torchjd
from .ada_task import AdaTask
from .auto_lambda import AutoLambda
from .base import Aggregator, Combined, LossWeighting
from .constant import Constant
from .db_mtl import DBMTL
from .dwa import DWA
from .famo import FAMO
from .grad_norm import GradNorm
from .loss_ascent import LossAscent, RawLossAscent
from .mean import Mean
from .nash_mtl import NashMTL
from .rescaled import Rescaled
from .scalarized import Scalarized
from .torchjd import TorchJD

__all__ = [
    "DBMTL",
    "DWA",
    "FAMO",
    "AdaTask",
    "Aggregator",
    "AutoLambda",
    "Combined",
    "Constant",
    "GradNorm",
    "LossAscent",
    "LossWeighting",
    "Mean",
    "NashMTL",
    "RawLossAscent",
    "Rescaled",
    "Scalarized",
    "TorchJD",
    "as_aggregator",
    "names",
]
_NO_METHODS = {
    "Aggregator",
    "Combined",
    "LossWeighting",
    "Rescaled",
    "Scalarized",
    "TorchJD",
    "as_aggregator",
    "names",
}


def names() -> list[str]:
    """The names of all methods."""
    return sorted({*(set(__all__) - _NO_METHODS), *torchjd.names(), *scalarized.names()})


def as_aggregator(value: Any) -> Aggregator:
    """Return `value` if it is an aggregator; wrap an aggregator or scalarizer of TorchJD.

    Raises:
        TypeError: `value` is anything else.
    """
    if isinstance(value, Aggregator):
        return value
    modules = [cls.__module__ for cls in type(value).__mro__]
    if isinstance(value, nn.Module) and any(module.startswith("torchjd.") for module in modules):
        from torchjd import scalarization

        return Scalarized(value) if isinstance(value, scalarization.Scalarizer) else TorchJD(value)
    remedy = "subclass metamtl.aggregators.Aggregator"
    if isinstance(value, str):
        remedy = f"pass aggregators.{value}()" if value in names() else f"there are {', '.join(names())}"
    elif isinstance(value, type):
        remedy = f"pass an instance, {value.__name__}(...)"
    raise TypeError(f"aggregator={value!r} is not an aggregator; {remedy}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *names()})


def __getattr__(name: str) -> Any:
    # Classes of TorchJD's methods are created on first use, because importing TorchJD is slow.
    if name.startswith("_"):
        raise AttributeError(name)
    if name in scalarized.names():
        globals()[name] = _subclass(Scalarized, name, scalarized.wrapped_class(name))
    elif name in torchjd.names():
        globals()[name] = _subclass(TorchJD, name, torchjd.wrapped_class(name))
    else:
        raise AttributeError(f"metamtl.aggregators has no {name!r}; it has {', '.join(names())}.")
    return globals()[name]


def _subclass(base: type[Aggregator], name: str, wrapped: type) -> type[Aggregator]:
    """The class `metamtl.aggregators.<name>`, with the arguments and the docstring of TorchJD's class."""
    signature = inspect.signature(wrapped)
    parameters = list(signature.parameters.values())
    if base is TorchJD and name in torchjd.DRAWS:
        parameters.append(
            inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=0, annotation="int")
        )
    signature = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        try:
            arguments = signature.bind(*args, **options).arguments
        except TypeError as error:
            raise TypeError(f"aggregators.{name}{signature}: {error}.") from error
        base.__init__(self, name, **arguments)  # type: ignore[call-arg]

    paragraphs = [f"TorchJD's `{name}`, a `{base.__name__}`."]
    if name in formulas.FORMULAS:
        paragraphs.append(textwrap.fill(f"Formula: {formulas.FORMULAS[name]}.", 100))
    paragraphs.append(inspect.cleandoc(wrapped.__doc__ or ""))
    namespace = {
        "__init__": __init__,
        "__signature__": signature,
        "__module__": __name__,
        "__doc__": "\n\n".join(paragraphs),
    }
    return type(name, (base,), namespace)
