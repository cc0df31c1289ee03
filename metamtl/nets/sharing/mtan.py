"""Attention to the features of a shared body: MTAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .named import NamedTasks, Outputs, check_names, distinct


class MTAN(NamedTasks):
    """Shared stages; each task looks at the features of every stage through a mask of its own.

    With `p_j` the features after stage j: `h_j = sigmoid(attend_j([h_{j-1}, p_j])) * p_j`, `attend_j` two
    layers over the channels (1x1 convolutions) with a ReLU between; the head reads the last `h`. Liu,
    Johns, Davison 2019, https://arxiv.org/abs/1803.10704.

    Differs from the paper in: 1. no BatchNorm in the attention; 2. it sees a stage's output, not features
    from its middle; 3. where `h_{j-1}` is larger than `p_j` it is averaged down rather than convolved.

    Args:
        stages: the shared body in stages, whose last returns `[..., features]`; `[B, C, H, W]`, `[B, F]`
            or any other shape between them.
        widths: channels that each stage returns; the last are the features of the heads.
        outputs: for each task the width of its linear head, or a module that is its head.
        axis: which axis holds the channels: 1 for vectors and images, -1 for sequences `[B, L, F]`.

    Raises:
        ValueError: widths that are not those of the stages.

    >>> stages = [nn.Conv2d(3, 8, 3, stride=2), nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(72, 6))]
    >>> model = MTAN(stages, widths=[8, 6], outputs={"a": 3, "b": 1})
    >>> model(torch.zeros(5, 3, 8, 8), task="a").shape
    torch.Size([5, 3])
    """

    def __init__(
        self, stages: Sequence[nn.Module], widths: Sequence[int], outputs: Outputs, axis: int = 1
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        if not stages or len(stages) != len(widths):
            raise ValueError(f"{kind}: {len(stages)} stages and {len(widths)} widths; give one for each.")
        self.axis, self.widths = axis, tuple(widths)
        self.stages = nn.ModuleList(distinct(stages, f"the stages of {kind}"))
        before = [0, *widths]
        self.attend = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    nn.Sequential(nn.Linear(old + new, new), nn.ReLU(), nn.Linear(new, new))
                    for old, new in zip(before, widths)
                )
                for name in outputs
            }
        )
        self.add_heads(outputs, widths[-1])

    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        shared: list[Tensor] = []
        for stage in self.stages:
            shared.append(stage(shared[-1]) if shared else stage(*inputs, **keywords))
            found, told = shared[-1].shape, self.widths[len(shared) - 1]
            if len(found) < 2 or found[self.axis] != told:
                raise ValueError(
                    f"MTAN: stage {len(shared) - 1} returned {list(found)}, whose axis {self.axis} is not"
                    f" the {told} channels that widths= says; give those, or another axis=."
                )
        return {name: self.head(name, self._seen(name, shared)) for name in wanted}

    def _seen(self, name: str, shared: list[Tensor]) -> Tensor:
        """The task's own view of the last stage's features."""
        own: Tensor | None = None
        for attend, features in zip(cast(nn.ModuleList, self.attend[name]), shared):
            channels_last = features.movedim(self.axis, -1)
            if own is None:
                read = channels_last
            else:
                read = torch.cat([_like(own, channels_last), channels_last], -1)
            own = attend(read).sigmoid() * channels_last
        assert own is not None
        return own.movedim(-1, self.axis)


def _like(features: Tensor, target: Tensor) -> Tensor:
    """`[B, ..., C]` averaged to the places of `target`, `[B, places, C']`."""
    here, there = features.shape[1:-1], target.shape[1:-1]
    if here == there:
        return features
    if not there:
        return features.flatten(1, -2).mean(1)
    if len(here) != len(there) or len(there) > 3:
        raise ValueError(
            f"MTAN: features {list(features.shape)} (channels last) cannot be averaged to the places of"
            f" {list(target.shape)}; keep the number of axes between stages, or flatten to vectors."
        )
    return F.interpolate(features.movedim(-1, 1), list(there), mode="area").movedim(1, -1)
