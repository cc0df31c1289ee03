"""Arguments of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Inputs(NamedTuple):
    """Positional and keyword arguments of a model, used as the `x` of a `Batch`.

    >>> import torch
    >>> from metamtl import Batch
    >>> x = Inputs(args=(torch.zeros(4, 8),), kwargs={"mask": torch.ones(4, 8)})
    >>> Batch(x, torch.zeros(4)).x.kwargs["mask"].shape
    torch.Size([4, 8])
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
