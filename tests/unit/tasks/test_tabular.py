from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamtl import evaluate, meta_backward, nets, recipes
from metamtl.tasks import Adult, LabeledTasks, Parkinsons, Patients, Tox21
from metamtl.tasks.adult import LEFT_OUT
from metamtl.tasks.parkinsons import Recordings

FAMILIES: dict[str, tuple[Any, str]] = {
    "adult": (Adult, "adult.npz"),
    "tox21": (Tox21, "tox21.npz"),
    "parkinsons": (Parkinsons, "parkinsons_updrs.npz"),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(split: LabeledTasks) -> dict[str, Any]:
    return {task: episode.query for task, episode in split.at(torch.arange(len(split))).items()}


def altered(tiny: Path, folder: Path, name: str, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A data folder with a changed copy of one set."""
    path = shutil.copytree(tiny / name, folder / name) / FAMILIES[name][1]
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    change(arrays)
    np.savez(path, **arrays)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_is_in_one_split_and_the_splits_are_fixed(name: str, tiny: Path) -> None:
    family, again = FAMILIES[name][0](data_dir=tiny), FAMILIES[name][0](data_dir=tiny)
    parts = family._parts if hasattr(family, "_parts") else family.recordings.parts
    total = sum(len(at) for at in parts.values())
    assert len(np.unique(np.concatenate(list(parts.values())))) == total
    for split in ("train", "validation", "test"):
        assert len(family.split(split)) == len(parts[split]) > 0
        for task, query in whole(family.split(split)).items():
            other = whole(again.split(split))[task]
            assert torch.equal(query.x, other.x)
            assert torch.equal(query.y.nan_to_num(9), other.y.nan_to_num(9))


def test_what_is_fitted_is_fitted_on_training_rows_alone(tiny: Path, tmp_path: Path) -> None:
    """Held-out rows may be anything: the training input stays as it was."""

    def tox(arrays: dict[str, np.ndarray]) -> None:
        held = np.concatenate([Tox21(data_dir=tiny)._parts[part] for part in ("validation", "test")])
        arrays["descriptors"][held] = 1e6

    def parkinsons(arrays: dict[str, np.ndarray]) -> None:
        parts = Recordings(tiny).parts
        held = np.concatenate([parts["validation"], parts["test"]])
        arrays["x"][held], arrays["y"][held] = -1e6, 1e6

    def adult(arrays: dict[str, np.ndarray]) -> None:
        # Other numbers for the held-out rows alone; equal rows stay equal, so that the split stays too.
        parts = Adult(data_dir=tiny)._parts
        held = np.concatenate([parts["validation"], parts["test"]])
        arrays["numeric"][held, 1:] = arrays["numeric"][held, 1:] * 7 + 5
        monkeypatch_rows["parts"] = parts

    monkeypatch_rows: dict[str, Any] = {}
    for name, change in (("tox21", tox), ("parkinsons", parkinsons), ("adult", adult)):
        folder = altered(tiny, tmp_path, name, change)
        before, after = (FAMILIES[name][0](data_dir=where) for where in (tiny, folder))
        if name == "adult":  # groups of rows are numbered by their values
            after.__dict__["_parts"] = monkeypatch_rows["parts"]
        for task, query in whole(before.split("train")).items():
            found = whole(after.split("train"))[task]
            assert torch.equal(query.x, found.x), name
            assert torch.equal(query.y.nan_to_num(9), found.y.nan_to_num(9)), name
        test, other = (next(iter(whole(f.split("test")).values())) for f in (before, after))
        assert not torch.equal(test.x, other.x), name


@pytest.mark.parametrize("name", FAMILIES)
def test_they_train_together_and_apart(name: str, tiny: Path) -> None:
    family = FAMILIES[name][0](data_dir=tiny)
    for tasks in (None, family.tasks[:1]):
        train = FAMILIES[name][0](tasks=tasks, data_dir=tiny).split("train")
        model = nets.named_heads(nets.mlp(train.inputs, 8, 1), train.outputs)
        episodes = train.sample(24, rng())
        outcome = meta_backward(model, recipes.joint(), episodes, train.loss)
        assert outcome.tasks == tuple(episodes) and outcome.losses.isfinite().all()
        found = evaluate(model, recipes.joint(), episodes, train.loss, metrics=train.metrics)
        assert all(np.isfinite(e.mean) for estimates in found.values() for e in estimates.values())


def test_adult_leaves_out_what_gives_an_answer_away(tiny: Path) -> None:
    family = Adult(data_dir=tiny)
    columns = {name.partition("=")[0] for name in family.input_names}
    assert columns == {
        *("age", "education-num", "capital-gain", "capital-loss", "hours-per-week"),
        *("workclass", "occupation", "race", "sex", "native-country"),
    }
    assert not columns & set(LEFT_OUT) and family.split("train").inputs == len(family.input_names)


def test_adult_columns_and_labels(tiny: Path) -> None:
    family = Adult(data_dir=tiny)
    arrays, at = family._arrays, family._parts["train"]
    query = whole(family.split("train"))
    numeric = arrays["numeric"][at].astype(float)
    for column, name in enumerate(family.input_names[:5]):
        raw = numeric[:, arrays["numeric_names"].tolist().index(name)]
        raw = np.log1p(raw) if name.startswith("capital") else raw
        expected = (raw - raw.mean()) / raw.std()
        assert np.allclose(query["income"].x[:, column], expected, atol=1e-5)
    sex = arrays["categorical"][at, arrays["categorical_names"].tolist().index("sex")]
    level = arrays["levels_sex"][sex[0]]
    assert torch.equal(
        query["income"].x[:, family.input_names.index(f"sex={level}")],
        torch.from_numpy(sex == sex[0]).float(),
    )
    income = arrays["categorical"][at, arrays["categorical_names"].tolist().index("income-per-year")]
    married = arrays["categorical"][at, arrays["categorical_names"].tolist().index("marital-status")]
    assert query["income"].y.flatten().tolist() == (income == 1).astype(float).tolist()
    assert query["never_married"].y.flatten().tolist() == (married == 1).astype(float).tolist()


def test_adult_has_no_column_for_a_level_that_training_never_met(tiny: Path, tmp_path: Path) -> None:
    parts = Adult(data_dir=tiny)._parts

    def rare(arrays: dict[str, np.ndarray]) -> None:
        race = arrays["categorical_names"].tolist().index("race")
        arrays["categorical"][:, race] = 0
        arrays["categorical"][parts["test"], race] = 3

    family = Adult(data_dir=altered(tiny, tmp_path, "adult", rare))
    family.__dict__["_parts"] = parts
    assert [name for name in family.input_names if name.startswith("race=")] == ["race=?"]
    column = family.input_names.index("race=?")
    assert whole(family.split("test"))["income"].x[:, column].tolist() == [0.0] * len(parts["test"])


def test_tox21_reads_bits_and_missing_labels(tiny: Path) -> None:
    family = Tox21(data_dir=tiny)
    arrays, at = family._arrays, family._parts["test"]
    query = whole(family.split("test"))
    assert family.split("train").inputs == 1034 and len(family.tasks) == 12
    x = next(iter(query.values())).x
    bits = np.unpackbits(arrays["fingerprint_packed"][at], axis=1)
    assert np.array_equal(x[:, :1024].numpy(), bits) and x[:, 1024:].abs().max() <= 5
    for column, task in enumerate(family.tasks):
        raw = arrays["y"][at, column]
        if task in query:
            y = query[task].y[:, 0].numpy()
            assert np.array_equal(np.isnan(y), raw == -1) and np.array_equal(y[raw >= 0], raw[raw >= 0])
        else:
            assert (raw == -1).all()


def test_tox21_keeps_equal_fingerprints_together(tiny: Path, tmp_path: Path) -> None:
    def twins(arrays: dict[str, np.ndarray]) -> None:
        arrays["fingerprint_packed"][20:] = arrays["fingerprint_packed"][:20]

    family = Tox21(data_dir=altered(tiny, tmp_path, "tox21", twins))
    for at in family._parts.values():
        assert {int(i) % 20 for i in at if i < 20} == {int(i) % 20 for i in at if i >= 20}


def test_no_patient_is_in_two_splits(tiny: Path) -> None:
    found = Recordings(tiny)
    held = [set(found.subject[at].tolist()) for at in found.parts.values()]
    assert set.union(*held) == set(range(1, 15)) and sum(map(len, held)) == 14
    few = Patients(2, 3, data_dir=tiny)
    assert [set(few.split(part).ids) for part in ("train", "validation", "test")] == held


def test_scores_are_standardised_and_told_in_points(tiny: Path) -> None:
    family = Parkinsons(data_dir=tiny)
    raw, at = family.recordings._arrays["y"], family.recordings.parts
    mean, deviation = raw[at["train"]].mean(0), raw[at["train"]].std(0)
    test = family.split("test")
    for column, task in enumerate(("motor", "total")):
        y = whole(test)[task].y
        assert np.allclose(y[:, 0], (raw[at["test"], column] - mean[column]) / deviation[column], atol=1e-5)
        points = test.metrics[task]["mae"](torch.zeros_like(y), y)
        assert np.allclose(points, np.abs(raw[at["test"], column] - mean[column]), rtol=1e-4)
        assert not test.metrics[task]["mae"].higher_is_better


def test_a_patient_is_a_few_shot_task(tiny: Path) -> None:
    family = Patients(2, 3, data_dir=tiny).split("train")
    episode = family.sample(5, rng())
    episode.check()
    assert episode.support is not None and episode.task is not None
    assert episode.support.x.shape == (5, 2, 19) and episode.query.y.shape == (5, 3, 2)
    found = Recordings(tiny)
    for task, patient in enumerate(episode.task.tolist()):
        rows = torch.as_tensor(found.x[found.subject == patient]).float()
        mine = torch.cat([episode.support.x[task], episode.query.x[task]])
        at = (mine[:, None] == rows).all(-1).nonzero()
        assert len(at) == 5 and len(at[:, 1].unique()) == 5
    model = nets.mlp(19, 8, 2)
    outcome = meta_backward(model, recipes.maml(1, 0.01), episode, family.loss)
    assert outcome.losses.shape == (5,)
    with pytest.raises(ValueError, match=r"4 shots \+ 3 queries need 7 recordings"):
        Patients(4, 3, data_dir=tiny).split("test")
    supports = Patients(4, 0, data_dir=tiny).split("test").sample(2, torch.Generator())
    assert supports.support is not None and supports.query.x.shape == (2, 0, 19)
    assert Patients(0, 4, data_dir=tiny).split("test").sample(2, torch.Generator()).support is None
    with pytest.raises(ValueError, match="shots=0, queries=0: a task needs at least one example"):
        Patients(0, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_data_and_bad_names(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name][0]
    with pytest.raises(FileNotFoundError, match=rf"{name} is not in .*datasets\.prepare {name} --from"):
        family(data_dir=tmp_path).split("train")
    with pytest.raises(ValueError, match="different names out of"):
        family(tasks=["nothing"])
    with pytest.raises(ValueError, match="split 'dev' is not one of"):
        family(data_dir=tmp_path).split("dev")


@pytest.mark.parametrize(
    ("name", "rows", "inputs"), [("adult", 32561, 77), ("tox21", 8006, 1034), ("parkinsons", 5875, 19)]
)
def test_real_tables(name: str, rows: int, inputs: int, real_data: Callable[[str], Path]) -> None:
    family = FAMILIES[name][0](data_dir=real_data(name))
    splits = {part: family.split(part) for part in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == rows
    assert 0.09 < len(splits["validation"]) / rows < 0.16 and 0.09 < len(splits["test"]) / rows < 0.21
    assert splits["train"].inputs == inputs
    for split in splits.values():
        x = next(iter(whole(split).values())).x
        assert x.isfinite().all() and len(whole(split)) == len(family.tasks)
