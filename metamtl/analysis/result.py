"""Base class of the results of an analysis, and their history over a training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

NUMBER_OF_TICKS = 40  # labels of an axis are drawn up to this number


class Result(ABC):
    """Base class of results, which are frozen dataclasses: plain data, one plot, a few numbers to log."""

    def as_dict(self) -> dict[str, Any]:
        """The data in types of JSON; a number that is not finite becomes None."""
        data = {field.name: to_json(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **data}

    @abstractmethod
    def scalars(self) -> dict[str, float]:
        """The numbers that summarize the result, by name."""

    @abstractmethod
    def plot(self, ax: Any = None) -> Any:
        """Draw the result on `ax`, or on a new figure; return the figure. Needs matplotlib."""

    def log(self, writer: Any, step: int, tag: str | None = None, *, figure: bool = False) -> None:
        """Write `scalars` to TensorBoard, and with `figure` also the plot.

        Args:
            writer: a `torch.utils.tensorboard.SummaryWriter`, or any object with its `add_scalar`.
            step: the training step.
            tag: prefix of the names; if None, the name of the class in lower case.
        """
        tag = type(self).__name__.lower() if tag is None else tag
        for name, value in self.scalars().items():
            writer.add_scalar(f"{tag}/{name}", value, step)
        if figure:
            writer.add_figure(tag, self.plot(), step)


class History(Result):
    """Results of one kind at several training steps.

    >>> import torch
    >>> from metamtl.analysis import Relatedness
    >>> history = History()
    >>> for step, value in enumerate([0.0, 0.5]):
    ...     matrix = torch.tensor([[1.0, value], [value, 1.0]])
    ...     history.add(step, Relatedness(matrix, ("a", "b"), "cosine"))
    >>> history.series()["mean"]
    [0.0, 0.5]
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.results: list[Result] = []

    def add(self, step: int, result: Result) -> None:
        """Append the result of a step.

        Raises:
            TypeError: the result is of another kind than those before it.
            ValueError: the step does not come after the previous one.
        """
        if not isinstance(result, Result):
            raise TypeError(f"History.add got a {type(result).__name__}; pass the result of an analysis.")
        if self.results and type(result) is not type(self.results[0]):
            raise TypeError(
                f"this History holds {type(self.results[0]).__name__}, the new result is a"
                f" {type(result).__name__}; use one History for each kind."
            )
        if self.steps and step <= self.steps[-1]:
            raise ValueError(f"step={step} does not come after step {self.steps[-1]}; pass growing steps.")
        self.steps.append(step)
        self.results.append(result)

    def series(self) -> dict[str, list[float]]:
        """The values of every scalar over the steps; NaN at steps that do not have it."""
        rows = [result.scalars() for result in self.results]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name, math.nan) for row in rows] for name in names}

    def scalars(self) -> dict[str, float]:
        return {name: values[-1] for name, values in self.series().items()}

    def as_dict(self) -> dict[str, Any]:
        results = [result.as_dict() for result in self.results]
        return {"kind": "History", "steps": list(self.steps), "results": results}

    def plot(self, ax: Any = None) -> Any:
        ax = axes(ax)
        for name, values in self.series().items():
            ax.plot(self.steps, values, label=name)
        ax.set_xlabel("step")
        if self.results:
            ax.legend(fontsize="small")
        return ax.figure


def to_json(value: Any) -> Any:
    """Convert tensors, results, tuples and mappings to the types of JSON."""
    if isinstance(value, Result):
        return value.as_dict()
    if hasattr(value, "as_dict"):  # an Estimate
        return to_json(value.as_dict())
    if isinstance(value, Tensor):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def axes(ax: Any = None) -> Any:
    """`ax`, or the axes of a new figure that no global state of matplotlib refers to.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"plots need matplotlib, which cannot be imported ({error}); pip install 'metamtl[analysis]'."
        ) from error
    return Figure(layout="constrained").subplots()


def heatmap(ax: Any, matrix: Tensor, rows: tuple[str, ...], columns: tuple[str, ...], title: str) -> Any:
    """Draw a matrix with a color scale that is symmetric around zero."""
    ax = axes(ax)
    limit = float(matrix.abs().nan_to_num().max()) or 1.0
    image = ax.imshow(matrix.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
    ax.figure.colorbar(image, ax=ax)
    if len(rows) <= NUMBER_OF_TICKS:
        ax.set_yticks(range(len(rows)), rows)
    if len(columns) <= NUMBER_OF_TICKS:
        ax.set_xticks(range(len(columns)), columns, rotation=90)
    ax.set_title(title)
    return ax.figure


def bars(ax: Any, names: tuple[str, ...], values: Any, title: str, errors: Any = None) -> Any:
    """Draw one horizontal bar for each name, from top to bottom."""
    ax = axes(ax)
    ax.barh(range(len(names)), values, xerr=errors)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=6)
    ax.ticklabel_format(axis="x", scilimits=(-2, 4))  # a factor at the axis instead of long labels
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_title(title)
    return ax.figure
