"""MTAN: task-specific attention to the features of a shared body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .named import NamedTasks, Outputs, check_names, distinct


class MTAN(NamedTasks):
    """Shared stages, with a task-specific attention mask on the features of every stage.

    With `p_j` the features after stage j, `h_j = sigmoid(attend_j([h_{j-1}, p_j])) * p_j`, where `attend_j`
    is two layers over the channels (1x1 convolutions) with ReLU between. The input of the head is the last
    `h`. Liu, Johns, Davison 2019, https://arxiv.org/abs/1803.10704.

    Differs from the paper in: 1. no BatchNorm in the attention; 2. its input is the output of a stage, not
    features inside the stage; 3. if `h_{j-1}` is larger than `p_j`, it is average-pooled instead of
    convolved.

    Args:
        stages: the stages of the shared body; the last returns `[..., features]`, the others
            `[B, C, H, W]`, `[B, F]` or any other shape.
        widths: output channels of each stage; the last is the number of features of the heads.
        outputs: for each task the width of its linear head, or a module to use as its head.
        axis: the channel axis: 1 for vectors and images, -1 for sequences `[B, L, F]`.

    Raises:
        ValueError: `widths` does not match the stages.

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
            raise ValueError(f"{kind}: {len(stages)} stages and {len(widths)} widths; both must be equal.")
        self.axis, self.widths = axis, tuple(widths)
        self.stages = nn.ModuleList(distinct(stages, f"the stages of {kind}"))
        inputs = [0, *widths]
        self.attend = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    nn.Sequential(nn.Linear(old + new, new), nn.ReLU(), nn.Linear(new, new))
                    for old, new in zip(inputs, widths)
                )
                for name in outputs
            }
        )
        self.add_heads(outputs, widths[-1])

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        shared: list[Tensor] = []
        for stage in self.stages:
            shared.append(stage(shared[-1]) if shared else stage(*inputs, **keywords))
            shape, width = shared[-1].shape, self.widths[len(shared) - 1]
            if len(shape) < 2 or shape[self.axis] != width:
                raise ValueError(
                    f"MTAN: stage {len(shared) - 1} returned {list(shape)}, whose axis {self.axis} is not"
                    f" the {width} channels in widths=; change widths= or axis=."
                )
        return {name: self.head(name, self._seen(name, shared)) for name in task_names}

    def _seen(self, name: str, shared: list[Tensor]) -> Tensor:
        """The features of the last stage after the attention of the task."""
        state: Tensor | None = None
        for attend, features in zip(cast(nn.ModuleList, self.attend[name]), shared):
            channels_last = features.movedim(self.axis, -1)
            if state is None:
                read = channels_last
            else:
                read = torch.cat([_like(state, channels_last), channels_last], -1)
            state = attend(read).sigmoid() * channels_last
        assert state is not None
        return state.movedim(-1, self.axis)


def _like(features: Tensor, target: Tensor) -> Tensor:
    """Average `features` `[B, ..., C]` to the spatial size of `target`, `[B, ..., C']`."""
    size, target_size = features.shape[1:-1], target.shape[1:-1]
    if size == target_size:
        return features
    if not target_size:
        return features.flatten(1, -2).mean(1)
    if len(size) != len(target_size) or len(target_size) > 3:
        raise ValueError(
            f"MTAN: features {list(features.shape)} (channels last) cannot be averaged to the size of"
            f" {list(target.shape)}; keep the number of axes between stages, or flatten to vectors."
        )
    return F.interpolate(features.movedim(-1, 1), list(target_size), mode="area").movedim(1, -1)
