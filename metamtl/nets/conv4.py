"""The four-block convolutional net of few-shot learning, in both published variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from .norm import Policy
from .norm import batchnorm as norms

Downsample = Literal["stride", "pool"]


class Conv4(nn.Module):
    """A `body` of four blocks of 3x3 convolution, BatchNorm and ReLU, and a linear `head`.

    `downsample="stride"`: convolutions of stride 2, then the mean over height and width (the MAML
    authors' Omniglot net). `downsample="pool"`: stride 1 and 2x2 max-pooling, then flattening (their
    mini-ImageNet net, and that of most later work). `[B, C, H, W] -> [B, ways]`.
    """

    sequence = ("body", "head")

    def __init__(
        self,
        ways: int,
        channels: int,
        hidden: int,
        size: int,
        downsample: Downsample,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        if downsample not in ("stride", "pool"):
            raise ValueError(f"downsample={downsample!r} is not one of 'stride', 'pool'.")
        if downsample == "pool" and size < 16:
            raise ValueError(f"four 2x2 poolings need images of at least 16x16, found size={size}.")
        blocks: list[nn.Module] = []
        for block in range(4):
            inputs = channels if block == 0 else hidden
            if downsample == "stride":
                blocks += [nn.Conv2d(inputs, hidden, 3, stride=2, padding=1), norm(hidden), nn.ReLU()]
            else:
                # Pooling before ReLU gives the same result, and ReLU then needs a quarter of the work.
                blocks += [nn.Conv2d(inputs, hidden, 3, padding=1), norm(hidden)]
                blocks += [nn.MaxPool2d(2), nn.ReLU()]
        blocks.append(Mean() if downsample == "stride" else nn.Flatten())
        self.features = hidden if downsample == "stride" else hidden * (size // 16) ** 2
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(self.features, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Mean(nn.Module):
    """The mean over height and width: `[B, C, H, W] -> [B, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def conv4(
    ways: int = 5,
    *,
    channels: int = 1,
    hidden: int = 64,
    size: int = 28,
    downsample: Downsample = "stride",
    batchnorm: Policy = "transductive",
    steps: int | None = None,
) -> Conv4:
    """Conv-4 for `ways` classes of square images of `size` pixels.

    Differs from the MAML authors' code in: 1. BatchNorm has a scale and a shift, not only a shift; 2. an
    inner loop over all parameters also adapts those of BatchNorm (set `adapts` to exclude them).

    Args:
        ways: number of classes N.
        channels: channels of an image.
        hidden: channels of every block.
        size: height and width of an image.
        downsample: `"stride"` or `"pool"`, see `Conv4`.
        batchnorm: policy for the statistics, see `nets.batchnorm`.
        steps: number of inner steps K, for `batchnorm="per_step"`.

    >>> import torch
    >>> conv4(5)(torch.zeros(2, 1, 28, 28)).shape, conv4(5, downsample="pool").features
    (torch.Size([2, 5]), 64)
    """
    return Conv4(ways, channels, hidden, size, downsample, norms(batchnorm, steps=steps))
