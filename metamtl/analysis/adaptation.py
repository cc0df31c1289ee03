"""The inner loop from inside: how far parameters move, and whether support and query agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..functional import Params
from ..functional.differentiate import gradient
from ..recipes import Recipe
from .arguments import Episodes, Losses, check_analysis
from .directions import inner, norm
from .functions import TaskFunctions
from .result import Result, heatmap

PARTS: tuple[Literal["support", "query"], ...] = ("support", "query")


@dataclass(frozen=True)
class AdaptationReport(Result):
    """What adaptation does to T tasks in K + 1 stages (before, and after each of K inner steps).

    Attributes:
        tasks: the names of the tasks.
        layers: the modules whose parameters the adapter changes, from the first to the last.
        distance: the distance of each layer from the shared parameters, `[K + 1, T, L]`.
        norms: the norm of each layer before adaptation, `[L]`.
        support, query: the losses at each stage, `[K + 1, T]`.
        alignment: the cosine of the gradients of support and query loss with respect to the adapted
            parameters, before adaptation, `[T]`; NaN where one of them is zero.
    """

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    distance: Tensor = field(repr=False)
    norms: Tensor = field(repr=False)
    support: Tensor = field(repr=False)
    query: Tensor = field(repr=False)
    alignment: Tensor

    @property
    def relative(self) -> Tensor:
        """`distance / norms`; infinite for a layer that begins at zero and moves."""
        return self.distance / self.norms

    def scalars(self) -> dict[str, float]:
        """For every layer the mean distance after adaptation, the mean alignment, and the gain in loss."""
        means = zip(self.layers, self.distance[-1].mean(0).tolist())
        gain = self.query[0] - self.query[-1]
        return {
            **{f"distance/{layer}": value for layer, value in means},
            "alignment": float(self.alignment.nanmean()),
            "gain": float(gain.mean()),
        }

    def plot(self, ax: Any = None) -> Any:
        """The distance of every layer of every task after adaptation."""
        return heatmap(ax, self.distance[-1], self.tasks, self.layers, "distance after adaptation")


def adaptation(model: nn.Module, recipe: Recipe, episodes: Episodes, loss: Losses) -> AdaptationReport:
    """Follow the adaptation to every task.

    A meta-gradient aligns the gradients of support and query sets: MAML's is `g_q - lr grad <g_s, g_q>` to
    first order (Nichol et al. 2018, https://arxiv.org/abs/1803.02999). Layers that hardly move are reused
    features (Raghu et al. 2020, https://arxiv.org/abs/1909.09157).

    Args:
        model, recipe, episodes, loss: as in `gradients`; every task has a support set.

    Raises:
        TypeError, ValueError: as `gradients`; a task has no support set; the adapter changes no parameter
            of the model.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(3, torch.Generator().manual_seed(0))
    >>> report = adaptation(model, recipes.maml(steps=2, lr=0.01), episodes, family.loss)
    >>> report.distance.shape, report.layers
    (torch.Size([3, 3, 2]), ('body.0', 'head'))
    """
    tasks = with_support(model, recipe, episodes, loss)
    stages = [_stages(tasks, task) for task in range(len(tasks))]
    names = changed(tasks, [path[-1] for path in stages])
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    start = tasks.params
    distance = [
        [[norm({n: stage[n] - start[n] for n in members}) for members in layers.values()] for stage in path]
        for path in stages
    ]
    losses = [
        [[tasks.measure(task, stage, part) for stage in path] for task, path in enumerate(stages)]
        for part in PARTS
    ]
    support, query = (_vector(values).T for values in losses)
    return AdaptationReport(
        tasks=tasks.names,
        layers=tuple(layers),
        distance=_vector(distance).transpose(0, 1),
        norms=_vector([norm({n: start[n] for n in members}) for members in layers.values()]),
        support=support,
        query=query,
        alignment=_vector([_alignment(tasks, task, names) for task in range(len(tasks))]),
    )


def with_support(model: nn.Module, recipe: Recipe, episodes: Episodes, loss: Losses) -> TaskFunctions:
    """The functions of tasks that all have a support set.

    Raises:
        ValueError: a task has none.
    """
    tasks = TaskFunctions.of(model, recipe, check_analysis(model, recipe, episodes, loss), loss)
    missing = [name for name, data in zip(tasks.names, tasks.data) if data[0] is None]
    if missing:
        raise ValueError(f"the tasks {missing[:10]} have no support set, so nothing is adapted; pass one.")
    return tasks


def changed(tasks: TaskFunctions, adapted: list[Params]) -> list[str]:
    """The trainable parameters that adaptation changes in at least one task.

    Raises:
        ValueError: there is none.
    """
    names = [
        name
        for name, param in tasks.params.items()
        if any(not torch.equal(params[name], param) for params in adapted)
    ]
    if not names:
        raise ValueError(
            f"{type(tasks.problems[0].adapter).__name__} changes no parameter of the model; use a recipe"
            " that adapts, such as recipes.maml(steps=5, lr=0.01)."
        )
    return names


def _stages(tasks: TaskFunctions, task: int) -> list[Params]:
    """The parameters at every stage; an adapter without steps has two."""
    support, _, ids = tasks.data[task]
    with torch.no_grad(), tasks.seeded(task):
        problem = tasks.problems[task]
        path = [
            {name: value.detach() for name, value in stage.items()}
            for stage in problem.path(tasks.params, support, ids)
        ]
    return path if len(path) > 1 else [{**path[0], **tasks.params}, *path]


def _alignment(tasks: TaskFunctions, task: int, names: list[str]) -> float:
    """The cosine of the gradients of the support and the query loss with respect to `names`."""
    problem, frozen = tasks.problems[task], {**tasks.problems[task].frozen, **tasks.params}

    def part_gradient(batch: Any) -> Params:
        def loss(params: Params) -> Tensor:
            return problem.measure({**frozen, **params}, batch)

        with tasks.seeded(task):
            return gradient(loss, {name: tasks.params[name] for name in names}, differentiable=False)

    support, query = map(part_gradient, tasks.data[task][:2])
    scale = norm(support) * norm(query)
    common = {name: value for name, value in support.items() if name in query}
    return inner(common, query) / scale if scale else float("nan")


def _vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
