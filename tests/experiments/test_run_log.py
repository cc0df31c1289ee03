"""What a run logs for TensorBoard, at a hundred points, and that looking changes nothing."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import train
from experiments.utils import parts
from experiments.utils.checkpoints import RunFolder
from experiments.utils.observation import Observer, conflict, gramian
from metamtl import Episode, Recipe, adapters, aggregators, engines, meta_backward, tasks

from .test_run_loop import SMALL

Compose = Callable[..., DictConfig]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The content of the event files: by tag and step."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        values = events.Scalars(tag)
        found[tag] = {event.step: event.value for event in values}
        assert len(found[tag]) == len(values), f"{tag} has two values for one step"
    return found


def test_what_is_logged_at_a_hundred_points(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*SMALL, "steps=120", "validate.times=2", "schedule=cosine", "average=0.5")
    result = train.run(cfg, tmp_path)
    logged = scalars(tmp_path)
    steps = set(logged["loss/train"])
    assert len(steps) == 100 and min(steps) == 0 and max(steps) < 120
    for tag in (
        *("loss/best_task", "loss/worst_task", "learning_rate", "gradient_norm/tasks"),
        *("gradient_norm/update", "cosine/mean", "cosine/min", "weight/min", "weight/max"),
    ):
        assert set(logged[tag]) == steps and all(map(math.isfinite, logged[tag].values())), tag
    for step in steps:
        assert (
            logged["loss/best_task"][step] <= logged["loss/train"][step] <= logged["loss/worst_task"][step]
        )
        assert -1 <= logged["cosine/min"][step] <= logged["cosine/mean"][step] <= 1
        assert logged["learning_rate"][step] == pytest.approx(
            1e-3 * (1 + math.cos(math.pi * step / 120)) / 2, rel=1e-5
        )
        assert logged["weight/min"][step] == pytest.approx(1 / 3)
    for entry in result["history"]:
        validated = [logged[f"validation/mse{end}"][entry["step"]] for end in ("", "/low", "/high")]
        mean, ci95 = entry["validation"], entry["ci95"]
        assert validated == pytest.approx([mean, mean - ci95, mean + ci95], rel=1e-5)
    assert logged["test/mse"] == {120: pytest.approx(result["test"]["mse"]["mean"], rel=1e-5)}


def test_named_tasks_are_logged_by_name(composed: Compose, tmp_path: Path) -> None:
    few = ("steps=3", "meta_batch=8", "validate.times=1")
    weighting = "+recipe.aggregator={_target_: metamtl.aggregators.UW, _args_: [2]}"
    cfg = composed("experiment=adult", *few, weighting)
    train.run(cfg, tmp_path)
    logged = scalars(tmp_path)
    names = list(parts.Sources()(cfg).split("train").loss)
    for name in names:
        assert set(logged[f"loss/{name}"]) == set(logged[f"weight/{name}"]) == {0, 1, 2}
    for step in range(3):
        losses = [logged[f"loss/{name}"][step] for name in names]
        assert logged["loss/train"][step] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_log_of_a_resumed_run_has_no_step_twice(composed: Compose, tmp_path: Path) -> None:
    train.run(composed(*SMALL, "steps=12", "checkpoint.every=4"), tmp_path)
    first = scalars(tmp_path)
    for path in (tmp_path / "result.json", RunFolder(tmp_path, {}, resume=True, keep=2).checkpoints()[0]):
        path.unlink()
    train.run(composed(*SMALL, "steps=12", "checkpoint.every=4"), tmp_path)
    assert scalars(tmp_path) == first


def test_conflict_by_hand() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-3.0, -4.0], [4.0, -3.0]])
    found = conflict(gramian(rows))
    assert found == pytest.approx(
        {"gradient_norm/tasks": 15 / 4, "cosine/mean": -1 / 3, "cosine/min": -1.0}
    )
    assert conflict(gramian(rows[:2])) == {"gradient_norm/tasks": 2.5}  # one gradient has no angle


@pytest.mark.parametrize("name", ["Mean", "DWA", "PCGrad", "MGDA", "UW"])
def test_an_observed_aggregator_computes_the_same(name: str) -> None:
    """Its state included: logged steps and others alternate in a training."""

    def gradients(observe: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, rng = torch.nn.Linear(1, 1), torch.Generator().manual_seed(0)
        inner = getattr(aggregators, name)(*{"UW": [3], "DWA": [1]}.get(name, []))
        results = []
        for step in range(4):
            used = Observer(inner) if observe and step % 2 == 0 else inner
            torch.manual_seed(step)
            episodes: Episode = tasks.Sinusoid().sample(3, rng)
            meta_backward(
                model,
                Recipe(adapters.Gradient(1, 0.01), used),
                episodes,
                tasks.Sinusoid().loss,
                engine=engines.Vmap(),
            )
            results += [param.grad.clone() for param in model.parameters()]  # type: ignore[union-attr]
        return results

    assert all(map(torch.equal, gradients(True), gradients(False)))


def test_a_log_that_cannot_be_written_does_not_end_the_run(
    composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with caplog.at_level(logging.WARNING):
        result = train.run(composed(*SMALL, "steps=3"), tmp_path)
    assert result["steps"] == 3 and caplog.text.count("the TensorBoard log ends here") == 1
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 3
