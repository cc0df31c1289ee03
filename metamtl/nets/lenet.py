"""LeNet, as in the MultiMNIST experiments of multi-task learning, and a decoder to images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .sharing.named_heads import NamedHeads

FEATURES = 50


class LeNet(nn.Module):
    """Convolutions 1-10 (9x9) and 10-20 (5x5) with 2x2 max-pooling, 50 features, and a linear `head`.

    As in Sener and Koltun 2018 and Lin et al. 2019 (https://arxiv.org/abs/1912.12854).
    `[B, 1, 28, 28] -> [B, ways]`.
    """

    sequence = ("body", "head")

    def __init__(self, ways: int) -> None:
        super().__init__()
        self.features = FEATURES
        self.body = nn.Sequential(
            # Pooling before ReLU gives the same result, and ReLU then needs a quarter of the work.
            *(nn.Conv2d(1, 10, 9), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(20 * 3 * 3, FEATURES), nn.ReLU()),
        )
        self.head = nn.Linear(FEATURES, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Decoder(nn.Module):
    """Map features to an image of 28x28 pixels with two linear layers; the values are not bounded.

    `[B, features] -> [B, 1, 28, 28]`.

    >>> import torch
    >>> Decoder(50)(torch.zeros(2, 50)).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(self, features: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(features, hidden), nn.ReLU()),
            *(nn.Linear(hidden, 28 * 28), nn.Unflatten(1, (1, 28, 28))),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def lenet(ways: int = 10) -> LeNet:
    """LeNet for `ways` classes of images of 28x28 pixels.

    >>> sum(p.numel() for p in lenet().body.parameters())
    14890
    """
    return LeNet(ways)


def lenet_heads(outputs: Mapping[str, int], picture: int = 28 * 28) -> NamedHeads:
    """LeNet's body with a head for each task: linear, or a `Decoder` if the task has `picture` outputs.

    >>> model = lenet_heads({"left": 10, "right": 784})
    >>> import torch
    >>> {task: tuple(out.shape) for task, out in model(torch.zeros(2, 1, 28, 28)).items()}
    {'left': (2, 10), 'right': (2, 1, 28, 28)}
    """
    heads = {task: Decoder(FEATURES) if width == picture else width for task, width in outputs.items()}
    return NamedHeads(lenet().body, FEATURES, heads)
