"""Named tasks that each have their own data: which of them are in a step, and with how many examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch

from ..episode import Episode

Sampling = Literal["all", "proportional", "round_robin"]
Schedule = Callable[[int], Sequence[str]] | Sequence[tuple[int, Sequence[str]]]


class TaskMixture:
    """Steps of tasks from several sources, each with its own inputs, labels and batch size.

    Which tasks are in a step is `sampling`:

    | value | tasks of a step |
    |---|---|
    | `"all"` | all of them |
    | `"proportional"` | `tasks_per_step` different ones, drawn with `p_t ~ size_t^(1 / temperature)` |
    | `"round_robin"` | the next `tasks_per_step` in order, over and over |
    | `[(0, ["a"]), (500, ["a", "b"])]` | those of the last entry that has begun, by step |
    | a function of the step | those that it names |

    At temperature 1 a task comes up in proportion to its examples, at infinity as often as any other
    (Raffel et al. 2020, section 3.5.2, https://arxiv.org/abs/1910.10683). A source with several tasks on
    one input counts once: its tasks come together. For a whole measurement use `sampling="all"`.

    Args:
        sources: `LabeledTasks`, or anything with its `sample`, `loss`, `metrics`, `outputs` and length; by
            the name of the task or, for sources with several tasks, by any name.
        sampling: as above.
        temperature: of `"proportional"`, above 0; `float("inf")` for equal chances.
        tasks_per_step: of `"proportional"` and `"round_robin"`.
        sizes: a source's examples in a step, where other than the `n` of `sample`.

    Raises:
        ValueError: no source, the same task twice, an unknown name or value.

    >>> from torch.nn import functional as F
    >>> from metamtl.tasks import LabeledTasks
    >>> def source(task, count):
    ...     both = {"loss": {task: F.cross_entropy}, "metrics": {task: {}}, "outputs": {task: 2}}
    ...     return LabeledTasks(torch.randn(count, 4), {task: torch.randint(2, (count,))}, **both)
    >>> mixture = TaskMixture({"topic": source("topic", 90), "tone": source("tone", 10)}, sizes={"tone": 4})
    >>> {task: len(e.query.y) for task, e in mixture.sample(16, torch.Generator()).items()}
    {'topic': 16, 'tone': 4}
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        *,
        sampling: Sampling | Schedule = "all",
        temperature: float = 1.0,
        tasks_per_step: int = 1,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        if not sources:
            raise ValueError("a Mixture needs at least one source of examples.")
        if isinstance(sampling, str) and sampling not in ("all", "proportional", "round_robin"):
            raise ValueError(
                f"sampling={sampling!r} is not one of 'all', 'proportional', 'round_robin'; a schedule is"
                " a list of (first step, names), or a function of the step."
            )
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be above 0; infinity gives equal chances.")
        if not 1 <= tasks_per_step <= len(sources):
            raise ValueError(
                f"tasks_per_step={tasks_per_step} must be from 1 to {len(sources)}, the sources."
            )
        self.sources = dict(sources)
        self.sampling, self.temperature, self.tasks_per_step = sampling, temperature, tasks_per_step
        self.sizes = dict(sizes or {})
        self._check(self.sizes, "sizes")
        if low := {name: size for name, size in self.sizes.items() if size < 1}:
            raise ValueError(f"sizes={low}: each must be at least 1.")
        self.tasks = tuple(chain.from_iterable(source.loss for source in self.sources.values()))
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"a task stands in two sources; the tasks are {', '.join(self.tasks)}.")
        self.loss, self.metrics, self.outputs = (
            {
                task: value
                for source in self.sources.values()
                for task, value in getattr(source, what).items()
            }
            for what in ("loss", "metrics", "outputs")
        )
        if not isinstance(sampling, str) and not callable(sampling):
            self._check_phases(sampling)
        self.step = 0
        """Steps sampled so far; where a training is resumed, set it."""

    def sample(self, n: int, rng: torch.Generator, step: int | None = None) -> dict[str, Episode]:
        """The tasks of a step, with `n` examples of each source, or its number in `sizes`.

        A source that has fewer gives all of its examples.

        Args:
            n: examples of a source.
            rng: a generator on the CPU; what is drawn depends on nothing else, and on the step.
            step: which step it is; the mixture's own count, where None.
        """
        if step is None:
            step = self.step
            self.step += 1
        found: dict[str, Episode] = {}
        for name in self.names(step, rng):
            source = self.sources[name]
            found |= source.sample(min(self.sizes.get(name, n), len(source)), rng)
        return found

    def names(self, step: int, rng: torch.Generator) -> tuple[str, ...]:
        """The sources of a step, in their own order."""
        every, k = tuple(self.sources), self.tasks_per_step
        if self.sampling == "all":
            return every
        if self.sampling == "proportional":
            drawn = torch.multinomial(self.chances(), k, replacement=False, generator=rng)
            wanted = {every[i] for i in drawn.tolist()}
        elif self.sampling == "round_robin":
            wanted = {every[(step * k + i) % len(every)] for i in range(k)}
        elif callable(self.sampling):
            wanted = set(self.sampling(step))
            self._check(wanted, f"the schedule at step {step}")
            if not wanted:
                raise ValueError(f"the schedule names no task at step {step}.")
        else:
            phases = [names for first, names in self.sampling if first <= step]  # type: ignore[misc]
            wanted = set(phases[-1])
        return tuple(name for name in every if name in wanted)

    def chances(self) -> torch.Tensor:
        """How likely each source is to be drawn first, `[number of sources]`, sum 1."""
        sizes = torch.tensor([len(source) for source in self.sources.values()], dtype=torch.float64)
        # Over the largest first, so that a low temperature does not overflow.
        weights = (sizes / sizes.max()) ** (1 / self.temperature)
        return weights / weights.sum()

    def _check_phases(self, phases: Sequence[tuple[int, Sequence[str]]]) -> None:
        begins = [first for first, _ in phases]
        if (
            not begins
            or begins[0] != 0
            or begins != sorted(begins)
            or not all(names for _, names in phases)
        ):
            raise ValueError(
                f"the schedule's phases begin at steps {begins}; they must begin at 0, rise, and each name"
                " at least one task."
            )
        self._check(chain.from_iterable(names for _, names in phases), "the schedule")

    def _check(self, names: Any, what: str) -> None:
        if unknown := sorted(set(names) - set(self.sources)):
            raise ValueError(f"{what} names {unknown}; the sources are {', '.join(self.sources)}.")
