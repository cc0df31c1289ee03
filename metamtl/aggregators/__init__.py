"""Aggregators: what do the tasks' gradients say together?

`names()` lists them all. Those that [TorchJD](https://torchjd.org) has are TorchJD's, with its options:
`aggregators.PCGrad()`, `aggregators.CAGrad(c=0.5)`, `aggregators.UW(3)`, ...
"""

from collections.abc import Callable
from functools import partial

from . import scalarized, torchjd
from .ada_task import AdaTask
from .auto_lambda import AutoLambda
from .base import Aggregator
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
    "AdaTask",
    "Aggregator",
    "AutoLambda",
    "DBMTL",
    "DWA",
    "FAMO",
    "GradNorm",
    "LossAscent",
    "Mean",
    "NashMTL",
    "RawLossAscent",
    "Rescaled",
    "Scalarized",
    "TorchJD",
    "names",
]
_NO_METHODS = {"Aggregator", "Rescaled", "Scalarized", "TorchJD", "names"}


def names() -> list[str]:
    """Every method of combining tasks, by its name here."""
    return sorted([*(set(__all__) - _NO_METHODS), *torchjd.names(), *scalarized.names()])


def __getattr__(name: str) -> Callable[..., Aggregator]:
    # Looked up when asked for: importing TorchJD takes longer than importing metamtl.
    if name.startswith("_"):
        raise AttributeError(name)
    if name in scalarized.names():
        return partial(Scalarized, name)
    if name in torchjd.names():
        return partial(TorchJD, name)
    raise AttributeError(f"metamtl.aggregators has no {name!r}; it has {', '.join(names())}.")
