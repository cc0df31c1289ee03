"""Per-task gradients as a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..engines import Engine
from ..functional import Params
from ..functional.gramian import gramian
from ..recipes import Recipe
from .arguments import Episodes, Losses, check_analysis, task_names
from .layers import check_layers, layers_of, mean_of_groups
from .result import Result, bars
from .rows import Rows, exact_rows
from .sketch import Sketch


@dataclass(frozen=True)
class Gradients(Result):
    """Per-task gradients: R rows for the tasks, columns for the shared parameters, by layer.

    Attributes:
        tasks: the labels of the rows: tasks, examples `task[i]`, or groups.
        losses: the query loss of each row, `[R]`.
        rows: the gradients, `[R, *shape]` by parameter name; if sketched, `[R, dim]` by parameter name.
        layers: for each layer the names of its rows.
        project: the projection of the rows, or None.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    rows: Params = field(repr=False)
    layers: dict[str, tuple[str, ...]] = field(repr=False)
    project: Sketch | None = None

    @property
    def error(self) -> float | None:
        """The standard error of a cosine if the gradients are sketched; None if they are exact."""
        return None if self.project is None else self.project.error

    def matrix(self, layer: str | None = None) -> Tensor:
        """The gradients of one layer, or of all, `[R, n]`."""
        return torch.cat([self.rows[name].flatten(1) for name in self._names(layer)], 1)

    def gramian(self, layer: str | None = None) -> Tensor:
        """The inner products of the rows, `[R, R]`, in double precision on the CPU."""
        total = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)
        for name in self._names(layer):
            total += gramian(self.rows[name].flatten(1)).cpu()
        return total

    def norms(self, layer: str | None = None) -> Tensor:
        """The Euclidean norms of the rows, `[R]`."""
        return self.gramian(layer).diagonal().sqrt()

    def cosines(self, layer: str | None = None) -> Tensor:
        """The cosines of the rows, `[R, R]`.

        Raises:
            ValueError: the gradient of a row is zero.
        """
        gramian, norms = self.gramian(layer), self.norms(layer)
        if bool((norms == 0).any()):
            zero = [task for task, value in zip(self.tasks, norms.tolist()) if value == 0]
            where = "" if layer is None else f" in layer {layer!r}"
            raise ValueError(
                f"the gradients of tasks {zero[:10]} are zero{where}, so their cosines are not defined;"
                " exclude these tasks, or look for a saturated or constant output in the computation of"
                " their losses."
            )
        return (gramian / torch.outer(norms, norms)).clamp(-1, 1).fill_diagonal_(1)

    def direction(self, task: str) -> Params:
        """The gradient of one row, by parameter name.

        Raises:
            ValueError: there is no such row, or the gradients are sketched.
        """
        if self.project is not None:
            raise ValueError(
                "these gradients are sketched, so they are no directions in parameter space; compute them"
                " with project=None."
            )
        if task not in self.tasks:
            raise ValueError(
                f"there is no row {task!r}; there are {', '.join(map(repr, self.tasks[:10]))}."
            )
        return {name: rows[self.tasks.index(task)] for name, rows in self.rows.items()}

    def _names(self, layer: str | None) -> Sequence[str]:
        if layer is None:
            return list(self.rows)
        if layer not in self.layers:
            raise ValueError(f"there is no layer {layer!r}; there are {', '.join(map(repr, self.layers))}.")
        return self.layers[layer]

    def as_dict(self) -> dict[str, Any]:
        """Losses, norms and Gramians; not the gradients themselves."""
        return {
            "kind": "Gradients",
            "tasks": list(self.tasks),
            "losses": self.losses.tolist(),
            "norms": {layer: self.norms(layer).tolist() for layer in self.layers},
            "gramian": self.gramian().tolist(),
            "error": self.error,
        }

    def scalars(self) -> dict[str, float]:
        return {f"norm/{task}": value for task, value in zip(self.tasks, self.norms().tolist())}

    def plot(self, ax: Any = None) -> Any:
        return bars(ax, self.tasks, self.norms().tolist(), "norms of the gradients")


def gradients(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    *,
    per: Literal["task", "example", "group"] = "task",
    groups: Mapping[str, Iterable[str]] | None = None,
    layers: Iterable[str] | None = None,
    project: Sketch | None = None,
    chunk: int | None = None,
    engine: Engine | None = None,
) -> Gradients:
    """Compute the gradient of each task's objective with respect to the shared parameters.

    With an adapter, this is the meta-gradient, through the adaptation; with `Recipe(layer=...)`, the
    gradient at the features. Each task costs one call of the engine's backward pass. The model, its
    `.grad` and the global random generators do not change.

    Args:
        model, recipe, episodes, loss, engine: as in `meta_backward`. The tasks of a meta-batch are named by
            their ids if `episodes.task` is `[T]` without repetition, else by their positions.
        per: one row for each task, for each query example (labeled `task[i]`; the loss must be a mean over
            examples), or for each group of tasks.
        groups: with `per="group"`, the tasks of each group; a row is the mean gradient of its tasks.
        layers: prefixes of parameter names, one for each layer of the result (`["body.0", "head"]`); other
            parameters are left out. If None, every module that has parameters is a layer.
        project: a `Sketch`, for large models; if None, the gradients are exact.
        chunk: number of rows that are computed at the same time; if None, all. With a sketch, only the
            gradients of one chunk exist at any time.

    Raises:
        TypeError, ValueError, FloatingPointError: as `meta_backward`; an argument is out of range.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(4, torch.Generator().manual_seed(0))
    >>> grads = gradients(model, recipes.maml(steps=1, lr=0.01), episodes, family.loss)
    >>> grads.cosines().shape, list(grads.layers)
    (torch.Size([4, 4]), ['body.0', 'head'])
    """
    episodes = check_analysis(model, recipe, episodes, loss, engine)
    if per not in ("task", "example", "group"):
        raise ValueError(f"per={per!r} is not one of 'task', 'example', 'group'.")
    if (per == "group") != (groups is not None):
        raise ValueError("groups= is for per='group' only: pass both, or neither.")
    if project is not None and not isinstance(project, Sketch):
        raise TypeError(f"project={project!r}; pass a Sketch, such as analysis.Sketch(dim=8192), or None.")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk={chunk!r}; pass a number of rows, at least 1, or None for all.")
    prefixes = check_layers(model, layers)
    parts: list[Rows] = []
    for part in exact_rows(model, recipe, episodes, loss, per == "example", chunk, engine):
        selected = part.select(model, prefixes)
        parts.append(selected if project is None else selected.map(project))
    rows = Rows.concatenate(parts)
    names = rows.labels if per == "example" else task_names(episodes)
    if groups is not None:
        names, rows = mean_of_groups(rows, names, groups)
    return Gradients(names, rows.losses, rows.rows, layers_of(model, rows.rows, prefixes), project)
