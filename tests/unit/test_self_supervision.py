"""Auxiliary tasks from inputs alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Batch, Episode, meta_backward, nets, recipes
from metamtl.losses import MISSING, mean_over_labeled, token_cross_entropy
from metamtl.tasks.self_supervision import masked_numbers, masked_tokens, rotated


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(40, 5, 5), (40, 2, 4, 4)])
def test_an_image_is_turned_as_often_as_its_class_says(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=rng())
    x, y = rotated(images, rng()).query
    assert set(y.tolist()) == {0, 1, 2, 3}
    for image, turned, turns in zip(images, x, y.tolist()):
        assert torch.equal(turned, image.rot90(turns, (-2, -1)))
    again, other = rotated(images, rng()).query, rotated(images, rng(1)).query
    assert torch.equal(again.y, y) and not torch.equal(other.y, y)


def test_turns_are_equally_likely() -> None:
    counts = rotated(torch.zeros(8000, 2, 2), rng()).query.y.bincount(minlength=4)
    assert bool((counts - 2000).abs().max() < 160)  # four standard deviations


def test_hidden_numbers_are_the_target_and_the_others_are_not() -> None:
    x = torch.randn(50, 2, 10, generator=rng())
    seen, y = masked_numbers(x, rng(), 0.3, fill=-9.0).query
    hidden = ~y.isnan()
    assert torch.equal(y[hidden], x[hidden]) and bool((seen[hidden] == -9.0).all())
    assert torch.equal(seen[~hidden], x[~hidden])
    assert hidden.flatten(1).sum(1).tolist() == [6] * 50
    assert bool((hidden.sum(0) > 4).all())  # every place in turn
    assert not bool(x.isnan().any())


def test_at_least_one_number_is_hidden() -> None:
    y = masked_numbers(torch.ones(9, 3), rng(), 0.01).query.y
    assert (~y.isnan()).sum(1).tolist() == [1] * 9


def test_hidden_tokens_are_the_target_and_padding_is_none() -> None:
    ids = torch.randint(2, 50, (60, 12), generator=rng())
    ids[:, 10:], ids[0, 3:] = 0, 0
    x, y = masked_tokens(ids, rng(), mask=1, fraction=0.2, padding=0).query
    hidden = y != MISSING
    assert torch.equal(hidden, x == 1) and torch.equal(y[hidden], ids[hidden])
    assert torch.equal(x[~hidden], ids[~hidden]) and not bool((hidden & (ids == 0)).any())
    assert hidden.sum(1).tolist() == [1, *[2] * 59]
    assert int((masked_tokens(ids, rng(), mask=1).query.x[:, 10:] == 1).sum()) > 0  # no padding named


def test_an_auxiliary_task_trains_beside_a_labelled_one() -> None:
    class Tokens(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float()[..., None].expand(-1, -1, 6)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vectors = nets.NamedHeads(nets.mlp(4, 6, 1).body, 6, {"kind": 3, "missing": 4})
        words = nets.NamedHeads(nn.Sequential(Tokens(), nn.Linear(6, 6)), 6, {"tags": 3, "words": 9})
    x, ids = torch.randn(5, 4, generator=rng()), torch.randint(2, 9, (5, 7), generator=rng())
    labelled = {
        "kind": Episode(None, Batch(x, torch.tensor([0, 1, 2, 0, 1]))),
        "missing": masked_numbers(x, rng()),
    }
    loss = {"kind": F.cross_entropy, "missing": mean_over_labeled(F.mse_loss)}
    outcome = meta_backward(vectors, recipes.joint(), labelled, loss)
    y = labelled["missing"].query.y
    output = vectors(labelled["missing"].query.x, task="missing")
    expected = torch.stack([(output[i, j] - y[i, j]) ** 2 for i, j in (~y.isnan()).nonzero()]).mean()
    torch.testing.assert_close(outcome.losses[1], expected.detach())
    assert bool(vectors.body[0].weight.grad.any())
    tagged = {"tags": Episode(None, Batch(ids, ids % 3)), "words": masked_tokens(ids, rng(), mask=1)}
    meta_backward(words, recipes.joint(), tagged, dict.fromkeys(tagged, token_cross_entropy))
    assert all(bool(param.grad.isfinite().all()) for param in words.parameters())


def test_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4, 5\] are not square"):
        rotated(torch.zeros(3, 4, 5), rng())
    with pytest.raises(ValueError, match=r"fraction=0 must be above 0"):
        masked_numbers(torch.zeros(3, 4), rng(), 0)
    with pytest.raises(ValueError, match=r"x holds torch\.int64.*pass floats"):
        masked_numbers(torch.zeros(3, 4, dtype=torch.long), rng())
    with pytest.raises(ValueError, match=r"example 1 has nothing to mask"):
        masked_tokens(torch.tensor([[1, 2], [0, 0]]), rng(), mask=9, padding=0)
