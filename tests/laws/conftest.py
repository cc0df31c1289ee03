"""One of every aggregator, for the laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from metamtl import aggregators

# What a method cannot do without, for a number of rows.
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "AutoLambda": lambda rows: {"rate": 0.1, "every": 1_000},
    "CAGrad": lambda rows: {"c": 0.5},
    "COSMOS": lambda rows: {"lambda_": 0.1, "weights": torch.ones(rows)},
    "Constant": lambda rows: {"weights": torch.arange(1.0, rows + 1)},
    "DWA": lambda rows: {"calls_per_epoch": 2},
    "FAMO": lambda rows: {"num_tasks": rows},
    "FairGrad": lambda rows: {"alpha": 1.0},
    "IMTLL": lambda rows: {"shape": rows},
    "Krum": lambda rows: {"n_byzantine": 0},
    "PBI": lambda rows: {"theta": 5.0, "weights": torch.ones(rows)},
    "STCH": lambda rows: {"mu": 0.1},
    "TrimmedMean": lambda rows: {"trim_number": 1},
    "UW": lambda rows: {"shape": rows},
}
Make = Callable[..., aggregators.Aggregator]


@pytest.fixture
def make() -> Make:
    """`make(name, rows, **options)`."""

    def build(name: str, rows: int, **options: Any) -> aggregators.Aggregator:
        needed = OPTIONS.get(name, lambda rows: {})(rows)
        return getattr(aggregators, name)(**{**needed, **options})

    return build
