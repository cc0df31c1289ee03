"""Choose values of options by a score: all combinations, at random, or by Optuna.

A space maps options to what is tried: a list of values, or an interval `{low, high, log}`. A way to search
is a generator that yields points of the space, `{option: value}`, and receives the score of each.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from .kinds import number
from .nearest import hint
from .targets import OptionError

Point = dict[str, Any]
Points = Generator[Point, float, None]


class Interval(NamedTuple):
    """The numbers from `low` to `high`; integers if both are. `log`: uniform in the logarithm."""

    low: float
    high: float
    log: bool = False

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = dict[str, Sequence[Any] | Interval]


def space_of(cfg: DictConfig) -> Space:
    """The space that `tune` describes.

    Raises:
        OptionError: `tune`, or `search`, cannot work.
    """
    space: Space = {}
    for name, values in (cfg.tune or {}).items():
        if str(name).partition(".")[0] not in cfg:
            known = [str(key) for key in cfg]
            raise OptionError(f"tune: {name} is not an option; {hint(str(name).partition('.')[0], known)}")
        space[str(name)] = (
            _interval(name, values) if isinstance(values, DictConfig) else _list(name, values)
        )
    method, trials = cfg.search.method, cfg.search.trials
    if method == "grid":
        if trials is not None:
            raise OptionError(
                f"search.trials={trials} has no effect on search.method=grid, which tries every"
                " combination; use search.method=random or optuna."
            )
        if intervals := [name for name, values in space.items() if isinstance(values, Interval)]:
            raise OptionError(
                f"tune: {intervals[0]} is an interval, and search.method=grid needs a list of values; list"
                " them, or use search.method=random or optuna."
            )
    elif trials is None:
        raise OptionError(f"search.method={method} needs a number of trials: search.trials=20.")
    elif not space:
        raise OptionError(f"search.method={method}, but tune is empty: there is nothing to search.")
    return space


def _list(name: Any, values: Any) -> list[Any]:
    if not isinstance(values, ListConfig) or not values:
        raise OptionError(
            f"tune: {name}={values}: expected a list of values to try, e.g. tune={{{name}:[{values}]}}, or"
            f" an interval, e.g. tune={{{name}:{{low:1e-4,high:1e-1,log:true}}}}."
        )
    return [OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for v in values]


def _interval(name: Any, values: DictConfig) -> Interval:
    entries: dict[str, Any] = {str(key): value for key, value in values.items()}
    right = {"low", "high"} <= set(entries) <= {"low", "high", "log"}
    right = right and number(entries["low"]) and number(entries["high"])
    right = right and entries["low"] < entries["high"] and isinstance(entries.get("log", False), bool)
    right = right and not (entries.get("log") and entries["low"] <= 0)
    if not right:
        raise OptionError(
            f"tune: {name}={entries}: expected an interval {{low, high, log}} of numbers with low < high;"
            " with log: true, low is positive."
        )
    return Interval(**entries)


def grid(space: Space) -> Points:
    """Every combination of the lists."""
    for values in product(*space.values()):
        yield dict(zip(space, values))


def at_random(space: Space, trials: int, seed: int) -> Points:
    """Independent points; log-uniform in an interval with `log`. Bergstra and Bengio 2012."""
    rng = random.Random(seed)
    for _ in range(trials):
        yield {name: _draw(values, rng) for name, values in space.items()}


def _draw(values: Sequence[Any] | Interval, rng: random.Random) -> Any:
    if not isinstance(values, Interval):
        return values[rng.randrange(len(values))]
    if values.is_integer and not values.log:
        return rng.randint(int(values.low), int(values.high))
    low, high = (math.log(end) if values.log else end for end in values[:2])
    drawn = rng.uniform(low, high)
    drawn = min(max(math.exp(drawn) if values.log else drawn, values.low), values.high)
    return round(drawn) if values.is_integer else drawn


def by_optuna(space: Space, trials: int, seed: int) -> Points:
    """Points that Optuna's tree-structured Parzen estimator proposes. Bergstra et al. 2011.

    Raises:
        ImportError: Optuna is missing.
    """
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(trials):
        trial = study.ask()
        score = yield {name: _suggest(trial, name, values) for name, values in space.items()}
        if math.isfinite(score):
            study.tell(trial, score)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _suggest(trial: Any, name: str, values: Sequence[Any] | Interval) -> Any:
    if not isinstance(values, Interval):
        return values[trial.suggest_categorical(name, range(len(values)))]
    suggest = trial.suggest_int if values.is_integer else trial.suggest_float
    return suggest(name, values.low, values.high, log=values.log)


def import_optuna() -> Any:
    """The package `optuna`.

    Raises:
        ImportError: it is missing.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("search.method=optuna needs optuna: pip install 'metamtl[sweeps]'.") from error
    return optuna


class Search:
    """The search that a config describes.

    Raises:
        OptionError: `tune` or `search` cannot work.
        ImportError: `search.method=optuna`, and Optuna is missing.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.space = space_of(cfg)
        self.method, self.trials, self.seed = cfg.search.method, cfg.search.trials, cfg.search.seed
        if self.method == "optuna":
            import_optuna()

    def points(self) -> Points:
        """A new search."""
        if self.method == "grid":
            return grid(self.space)
        return {"random": at_random, "optuna": by_optuna}[self.method](self.space, self.trials, self.seed)

    def examples(self) -> list[Point]:
        """Points to build before the first training: all of them, where they do not depend on scores."""
        if self.method != "optuna":
            return list(self.points())
        ends = {name: v[:2] if isinstance(v, Interval) else v for name, v in self.space.items()}
        longest = max(map(len, ends.values()))
        return [{name: v[min(i, len(v) - 1)] for name, v in ends.items()} for i in range(longest)]

    def run(self, score: Callable[[Point], float]) -> list[tuple[Point, float]]:
        """Score every point of a search; higher is better, and -inf is a failure."""
        points, found = self.points(), []
        point = next(points)
        while True:
            value = score(point)
            found.append((point, value))
            try:
                point = points.send(value)
            except StopIteration:
                return found

    def best(self, score: Callable[[Point], float]) -> Point:
        """The point with the highest score. A single point is not scored."""
        points = self.examples()
        if self.method == "grid" and len(points) == 1:
            return points[0]
        return max(self.run(score), key=lambda trial: trial[1])[0]


def label(values: Mapping[str, Any]) -> str:
    """Folder name of a point."""
    return ",".join(f"{name}={value}" for name, value in values.items()) or "as given"
