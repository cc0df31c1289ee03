"""Writers of official file formats that several tests use."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metamtl.datasets import (
    easy_vqa,
    mnist,
)

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


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def write_mnist(folder: Path, arrays: Arrays) -> None:
    for name, file in zip(mnist.ARRAYS, mnist.OFFICIAL):
        write_idx(folder / file, arrays[name])


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
