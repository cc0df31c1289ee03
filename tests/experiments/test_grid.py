"""The grid pairs runs of one seed, chooses rates on validation, goes on after a break, and judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import grid, train
from experiments.tables import __main__ as tables
from experiments.tables import grid as grid_table
from experiments.tables import report
from experiments.utils.checkpoints import RunFolder
from experiments.utils.configs import compose
from experiments.utils.search import label

Overrides = Callable[..., list[str]]


def ran(given: list[str], folder: Path, **own: Any) -> dict[str, Any]:
    """The grid of Mean and MGDA with one step; `own` are its settings that no single training has."""
    cfg = compose("grid", given)
    cfg.aggregators = {name: cfg.aggregators[name] for name in ("Mean", "MGDA")}
    for name, value in {"inner_steps": [1], "seeds": [0, 1], "adapts": [None], **own}.items():
        cfg[name] = value
    return grid.run(cfg, given, folder)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where trainings were run."""
    found: list[Path] = []
    original = train.train

    def training(cfg: Any, built: Any, state: Any, folder: RunFolder, board: Any) -> str:
        found.append(folder.path)
        return original(cfg, built, state, folder, board)

    monkeypatch.setattr(train, "train", training)
    return found


FEW = ("steps=2", "meta_batch=3", "validate.times=1")


def test_a_tiny_grid(overrides: Overrides, tmp_path: Path, counted: list[Path]) -> None:
    given = overrides("experiment=grid_sinusoid", *FEW)
    table = ran(given, tmp_path, adapts=["head", None])
    assert len(counted) == 2 * 2 * (3 + 1)  # two aggregators, two parts; three rates, then the second seed
    assert [(row["adapts"], row["aggregator"]) for row in table["rows"]] == [
        ("head", "Mean"),
        ("all", "Mean"),
        ("head", "MGDA"),
        ("all", "MGDA"),
    ]
    assert json.loads((tmp_path / "table.json").read_text(encoding="utf-8")) == table
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == grid_table.markdown(table)

    def result(place: str, name: str, rates: dict[str, Any], seed: int) -> Any:
        path = tmp_path / place / name / label(rates) / f"seed{seed}" / "result.json"
        return json.loads(path.read_text(encoding="utf-8"))

    for row in table["rows"]:
        place = f"{row['adapts']}_1"
        both = [result(place, row["aggregator"], {"optimizer.lr": lr}, 0) for lr in (3e-3, 1e-2, 3e-2)]
        best = min(both, key=lambda run: run["validation"]["mse"]["mean"])
        assert row["rates"] == {"optimizer.lr": best["config"]["optimizer"]["lr"]}
        assert best["config"]["recipe"]["adapts"] == (None if row["adapts"] == "all" else "head")
        assert row["diverged"] == []
        base = next(other for other in table["rows"] if other["adapts"] == row["adapts"])
        for seed in (0, 1):
            own, other = (result(place, r["aggregator"], r["rates"], seed)["test"] for r in (row, base))
            for measure in ("mse", "relative"):
                for split, key in (("mean", "mean"), ("worst_tenth", "worst_decile")):
                    expected = 100 * (1 - own[measure][key] / other[measure][key])
                    found = row["differences"][measure][split]["seeds"][str(seed)]
                    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)

    again = ran(given, tmp_path, adapts=["head", None])
    assert len(counted) == 16 and again == table
    with pytest.raises(ValueError, match=r"is of another config: .*hydra\.run\.dir"):
        ran([*given, "meta_batch=4"], tmp_path, adapts=["head"])


def test_runs_repeat_bit_for_bit(overrides: Overrides, tmp_path: Path) -> None:
    given = overrides("experiment=grid_sinusoid", *FEW)
    rates = {"optimizer.lr": [1e-2]}
    first, second = (ran(given, tmp_path / name, tune=rates, seeds=[3]) for name in ("one", "two"))
    assert first["rows"] == second["rows"]


def test_alphabets_as_groups(overrides: Overrides, tmp_path: Path, counted: list[Path]) -> None:
    given = overrides("experiment=grid_omniglot", *FEW, "net.hidden=4")
    table = ran(given, tmp_path / "letters", seeds=[0], adapts=["head"], tune=None)
    assert len(counted) == 2 and table["rows"][0]["rates"] == {}
    mean, mgda = (row["values"]["accuracy"]["mean"]["mean"] for row in table["rows"])
    gap = table["rows"][1]["differences"]["accuracy"]["mean"]
    assert gap["mean"] == pytest.approx(100 * (mgda - mean)) and gap["ci95"] is None
    assert "not known, because an interval needs two seeds" in table["verdict"]["accuracy"]
    content = tables.block(tmp_path)
    assert content.startswith("### letters\n") and table["verdict"]["accuracy"] in content
    assert "| accuracy: worst tenth / mean | head, K=1 |" in content and "| MGDA | = / = |" in content


def test_a_diverged_rate_is_not_chosen(overrides: Overrides, tmp_path: Path, counted: list[Path]) -> None:
    given = overrides("experiment=grid_sinusoid", *FEW, "steps=4")
    table = ran(given, tmp_path, tune={"optimizer.lr": [1e30, 1e-3]}, seeds=[0])
    assert [row["rates"] for row in table["rows"]] == 2 * [{"optimizer.lr": 1e-3}]
    kept = tmp_path / "all_1" / "Mean" / "optimizer.lr=1e+30" / "seed0" / "result.json"
    assert "not finite" in json.loads(kept.read_text(encoding="utf-8"))["diverged"]
    lost = ran(given, tmp_path / "lost", tune={"optimizer.lr": [1e30]})
    assert all(row["diverged"] == [0, 1] for row in lost["rows"])
    assert "diverged" in grid_table.markdown(lost)


def test_the_reference_is_an_aggregator_of_the_grid(overrides: Overrides, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"against has 'Median', .*did you mean 'Mean'"):
        ran(overrides("experiment=grid_sinusoid"), tmp_path, against="Median")


def found(mean: float, ci95: float | None) -> dict[str, Any]:
    return {"mean": mean, "ci95": ci95, "seeds": {}}


@pytest.mark.parametrize(
    ("worst", "mean", "sign", "gains"),
    [
        ((2.5, 1.0), (-0.4, 0.1), "+", True),
        ((2.5, 2.6), (0.0, 0.1), "=", False),  # within the noise
        ((1.9, 0.1), (1.0, 0.1), "+", False),  # too little
        ((2.5, 1.0), (-0.6, 0.1), "+", False),  # at too high a price
        ((-2.5, 1.0), (0.0, 0.1), "-", False),
        ((2.5, None), (0.0, None), "=", False),  # one seed
    ],
)
def test_signs_and_gains(worst: Any, mean: Any, sign: str, gains: bool) -> None:
    both = {"worst_tenth": found(*worst), "mean": found(*mean)}
    assert report.sign(both["worst_tenth"]) == sign
    assert grid_table.gains(both, {"worst_tenth": 2.0, "mean": -0.5}) is gains


def test_differences_are_positive_where_better() -> None:
    assert grid_table.difference(0.52, 0.5, "accuracy", True) == pytest.approx(2.0)
    assert grid_table.difference(90.0, 100.0, "mse", False) == pytest.approx(10.0)


def test_the_verdict_counts_and_names() -> None:
    def row(name: str, worst: Any, mean: Any, **more: Any) -> dict[str, Any]:
        gaps = {"accuracy": {"worst_tenth": found(*worst), "mean": found(*mean)}}
        return {"aggregator": name, "differences": gaps, **more}

    cell = {"adapts": "head", "inner_steps": 1}
    table = {
        "against": "Mean",
        "gain": {"worst_tenth": 2.0, "mean": -0.5},
        "rows": [
            row("Mean", (0, 0), (0, 0), **cell),
            row("MGDA", (3.0, 1.0), (0.2, 0.3), **cell),
            row("UPGrad", (4.0, 5.0), (0.2, 0.3), **cell),
        ],
        "pooled": [row("MGDA", (1.0, 2.0), (0.0, 1.0), cells=2)],
    }
    text = grid_table.verdict(table, "accuracy")
    assert "1 of 2 cells (the most: MGDA, head, K=1: +3.0 ± 1.0, mean +0.2 ± 0.3)" in text
    assert "none of 1 aggregators over all cells (the most: MGDA, all cells: +1.0 ± 2.0" in text
    assert "By chance alone 0.1 of" in text
