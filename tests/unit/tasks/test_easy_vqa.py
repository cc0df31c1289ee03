from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metamtl import meta_backward, nets, recipes
from metamtl.losses import MISSING
from metamtl.tasks import EasyVQA
from metamtl.tasks.easy_vqa import COLOURS, SHAPES, settle


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("question", "answer", "shape", "colour"),
    [
        ("is there a red shape?", "yes", None, "red"),
        ("is there a red shape?", "no", None, None),
        ("is there not a red shape in the image?", "no", None, "red"),
        ("is no circle present?", "no", "circle", None),
        ("is no circle present?", "yes", None, None),
        ("does the image not contain a teal shape?", "yes", None, None),
        ("what color is the triangle?", "blue", "triangle", "blue"),
        ("what is the gray shape?", "rectangle", "rectangle", "gray"),
        ("what shape is present?", "circle", "circle", None),
    ],
)
def test_what_a_question_settles(question: str, answer: str, shape: str | None, colour: str | None) -> None:
    found = settle(np.array([question]), np.array([0]), np.array([answer]))
    assert found["shape"].tolist() == [-1 if shape is None else SHAPES.index(shape)]
    assert found["colour"].tolist() == [-1 if colour is None else COLOURS.index(colour)]


def test_pictures_stay_with_their_questions_and_in_one_split(tiny: Path) -> None:
    family = EasyVQA(data_dir=tiny)
    with np.load(tiny / "easy_vqa" / "easy_vqa.npz") as file:
        pictures = {
            half: torch.from_numpy(file[f"{half}_images"]).movedim(-1, 1) / 255
            for half in ("train", "test")
        }
    met = {}
    for name in ("train", "validation", "test"):
        split = family.split(name)
        episodes = split.at(torch.arange(len(split)))
        x = episodes["answer"].query.x
        assert all(episode.query.x is x for episode in episodes.values())
        own = pictures["test" if name == "test" else "train"]
        assert x["image"].shape == (len(split), 3, 64, 64) and x["tokens"].shape == x["mask"].shape
        met[name] = {int((own == image).all(-1).all(-1).all(-1).nonzero()[0, 0]) for image in x["image"]}
        assert len(met[name]) * 3 == len(split)  # every picture with all of its questions
        assert episodes["answer"].query.y[:3].sort().values.tolist() == [2, 4, 12]
        assert (episodes["colour"].query.y == COLOURS.index("red")).all()
    assert len(met["train"]) == 18 and not met["train"] & met["validation"] and len(met["test"]) == 5


def test_training_and_the_question_encoder_is_the_answers_own(tiny: Path) -> None:
    train = EasyVQA(data_dir=tiny).split("train")
    model = nets.vqa(train.words, train.outputs)
    episodes = train.sample(12, rng())
    outcome = meta_backward(model, recipes.joint(), episodes, train.loss)
    assert outcome.tasks == ("answer", "shape", "colour") and outcome.losses.isfinite().all()
    only = EasyVQA(tasks=["shape"], data_dir=tiny).split("train")
    assert only.outputs == {"shape": 3}
    image_alone = nets.vqa(only.words, only.outputs)
    assert not [name for name, _ in image_alone.named_parameters() if name.startswith("question")]
    assert meta_backward(image_alone, recipes.joint(), only.sample(12, rng()), only.loss).tasks == (
        "shape",
    )


def test_real_easy_vqa(real_data: Callable[[str], Path]) -> None:
    family = EasyVQA(data_dir=real_data("easy_vqa"))
    splits = {name: family.split(name) for name in ("train", "validation", "test")}
    assert len(splits["train"]) + len(splits["validation"]) == 38_575 and len(splits["test"]) == 9_673
    for split in splits.values():
        for task in ("shape", "colour"):
            assert 0.9 < (split._labels[task] != MISSING).double().mean() < 1
    # Every answer that names a shape or a colour agrees with what all the questions settled.
    answer, shape = (splits["train"]._labels[task] for task in ("answer", "shape"))
    names = family._arrays["answers"].tolist()
    for code, name in enumerate(SHAPES):
        assert (shape[answer == names.index(name)] == code).all()
