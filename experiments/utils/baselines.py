"""Baselines that are not nets: estimators of scikit-learn, one for each task, on the inputs of the nets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metamtl import Episode
from metamtl.functional.labels import has_label

from .comparison import Values
from .measure import higher
from .parts import Sources, part
from .search import grid
from .streams import SELECT, TEST, stream
from .targets import OptionError


class Baselines:
    """Fits the baselines of one table.

    An entry of `cfg.baselines` has an `estimator`, the config of an estimator of scikit-learn, and `tune`,
    values of its arguments. The values are selected for each task, on validation, as the learning rates of
    single tasks are. The examples of validation and test are those on which the nets of the same seed are
    measured. An estimator whose config does not refer to `${seed}` is fitted once for all seeds.
    """

    def __init__(self, cfg: DictConfig, sources: Sources) -> None:
        self.cfg, self.source = cfg, sources(cfg)
        self.family = self.source.split("validation")
        self.fitted: dict[str, tuple[Any, float]] = {}

    def check(self) -> None:
        """Build every estimator, without fitting.

        Raises:
            ValueError: an entry cannot be built, or has other keys than `estimator` and `tune`.
            ImportError: scikit-learn is missing.
        """
        for name, entry in self.cfg.baselines.items():
            if unknown := sorted(set(map(str, entry)) - {"estimator", "tune"}):
                raise OptionError(f"baselines.{name} has {unknown}; its keys are estimator and tune.")
            for values in self._points(name):
                self._built(name, values, self.cfg.seeds[0])

    def __call__(self, name: str, measures: Mapping[str, str]) -> dict[str, Any]:
        """The row `name`: values by seed on validation and test, selected arguments, and mean seconds.

        `measures` is the metric of each task by which arguments are selected, `{task: "task/metric"}`.
        """
        tuned = {task: self._tuned(name, task, measure) for task, measure in measures.items()}
        seconds = 0.0
        row: dict[str, dict[int, Values]] = {"validation": {}, "test": {}}
        for seed in self.cfg.seeds:
            fits = {task: self._fit(name, task, values, seed) for task, values in tuned.items()}
            seconds += sum(duration for _, duration in fits.values()) / len(self.cfg.seeds)
            estimators = {task: estimator for task, (estimator, _) in fits.items()}
            for split, by_seed in row.items():
                values = self._measured(estimators, split, seed)
                by_seed[seed] = {measure: values[measure] for measure in measures.values()}
        return {"tuned": tuned, "seconds": seconds, **row}

    def _tuned(self, name: str, task: str, measure: str) -> dict[str, Any]:
        """The best arguments on validation, over `tune_seeds`."""
        points = self._points(name)
        direction = 1 if higher(self.family, measure) else -1

        def score(values: dict[str, Any]) -> float:
            return direction * sum(
                self._measured({task: self._fit(name, task, values, seed)[0]}, "validation", seed)[measure]
                for seed in self.cfg.tune_seeds
            )

        return points[0] if len(points) == 1 else max(points, key=score)

    def _points(self, name: str) -> list[dict[str, Any]]:
        """All combinations of `tune`."""
        tune = OmegaConf.to_container(
            OmegaConf.create({"tune": self.cfg.baselines[name].get("tune") or {}})
        )
        assert isinstance(tune, dict)
        for argument, values in tune["tune"].items():
            if not isinstance(values, list) or not values:
                raise OptionError(f"baselines.{name}.tune: {argument}={values}: expected a list of values.")
        return list(grid(tune["tune"]))

    def _built(self, name: str, values: Mapping[str, Any], seed: int) -> Any:
        root = OmegaConf.create(OmegaConf.to_container(self.cfg))  # so that arguments can be added
        root.merge_with({"seed": seed, "baselines": {name: {"estimator": dict(values)}}})
        return part(f"baselines.{name}.estimator", root.baselines[name].estimator)

    def _fit(self, name: str, task: str, values: Mapping[str, Any], seed: int) -> tuple[Any, float]:
        """The estimator fitted to all training examples that have a label, and the seconds it took."""
        estimator = self._built(name, values, seed)
        key = f"{task}: {estimator!r}"
        if key not in self.fitted:
            split = self.source.split("train")
            x, y = split.at(torch.arange(len(split)))[task].query
            labeled = has_label(y).flatten().cpu().numpy()
            began = time.perf_counter()
            estimator.fit(_array(x)[labeled], _array(y)[labeled, 0])
            self.fitted[key] = (estimator, time.perf_counter() - began)
        return self.fitted[key]

    def _measured(self, estimators: Mapping[str, Any], split: str, seed: int) -> Values:
        kind, count = (TEST, self.cfg.test.tasks) if split == "test" else (SELECT, self.cfg.select.tasks)
        family = self.source.split(split)
        episodes: dict[str, Episode] = family.sample(count, stream(seed, kind))
        values = {}
        for task, estimator in estimators.items():
            x, y = episodes[task].query
            output = predicted(estimator, _array(x)).to(y)
            for metric, measure in family.metrics[task].items():
                values[f"{task}/{metric}"] = float(measure(output, y).double().mean())
        return values


def predicted(estimator: Any, x: np.ndarray) -> Tensor:
    """The predictions in the form of a head with one output, `[n, 1]`: log odds of class 1, or numbers."""
    if not hasattr(estimator, "predict_proba"):
        return torch.from_numpy(np.asarray(estimator.predict(x)))[:, None]
    chances = torch.from_numpy(estimator.predict_proba(x)).double()
    log = chances.clamp(min=torch.finfo(torch.float64).tiny).log()
    return log[:, 1:] - log[:, :1]


def _array(values: Any) -> np.ndarray:
    """A tensor of rows or of labels `[M, 1]` as an array.

    Raises:
        ValueError: the inputs are several tensors, or a label is a class of many.
    """
    if not isinstance(values, Tensor) or values.ndim != 2 or not values.is_floating_point():
        raise ValueError(
            "baselines need inputs [M, features] and labels [M, 1], numbers or binary labels; set"
            " baselines=null for these tasks."
        )
    return values.cpu().numpy()
