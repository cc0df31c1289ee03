"""easy-VQA: images of simple shapes, and questions about them."""

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
    """Load `questions`, `answers`, and for each split the images and the image and answer per question."""
    return read_arrays("easy_vqa", FILE, NEEDED, data_dir)


def prepare(source: Path, folder: Path) -> Path:
    """Prepare `easy_vqa.npz` from the official folders `train/` and `test/` and from `answers.txt`.

    Raises:
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Preparing easy-VQA requires Pillow: pip install 'metamtl[glyphs]'.") from error
    (answer_file,) = official(source, "answers.txt")
    answers = text(answer_file).split()
    content: dict[str, list[Any]] = {
        half: json.loads(text(answer_file.parent / half / "questions.json")) for half in ("train", "test")
    }
    questions = sorted({question for entries in content.values() for question, _, _ in entries})
    number = {question: i for i, question in enumerate(questions)}
    arrays: Arrays = {"answers": np.array(answers), "questions": np.array(questions)}
    for half, entries in content.items():
        image_folder = answer_file.parent / half / "images"
        pictures = []
        for i in range(len(list(image_folder.glob("*.png")))):
            with Image.open(image_folder / f"{i}.png") as picture:
                pictures.append(np.asarray(picture.convert("RGB")))
        arrays[f"{half}_images"] = np.stack(pictures)
        arrays[f"{half}_question"] = np.array([number[question] for question, _, _ in entries], np.int16)
        arrays[f"{half}_question_image"] = np.array([image for _, _, image in entries], np.int16)
        arrays[f"{half}_question_answer"] = np.array([answers.index(a) for _, a, _ in entries], np.int8)
    write_arrays(folder / FILE, arrays)
    return folder / FILE
