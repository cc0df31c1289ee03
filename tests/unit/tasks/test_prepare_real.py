"""The real data sets, written in the official formats and read again; the command."""

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
    easy_vqa,
    sentiment,
    snips,
    tox21,
    wnut17,
)
from metamtl.datasets.files import sources
from metamtl.datasets.prepare import SETS, main, prepare

from .official_formats import Arrays, entries, same, stored, write_easy_vqa, write_mnist


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        timeout=240,
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
