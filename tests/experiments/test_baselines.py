"""Rows of scikit-learn in a table: the inputs, the examples and the metrics of the nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from experiments import train
from experiments.tables import multitask as tables
from experiments.utils.baselines import Baselines, predicted
from experiments.utils.comparison import Comparison
from experiments.utils.measure import epochs, sizes
from metamtl.losses import mean_over_labeled
from metamtl.metrics import mse, roc_auc
from metamtl.tasks import LabeledTasks, TaskMixture

MEASURES = {"sick": "sick/roc_auc", "score": "score/mse"}


class Family:
    """Two tasks on one input of three numbers; a third of the labels of `sick` is missing."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(300, 3))
        self.score = self.x @ [1.0, -2.0, 0.0] + 3 + rng.normal(size=300)
        self.sick = np.where(rng.random(300) < 1 / 3, np.nan, self.score > 3)

    def rows(self, name: str) -> slice:
        return {"train": slice(0, 200), "validation": slice(200, 250), "test": slice(250, 300)}[name]

    def split(self, name: str) -> LabeledTasks:
        rows = self.rows(name)
        return LabeledTasks(
            torch.from_numpy(self.x[rows]),
            {task: torch.from_numpy(getattr(self, task)[rows])[:, None] for task in ("sick", "score")},
            loss=dict.fromkeys(("sick", "score"), mean_over_labeled(F.mse_loss)),
            metrics={"sick": {"roc_auc": roc_auc}, "score": {"mse": mse}},
            outputs={"sick": 1, "score": 1},
        )


class Counting(Ridge):
    """Counts the calls of `fit`."""

    fits = 0

    def fit(self, x: Any, y: Any) -> Counting:
        type(self).fits += 1
        return super().fit(x, y)


def baselines(family: Family, task: str, **estimator: Any) -> tuple[Baselines, dict[str, str]]:
    tune = estimator.pop("tune", None)
    cfg = OmegaConf.create(
        {
            "baselines": {"row": {"estimator": estimator, "tune": tune}},
            **{"seed": 0, "seeds": [0, 1], "tune_seeds": [9]},
            **{"select": {"tasks": 50}, "test": {"tasks": 40}},
        }
    )
    OmegaConf.set_struct(cfg, True)
    built = Baselines(cfg, lambda _: family)  # type: ignore[arg-type]
    built.check()
    return built, {task: MEASURES[task]}


def test_a_classifier_is_fitted_to_labeled_rows_and_measured_on_the_examples_of_the_nets() -> None:
    family = Family()
    built, measures = baselines(family, "sick", _target_="sklearn.linear_model.LogisticRegression", C=0.5)
    row = built("row", measures)
    x, y = family.x[:200], family.sick[:200]
    own = LogisticRegression(C=0.5).fit(x[~np.isnan(y)], y[~np.isnan(y)])
    for seed in (0, 1):
        batch = family.split("test").sample(40, train.stream(seed, train.TEST))["sick"].query
        there = ~batch.y[:, 0].isnan().numpy()
        chances = own.predict_proba(batch.x.numpy())[there, 1]
        expected = roc_auc_score(batch.y[:, 0].numpy()[there], chances)
        assert row["test"][seed] == {"sick/roc_auc": pytest.approx(expected, abs=1e-12)}
    assert row["test"][0] != row["test"][1]


def test_the_mean_of_the_training_rows_is_a_row() -> None:
    family = Family()
    built, measures = baselines(family, "score", _target_="sklearn.dummy.DummyRegressor")
    batch = family.split("test").sample(40, train.stream(1, train.TEST))["score"].query
    expected = ((family.score[:200].mean() - batch.y.numpy()) ** 2).mean()
    assert built("row", measures)["test"][1] == {"score/mse": pytest.approx(expected)}


def test_arguments_are_selected_on_validation_and_equal_fits_are_shared() -> None:
    family = Family()
    target = f"{__name__}.Counting"
    Counting.fits = 0
    built, measures = baselines(family, "score", _target_=target, tune={"alpha": [1e6, 1.0, 1e5]})
    row = built("row", measures)
    assert row["tuned"] == {"score": {"alpha": 1.0}} and Counting.fits == 3
    Counting.fits = 0
    seeded, measures = baselines(family, "score", _target_=target, random_state="${seed}")
    seeded("row", measures)
    assert Counting.fits == 2


def test_log_odds_and_numbers() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 2))
    classifier = LogisticRegression().fit(x, x[:, 0] > 0)
    np.testing.assert_allclose(predicted(classifier, x)[:, 0], classifier.decision_function(x), rtol=1e-6)
    ridge = Ridge().fit(x, x[:, 0])
    np.testing.assert_array_equal(predicted(ridge, x)[:, 0], ridge.predict(x))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"estimator": {"_target_": "sklearn.linear_model.Ridge", "magic": 1}}, "baselines.row.estimator"),
        ({"estimator": {"_target_": "sklearn.linear_model.Ridge"}, "tuned": {}}, r"has \['tuned'\]"),
        ({"estimator": {"_target_": "sklearn.linear_model.Ridge"}, "tune": {"magic": [1]}}, "magic"),
    ],
)
def test_an_entry_that_cannot_be_built_is_named(entry: dict[str, Any], message: str) -> None:
    cfg = OmegaConf.create({"baselines": {"row": entry}, "seed": 0, "seeds": [0], "tune_seeds": [0]})
    with pytest.raises(ValueError, match=message):
        Baselines(cfg, lambda _: Family()).check()  # type: ignore[arg-type]


def test_classes_of_many_are_rejected() -> None:
    family = Family()
    built, measures = baselines(family, "score", _target_="sklearn.linear_model.Ridge")
    family.x = family.x[:, :, None]
    with pytest.raises(ValueError, match="set baselines=null for these tasks"):
        built("row", measures)


def test_changes_are_against_the_single_tasks_of_the_seed() -> None:
    up, down = "a/roc_auc", "b/mse"
    alone = {0: {up: 0.5, down: 2.0}, 1: {up: 0.7, down: 2.0}}
    compare = Comparison({up: True, down: False}, alone)
    row = compare({0: {up: 0.62, down: 1.0}, 1: {up: 0.82, down: 1.0}}, among_methods=True)
    # (0.12 / 0.6 + 1 / 2) / 2, for both seeds.
    assert row["delta_m"]["mean"] == pytest.approx(35) and row["delta_m"]["ci95"] == pytest.approx(
        0, abs=1e-9
    )
    assert row["signs"] == {up: "+", down: "+"} and row["mean"] is None
    assert "against_first" not in compare(alone)
    second = compare(alone, among_methods=True)
    assert second["against_first"]["mean"] == pytest.approx(-35)
    same = Comparison({up: True, "c/roc_auc": True}, {0: {up: 0.5, "c/roc_auc": 0.9}})
    assert same.mean(same.alone)["mean"] == pytest.approx(0.7)  # type: ignore[index]


def test_epochs_of_every_task() -> None:
    tasks = Family().split("train")
    assert sizes(tasks) == {"sick": 200, "score": 200}
    assert epochs(tasks, steps=50, batch=8) == {"sick": 2.0, "score": 2.0}
    assert sizes(object()) is None and epochs(object(), 1, 1) is None
    few = {"score": torch.zeros(50, 1)}
    short = LabeledTasks(
        torch.zeros(50, 3),
        {"more": few["score"]},
        loss={"more": F.mse_loss},
        metrics={"more": {"mse": mse}},
        outputs={"more": 1},
    )
    mixture = TaskMixture({"both": tasks, "more": short}, sizes={"more": 100})
    assert epochs(mixture, steps=50, batch=8) == {"sick": 2.0, "score": 2.0, "more": 50.0}
    assert epochs(TaskMixture({"more": short}, sampling="round_robin"), steps=1, batch=1) is None


def test_the_table_shows_baselines_first_and_a_mean_of_many_tasks(
    table_of: Callable[..., dict[str, Any]],
) -> None:
    text = tables.section("some", [], table_of(tables.FEW + 1))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| method | mean roc_auc ↑ | delta_m, % |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| mean", "| single tasks", "| equal"]
    assert "| 1,500 (2.5) |" in lines[3] and "Data: of tests; 1,000 training examples. Test set" in text
    two = tables.markdown(table_of(2))
    assert "| task0/roc_auc ↑ | task1/roc_auc ↑ |" in two and "mean roc_auc" not in two
    assert "task0=alpha=1" in two


@pytest.fixture
def table_of() -> Callable[..., dict[str, Any]]:
    def table(tasks: int) -> dict[str, Any]:
        measures = [f"task{n}/roc_auc" for n in range(tasks)]
        value = {"mean": 0.8, "ci95": 0.1}
        values = {"test": dict.fromkeys(measures, value), "validation": dict.fromkeys(measures, value)}
        row = {**values, "mean": value, "seconds": 1.0}
        changes = {"delta_m": value, "signs": dict.fromkeys(measures, "=")}
        trained = {"steps": 1500, "epochs": dict.fromkeys(measures, 2.5), "parameters": 10}
        tuned = {f"task{n}": {"alpha": 1} for n in range(tasks)}
        return {
            "data": {"protocol": "of tests", "train": dict.fromkeys(measures, 1000)},
            "higher_is_better": dict.fromkeys(measures, True),
            "baselines": [{"method": "mean", **row, **changes, "tuned": tuned}],
            "rows": [
                {"method": "single tasks", **row, **trained, "tuned": tuned},
                {"method": "equal", **row, **trained, **changes, "against_first": value, "tuned": {}},
            ],
            **{"seeds": [0, 1], "interval": "95 %", "versions": {"torch": "2"}},
            "hardware": {"device": "cpu", "threads": 1},
        }

    return table
