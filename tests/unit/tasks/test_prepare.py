"""Official files, in their own formats, become exactly the form that the loaders read."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from metamtl.datasets import (
    adult,
    clinc150,
    easy_vqa,
    mnist,
    parkinsons,
    sentiment,
    snips,
    tox21,
    wnut17,
)

from .official_formats import entries, same, stored, write_easy_vqa, write_idx, write_mnist


def test_mnist(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    expected = {
        "train_images": draw.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "train_labels": np.array([5, 0, 4], np.uint8),
        "test_images": draw.integers(0, 256, (2, 28, 28), dtype=np.uint8),
        "test_labels": np.array([7, 2], np.uint8),
    }
    write_mnist(tmp_path, expected)
    same(stored(mnist.prepare(tmp_path, tmp_path / "mnist")), expected)
    same(mnist.load(tmp_path), expected)
    write_idx(tmp_path / mnist.OFFICIAL[1], expected["train_labels"])
    (tmp_path / mnist.OFFICIAL[0]).write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc"))
    with pytest.raises(ValueError, match=r"declares shape \[9\], but has 3 bytes"):
        mnist.prepare(tmp_path, tmp_path / "mnist")
    (tmp_path / mnist.OFFICIAL[0]).write_bytes(gzip.compress(b"no idx file"))
    with pytest.raises(ValueError, match="not an idx file of bytes"):
        mnist.prepare(tmp_path, tmp_path / "mnist")


def test_adult(tmp_path: Path) -> None:
    (tmp_path / "adult.data").write_text(
        "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male,"
        " 2174, 0, 40, United-States, <=50K\n"
        "52, ?, 209642, HS-grad, 9, Married-civ-spouse, ?, Husband, White, Male, 0, 0, 45, Cuba, >50K\n\n"
    )
    found = stored(adult.prepare(tmp_path, tmp_path / "adult"))
    assert found["numeric_names"].tolist() == list(adult.NUMERIC) and found["numeric"].dtype == np.int32
    assert found["numeric"].tolist() == [[39, 77516, 13, 2174, 0, 40], [52, 209642, 9, 0, 0, 45]]
    assert found["categorical_names"].tolist() == [
        *("workclass", "education", "marital-status", "occupation", "relationship", "race", "sex"),
        *("native-country", "income-per-year"),
    ]
    assert found["categorical"].dtype == np.uint8
    assert found["categorical"].tolist() == [[1, 0, 1, 1, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0, 1]]
    assert found["levels_workclass"].tolist() == ["?", "State-gov"]
    assert found["levels_income-per-year"].tolist() == ["<=50K", ">50K"]
    (tmp_path / "adult.data").write_text("39, State-gov\n")
    with pytest.raises(ValueError, match=r"rows \[1\] do not have 15 columns"):
        adult.prepare(tmp_path, tmp_path / "adult")


def test_parkinsons(tmp_path: Path) -> None:
    (tmp_path / "parkinsons_updrs.data").write_text(
        "subject#,age,sex,test_time,motor_UPDRS,total_UPDRS,Jitter(%)\n"
        "1,72,0,5.6431,28.199,34.398,0.00662\n"
        "42,61,1,-0.5,20.0,25.5,0.003\n"
    )
    expected = {
        "x": np.array([[72, 0, 5.6431, 0.00662], [61, 1, -0.5, 0.003]]),
        "y": np.array([[28.199, 34.398], [20.0, 25.5]]),
        "subject": np.array([1, 42], np.int16),
        "x_names": np.array(["age", "sex", "test_time", "Jitter(%)"]),
        "y_names": np.array(["motor_UPDRS", "total_UPDRS"]),
    }
    same(stored(parkinsons.prepare(tmp_path, tmp_path / "parkinsons")), expected)


def test_tox21(tmp_path: Path) -> None:
    rows = [
        ",".join([*tox21.ASSAYS, "mol_id", "smiles"]),
        ",".join(["0.0", "1.0", "", *["0"] * 9, "TOX1", "CCO"]),
        ",".join([*["1"] * 12, "TOX2", "no molecule"]),
        ",".join([*[""] * 11, "1.0", "TOX3", "C"]),
    ]
    (tmp_path / "tox21.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))

    def describe(smiles: str) -> tuple[np.ndarray, np.ndarray] | None:
        bits = np.arange(1024) % len(smiles) == 0
        return None if " " in smiles else (bits, np.full(10, len(smiles), np.float32))

    found = stored(tox21.prepare(tmp_path, tmp_path / "tox21", describe))
    same(
        found,
        {
            "fingerprint_packed": np.packbits(
                np.stack([np.arange(1024) % 3 == 0, np.ones(1024, bool)]), axis=1
            ),
            "descriptors": np.repeat(np.array([[3], [1]], np.float32), 10, axis=1),
            "descriptor_names": np.array(tox21.DESCRIPTORS),
            "y": np.array([[0, 1, -1, *[0] * 9], [*[-1] * 11, 1]], np.int8),
            "task_names": np.array(tox21.ASSAYS),
            "smiles": np.array([b"CCO", b"C"]),
            "mol_id": np.array(["TOX1", "TOX3"]),
        },
    )


def test_tox21_needs_rdkit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match="requires RDKit, which is missing: pip install rdkit"):
        tox21.rdkit_features("CCO")


def test_easy_vqa(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)
    expected = {
        "answers": np.array(["red", "yes", "no"]),
        "questions": np.array(["is there a red shape?", "what color is it?"]),
        "train_images": pictures,
        "train_question": np.array([1, 0, 0], np.int16),
        "train_question_image": np.array([0, 0, 10], np.int16),
        "train_question_answer": np.array([0, 1, 2], np.int8),
        "test_images": pictures[:1],
        "test_question": np.array([0], np.int16),
        "test_question_image": np.array([0], np.int16),
        "test_question_answer": np.array([1], np.int8),
    }
    write_easy_vqa(tmp_path, expected)
    same(stored(easy_vqa.prepare(tmp_path, tmp_path / "easy_vqa")), expected)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])  # the official files are in both
def test_snips(tmp_path: Path, encoding: str) -> None:
    for intent in snips.INTENTS:
        (tmp_path / intent).mkdir()
        stretches = [
            {"text": "Add another "},
            {"text": "Cita Romántica", "entity": "playlist"},
            {"text": " ."},
        ]
        for pattern, data in (("train_{}_full.json", [{"data": stretches}]), ("validate_{}.json", [])):
            text = json.dumps({intent: data}, ensure_ascii=False)
            (tmp_path / intent / pattern.format(intent)).write_bytes(text.encode(encoding))
    snips.prepare(tmp_path, tmp_path / "snips")
    found = entries(tmp_path / "snips" / "train.jsonl")
    assert [entry["intent"] for entry in found] == list(snips.INTENTS)
    assert found[0]["tokens"] == ["Add", "another", "Cita", "Romántica", "."]
    assert found[0]["tags"] == ["O", "O", "B-playlist", "I-playlist", "O"]
    assert (tmp_path / "snips" / "validate.jsonl").read_text() == ""


@pytest.mark.parametrize("blank", ["", "\t"])
def test_wnut17(tmp_path: Path, blank: str) -> None:
    for file in wnut17.FILES.values():
        (tmp_path / file).write_text(f"Empire\tB-location\nState\tI-location\n{blank}\n{blank}\nhi\tO\n")
    wnut17.prepare(tmp_path, tmp_path / "wnut17")
    expected = [
        {"tokens": ["Empire", "State"], "tags": ["B-location", "I-location"]},
        {"tokens": ["hi"], "tags": ["O"]},
    ]
    assert wnut17.load(tmp_path) == {"train": expected, "dev": expected, "test": expected}


def test_sentiment(tmp_path: Path) -> None:
    folder = tmp_path / "sentiment labelled sentences"
    folder.mkdir()
    for file in sentiment.DOMAINS.values():
        (folder / file).write_text("A very, very slow film.  \t0\nGood\x85 case.\t1\n\n", encoding="utf-8")
    sentiment.prepare(tmp_path, tmp_path / sentiment.SET)
    found = sentiment.load(tmp_path)
    assert [entry["domain"] for entry in found] == ["amazon", "amazon", "imdb", "imdb", "yelp", "yelp"]
    assert found[0] == {"domain": "amazon", "text": "A very, very slow film.", "label": 0}
    assert found[1] == {"domain": "amazon", "text": "Good\x85 case.", "label": 1}


def test_clinc150(tmp_path: Path) -> None:
    full = {name: [[f"{name} says", "balance"]] for name in clinc150.FILES}
    (tmp_path / "data_full.json").write_text(json.dumps(full))
    (tmp_path / "domains.json").write_text('{"banking": ["balance"]}')
    out = tmp_path / "out"
    clinc150.prepare(tmp_path, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["domains.json", *(f"{name}.jsonl" for name in clinc150.FILES)]
    )
    assert entries(out / "oos_val.jsonl") == [{"text": "oos_val says", "intent": "balance"}]
    assert json.loads((out / "domains.json").read_text()) == {"banking": ["balance"]}
