"""Named tasks that cannot be learned from: an error in words, and nothing changed. Never a silent zero."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, aggregators, evaluate, meta_backward, nets, recipes
from metamtl.losses import MISSING, mean_over_labeled, token_cross_entropy
from metamtl.metrics import mse

ABSENT = torch.full((6,), torch.nan)
Losses = dict[str, Callable[..., Tensor]]


def tasks() -> tuple[nets.NamedHeads, dict[str, Episode], Losses]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.named_heads(nets.mlp(2, 5, 1), {"case": 3, "slant": 1})
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    data = {
        "case": Episode(None, Batch(x, torch.arange(6) % 3)),
        "slant": Episode(None, Batch(x, x.sum(1, keepdim=True))),
    }
    return model, data, {"case": F.cross_entropy, "slant": F.mse_loss}


@contextmanager
def refused(model: nn.Module, words: str, error: type[Exception] = ValueError) -> Iterator[None]:
    with pytest.raises(error, match=words):
        yield
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("at", [None, "body"])
@pytest.mark.parametrize(
    ("task", "loss", "y"),
    [
        ("case", F.cross_entropy, torch.full((6,), MISSING)),
        ("slant", mean_over_labeled(F.mse_loss), ABSENT[:, None]),
        ("slant", mean_over_labeled(F.binary_cross_entropy_with_logits), ABSENT),
        ("case", lambda o, y: token_cross_entropy(o[:, None], y), torch.full((6, 1), MISSING)),
    ],
)
def test_labels_missing_for_a_whole_batch(task: str, loss: Any, y: Tensor, at: str | None) -> None:
    model, data, losses = tasks()
    data[task] = Episode(None, Batch(data[task].query.x, y))
    words = rf"loss of tasks \['{task}'\] of 2 .*None of the examples of \['{task}'\] is labeled: exclude"
    with refused(model, words, FloatingPointError):
        meta_backward(model, recipes.joint(layer=at), data, {**losses, task: loss})


def test_labels_missing_for_a_whole_batch_and_a_loss_that_says_zero() -> None:
    """A sum over the labels is zero where there is none, as if the task were solved."""
    model, data, losses = tasks()
    data["case"] = Episode(None, Batch(data["case"].query.x, torch.full((6,), MISSING)))
    losses["case"] = nn.CrossEntropyLoss(reduction="sum")
    with refused(
        model, r"loss of tasks \['case'\] is zero, because none of their examples is labeled.*Exclude"
    ):
        meta_backward(model, recipes.joint(), data, losses)
    with pytest.raises(ValueError, match="no query example of task 'case' has a label"):
        evaluate(
            model,
            recipes.joint(),
            {"case": data["case"]},
            {"case": F.cross_entropy},
            metrics={"case": {"mse": mse}},
        )


def test_a_loss_of_zero_with_labels_is_a_solved_task() -> None:
    model, data, losses = tasks()
    with torch.no_grad():
        y = model(data["slant"].query.x, task="slant")
    data["slant"] = Episode(None, Batch(data["slant"].query.x, y))
    outcome = meta_backward(model, recipes.joint(), data, losses)
    assert float(outcome.losses[1]) < 1e-12 and model.heads["case"].weight.grad is not None


@pytest.mark.parametrize("loss", [None, "mse"])
def test_a_loss_that_is_none(loss: Any) -> None:
    model, data, losses = tasks()
    with refused(model, rf"loss of task 'slant' is {loss!r}; pass a function", TypeError):
        meta_backward(model, recipes.joint(), data, {**losses, "slant": loss})


def test_a_task_whose_loss_depends_on_nothing() -> None:
    model, data, losses = tasks()
    losses["slant"] = lambda output, y: F.mse_loss(output.detach(), y)
    with refused(model, r"objectives of tasks \['slant'\] depend on no trainable parameter.*detach\(\)"):
        meta_backward(model, recipes.joint(), data, losses)


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.huber_loss, nn.SmoothL1Loss()])
def test_targets_that_torch_would_broadcast(loss: Any) -> None:
    model, data, losses = tasks()
    data["slant"] = Episode(None, Batch(data["slant"].query.x, torch.zeros(6)))
    with refused(model, r"output has shape \[6, 1\], the targets \[6\].*broadcast"):
        meta_backward(model, recipes.joint(), data, {**losses, "slant": loss})
    with refused(model, r"output has shape \[6, 1\], the targets \[6\].*broadcast"):
        evaluate(model, recipes.joint(), data, {**losses, "slant": loss})


def test_targets_that_torch_would_broadcast_in_a_query_set() -> None:
    x, y = torch.randn(3, 6, 2), torch.zeros(3, 6)
    episode, model = Episode(Batch(x, y[..., None]), Batch(x, y)), nets.mlp(2, 5, 1)
    with refused(model, r"output has shape \[6, 1\], the targets \[6\].*broadcast"):
        evaluate(model, recipes.maml(), episode, F.mse_loss)


@pytest.mark.parametrize("name", ["Mean", "MGDA", "UPGrad", "PCGrad"])
@pytest.mark.parametrize("at", [None, "body"])
def test_a_gradient_that_is_nan(name: str, at: str | None) -> None:
    model, data, losses = tasks()
    losses["slant"] = lambda output, y: output.sum().sub(output.sum()).sqrt()
    recipe = recipes.joint(aggregator=getattr(aggregators, name)(), layer=at)
    with refused(model, r"gradient of tasks \['slant'\] of 2 is not finite", FloatingPointError):
        meta_backward(model, recipe, data, losses)


def test_a_forward_of_the_instance_is_looked_at_and_keeps_nothing() -> None:
    def used() -> weakref.ref[nn.Module]:
        model, data, losses = tasks()
        whole = model.forward
        model.forward = lambda *inputs, task: whole(*inputs, task=task)
        meta_backward(model, recipes.joint(), data, losses)
        model.zero_grad()
        model.forward = lambda *inputs: whole(*inputs)
        with refused(model, "forward takes no argument task="):
            meta_backward(model, recipes.joint(), data, losses)
        return weakref.ref(model)

    model = used()
    gc.collect()
    assert model() is None
