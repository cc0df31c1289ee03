"""Read and check the result of a training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

VMAP = "engine={_target_: metamtl.engines.Vmap}"  # repeats bit for bit; Auto chooses by the clock
KEYS = {
    "adaptation",
    "batchnorm",
    "compile_seconds",
    "config",
    "curve",
    "gradient_evaluations",
    "skipped_steps",
    "stopped_by",
    "hardware",
    "history",
    "interval",
    "test_as_trained",
    "test_by_batchnorm",
    "transductive",
    "processes",
    "parameters",
    "seconds",
    "seeds",
    "seen",
    "steps",
    "test",
    "validation",
    "versions",
}


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def read(folder: Path) -> dict[str, Any]:
    text = (folder / "result.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=no_constant)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock says."""
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result["history"]]
    times = {"seconds", "compile_seconds"}
    return {**{k: v for k, v in result.items() if k not in times}, "history": history}


def check_estimates(estimates: dict[str, Any]) -> None:
    assert estimates
    for name, found in estimates.items():
        assert set(found) == {"mean", "ci95", "n", "worst_decile", "num_missing"}, name
        assert found["num_missing"] >= 0, name
        assert math.isfinite(found["mean"]), name
        if found["n"] > 1:  # a measure with one value for the whole set has no interval
            assert found["ci95"] >= 0, name
        else:
            assert found["ci95"] is None, name
        if name.endswith("accuracy"):
            assert 0 <= found["worst_decile"] <= found["mean"] <= 1
        if name.endswith("mse"):
            assert 0 <= found["mean"] <= found["worst_decile"]


def check(result: dict[str, Any], metric: str) -> None:
    assert set(result) == KEYS
    assert {"python", "torch", "metamtl"} <= set(result["versions"])
    assert {"device", "cores", "threads"} <= set(result["hardware"])
    assert (
        result["steps"] >= 1 and result["seconds"] > 0 and result["gradient_evaluations"] >= result["steps"]
    )
    assert isinstance(result["seeds"][0], int) and isinstance(result["batchnorm"], str)
    for split in ("validation", "seen", "test"):
        assert metric in result[split]
        check_estimates(result[split])
    stage = result["adaptation"]["steps"]
    assert result["curve"][stage] == result["test"]
    for entry in result["history"]:
        assert math.isfinite(entry["train_loss"]) and math.isfinite(entry["validation"])
