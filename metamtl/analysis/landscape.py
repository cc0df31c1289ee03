"""The loss along the line from the initial to the adapted parameters, and on a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import Params
from ..recipes import Recipe
from .adaptation import PARTS, changed, with_support
from .arguments import Episodes, Losses
from .directions import check_direction, inner, norm
from .functions import TaskFunctions
from .result import Result, axes


@dataclass(frozen=True)
class Line(Result):
    """Losses of T tasks at P points of the line `(1 - a) theta + a phi_t`.

    Attributes:
        tasks: the names of the tasks.
        positions: the values of a, `[P]`: 0 is the shared, 1 the adapted parameters.
        support, query: the losses of each task, `[T, P]`.
    """

    tasks: tuple[str, ...]
    positions: Tensor = field(repr=False)
    support: Tensor = field(repr=False)
    query: Tensor = field(repr=False)

    def scalars(self) -> dict[str, float]:
        """The mean position of the lowest loss, of the support and the query sets."""
        lowest = {"support": self.support.argmin(1), "query": self.query.argmin(1)}
        return {f"lowest/{name}": float(self.positions[i].mean()) for name, i in lowest.items()}

    def plot(self, ax: Any = None) -> Any:
        ax = axes(ax)
        for name, losses, style in (("support", self.support, "--"), ("query", self.query, "-")):
            for row in losses:
                ax.plot(self.positions, row, style, color="gray", linewidth=0.5)
            ax.plot(self.positions, losses.mean(0), style, color="black", label=f"{name}, mean")
        ax.set_xlabel("0: before adaptation, 1: after")
        ax.set_ylabel("loss")
        ax.legend()
        return ax.figure


@dataclass(frozen=True)
class Surface(Result):
    """The mean loss of some tasks on a plane in parameter space.

    Attributes:
        tasks: the tasks whose mean query loss it is.
        coordinates: along the first and the second direction, `[P]` each.
        values: the loss, `[P, P]`; row i is `coordinates[0][i]`, column j is `coordinates[1][j]`.
        points: the coordinates of named points.
    """

    tasks: tuple[str, ...]
    coordinates: tuple[Tensor, Tensor] = field(repr=False)
    values: Tensor = field(repr=False)
    points: dict[str, tuple[float, float]]

    def scalars(self) -> dict[str, float]:
        return {"lowest": float(self.values.min()), "highest": float(self.values.max())}

    def plot(self, ax: Any = None) -> Any:
        """Contour lines, and the named points."""
        ax = axes(ax)
        lines = ax.contour(
            self.coordinates[0].numpy(), self.coordinates[1].numpy(), self.values.T.numpy(), levels=20
        )
        ax.figure.colorbar(lines, ax=ax)
        for name, (x, y) in self.points.items():
            ax.plot([x], [y], "k.")
            ax.annotate(name, (x, y))
        return ax.figure


def line(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    *,
    points: int = 21,
    span: tuple[float, float] = (-0.5, 1.5),
) -> Line:
    """Compute the losses of every task on the line through the initial and the adapted parameters.

    Goodfellow, Vinyals, Saxe 2015, https://arxiv.org/abs/1412.6544.

    Args:
        model, recipe, episodes, loss: as in `adaptation`.
        points: number of points P.
        span: the first and the last position; 0 is before adaptation, 1 after it.

    Raises:
        TypeError, ValueError: as `adaptation`; `points` or `span` is out of range.
    """
    tasks = with_support(model, recipe, episodes, loss)
    positions = _positions(points, span)
    adapted = _adapted(tasks)
    changed(tasks, adapted)
    losses = torch.zeros(2, len(tasks), points, dtype=torch.float64)
    for task, end in enumerate(adapted):
        for i, a in enumerate(positions.tolist()):
            between = {n: torch.lerp(p, end[n], a) for n, p in tasks.params.items()}
            for part, name in enumerate(PARTS):
                losses[part, task, i] = tasks.measure(task, {**end, **between}, name)
    return Line(tasks.names, positions, losses[0], losses[1])


def surface(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    *,
    tasks: tuple[str, str] | None = None,
    directions: Sequence[Params] | None = None,
    points: int = 15,
    span: tuple[float, float] = (-0.5, 1.5),
) -> Surface:
    """Compute the mean query loss on a plane through the shared parameters, without further adaptation.

    The plane of two tasks contains theta and the adapted parameters of both; the second direction is made
    orthogonal to the first, and coordinates are in units of `|phi_a - theta|`. It is the mean loss of the
    two. With `directions`, the plane is `theta + x d_1 + y d_2`, and the mean is that of all tasks. Li et
    al. 2018, https://arxiv.org/abs/1712.09913.

    Args:
        model, recipe, episodes, loss: as in `adaptation`.
        tasks: the names of two tasks; if None, the first two.
        directions: two directions in parameter space, instead of `tasks`.
        points, span: number of points, and the first and last coordinate, in each direction.

    Raises:
        TypeError, ValueError: as `adaptation`; both `tasks` and `directions` are passed; the two directions
            are parallel.
    """
    functions = with_support(model, recipe, episodes, loss)
    grid, theta = _positions(points, span), functions.params
    if directions is not None:
        if tasks is not None or len(directions) != 2:
            raise ValueError("pass two directions, or the names of two tasks, but not both.")
        first, second = (check_direction(d, theta, f"directions[{i}]") for i, d in enumerate(directions))
        chosen, marks = list(range(len(functions))), {"theta": (0.0, 0.0)}
    else:
        names = functions.names[:2] if tasks is None else tuple(tasks)
        chosen = [functions.index(name) for name in names]
        if len(set(chosen)) != 2:
            raise ValueError(f"tasks={names}: a plane needs two different tasks, or directions=.")
        first, second, marks = _plane(functions, chosen)
    values = torch.zeros(points, points, dtype=torch.float64)
    for i, x in enumerate(grid.tolist()):
        for j, y in enumerate(grid.tolist()):
            point = {n: p + x * first.get(n, 0.0) + y * second.get(n, 0.0) for n, p in theta.items()}
            losses = [functions.measure(task, point, "query") for task in chosen]
            values[i, j] = sum(losses) / len(losses)
    return Surface(tuple(functions.names[t] for t in chosen), (grid, grid.clone()), values, marks)


def _plane(
    functions: TaskFunctions, chosen: list[int]
) -> tuple[Params, Params, dict[str, tuple[float, float]]]:
    """Two orthogonal directions of equal length, and the coordinates of theta and both adapted points."""
    theta, adapted = functions.params, _adapted(functions, chosen)
    names = changed(functions, adapted)
    first, other = ({name: end[name] - theta[name] for name in names} for end in adapted)
    length = norm(first)
    along = inner(first, other) / length**2 if length else 0.0
    rest = {name: other[name] - along * first[name] for name in names}
    if not length or norm(rest) <= 1e-6 * length:
        raise ValueError(
            f"the tasks {[functions.names[t] for t in chosen]} move in the same direction or not at all, so"
            " they span no plane; name other tasks, or pass directions=."
        )
    across = norm(rest) / length
    second = {name: vector / across for name, vector in rest.items()}
    a, b = (functions.names[t] for t in chosen)
    return first, second, {"theta": (0.0, 0.0), a: (1.0, 0.0), b: (along, across)}


def _adapted(tasks: TaskFunctions, chosen: Sequence[int] | None = None) -> list[Params]:
    with torch.no_grad():
        return [tasks.adapt(task, {}) for task in (range(len(tasks)) if chosen is None else chosen)]


def _positions(points: int, span: tuple[float, float]) -> Tensor:
    if not isinstance(points, int) or points < 2 or not span[0] < span[1]:
        raise ValueError(f"points={points!r}, span={span}: pass at least 2 points, and an ascending span.")
    return torch.linspace(*span, points, dtype=torch.float64)
