"""LeNet, as in the MultiMNIST experiments of multi-task learning, and a decoder to images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .sharing.named_heads import NamedHeads

FEATURES = 50


class LeNet(nn.Module):
    """Convolutions 1-10 (9x9) and 10-20 (5x5) with 2x2 max-pooling, 50 features, and a linear `head`.

    As in Sener and Koltun 2018 and Lin et al. 2019 (https://arxiv.org/abs/1912.12854).
    `[B, 1, size, size] -> [B, ways]`.

    Raises:
        ValueError: `size` leaves no pixel after the second pooling.
    """

    sequence = ("body", "head")

    def __init__(self, ways: int, size: int = 28) -> None:
        super().__init__()
        side = ((size - 8) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"size={size}: LeNet needs images of at least 20x20 pixels.")
        self.features = FEATURES
        self.body = nn.Sequential(
            # Pooling before ReLU gives the same result, and ReLU then needs a quarter of the work.
            *(nn.Conv2d(1, 10, 9), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(20 * side * side, FEATURES), nn.ReLU()),
        )
        self.head = nn.Linear(FEATURES, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Decoder(nn.Module):
    """Map features to an image with two linear layers; the values are not bounded.

    `[B, features] -> [B, 1, size, size]`.

    >>> import torch
    >>> Decoder(50)(torch.zeros(2, 50)).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(self, features: int, hidden: int = 256, size: int = 28) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(features, hidden), nn.ReLU()),
            *(nn.Linear(hidden, size * size), nn.Unflatten(1, (1, size, size))),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def lenet(ways: int = 10, size: int = 28) -> LeNet:
    """LeNet for `ways` classes of images of `size`x`size` pixels.

    >>> sum(p.numel() for p in lenet().body.parameters())
    14890
    """
    return LeNet(ways, size)


def lenet_heads(outputs: Mapping[str, int], size: int = 28) -> NamedHeads:
    """LeNet's body with a head for each task: linear, or a `Decoder` if the task has an output per pixel.

    >>> model = lenet_heads({"left": 10, "right": 784})
    >>> import torch
    >>> {task: tuple(out.shape) for task, out in model(torch.zeros(2, 1, 28, 28)).items()}
    {'left': (2, 10), 'right': (2, 1, 28, 28)}
    """
    heads = {
        task: Decoder(FEATURES, size=size) if width == size * size else width
        for task, width in outputs.items()
    }
    return NamedHeads(lenet(size=size).body, FEATURES, heads)
