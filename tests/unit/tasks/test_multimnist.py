from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metamtl import meta_backward, nets, recipes
from metamtl.metrics import accuracy, mse
from metamtl.tasks import MultiMNIST
from metamtl.tasks.multimnist import Pairs, draw_pairs, render


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_digits_lie_in_their_corners_moved_inwards() -> None:
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    images[0, 3, 5], images[1, 20, 7] = 255, 51
    shifts = torch.tensor([[[1, 4], [0, 2]]])
    # By hand: the left digit at row 1, column 4 of 36x36; the right one at 8 - 0, 8 - 2. Then bilinear.
    canvas = torch.zeros(1, 1, 36, 36)
    canvas[0, 0, 1 + 3, 4 + 5], canvas[0, 0, 8 - 0 + 20, 8 - 2 + 7] = 1.0, 0.2
    expected = F.interpolate(canvas, size=(28, 28), mode="bilinear", align_corners=False)
    assert torch.equal(render(images, Pairs(torch.tensor([[0, 1]]), shifts)), expected)
    assert torch.equal(render(images, Pairs(torch.tensor([[0, 1]]), shifts), size=36), canvas)
    canvas[0, 0, 4, 9] = 0
    alone = F.interpolate(canvas, size=(28, 28), mode="bilinear", align_corners=False)
    assert torch.equal(render(images, Pairs(torch.tensor([[0, 1]]), shifts), (1,)), alone)


def test_where_digits_overlap_the_lighter_pixel_counts() -> None:
    images = torch.stack([torch.full((28, 28), 102), torch.full((28, 28), 204)]).to(torch.uint8)
    picture = render(images, Pairs(torch.tensor([[0, 1]]), torch.zeros(1, 2, 2).long()))[0, 0]
    assert float(picture[14, 14]) == pytest.approx(0.8) and float(picture[1, 1]) == pytest.approx(0.4)
    assert float(picture[1, 26]) == 0.0


def test_pairs_are_of_two_digits_each_as_often_and_of_their_range_alone() -> None:
    found = draw_pairs(range(100, 150), 500, np.random.default_rng(0))
    assert found.digits.shape == (500, 2) and found.shifts.shape == (500, 2, 2)
    assert found.digits.min() == 100 and found.digits.max() == 149
    assert (found.digits[:, 0] != found.digits[:, 1]).all()
    assert (found.digits[:, 0].bincount()[100:] == 10).all()
    assert found.shifts.unique().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="at least 2 digits"):
        draw_pairs(range(1), 1, np.random.default_rng(0))


def test_splits_are_of_different_digits(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[range] = []

    def spy(digits: range, count: int, draw: np.random.Generator) -> Pairs:
        seen.append(digits)
        return draw_pairs(digits, count, draw)

    monkeypatch.setattr("metamtl.tasks.multimnist.draw_pairs", spy)
    family = MultiMNIST(pairs=(200, 30, 20), data_dir=tiny)
    assert [len(family.split(name)) for name in ("train", "validation", "test")] == [200, 30, 20]
    assert seen == [range(50), range(50, 60), range(12)]


def test_labels_are_those_of_the_digits_that_are_drawn(tiny: Path) -> None:
    family = MultiMNIST(pairs=(200, 30, 20), data_dir=tiny)
    episodes = family.split("train").sample(50, rng())
    again = MultiMNIST(pairs=(200, 30, 20), data_dir=tiny).split("train").sample(50, rng())
    assert episodes["left"].query.x is episodes["right"].query.x
    assert episodes["left"].query.x.shape == (50, 1, 28, 28)
    for task in ("left", "right"):
        assert torch.equal(episodes[task].query.y, again[task].query.y)
        assert torch.equal(episodes[task].query.x, again[task].query.x)
    other = MultiMNIST(pairs=(200, 30, 20), seed=1, data_dir=tiny).split("train").sample(50, rng())
    assert not torch.equal(other["left"].query.x, episodes["left"].query.x)

    with np.load(tiny / "mnist" / "mnist.npz") as file:
        images, labels = torch.from_numpy(file["train_images"]), torch.from_numpy(file["train_labels"])
    drawn = draw_pairs(range(50), 200, np.random.default_rng((0, 0)))
    at = torch.randperm(200, generator=rng())[:50]
    assert torch.equal(episodes["left"].query.x, render(images, Pairs(*(part[at] for part in drawn))))
    for side, task in enumerate(("left", "right")):
        assert torch.equal(episodes[task].query.y, labels[drawn.digits[at, side]].long())


def test_reconstruction_has_a_picture_for_its_target(tiny: Path) -> None:
    family = MultiMNIST(reconstruct=True, pairs=(200, 30, 20), data_dir=tiny).split("train")
    episodes = family.sample(8, rng())
    picture, right = episodes["right"].query.x, episodes["right"].query.y
    assert right.shape == picture.shape and (right <= picture + 1e-6).all() and (right < picture).any()
    assert family.metrics == {"left": {"accuracy": accuracy}, "right": {"mse": mse}}
    assert episodes["left"].query.y.dtype == torch.int64 and family.outputs == {"left": 10, "right": 784}
    model = nets.lenet_heads(family.outputs)
    outcome = meta_backward(model, recipes.joint(), episodes, family.loss)
    expected = F.mse_loss(model(picture, task="right"), right).detach()
    assert outcome.tasks == ("left", "right") and float(outcome.losses[1]) == pytest.approx(float(expected))


def test_single_tasks_and_bad_arguments(tiny: Path) -> None:
    only = MultiMNIST(reconstruct=True, tasks=["right"], pairs=(20, 5, 5), data_dir=tiny).split("test")
    assert list(only.sample(5, rng())) == ["right"] and only.outputs == {"right": 784}
    with pytest.raises(ValueError, match="different names out of left, right"):
        MultiMNIST(tasks=["middle"])
    large = MultiMNIST(reconstruct=True, size=36, pairs=(20, 5, 5), data_dir=tiny).split("test")
    episodes = large.sample(5, rng())
    shapes = {episodes["left"].query.x.shape, episodes["right"].query.y.shape}
    assert shapes == {(5, 1, 36, 36)} and large.outputs == {"left": 10, "right": 36 * 36}
    with pytest.raises(ValueError, match="pairs="):
        MultiMNIST(pairs=(1, 1, 0))
    with pytest.raises(ValueError, match="size=0"):
        MultiMNIST(size=0)
    with pytest.raises(ValueError, match="split 'dev' is not one of"):
        MultiMNIST().split("dev")


def test_missing_and_damaged_data_say_what_to_do(tmp_path: Path) -> None:
    family = MultiMNIST(data_dir=tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no mnist\.npz.*datasets\.prepare mnist --from.*METAMTL_DATA"
    ):
        family.split("train")
    path = tmp_path / "mnist" / "mnist.npz"
    path.parent.mkdir()
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"mnist\.npz is truncated or altered.*prepare it again"):
        family.split("train")
    np.savez(path, train_images=np.zeros((2, 28, 28)))
    with pytest.raises(
        ValueError, match=r"has no train_labels, test_images, test_labels; prepare it again"
    ):
        family.split("train")


def test_real_mnist(real_data: Callable[[str], Path]) -> None:
    family = MultiMNIST(data_dir=real_data("mnist"))
    train = family.split("train").sample(2000, rng())
    assert train["left"].query.y.bincount().min() > 140
    assert 0.1 < train["left"].query.x.mean() < 0.25
