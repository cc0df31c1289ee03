"""Convolutions of small images as one matrix product for each task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .decompositions import DecomposeOps


def as_products() -> DecomposeOps:
    """Within it, two-dimensional convolutions run as products of patches and weights.

    Under vmap with weights of their own, tasks are the groups of one convolution, whose gradient is slow
    on a CPU; as a batched product, compiled, a first-order step of Conv-4 takes two thirds of the time.
    Patches need as many times the memory of an image as the kernel has elements.
    """
    return DecomposeOps({F.conv2d: conv2d})


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d`; where it has groups, or its padding a name, by torch."""
    if groups != 1 or input.dim() != 4 or isinstance(padding, str):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    (down, right), (above, beside), (dy, dx) = _pair(stride), _pair(padding), _pair(dilation)
    out, channels, high, wide = weight.shape
    x = F.pad(input.permute(0, 2, 3, 1), (0, 0, beside, beside, above, above))
    rows = (x.shape[1] - dy * (high - 1) - 1) // down + 1
    columns = (x.shape[2] - dx * (wide - 1) - 1) // right + 1

    def seen_by(i: int, j: int) -> Tensor:
        """What every position of the kernel has under its element (i, j)."""
        top, left = dy * i, dx * j
        return x[
            :, top : top + down * (rows - 1) + 1 : down, left : left + right * (columns - 1) + 1 : right
        ]

    patches = torch.cat([seen_by(i, j) for i in range(high) for j in range(wide)], -1)
    size = high * wide * channels
    y = patches.reshape(-1, size) @ weight.permute(2, 3, 1, 0).reshape(size, out)
    y = y if bias is None else y + bias
    return y.view(len(input), rows, columns, out).permute(0, 3, 1, 2)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
