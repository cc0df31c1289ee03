"""What a net for named tasks is: it answers by name, and for several names from one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ...functional import is_name

Make = Callable[[], nn.Module]  # builds a module with parameters of its own at each call
Outputs = Mapping[str, int | nn.Module]


class NamedTasks(nn.Module, ABC):
    """A net that answers for named tasks.

    `model(x, task="case")`, or `model(x, "case")`, is that task's output; with a tuple of names, or none
    (all the tasks), a dict of outputs from one pass. Inputs may be several, or keywords, as the first of
    its modules takes them.

    An architecture is the method `answer`. What a task does not use must not lie on the way to its
    output: by that the outer loop knows which parameters all the tasks share.

    Raises:
        ValueError: an unknown name; features that do not fit the head.
    """

    heads: nn.ModuleDict

    def add_heads(self, outputs: Outputs, features: int | Mapping[str, int]) -> None:
        """Make the heads; called last, so that they come after the body's parameters.

        `outputs` has for each task the width of its linear head, or a module that is its head; `features`
        is the width of what reaches the heads, a dict by task where they differ.
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
                    " give its width, or a module."
                )
            self.heads[name] = output

    def forward(self, *inputs: Any, task: str | tuple[str, ...] | None = None, **keywords: Any) -> Any:
        inputs, task = apart(inputs, task)
        wanted = (task,) if isinstance(task, str) else tuple(task or self.heads)
        known = self.known()
        for name in wanted:
            if name not in known:
                raise ValueError(f"unknown task {name!r}; there are heads for {', '.join(known)}.")
        answers = self.answer(wanted, *inputs, **keywords)
        return answers[task] if isinstance(task, str) else {name: answers[name] for name in wanted}

    @abstractmethod
    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        """The output of each wanted task."""

    def known(self) -> tuple[str, ...]:
        """The names that the net answers to."""
        return tuple(self.heads)

    def head(self, name: str, features: Tensor) -> Tensor:
        """What the task's head makes of its features, `[..., features]`."""
        head = self.heads[name]
        if not isinstance(features, Tensor):
            raise ValueError(
                f"{type(self).__name__}: what reaches the head of task {name!r} is a"
                f" {type(features).__name__}, not a tensor of features; wrap the body so that it"
                " returns one."
            )
        if isinstance(head, nn.Linear) and features.shape[-1:] != (head.in_features,):
            raise ValueError(
                f"{type(self).__name__}: what reaches the head of task {name!r} has shape"
                f" {list(features.shape)}, but the head takes {head.in_features} features; give the width"
                " of the last axis as features=, or another body."
            )
        return head(features)


def apart(inputs: tuple[Any, ...], task: Any) -> tuple[tuple[Any, ...], Any]:
    """The inputs and the name, which may also stand behind them: `model(x, "case")`."""
    return (inputs[:-1], inputs[-1]) if task is None and inputs and is_name(inputs[-1]) else (inputs, task)


def check_names(kind: str, names: Iterable[str]) -> None:
    """Refuse names under which torch can keep no module."""
    names = list(names)
    if not names:
        raise ValueError(f"{kind} needs at least one task in outputs={{name: width}}.")
    for name in names:
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ValueError(
                f"{kind}: {name!r} cannot be a name here: torch keeps modules under names without a dot"
                f" that are not attributes of its own; call it {str(name).replace('.', '_') or 'task'}_,"
                " say."
            )


def distinct(modules: Iterable[nn.Module], what: str) -> list[nn.Module]:
    """The modules, or an error where two of them are one, or share parameters."""
    found = list(modules)
    seen: set[int] = set()
    for module in found:
        if not isinstance(module, nn.Module):
            raise ValueError(f"{what}: expected modules, found a {type(module).__name__}.")
        mine = {id(module), *(id(param) for param in module.parameters())}
        if mine & seen:
            raise ValueError(
                f"{what}: the same parameters stand in two places, so they would be one; build a new module"
                " for each (copy.deepcopy(module) makes one)."
            )
        seen |= mine
    return found


def width_of(kind: str, outputs: Outputs, name: str) -> int:
    """The width of a task's output, where other heads read it."""
    width = outputs[name]
    if not isinstance(width, int):
        raise ValueError(
            f"{kind}: other heads read the output of task {name!r}, so its width must be known; give a"
            f" number in outputs, found a {type(width).__name__}."
        )
    return width
