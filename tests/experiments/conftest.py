"""Configs composed in this process, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import DictConfig

from experiments import train
from experiments.utils.configs import compose

FEW = ("device=cpu", "validate.tasks=4", "select.tasks=4", "test.tasks=4")
# Sources whose files have to be there: the name of their set.
REAL = {
    "Omniglot": "omniglot",
    "OmniglotAlphabets": "omniglot",
    "CIFARSuperclasses": "cifar100",
    "CIFARFS": "cifar100",
    "FC100": "cifar100",
    "MultiMNIST": "mnist",
    "TextTrio": "snips",
    "Clinc150": "clinc150",
    "Tox21": "tox21",
    "Parkinsons": "parkinsons",
    "Patients": "parkinsons",
    "Adult": "adult",
    "EasyVQA": "easy_vqa",
}
# ROC-AUC needs examples of both classes, for every task.
MANY = {"Tox21": 700, "Adult": 200}
Compose = Callable[..., DictConfig]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a composed config train."""
    for item in items:
        if {"composed", "overrides"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


class Watch:
    """Stands for the module `time` and shows the seconds that a test has set."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The clock of trainings, which only the test moves: `watch.now += 0.5`."""
    watch = Watch()
    monkeypatch.setattr("experiments.utils.progress.time", watch)
    return watch


@pytest.fixture
def configs() -> Iterator[None]:
    """Hydra knows where the configs are, as it does under `hydra.main`."""
    with initialize_config_dir(version_base=None, config_dir=train.CONF):
        yield


@pytest.fixture
def composed(configs: None, request: pytest.FixtureRequest) -> Compose:
    """`composed(*overrides, name="train")`: a small config whose data lies where the tests keep it."""

    def small(*overrides: str, name: str = "train") -> DictConfig:
        return compose(name, [*FEW, *overrides, *data(compose(name, list(overrides)), request)])

    return small


@pytest.fixture
def overrides(configs: None, request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """What `composed` adds to the overrides it is given, and these."""

    def small(*given: str) -> list[str]:
        return [*FEW, *given, *data(compose("train", list(given)), request)]

    return small


def data(cfg: DictConfig, request: pytest.FixtureRequest) -> list[str]:
    source = cfg.task._target_.rpartition(".")[2]
    if source in REAL:
        found: Path = request.getfixturevalue("real_data")(REAL[source])
    elif source.startswith("Glyph"):
        found = request.getfixturevalue("glyph_dir")
    else:
        return []
    counts = [f"{kind}.tasks={MANY[source]}" for kind in ("validate", "select", "test") if source in MANY]
    return [f"data_dir={found}", *counts]
