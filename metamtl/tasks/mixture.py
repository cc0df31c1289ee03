"""Mixtures of named tasks with separate data sets: sampling of the tasks and batch sizes of each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch

from ..episode import Episode

Sampling = Literal["all", "proportional", "round_robin"]
Schedule = Callable[[int], Sequence[str]] | Sequence[tuple[int, Sequence[str]]]


class TaskMixture:
    """Tasks sampled from several sources, each with its own inputs, labels and batch size.

    `sampling` selects the tasks of each step:

    | value | tasks of a step |
    |---|---|
    | `"all"` | all tasks |
    | `"proportional"` | `tasks_per_step` different ones, drawn with `p_t ~ size_t^(1 / temperature)` |
    | `"round_robin"` | the next `tasks_per_step` in cyclic order |
    | `[(0, ["a"]), (500, ["a", "b"])]` | those of the last entry whose first step is reached |
    | a function of the step | those that it returns |

    At temperature 1, a task is drawn in proportion to its number of examples; at infinity, all tasks are
    equally likely (Raffel et al. 2020, section 3.5.2, https://arxiv.org/abs/1910.10683). A source with
    several tasks on one input counts once: its tasks are drawn together. For evaluation, use
    `sampling="all"`.

    Args:
        sources: name -> `LabeledTasks`, or any object with its `sample`, `loss`, `metrics`, `outputs` and
            length. The name is that of the task; for a source with several tasks, any name.
        sampling: see above.
        temperature: used by `"proportional"`; above 0, `float("inf")` for equal probabilities.
        tasks_per_step: used by `"proportional"` and `"round_robin"`.
        sizes: name -> examples of this source per step, if different from the `n` of `sample`.

    Raises:
        ValueError: no source, a duplicate task, an unknown name or value.

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
            raise ValueError("sources is empty; a TaskMixture needs at least one source of examples.")
        if isinstance(sampling, str) and sampling not in ("all", "proportional", "round_robin"):
            raise ValueError(
                f"sampling={sampling!r} is not one of 'all', 'proportional', 'round_robin'; a schedule is"
                " a list of (first step, names), or a function of the step."
            )
        if not temperature > 0:
            raise ValueError(
                f"temperature={temperature} must be above 0; use float('inf') for equal probabilities."
            )
        if not 1 <= tasks_per_step <= len(sources):
            raise ValueError(
                f"tasks_per_step={tasks_per_step} must be from 1 to {len(sources)}, the number of sources."
            )
        self.sources = dict(sources)
        self.sampling, self.temperature, self.tasks_per_step = sampling, temperature, tasks_per_step
        self.sizes = dict(sizes or {})
        self._check(self.sizes, "sizes")
        if low := {name: size for name, size in self.sizes.items() if size < 1}:
            raise ValueError(f"sizes={low}: each must be at least 1.")
        self.tasks = tuple(chain.from_iterable(source.loss for source in self.sources.values()))
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"a task is in two sources; rename one of them. The tasks are {', '.join(self.tasks)}."
            )
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
        """Number of steps sampled so far; set it to resume training."""

    def sample(self, n: int, rng: torch.Generator, step: int | None = None) -> dict[str, Episode]:
        """Draw the tasks of a step, with `n` examples of each source, or its number in `sizes`.

        If a source has fewer examples, all of them are returned.

        Args:
            n: examples per source.
            rng: a generator on the CPU; the sample depends only on `rng` and the step.
            step: index of the step; if None, `self.step`, which is then incremented.
        """
        if step is None:
            step = self.step
            self.step += 1
        episodes: dict[str, Episode] = {}
        for name in self.names(step, rng):
            source = self.sources[name]
            episodes |= source.sample(min(self.sizes.get(name, n), len(source)), rng)
        return episodes

    def names(self, step: int, rng: torch.Generator) -> tuple[str, ...]:
        """Names of the sources of a step, in the order of `sources`."""
        names, k = tuple(self.sources), self.tasks_per_step
        if self.sampling == "all":
            return names
        if self.sampling == "proportional":
            indices = torch.multinomial(self.chances(), k, replacement=False, generator=rng)
            selected = {names[i] for i in indices.tolist()}
        elif self.sampling == "round_robin":
            selected = {names[(step * k + i) % len(names)] for i in range(k)}
        elif callable(self.sampling):
            selected = set(self.sampling(step))
            self._check(selected, f"the schedule at step {step}")
            if not selected:
                raise ValueError(f"the schedule names no task at step {step}; return at least one name.")
        else:
            phases = [entry for first, entry in self.sampling if first <= step]  # type: ignore[misc]
            selected = set(phases[-1])
        return tuple(name for name in names if name in selected)

    def chances(self) -> torch.Tensor:
        """Probability of each source to be drawn first, `[number of sources]`; the sum is 1."""
        sizes = torch.tensor([len(source) for source in self.sources.values()], dtype=torch.float64)
        # Divided by the largest size first, so that a low temperature does not overflow.
        weights = (sizes / sizes.max()) ** (1 / self.temperature)
        return weights / weights.sum()

    def _check_phases(self, phases: Sequence[tuple[int, Sequence[str]]]) -> None:
        starts = [first for first, _ in phases]
        if (
            not starts
            or starts[0] != 0
            or starts != sorted(starts)
            or not all(names for _, names in phases)
        ):
            raise ValueError(
                f"the schedule's phases begin at steps {starts}; they must begin at 0, increase, and each"
                " name at least one task."
            )
        self._check(chain.from_iterable(names for _, names in phases), "the schedule")

    def _check(self, names: Any, what: str) -> None:
        if unknown := sorted(set(names) - set(self.sources)):
            raise ValueError(f"{what} names {unknown}; the sources are {', '.join(self.sources)}.")
