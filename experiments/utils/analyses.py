"""The analyses of a trained model on several batches of tasks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from metamtl import Recipe, analysis, engines
from metamtl.functional import Params

MOST_LAYERS = 12  # that a report states one by one; its figures have all


class Subject(NamedTuple):
    """A trained model with its recipe, its loss and its parameters before the training.

    Attributes:
        model, recipe: of a training.
        loss: of the tasks, or one for each named task.
        start: the parameters before the training.
        lr: the learning rate of gradient steps.
    """

    model: nn.Module
    recipe: Recipe
    loss: Any
    start: Params
    lr: float


class Context(NamedTuple):
    """Properties of the training that decide which statements hold.

    Attributes:
        named: whether the tasks have names, so that batches have the same ones.
        lr: the learning rate of the gradient steps.
        plain: whether the training itself takes such steps.
        inner: whether the adapter has an inner loop of gradient steps.
        layers: the modules that have trainable parameters.
    """

    named: bool
    lr: float
    plain: bool
    inner: bool
    layers: tuple[str, ...]


class Sample:
    """One batch of tasks, and one of training tasks if they are others; gradients are computed once."""

    def __init__(self, subject: Subject, episodes: Any, train: Any) -> None:
        self.subject, self.episodes, self.train = subject, episodes, train

    @property
    def call(self) -> tuple[Any, ...]:
        """The first arguments of every analysis."""
        return self.subject.model, self.subject.recipe, self.episodes, self.subject.loss

    @cached_property
    def grads(self) -> analysis.Gradients:
        return analysis.gradients(*self.call, engine=engines.Loop())


def _conflict(sample: Sample) -> analysis.Conflict:
    """Without layers in which a task has no gradient, such as a head that the adapter replaces."""
    grads = sample.grads
    moving = {name: rows for name, rows in grads.layers.items() if bool((grads.norms(name) > 0).all())}
    if not moving:
        raise ValueError("every layer has a task whose gradient is zero, so no angles are defined.")
    return analysis.conflict(replace(grads, layers=moving))


def _generalization(sample: Sample) -> analysis.Generalization:
    if sample.train is None:
        raise ValueError(
            "the adapter knows only the training tasks, so there are no others to compare with."
        )
    model, recipe, episodes, loss = sample.call
    return analysis.generalization(model, recipe, sample.train, episodes, loss, start=sample.subject.start)


ANALYSES: dict[str, Callable[[Sample], analysis.Result]] = {
    "cosine": lambda sample: analysis.cosine(sample.grads),
    "transfer": lambda sample: analysis.transfer(sample.grads, sample.subject.lr),
    "look_ahead": lambda sample: analysis.look_ahead(
        *sample.call, lr=sample.subject.lr, grads=sample.grads
    ),
    "conflict": _conflict,
    "descent": lambda sample: analysis.descent(*sample.call, lr=sample.subject.lr),
    "adaptation": lambda sample: analysis.adaptation(*sample.call),
    "line": lambda sample: analysis.line(*sample.call),
    "generalization": _generalization,
    "numerics": lambda sample: analysis.check_numerics(*sample.call),
}


class Results(NamedTuple):
    """The results of every analysis, one for each batch, and why others do not apply."""

    results: dict[str, list[Any]]
    omitted: dict[str, str]


def analyze(samples: Iterable[Sample]) -> Results:
    """Apply every analysis to every batch.

    An analysis that raises an error on one batch, because it does not apply to this model, recipe or data,
    is omitted with the text of the error. Warnings are not shown: the results have what they say.
    """
    results: dict[str, list[Any]] = {name: [] for name in ANALYSES}
    omitted: dict[str, str] = {}
    for sample in samples:
        for name in list(results):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    results[name].append(ANALYSES[name](sample))
            except (ValueError, RuntimeError, FloatingPointError) as error:
                del results[name]
                omitted[name] = str(error)
    return Results(results, omitted)
