"""A data folder with a handful of rows of every prepared set, in the form of the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metamtl.datasets import adult, easy_vqa, snips, tox21
from metamtl.datasets.files import split_file

from .omniglot_archives import server, zips  # noqa: F401

WORDS = [
    "play",
    "rate",
    "book",
    "the",
    "film",
    "in",
    "Paris",
    "Rome",
    "a",
    "song",
    "good",
    "bad",
    "tonight",
]


def lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def arrays(path: Path, **content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: np.asarray(values) for name, values in content.items()})


def make_mnist(folder: Path, rng: np.random.Generator) -> None:
    arrays(
        folder / "mnist.npz",
        **{
            f"{half}_{kind}": values
            for half, n in (("train", 60), ("test", 12))
            for kind, values in (
                ("images", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)),
                ("labels", rng.integers(0, 10, n, dtype=np.uint8)),
            )
        },
    )


def make_snips(folder: Path, rng: np.random.Generator) -> None:
    for name, each in (("train", 10), ("validate", 2)):
        entries = [
            {"intent": intent, "tokens": [intent[:4], *rng.choice(WORDS, 3).tolist()], "tags": ["O"] * 4}
            for intent in snips.INTENTS
            for _ in range(each)
        ]
        lines(folder / f"{name}.jsonl", entries)


def make_wnut17(folder: Path, rng: np.random.Generator) -> None:
    for name, count in (("train", 20), ("dev", 5), ("test", 6)):
        entries = []
        for _ in range(count):
            tokens = [*rng.choice(WORDS, rng.integers(1, 6)).tolist(), "New", "York"]
            tags = ["O"] * (len(tokens) - 2) + ["B-location", "I-location"]
            entries.append({"tokens": tokens, "tags": tags})
        lines(folder / f"{name}.jsonl", entries)


def make_sentiment_sentences(folder: Path, rng: np.random.Generator) -> None:
    entries = [
        {
            "domain": domain,
            "text": f"{rng.choice(WORDS)}, {rng.choice(WORDS)} {domain}{'abcdefghij'[i]}",
            "label": i % 2,
        }
        for domain in ("amazon", "imdb", "yelp")
        for i in range(10)
    ]
    lines(folder / "all.jsonl", entries)


def make_clinc150(folder: Path, rng: np.random.Generator) -> None:
    split = split_file("clinc150")
    domains = {d: [f"{d}_{letter}" for letter in "abc"] for part in split.values() for d in part}
    for name, each in (("train", 4), ("val", 2), ("test", 2)):
        entries = [
            {"text": f"{intent} {' '.join(rng.choice(WORDS, rng.integers(1, 5)))}", "intent": intent}
            for intents in domains.values()
            for intent in intents
            for _ in range(each)
        ]
        lines(folder / f"{name}.jsonl", entries)
        lines(folder / f"oos_{name}.jsonl", [{"text": "what is love", "intent": "oos"}])
    (folder / "domains.json").write_text(json.dumps(domains), encoding="utf-8")


def make_tox21(folder: Path, rng: np.random.Generator) -> None:
    y = rng.integers(0, 2, (40, 12), dtype=np.int8)
    y[rng.random((40, 12)) < 0.2] = -1
    arrays(
        folder / "tox21.npz",
        fingerprint_packed=rng.integers(0, 256, (40, 128), dtype=np.uint8),
        descriptors=rng.normal(3, 2, (40, 10)).astype(np.float32),
        descriptor_names=tox21.DESCRIPTORS,
        y=y,
        task_names=tox21.ASSAYS,
    )


def make_parkinsons(folder: Path, rng: np.random.Generator) -> None:
    arrays(
        folder / "parkinsons_updrs.npz",
        x=rng.normal(5, 3, (84, 19)),
        y=rng.normal(20, 8, (84, 2)),
        subject=np.repeat(np.arange(1, 15, dtype=np.int16), 6),
        x_names=[f"x{i}" for i in range(19)],
        y_names=["motor_UPDRS", "total_UPDRS"],
    )


def make_adult(folder: Path, rng: np.random.Generator) -> None:
    levels = {
        name: ["?", f"{name}-a", f"{name}-b", f"{name}-c"]
        for name in adult.CATEGORICAL
        if name not in ("marital-status", "income-per-year")
    }
    levels |= {"marital-status": ["Divorced", "Never-married"], "income-per-year": ["<=50K", ">50K"]}
    categorical = np.stack([rng.integers(0, len(levels[name]), 60) for name in adult.CATEGORICAL], 1)
    arrays(
        folder / "adult.npz",
        numeric=rng.integers(0, 1000, (60, 6), dtype=np.int32),
        numeric_names=adult.NUMERIC,
        categorical=categorical.astype(np.uint8),
        categorical_names=adult.CATEGORICAL,
        **{f"levels_{name}": values for name, values in levels.items()},
    )


def make_easy_vqa(folder: Path, rng: np.random.Generator) -> None:
    questions = ["is there a red shape?", "is there not a circle?", "what color is the shape?"]
    answers = ["circle", "green", "red", "gray", "yes", "teal", "black", "rectangle", "yellow", "triangle"]
    content: dict[str, Any] = {"questions": questions, "answers": [*answers, "brown", "blue", "no"]}
    for half, pictures in (("train", 20), ("test", 5)):
        content[f"{half}_images"] = rng.integers(0, 256, (pictures, 64, 64, 3), dtype=np.uint8)
        content[f"{half}_question"] = np.tile(np.arange(3, dtype=np.int16), pictures)
        content[f"{half}_question_image"] = np.repeat(np.arange(pictures, dtype=np.int16), 3)
        content[f"{half}_question_answer"] = np.tile(np.array([4, 12, 2], np.int8), pictures)
    arrays(folder / easy_vqa.FILE, **content)


MAKERS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    name.removeprefix("make_"): made for name, made in globals().items() if name.startswith("make_")
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    for name, make in MAKERS.items():
        make(folder / name, np.random.default_rng(0))
    return folder
