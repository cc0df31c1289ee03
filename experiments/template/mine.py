"""Your own data, net and method. Change what you need; the rest may stay."""

from __future__ import annotations

import numpy as np
from torch import nn

from metamtl import Recipe, adapters, tasks

WIDTH = 16  # of the example's input vectors


class Data:
    """Few-shot tasks from arrays. A source of tasks is any class with `split(name)`."""

    def __init__(self, ways: int = 5, shots: int = 1, queries: int = 10) -> None:
        self.ways, self.shots, self.queries = ways, shots, queries
        # Replace these four lines by your own arrays: inputs [M, ...], for example images [M, C, H, W] of
        # bytes, and labels [M], numbers or strings.
        rng = np.random.default_rng(0)
        self.labels = np.repeat(np.arange(60), 30)
        centers = rng.normal(size=(60, WIDTH))
        self.inputs = (centers[self.labels] + rng.normal(size=(len(self.labels), WIDTH))).astype(np.float32)
        # Classes of training, validation and test are disjoint: test tasks have new classes.
        self.classes = {"train": range(0, 40), "validation": range(40, 50), "test": range(50, 60)}

    def split(self, name: str) -> tasks.FewShot:
        """The tasks of "train", "validation" or "test"."""
        return tasks.FewShot(
            self.inputs,
            self.labels,
            ways=self.ways,
            shots=self.shots,
            queries=self.queries,
            classes=self.classes[name],
        )


def net(ways: int = 5, hidden: int = 64) -> nn.Module:
    """Any module. With the names `body` and `head`, ANIL, BOIL and ProtoNet find their parts."""
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(WIDTH, hidden), nn.ReLU())
    model.head = nn.Linear(hidden, ways)
    return model


def method(steps: int = 3, lr: float = 0.1) -> Recipe:
    """A method of your own: class means as the head, then gradient steps on all parameters.

    An adapter of your own is a subclass of `adapters.Adapter` with `forward`.
    """
    return Recipe(adapters.Chain(adapters.Prototype(), adapters.Gradient(steps, lr)))
