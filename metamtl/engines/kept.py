"""What an engine remembers of a model, for as long as the model lives."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

NAME = "_metamtl_kept"


class Kept(WeakKeyDictionary[Any, dict[Any, Any]]):
    """By engine, what it remembers. Copies and pickles of a model begin with nothing."""

    def __deepcopy__(self, memo: Any) -> Kept:
        return Kept()

    def __reduce__(self) -> Any:
        return Kept, ()


def kept(model: nn.Module, engine: Any) -> dict[Any, Any]:
    """The dict of this engine for this model.

    It lies in the model itself: what is compiled for a model refers to it, and a table of our own, even one
    of weak keys, would keep both for ever. So they go together when the model goes.
    """
    everyone: Kept = vars(model).setdefault(NAME, Kept())
    return everyone.setdefault(engine, {})
