"""Sinusoid regression, the first experiment of MAML."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..episode import Episode
from ..losses import Loss
from ..metrics import Metric, mse
from .draws import check_counts, episode_of

Range = tuple[float, float]


class Sinusoid:
    """Regression of sine waves from K points each (Finn et al. 2017, https://arxiv.org/abs/1703.03400).

    Each task draws `A ~ U(amplitude)` (on a logarithmic scale, `log A` is uniform) and `b ~ U(phase)`; each
    point draws `x ~ U(x_range)`, with

        y = A sin(x - b) + noise * N(0, 1).

    Each time a task is drawn, its support and query points are drawn again.

    Args:
        shots: support points per task, K. With 0, episodes have no support set.
        queries: query points per task, Q. With 0, the query set is empty.
        tasks: None for infinitely many tasks, which never repeat; a number for a fixed list of that many
            tasks, generated from `seed`. Tasks are then drawn from the list with replacement, and
            `Episode.task` holds their indices, so that each task can have its own head.
        amplitude, phase, x_range: lowest and highest value.
        amplitude_scale: "linear"; or "log", for tasks of very different amplitudes: their logarithm is then
            uniform, and there is a second metric, `relative`: the squared error divided by the mean square
            of the task's targets, which weights all tasks equally. Large amplitudes dominate `mse`.
        noise: standard deviation of the noise added to y, in support and query.
        seed: seed of the fixed list; not used if `tasks` is None.
        device: device of the episodes, which are drawn on the CPU.
        dtype: dtype of x and y; if None, torch's default. Points agree between dtypes up to rounding.

    Raises:
        ValueError: a negative number of points, none at all, an empty or infinite range, negative noise;
            amplitudes that are not positive on a logarithmic scale.

    >>> sinusoids = Sinusoid(shots=10, queries=5)
    >>> episode = sinusoids.sample(4, torch.Generator().manual_seed(0))
    >>> episode.support.x.shape, episode.query.y.shape, episode.task
    (torch.Size([4, 10, 1]), torch.Size([4, 5, 1]), None)
    """

    loss: Loss = staticmethod(F.mse_loss)
    metrics: dict[str, Metric]

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        *,
        tasks: int | None = None,
        amplitude: Range = (0.1, 5.0),
        amplitude_scale: Literal["linear", "log"] = "linear",
        phase: Range = (0.0, math.pi),
        x_range: Range = (-5.0, 5.0),
        noise: float = 0.0,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_counts(shots, queries)
        if tasks is not None and tasks < 1:
            raise ValueError(f"tasks={tasks} must be at least 1, or None for infinitely many.")
        for name, bounds in (("amplitude", amplitude), ("phase", phase), ("x_range", x_range)):
            _check_range(name, bounds)
        if amplitude_scale not in ("linear", "log"):
            raise ValueError(f"amplitude_scale={amplitude_scale!r} is not 'linear' or 'log'.")
        if amplitude_scale == "log" and amplitude[0] <= 0:
            raise ValueError(
                f"amplitude={amplitude} has no logarithm; with amplitude_scale='log' it must be above 0."
            )
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise={noise} is a standard deviation: it must be finite and not negative.")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} cannot represent a sine; use a floating-point dtype.")
        self.shots, self.queries, self.tasks, self.noise, self.seed = shots, queries, tasks, noise, seed
        self.amplitude, self.phase, self.x_range = amplitude, phase, x_range
        self.amplitude_scale: Literal["linear", "log"] = amplitude_scale
        self.metrics = {"mse": mse}
        if amplitude_scale == "log":
            self.metrics["relative"] = Metric(_relative, higher_is_better=False)
        self.device, self.dtype = device, dtype
        self._list: tuple[Tensor, Tensor] | None = None
        if tasks is not None:
            self._list = self._waves(tasks, torch.Generator().manual_seed(seed))

    @property
    def ids(self) -> list[int]:
        """Possible values of `Episode.task`: indices into the fixed list of tasks; empty without a list."""
        return list(range(self.tasks or 0))

    def split(self, name: Literal["train", "validation", "test"]) -> Sinusoid:
        """`"train"` returns `self`; `"validation"` and `"test"` draw new tasks of the same distribution.

        The generator passed to `sample` decides which new tasks are drawn.
        """
        if name not in ("train", "validation", "test"):
            raise ValueError(f"split {name!r} is not one of 'train', 'validation', 'test'.")
        if name == "train" or self.tasks is None:
            return self
        return Sinusoid(
            self.shots,
            self.queries,
            amplitude=self.amplitude,
            amplitude_scale=self.amplitude_scale,
            phase=self.phase,
            x_range=self.x_range,
            noise=self.noise,
            device=self.device,
            dtype=self.dtype,
        )

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` tasks using `rng` (a generator on the CPU).

        Returns:
            An `Episode` with `support.x`, `support.y` `[T, K, 1]`, `query.x`, `query.y` `[T, Q, 1]`;
            `task` is `[T]` for a fixed list of tasks, else None.

        Raises:
            ValueError: `num_tasks` below 1.
        """
        if num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks} must be at least 1.")
        ids = None
        if self._list is None:
            amplitudes, phases = self._waves(num_tasks, rng)
        else:
            ids = torch.randint(len(self._list[0]), (num_tasks,), generator=rng, device="cpu")
            amplitudes, phases = self._list[0][ids], self._list[1][ids]
        points = (num_tasks, self.shots + self.queries, 1)
        x = _uniform(self.x_range, points, rng)
        y = amplitudes.view(-1, 1, 1) * torch.sin(x - phases.view(-1, 1, 1))
        if self.noise:
            y = y + self.noise * torch.randn(points, generator=rng, dtype=torch.float64, device="cpu")
        x, y = self._placed(x), self._placed(y)
        if ids is not None and self.device is not None:
            ids = ids.to(self.device, non_blocking=True)
        return episode_of(x, y, self.shots, ids)

    def _waves(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Amplitudes and phases of `count` tasks, each `[count]`."""
        if self.amplitude_scale == "log":
            low, high = self.amplitude
            amplitudes = _uniform((math.log(low), math.log(high)), (count,), rng).exp()
        else:
            amplitudes = _uniform(self.amplitude, (count,), rng)
        return amplitudes, _uniform(self.phase, (count,), rng)

    def _placed(self, values: Tensor) -> Tensor:
        return values.to(self.dtype or torch.get_default_dtype()).to(self.device, non_blocking=True)


def _uniform(bounds: Range, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=rng, dtype=torch.float64, device="cpu")


def _relative(output: Tensor, y: Tensor) -> Tensor:
    """Mean squared error divided by the mean square of the targets; 1 for an output of zeros."""
    return mse(output, y).mean() / y.square().mean()


def _check_range(name: str, bounds: Range) -> None:
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or bounds[0] > bounds[1]:
        raise ValueError(
            f"{name}={bounds} must be a pair of finite numbers, the lowest and the highest value."
        )
