"""easy-VQA: drawn shapes, and questions about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .prepared import Arrays, Dir, official, read_arrays, text, write_arrays

FILE = "easy_vqa.npz"
PARTS = ("images", "question", "question_image", "question_answer")
NEEDED = ("answers", "questions", *(f"{half}_{part}" for half in ("train", "test") for part in PARTS))


def load(data_dir: Dir = None) -> Arrays:
    """`questions`, `answers`, and of `train` and `test` the images and, by question, image and answer."""
    return read_arrays("easy_vqa", FILE, NEEDED, data_dir)


def prepare(source: Path, folder: Path) -> Path:
    """`easy_vqa.npz` from the official folders `train/` and `test/` and from `answers.txt`.

    Raises:
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("easy-VQA is prepared with Pillow: pip install 'metamtl[glyphs]'.") from error
    (listed,) = official(source, "answers.txt")
    answers = text(listed).split()
    asked: dict[str, list[Any]] = {
        half: json.loads(text(listed.parent / half / "questions.json")) for half in ("train", "test")
    }
    questions = sorted({said for half in asked.values() for said, _, _ in half})
    number = {said: i for i, said in enumerate(questions)}
    arrays: Arrays = {"answers": np.array(answers), "questions": np.array(questions)}
    for half, entries in asked.items():
        folder_of = listed.parent / half / "images"
        pictures = []
        for i in range(len(list(folder_of.glob("*.png")))):
            with Image.open(folder_of / f"{i}.png") as picture:
                pictures.append(np.asarray(picture.convert("RGB")))
        arrays[f"{half}_images"] = np.stack(pictures)
        arrays[f"{half}_question"] = np.array([number[said] for said, _, _ in entries], np.int16)
        arrays[f"{half}_question_image"] = np.array([image for _, _, image in entries], np.int16)
        arrays[f"{half}_question_answer"] = np.array([answers.index(a) for _, a, _ in entries], np.int8)
    write_arrays(folder / FILE, arrays)
    return folder / FILE
