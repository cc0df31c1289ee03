"""Aggregators: what do the tasks' gradients say together?

`Mean` is ours; every other name is TorchJD's: `aggregators.PCGrad()`, `aggregators.CAGrad(c=0.5)`, ...
`aggregators.names()` lists them.
"""

from collections.abc import Callable
from functools import partial

from .base import Aggregator
from .mean import Mean
from .torchjd import TorchJD, names

__all__ = ["Aggregator", "Mean", "TorchJD", "names"]


def __getattr__(name: str) -> Callable[..., TorchJD]:
    # Looked up when asked for: importing TorchJD takes longer than importing metamtl.
    if name.startswith("_") or name not in names():
        raise AttributeError(
            f"metamtl.aggregators has no {name!r}; it has Mean and, from TorchJD, {', '.join(names())}."
            if not name.startswith("_")
            else name
        )
    return partial(TorchJD, name)
