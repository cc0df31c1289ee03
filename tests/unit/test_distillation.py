"""Distillation: the formula, what teachers may do, and that a student learns from them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, meta_backward, nets, recipes
from metamtl.losses import (
    MISSING,
    WithTeachers,
    add_teacher_targets,
    distillation_loss,
    is_labeled,
    soft_labels,
    token_cross_entropy,
)

RNG = torch.Generator().manual_seed(0)
X = torch.randn(6, 4, generator=RNG, dtype=torch.float64)
ZEROS = torch.zeros(6, 1, dtype=torch.float64)
OURS, THEIRS = (torch.randn(6, 3, generator=RNG, dtype=torch.float64) for _ in range(2))


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def episodes() -> dict[str, Episode]:
    support = Batch(X.flip(0), torch.tensor([0, 1, 2, 0, 1, 2]))
    return {
        "a": Episode(support, Batch(X, torch.tensor([2, 1, 0, 2, 1, 0]))),
        "b": Episode(None, Batch(X, ZEROS)),
    }


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_labels_are_the_divergence_times_the_squared_temperature(temperature: float) -> None:
    ours = OURS.clone().requires_grad_()
    found = soft_labels(temperature)(ours, THEIRS)
    p, q = (THEIRS / temperature).softmax(-1), (ours / temperature).softmax(-1)
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(found, ours)
    torch.testing.assert_close(gradient, temperature * (q - p) / 6, rtol=1e-10, atol=1e-14)


def test_at_high_temperature_soft_labels_compare_centred_scores() -> None:
    ours, theirs = (scores - scores.mean(1, keepdim=True) for scores in (OURS, THEIRS))
    expected = (ours - theirs).square().sum(1).mean() / (2 * 3)
    torch.testing.assert_close(soft_labels(1e4)(OURS, THEIRS), expected, rtol=1e-3, atol=0.0)


def test_tokens_weigh_as_examples_do() -> None:
    tokens = soft_labels()(OURS.view(2, 3, 3), THEIRS.view(2, 3, 3))
    torch.testing.assert_close(tokens, soft_labels()(OURS, THEIRS))


def test_the_weight_goes_from_labels_to_teacher() -> None:
    y = torch.tensor([2, 1, 0, 2, 1, 0])
    hard, soft = F.cross_entropy(OURS, y), soft_labels()(OURS, THEIRS)
    for weight in (0.0, 0.3, 1.0):
        loss = distillation_loss(F.cross_entropy, soft_labels(), weight)
        torch.testing.assert_close(loss(OURS, (y, THEIRS)), (1 - weight) * hard + weight * soft)
    unlabelled = torch.full((6,), torch.nan)
    assert bool(distillation_loss(F.mse_loss, F.mse_loss, 1.0)(OURS, (unlabelled, THEIRS)).isfinite())


def test_the_teachers_answers_stand_beside_the_labels() -> None:
    teacher, named = (
        nets.mlp(4, 5, 3).double().eval(),
        nets.NamedHeads(nn.Linear(4, 5), 5, {"b": 1, "c": 2}),
    )
    named.double().eval()
    before = episodes()
    taught = add_teacher_targets(before, {"a": teacher, "b": named})
    for batch, known in (
        (taught["a"].query, before["a"].query),
        (taught["a"].support, before["a"].support),
    ):
        y, answer = batch.y
        assert y is known.y and batch.x is known.x
        assert torch.equal(answer, teacher(batch.x)) and not answer.requires_grad
    assert torch.equal(taught["b"].query.y[1], named(X, task="b"))
    assert taught["b"].support is None and before["a"].query.y.shape == (6,)
    assert all(param.grad is None for param in teacher.parameters())
    alone = add_teacher_targets(before, {"b": named})
    assert alone["a"] is before["a"]


def test_teachers_that_take_keywords_or_several_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + 2 * right

    for x in ((X, ZEROS), {"right": ZEROS, "left": X}):
        taught = add_teacher_targets({"a": Episode(None, Batch(x, ZEROS))}, {"a": Sum().eval()})
        assert torch.equal(taught["a"].query.y[1], X)


def test_a_student_of_two_teachers_comes_to_answer_as_they_do() -> None:
    teachers = {"a": nets.mlp(4, 5, 3).double().eval(), "b": nets.mlp(4, 5, 1).double().eval()}
    student = nets.NamedHeads(nets.mlp(4, 16, 1).body, 16, {"a": 3, "b": 1}).double()
    loss = {
        "a": distillation_loss(F.cross_entropy, soft_labels(3.0), 1.0),
        "b": distillation_loss(F.mse_loss, F.mse_loss, 1.0),
    }
    before = {name: [p.clone() for p in teacher.parameters()] for name, teacher in teachers.items()}
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    data = {name: Episode(None, episode.query) for name, episode in episodes().items()}
    for _ in range(200):
        optimizer.zero_grad()
        meta_backward(student, recipes.joint(), add_teacher_targets(data, teachers), loss)
        optimizer.step()
    torch.testing.assert_close(student(X, task="b"), teachers["b"](X), rtol=0.0, atol=0.05)
    ours, theirs = (net.softmax(-1) for net in (student(X, task="a"), teachers["a"](X)))
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.05)
    for name, teacher in teachers.items():
        assert all(torch.equal(old, new) for old, new in zip(before[name], teacher.parameters()))


def test_refused_in_words() -> None:
    teacher = nets.mlp(4, 5, 3).double()
    with pytest.raises(ValueError, match=r"teacher of task 'a' is in training mode.*\.eval\(\)"):
        add_teacher_targets(episodes(), {"a": teacher})
    with pytest.raises(ValueError, match=r"teachers for \['z'\], but the tasks are 'a', 'b'"):
        add_teacher_targets(episodes(), {"z": teacher.eval()})
    with pytest.raises(ValueError, match=r"temperature=0 must be positive"):
        soft_labels(0)
    with pytest.raises(ValueError, match=r"output is \[6, 2\], the teacher.s \[6, 3\]"):
        soft_labels()(OURS[:, :2], THEIRS)
    with pytest.raises(ValueError, match=r"weight=1\.5"):
        distillation_loss(F.mse_loss, F.mse_loss, 1.5)
    with pytest.raises(ValueError, match=r"found a Tensor; make the episodes with add_teacher_targets"):
        distillation_loss(F.mse_loss, F.mse_loss)(OURS, THEIRS)


def test_teachers_may_be_heard_on_real_tokens_only() -> None:
    tags = torch.tensor([[2, 0, MISSING], [1, MISSING, MISSING]])
    ours, theirs = OURS.view(2, 3, 3), THEIRS.view(2, 3, 3)
    found = distillation_loss(token_cross_entropy, soft_labels(), mask=is_labeled)(ours, (tags, theirs))
    rows = torch.tensor([0, 1, 3])
    expected = F.cross_entropy(OURS[rows], torch.tensor([2, 0, 1])) + soft_labels()(
        OURS[rows], THEIRS[rows]
    )
    torch.testing.assert_close(found, expected / 2)


class Tasks:
    """Named tasks that know what they are."""

    def __init__(self) -> None:
        self.loss = {"a": F.cross_entropy, "b": F.mse_loss}
        self.kind = "unlike"

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Episode]:
        return dict(list(episodes().items())[:n])


def test_a_taught_source_gives_answers_and_distilled_losses() -> None:
    teacher = nets.mlp(4, 5, 3).double().eval()
    source = Tasks()
    taught = WithTeachers(source, {"a": teacher}, soft_labels(), 0.3)
    found = taught.sample(2, RNG)
    y, answers = found["a"].query.y
    torch.testing.assert_close(answers, teacher(X))
    expected = 0.7 * F.cross_entropy(OURS, y) + 0.3 * soft_labels()(OURS, answers)
    torch.testing.assert_close(taught.loss["a"](OURS, (y, answers)), expected)
    assert taught.loss["b"] is F.mse_loss and found["b"].query.y is ZEROS
    assert taught.kind == "unlike" and source.loss["a"] is F.cross_entropy
    assert not hasattr(taught, "per_token")
    assert copy.deepcopy(taught).kind == "unlike"
    assert set(WithTeachers(Tasks(), {"b": teacher}, F.mse_loss).sample(1, RNG)) == {
        "a"
    }  # not in this step
