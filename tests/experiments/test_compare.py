"""A comparison is fair, and writes what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from experiments import compare, train
from experiments.tables import __main__ as tables
from experiments.tables.compare import markdown
from experiments.utils.configs import compose
from experiments.utils.measure import batchnorm_kinds
from metamtl import Estimate, adapters, nets

Overrides = Callable[..., list[str]]


def compared(given: list[str], folder: Path, recipes: str, seeds: str) -> dict[str, Any]:
    every = [*given, f"recipes={recipes}", f"seeds={seeds}"]
    return compare.run(compose("compare", every), every, folder)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[float]]]:
    """For each run, in order: all the numbers of its training episodes, and of those it is measured on."""
    found: dict[str, list[list[float]]] = {"train": [], "measured": []}

    def print_of(episodes: Any) -> list[float]:
        parts = episodes.values() if isinstance(episodes, dict) else [episodes]
        leaves = [leaf for e in parts for leaf in tree_leaves((e.support, e.query)) if leaf is not None]
        return [float(leaf.double().sum()) for leaf in leaves if isinstance(leaf, torch.Tensor)]

    original, meta_backward, measure = train.run, train.meta_backward, train.measure

    def run(*args: Any) -> Any:
        found["train"].append([])
        found["measured"].append([])
        return original(*args)

    def backward(model: Any, recipe: Any, episodes: Any, loss: Any, **options: Any) -> Any:
        found["train"][-1].append(print_of(episodes))  # type: ignore[arg-type]
        return meta_backward(model, recipe, episodes, loss, **options)

    def measured(model: Any, recipe: Any, stage: int, family: Any, episodes: Any, *more: Any) -> Any:
        found["measured"][-1].append(print_of(episodes))  # type: ignore[arg-type]
        return measure(model, recipe, stage, family, episodes, *more)

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(train, "meta_backward", backward)
    monkeypatch.setattr(train, "measure", measured)
    return found


def test_trainings_of_other_processes_are_in_the_table(overrides: Overrides, tmp_path: Path) -> None:
    options = overrides("steps=null", "gradient_evaluations=40", "meta_batch=2", "validate.times=1")
    for recipe in ("maml", "anil"):
        train.run(compose("train", [*options, f"recipe={recipe}", "seed=0"]), tmp_path / recipe / "seed0")
    results = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/seed0/result.json")}
    table = compared(options, tmp_path, "[maml,anil]", "[0]")
    assert len(results) == 2 and len(table["rows"]) == 3
    assert {path: path.stat().st_mtime_ns for path in results} == results


def test_recipes_get_the_same_episodes_and_the_same_work(
    overrides: Overrides, tmp_path: Path, seen: dict[str, list[list[float]]]
) -> None:
    given = overrides("experiment=sinusoid", "steps=6", "meta_batch=4")
    table = compared(given, tmp_path, "[joint,maml]", "[0,1]")
    joint, joint_1, maml, maml_1 = seen["train"]
    for one, other in ((joint, maml), (joint_1, maml_1)):
        least = min(len(one), len(other))
        assert least >= 2 and one[:least] == other[:least]
    assert not [episode for episode in joint if episode in joint_1]
    assert len({str(episode) for episode in joint}) == len(joint)
    assert seen["measured"][0] == seen["measured"][2] and seen["measured"][1] == seen["measured"][3]
    assert seen["measured"][0] != seen["measured"][1]

    rows = {row["recipe"]: row for row in table["rows"]}
    budget = table["experiment"]["gradient_evaluations"]
    assert budget == 2 * 6 * 4
    for recipe in ("joint", "maml"):
        spent, steps = rows[recipe]["gradient_evaluations"], rows[recipe]["steps"]
        assert budget <= spent < budget + spent / steps  # over by less than one step
    assert rows["joint"]["steps"] == 6 and rows["maml"]["steps"] == 4


@pytest.mark.slow
def test_what_it_writes(overrides: Overrides, tmp_path: Path) -> None:
    given = overrides("experiment=glyphs_5way_1shot", "steps=2", "meta_batch=2", "+net.hidden=8")
    table = compared(given, tmp_path, "[mtl,protonet]", "[0,1]")
    assert json.loads((tmp_path / "table.json").read_text(encoding="utf-8")) == table
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert table["seeds"] == [0, 1] and "over seeds" in table["interval"]
    assert table["batchnorm"].startswith("transductive")
    assert {"versions", "hardware"} <= set(table)
    assert [row["recipe"] for row in table["rows"]][:2] == ["mtl", "protonet"]
    assert table["rows"][-1]["recipe"] == "trivial: nearest class mean on raw pixels"

    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text == markdown(table)
    for row in table["rows"]:
        assert 0 <= row["new"]["mean"] <= 1 and 0 <= row["seen"]["mean"] <= 1
        assert f"| {row['recipe']} |" in text and f" {100 * row['new']['mean']:.1f} ±" in text
    assert "| new tasks, inductive BatchNorm | new tasks, transductive BatchNorm |" in text
    for row in table["rows"][:2]:
        both = row["by_batchnorm"]
        assert both["transductive"] == row["new"] and both["inductive"] != row["new"]
        assert 0 <= both["inductive"]["mean"] <= 1
    assert table["rows"][2].get("by_batchnorm") is None
    for recipe in ("mtl", "protonet"):
        found = []
        for seed in (0, 1):
            path = tmp_path / recipe / f"seed{seed}" / "result.json"
            result = json.loads(path.read_text(encoding="utf-8"))
            assert result["seeds"] == [seed]
            found.append(result["test"]["accuracy"]["mean"])
        row = next(row for row in table["rows"] if row["recipe"] == recipe)
        assert row["new"]["mean"] == pytest.approx(sum(found) / 2)


@pytest.mark.parametrize("policy", ["transductive", "support", "frozen", "per_step"])
def test_both_kinds_of_batchnorm_have_the_same_weights(policy: str) -> None:
    """With the inductive one the output for an example does not depend on the others of the query set."""
    model = nets.conv4(ways=5, hidden=4, batchnorm=policy, steps=1 if policy == "per_step" else None)
    kinds = batchnorm_kinds(model)
    own = "inductive" if policy in ("support", "frozen") else "transductive"
    assert kinds[own] is model
    assert set(kinds) == ({"transductive"} if policy == "per_step" else {"inductive", "transductive"})
    rng = torch.Generator().manual_seed(0)
    support = (torch.randn(10, 1, 28, 28, generator=rng), torch.arange(5).repeat(2))
    query = torch.randn(6, 1, 28, 28, generator=rng)
    for kind, net in kinds.items():
        assert [name for name, _ in net.named_parameters()] == [n for n, _ in model.named_parameters()]
        assert all(map(torch.equal, net.parameters(), model.parameters()))
        adapter = adapters.Prototype()
        params = adapter(net, support, torch.nn.functional.cross_entropy)
        together, alone = (adapter.predict(net, params, x)[:1] for x in (query, query[:1]))
        assert torch.allclose(together, alone, atol=1e-5) == (kind == "inductive")
    assert batchnorm_kinds(nets.mlp(2, 3, 1)) == {}


def test_differences_are_paired_and_the_adapter_is_that_of_the_training(
    overrides: Overrides, tmp_path: Path
) -> None:
    given = overrides("experiment=sinusoid", "steps=4", "meta_batch=4")
    table = compared(given, tmp_path, "[joint,maml]", "[0]")
    rows = {row["recipe"]: row for row in table["rows"]}
    best, other = sorted(("joint", "maml"), key=lambda name: rows[name]["new"]["mean"])
    assert rows[best]["to_best"] is None
    values = {
        name: json.loads((tmp_path / name / "seed0" / "tasks.json").read_text(encoding="utf-8"))["test"][
            "mse"
        ]
        for name in rows
        if not name.startswith("trivial")
    }
    gaps = Estimate.of(torch.tensor([a - b for a, b in zip(values[other], values[best])]).double())
    assert rows[other]["to_best"] == {"mean": pytest.approx(gaps.mean), "ci95": pytest.approx(gaps.ci95)}
    trained = json.loads((tmp_path / "maml" / "seed0" / "result.json").read_text(encoding="utf-8"))
    assert rows["maml"]["as_trained"]["mean"] == trained["test_as_trained"]["mse"]["mean"]
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "adapted as trained" in text and "within the noise" in text


def test_one_seed_and_the_trivial_row(overrides: Overrides, tmp_path: Path) -> None:
    table = compared(overrides("experiment=sinusoid", "steps=2"), tmp_path, "[maml]", "[5]")
    assert "over test tasks" in table["interval"]
    assert table["rows"][-1]["recipe"] == "trivial: mean of the support targets"
    assert table["rows"][0]["new"]["ci95"] > 0


def test_the_budget_can_be_time(overrides: Overrides, tmp_path: Path) -> None:
    options = overrides("experiment=sinusoid", "steps=null", "max_minutes=0.001")
    table = compared(options, tmp_path, "[maml]", "[0]")
    assert table["rows"][0]["stopped_by"] == ["max_minutes"]
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Budget: 0.001 minutes per recipe, with validation." in text
    assert "ended before the budget" not in text


def test_what_ends_before_the_budget_is_named(overrides: Overrides, tmp_path: Path) -> None:
    options = overrides("experiment=sinusoid", "steps=100000", "max_minutes=0.001")
    compared(options, tmp_path, "[maml]", "[0]")
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "maml: ended before the budget (max_minutes)." in text and "Budget:" not in text


def test_unlike_tasks(overrides: Overrides, tmp_path: Path) -> None:
    given = overrides("experiment=glyphs_multitask", "steps=2", "meta_batch=16", "test.tasks=400")
    table = compared(given, tmp_path, "[joint,joint_pcgrad]", "[0]")
    joint, pcgrad, trivial = table["rows"]
    assert joint["gradient_evaluations"] == pcgrad["gradient_evaluations"]
    assert trivial["recipe"].startswith("trivial")
    assert all(0 <= row["new"]["mean"] <= 1 for row in table["rows"])


def test_tables_put_a_comparison_between_the_marks(overrides: Overrides, tmp_path: Path) -> None:
    given = overrides("experiment=sinusoid", "steps=2")
    folder = tmp_path / "waves"
    table = compared([*given, "data_dir=somewhere"], folder, "[joint,maml]", "[0]")
    content = tables.block(tmp_path)
    assert content.startswith("### waves\n") and markdown(table).strip() in content
    assert "'recipes=[joint,maml]' 'seeds=[0]'" in content and "somewhere" not in content
    assert "experiments/results/waves/figure.png" in content
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    once = tables.rewritten(text, content)
    assert once == tables.rewritten(once, content) != text
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "old" not in once
    with pytest.raises(ValueError, match="no place for results"):
        tables.rewritten("nothing here", content)


def test_a_recipe_that_diverges_costs_the_others_nothing(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train.run

    def run(cfg: Any, *rest: Any) -> Any:
        if "fomaml" in cfg.recipe._target_ and cfg.seed == 1:
            raise FloatingPointError("step 7: the loss is\nnot finite.")
        return original(cfg, *rest)

    monkeypatch.setattr(train, "run", run)
    options = overrides("steps=2", "validate.times=1")
    table = compared(options, tmp_path, "[fomaml,maml]", "[0,1]")
    assert table["rows"][0]["recipe"] == "maml"
    assert table["diverged"] == {"fomaml": "seed 1: step 7: the loss is\nnot finite."}
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "fomaml diverged and has no row (seed 1: step 7: the loss is not finite.)." in text
    assert (tmp_path / "figure.png").is_file()
    with pytest.raises(FloatingPointError, match=r"every recipe diverged. fomaml, seed 1: step 7"):
        compared(options, tmp_path, "[fomaml]", "[0,1]")
