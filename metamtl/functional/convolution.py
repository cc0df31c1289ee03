"""Convolutions of small images, computed as one matrix product for each task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .decompositions import DecomposeOps


def as_products() -> DecomposeOps:
    """Context manager in which two-dimensional convolutions are matrix products of patches and weights.

    With task-specific weights, vmap computes one grouped convolution with one group per task, whose
    gradient is slow on a CPU. As a batched matrix product in compiled code, a first-order step of Conv-4
    takes two thirds of the time. For a kernel of n elements, the patches need n times the memory of the
    image.
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
    """`F.conv2d` as a matrix product. With groups or a string as padding, `F.conv2d` itself is called."""
    if groups != 1 or input.dim() != 4 or isinstance(padding, str):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    (sy, sx), (py, px), (dy, dx) = _pair(stride), _pair(padding), _pair(dilation)
    out_channels, in_channels, height, width = weight.shape
    x = F.pad(input.permute(0, 2, 3, 1), (0, 0, px, px, py, py))
    rows = (x.shape[1] - dy * (height - 1) - 1) // sy + 1
    columns = (x.shape[2] - dx * (width - 1) - 1) // sx + 1

    def pixels(i: int, j: int) -> Tensor:
        """The input values that kernel element (i, j) multiplies, for every output position."""
        top, left = dy * i, dx * j
        return x[:, top : top + sy * (rows - 1) + 1 : sy, left : left + sx * (columns - 1) + 1 : sx]

    patches = torch.cat([pixels(i, j) for i in range(height) for j in range(width)], -1)
    size = height * width * in_channels
    y = patches.reshape(-1, size) @ weight.permute(2, 3, 1, 0).reshape(size, out_channels)
    y = y if bias is None else y + bias
    return y.view(len(input), rows, columns, out_channels).permute(0, 3, 1, 2)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
