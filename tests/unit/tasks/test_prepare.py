"""Official files, in their own formats, become exactly the form that the loaders read."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from metamtl.datasets.files import sources
from metamtl.datasets.prepare import SETS, main, prepare

Image = pytest.importorskip("PIL.Image")
Arrays = dict[str, np.ndarray]


def stored(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def entries(path: Path) -> list[dict[str, Any]]:
    # Not splitlines: a sentence may hold other line breaks.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def same(found: Arrays, expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype and np.array_equal(found[name], values), name


# Writers of the official formats.


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def write_mnist(folder: Path, arrays: Arrays) -> None:
    for name, file in zip(mnist.ARRAYS, mnist.OFFICIAL):
        write_idx(folder / file, arrays[name])


def write_adult(folder: Path, arrays: Arrays) -> None:
    columns = {
        n: arrays["numeric"][:, i].astype(str) for i, n in enumerate(arrays["numeric_names"].tolist())
    }
    for i, name in enumerate(arrays["categorical_names"].tolist()):
        columns[name] = arrays[f"levels_{name}"][arrays["categorical"][:, i]]
    rows = zip(*(columns[name] for name in adult.COLUMNS))
    # As in the official file: a comma and a space, no header, an empty line at the end.
    (folder / "adult.data").write_text("".join(", ".join(row) + "\n" for row in rows) + "\n")


def write_parkinsons(folder: Path, arrays: Arrays) -> None:
    with (folder / "parkinsons_updrs.data").open("w", newline="") as stream:
        writer = csv.writer(stream)
        x_names = arrays["x_names"].tolist()
        writer.writerow(["subject#", *x_names[:3], *arrays["y_names"].tolist(), *x_names[3:]])
        for subject, x, y in zip(*(arrays[name].tolist() for name in ("subject", "x", "y"))):
            writer.writerow([subject, *x[:3], *y, *x[3:]])


def write_tox21(folder: Path, arrays: Arrays) -> None:
    with gzip.open(folder / "tox21.csv.gz", "wt", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*arrays["task_names"].tolist(), "mol_id", "smiles"])
        for y, name, smiles in zip(*(arrays[k].tolist() for k in ("y", "mol_id", "smiles"))):
            writer.writerow([*("" if value < 0 else float(value) for value in y), name, smiles.decode()])


def write_easy_vqa(folder: Path, arrays: Arrays) -> None:
    answers, questions = arrays["answers"].tolist(), arrays["questions"].tolist()
    (folder / "answers.txt").write_text("\n".join(answers) + "\n")
    for half in ("train", "test"):
        (folder / half / "images").mkdir(parents=True)
        for i, picture in enumerate(arrays[f"{half}_images"]):
            Image.fromarray(picture).save(folder / half / "images" / f"{i}.png")
        parts = (arrays[f"{half}_{part}"].tolist() for part in easy_vqa.PARTS[1:])
        asked = [[questions[q], answers[a], image] for q, image, a in zip(*parts)]
        (folder / half / "questions.json").write_text(json.dumps(asked))


def write_snips(folder: Path, split: dict[str, list[dict[str, Any]]], encoding: str = "utf-8") -> None:
    for name, pattern in snips.FILES.items():
        for intent in snips.INTENTS:
            data = []
            for entry in split[name]:
                if entry["intent"] == intent:
                    stretches: list[dict[str, str]] = []
                    for token, tag in zip(entry["tokens"], entry["tags"]):
                        if tag.startswith("I-"):
                            stretches[-1]["text"] += " " + token
                        else:
                            stretches.append(
                                {"text": f" {token}"} | ({"entity": tag[2:]} if tag != "O" else {})
                            )
                    data.append({"data": stretches})
            path = folder / intent / pattern.format(intent)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(json.dumps({intent: data}, ensure_ascii=False).encode(encoding))


def write_wnut17(folder: Path, split: dict[str, list[dict[str, Any]]], blank: str = "") -> None:
    for name, file in wnut17.FILES.items():
        sentences = ["".join(f"{t}\t{g}\n" for t, g in zip(e["tokens"], e["tags"])) for e in split[name]]
        (folder / file).write_text(f"{blank}\n".join(sentences), encoding="utf-8")


def write_sentiment(folder: Path, found: list[dict[str, Any]]) -> None:
    for domain, file in sentiment.DOMAINS.items():
        rows = [f"{entry['text']}  \t{entry['label']}\n" for entry in found if entry["domain"] == domain]
        (folder / file).write_text("".join(rows), encoding="utf-8")


def write_clinc150(folder: Path, split: dict[str, list[dict[str, Any]]], domains: Any) -> None:
    full = {name: [[e["text"], e["intent"]] for e in found] for name, found in split.items()}
    (folder / "data_full.json").write_text(json.dumps(full))
    (folder / "domains.json").write_text(json.dumps(domains))


# Small sets, expected in full.


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


# The real sets, written in the official formats, come back as they are.


@pytest.mark.parametrize("name", ["mnist", "adult", "parkinsons", "easy_vqa"])
def test_real_arrays_come_back(name: str, real_data: Callable[[str], Path], tmp_path: Path) -> None:
    files = {"parkinsons": "parkinsons_updrs.npz"}
    path = real_data(name) / name / files.get(name, f"{name}.npz")
    expected = stored(path)
    if name == "mnist":
        expected = {key: values[:200] for key, values in expected.items()}
    if name == "easy_vqa":
        for half in ("train", "test"):
            kept = expected[f"{half}_question_image"] < 30
            expected[f"{half}_images"] = expected[f"{half}_images"][:30]
            for part in easy_vqa.PARTS[1:]:
                expected[f"{half}_{part}"] = expected[f"{half}_{part}"][kept]
        asked = np.union1d(expected["train_question"], expected["test_question"])
        for half in ("train", "test"):
            places = np.searchsorted(asked, expected[f"{half}_question"])
            expected[f"{half}_question"] = places.astype(np.int16)
        expected["questions"] = expected["questions"][asked]
    writers = {
        "mnist": write_mnist,
        "adult": write_adult,
        "parkinsons": write_parkinsons,
        "easy_vqa": write_easy_vqa,
    }
    (tmp_path / "official").mkdir()
    writers[name](tmp_path / "official", expected)
    same(stored(SETS[name](tmp_path / "official", tmp_path / name)), expected)


def test_real_molecules_come_back(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    expected = stored(real_data("tox21") / "tox21" / "tox21.npz")
    known = {
        smiles.decode(): (np.unpackbits(bits).astype(bool), numbers)
        for smiles, bits, numbers in zip(
            *(expected[k] for k in ("smiles", "fingerprint_packed", "descriptors"))
        )
    }
    write_tox21(tmp_path, expected)
    same(stored(tox21.prepare(tmp_path, tmp_path / "tox21", known.get)), expected)


def test_real_text_comes_back(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folders = {name: real_data(name) / name for name in ("snips", "wnut17", sentiment.SET, "clinc150")}
    for name in folders:
        (tmp_path / "official" / name).mkdir(parents=True)
    official = tmp_path / "official"
    split = {n: {p.stem: entries(p) for p in folder.glob("*.jsonl")} for n, folder in folders.items()}
    # Stretches without a slot are joined in the official files; here each token is one, which is the same.
    write_snips(official / "snips", split["snips"])
    write_wnut17(official / "wnut17", split["wnut17"])
    write_sentiment(official / sentiment.SET, split[sentiment.SET]["all"])
    domains = json.loads((folders["clinc150"] / "domains.json").read_text())
    write_clinc150(official / "clinc150", split["clinc150"], domains)
    for name, folder in folders.items():
        SETS[name](official / name, tmp_path / name)
        for path in folder.glob("*.jsonl"):
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes(), path


# The command.


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "parkinsons_updrs.data").write_text(
        "subject#,age,motor_UPDRS,total_UPDRS\n1,72,28.199,34.398\n"
    )
    command = [
        "-m",
        "metamtl.datasets.prepare",
        "parkinsons",
        "--from",
        str(tmp_path),
        "--to",
        str(tmp_path / "data"),
    ]
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    made = Path(done.stdout.strip())
    assert made == tmp_path / "data" / "parkinsons" / "parkinsons_updrs.npz" and made.is_file()


def test_the_command_reads_packed_files(tmp_path: Path) -> None:
    archive = tmp_path / "sub" / "sentiment+labelled+sentences.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for name in sentiment.DOMAINS.values():
            file.writestr(f"sentiment labelled sentences/{name}", "Nice.\t1\n")
            file.writestr(f"__MACOSX/sentiment labelled sentences/._{name}", "what a file manager adds")
    prepare(sentiment.SET, tmp_path, tmp_path / "data")
    assert [entry["label"] for entry in sentiment.load(tmp_path / "data")] == [1, 1, 1]


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["mnist", "--from", str(tmp_path), "--to", str(tmp_path)])
    assert stopped.value.code == 1
    assert (
        "does not contain train-images-idx3-ubyte.gz; the official files are train-images"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "mnist").exists()
    with pytest.raises(FileNotFoundError, match=r"absent does not contain adult\.data"):
        prepare("adult", tmp_path / "absent", tmp_path)


def test_an_official_file_with_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adult.data").write_text("39, State-gov\n")
    expected = (
        r"adult\.data is truncated or altered: sha256 .*, expected 5b00.*; download it again from http"
    )
    with pytest.raises(ValueError, match=expected):
        prepare("adult", tmp_path, tmp_path)


def test_every_set_has_its_sources() -> None:
    found = sources()
    assert set(SETS) <= set(found)
    for name in SETS:
        assert {"title", "page", "licence", "citation", "archives"} <= set(found[name])
        for facts in found[name]["archives"].values():
            assert facts["url"].startswith("https://") and len(facts.get("sha256", "0" * 64)) == 64
