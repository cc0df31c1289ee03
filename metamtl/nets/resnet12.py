"""ResNet-12, the deeper net of few-shot learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .conv4 import Mean
from .norm import Policy
from .norm import batchnorm as norms

Norm = Callable[[int], nn.Module]


class Residual(nn.Module):
    """Three 3x3 convolutions plus a 1x1 convolution, followed by LeakyReLU and 2x2 max-pooling."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (inputs, outputs, outputs):
            layers += [
                nn.Conv2d(width, outputs, 3, padding=1, bias=False),
                norm(outputs),
                nn.LeakyReLU(0.1),
            ]
        self.main = nn.Sequential(*layers[:-1])
        self.side = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        # Pooling before ReLU gives the same result, and ReLU then needs a quarter of the work.
        return F.leaky_relu(F.max_pool2d(self.main(x) + self.side(x), 2), 0.1)


class ResNet12(nn.Module):
    """A `body` of four residual blocks and the mean over height and width, and a linear `head`."""

    def __init__(self, ways: int, channels: int, widths: Sequence[int], norm: Norm) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        blocks = [Residual(size, width, norm) for size, width in zip(inputs, widths)]
        self.features = widths[-1]
        self.body = nn.Sequential(*blocks, Mean())
        self.head = nn.Linear(self.features, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def resnet12(
    ways: int = 5,
    *,
    channels: int = 3,
    widths: Sequence[int] = (64, 160, 320, 640),
    batchnorm: Policy = "transductive",
    steps: int | None = None,
) -> ResNet12:
    """ResNet-12 of Oreshkin et al. 2018, https://arxiv.org/abs/1805.10123: `[B, C, H, W] -> [B, ways]`.

    The widths are those of MetaOptNet (Lee et al. 2019, https://arxiv.org/abs/1904.03758); Oreshkin et al.
    use `(64, 128, 256, 512)`. Images must be at least 16x16, or `2^len(widths)` for other depths.

    Differs from MetaOptNet's code in: 1. no dropout and no DropBlock; 2. features are averaged over height
    and width; 3. `batchnorm` (see `nets.batchnorm`) is transductive by default.

    >>> sum(p.numel() for p in resnet12(5).body.parameters())
    12424320
    """
    if not widths:
        raise ValueError("widths=() has no block; pass the channels of at least one block.")
    return ResNet12(ways, channels, widths, norms(batchnorm, steps=steps))
