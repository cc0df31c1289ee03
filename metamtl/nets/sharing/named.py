"""Base class of nets for named tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ...functional import is_name

Make = Callable[[], nn.Module]  # builds a module with new parameters at each call
Outputs = Mapping[str, int | nn.Module]


class NamedTasks(nn.Module, ABC):
    """Base class of nets for named tasks.

    `model(x, task="case")` or `model(x, "case")` returns the output of that task. With a tuple of names, or
    without a name (all tasks), the result is a dict of outputs from one pass. Further inputs and keyword
    arguments are passed to the first module.

    A subclass defines the method `answer`. Modules that a task does not use must not be in the graph of its
    output, because the outer loop uses the graph to determine which parameters all tasks share.

    Raises:
        ValueError: a name is unknown, or the features do not match the head.
    """

    heads: nn.ModuleDict

    def add_heads(self, outputs: Outputs, features: int | Mapping[str, int]) -> None:
        """Create the heads; call it last, so that they come after the parameters of the body.

        `outputs` has for each task the width of its linear head, or a module to use as its head. `features`
        is the input width of the heads, or a dict by task if it differs.
        """
        kind = type(self).__name__
        self.heads = nn.ModuleDict()
        check_names(kind, outputs)
        for name, output in outputs.items():
            if isinstance(output, int):
                width = features if isinstance(features, int) else features[name]
                if output < 1 or width < 1:
                    raise ValueError(
                        f"{kind}: the head of task {name!r} would map {width} features to {output} numbers;"
                        " both must be at least 1."
                    )
                output = nn.Linear(width, output)
            elif not isinstance(output, nn.Module):
                raise ValueError(
                    f"{kind}: task {name!r} has no head: outputs[{name!r}] is {output!r};"
                    " pass its width, or a module."
                )
            self.heads[name] = output

    def forward(self, *inputs: Any, task: str | tuple[str, ...] | None = None, **keywords: Any) -> Any:
        inputs, task = apart(inputs, task)
        names = (task,) if isinstance(task, str) else tuple(task or self.heads)
        known = self.known()
        for name in names:
            if name not in known:
                raise ValueError(f"unknown task {name!r}; there are heads for {', '.join(known)}.")
        answers = self.answer(names, *inputs, **keywords)
        return answers[task] if isinstance(task, str) else {name: answers[name] for name in names}

    @abstractmethod
    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        """Compute the outputs of the tasks named in `task_names`."""

    def known(self) -> tuple[str, ...]:
        """The names that `forward` accepts."""
        return tuple(self.heads)

    def head(self, name: str, features: Tensor) -> Tensor:
        """Apply the head of a task to its features, `[..., features]`."""
        head = self.heads[name]
        if not isinstance(features, Tensor):
            raise ValueError(
                f"{type(self).__name__}: the input of the head of task {name!r} is a"
                f" {type(features).__name__}, not a tensor of features; wrap the body so that it"
                " returns one."
            )
        if isinstance(head, nn.Linear) and features.shape[-1:] != (head.in_features,):
            raise ValueError(
                f"{type(self).__name__}: the input of the head of task {name!r} has shape"
                f" {list(features.shape)}, but the head takes {head.in_features} features; pass the width"
                " of the last axis as features=, or another body."
            )
        return head(features)


def apart(inputs: tuple[Any, ...], task: Any) -> tuple[tuple[Any, ...], Any]:
    """Split the inputs and the name of the task, which may be the last input: `model(x, "case")`."""
    return (inputs[:-1], inputs[-1]) if task is None and inputs and is_name(inputs[-1]) else (inputs, task)


def check_names(kind: str, names: Iterable[str]) -> None:
    """Reject names that torch does not allow for modules."""
    names = list(names)
    if not names:
        raise ValueError(f"{kind} needs at least one task in outputs={{name: width}}.")
    for name in names:
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ValueError(
                f"{kind}: {name!r} cannot be a name here: torch does not allow module names with a dot, or"
                f" names of its own attributes; use, for example, {str(name).replace('.', '_') or 'task'}_."
            )


def distinct(modules: Iterable[nn.Module], what: str) -> list[nn.Module]:
    """The modules as a list; raises ValueError if two of them are the same or share parameters."""
    modules = list(modules)
    ids: set[int] = set()
    for module in modules:
        if not isinstance(module, nn.Module):
            raise ValueError(f"{what}: expected modules, found a {type(module).__name__}.")
        new_ids = {id(module), *(id(param) for param in module.parameters())}
        if new_ids & ids:
            raise ValueError(
                f"{what}: the same parameters are used in two places, but each place needs its own; build a"
                " new module for each (for example with copy.deepcopy(module))."
            )
        ids |= new_ids
    return modules


def width_of(kind: str, outputs: Outputs, name: str) -> int:
    """The output width of a task whose output other heads read."""
    width = outputs[name]
    if not isinstance(width, int):
        raise ValueError(
            f"{kind}: other heads read the output of task {name!r}, so its width must be known; pass a"
            f" number in outputs, found a {type(width).__name__}."
        )
    return width
