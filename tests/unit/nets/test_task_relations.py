"""Gradient reversal, shared and private encoders, and learned branches against known cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, meta_backward, nets, recipes

from .sharing_nets import OUTPUTS, X, block, body

pytestmark = pytest.mark.usefixtures("own_random_numbers")


def test_gradient_reversal_flips_exactly() -> None:
    x = X.clone().requires_grad_()
    assert torch.equal(nets.reverse_gradient(x), x)
    plain, reversed_ = ((f(x) ** 3).sum() for f in (lambda x: x, nets.reverse_gradient))
    (there,) = torch.autograd.grad(plain, x, create_graph=True)
    (back,) = torch.autograd.grad(reversed_, x, create_graph=True)
    assert torch.equal(back, -there)
    (halved,) = torch.autograd.grad((nets.reverse_gradient(x, 0.5) ** 3).sum(), x)
    assert torch.equal(halved, -0.5 * there)

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (nets.reverse_gradient(x) ** 3).sum())(x)

    torch.testing.assert_close(torch.func.vmap(slope)(X), -3 * X**2, rtol=1e-14, atol=0.0)


def shared_private() -> tuple[nets.SharedPrivate, dict[str, Episode], dict[str, object]]:
    model = nets.SharedPrivate(body(), body, 6, OUTPUTS).double()
    episodes = {
        "b": Episode(None, Batch(X[:2] + 1, torch.zeros(2, 1).double())),
        "a": Episode(None, Batch(X, torch.tensor([0, 1, 2, 0, 1]))),
    }
    return model, episodes, {"a": F.cross_entropy, "b": F.mse_loss}


def test_the_constraints_of_shared_and_private_features() -> None:
    model, episodes, loss = shared_private()
    more, losses = model.constrained(episodes, loss, adversarial=0.5, difference=0.1)
    assert list(more) == ["b", "a", "discriminator", "b.difference", "a.difference"] and set(losses) == set(
        more
    )
    seen = more["discriminator"].query
    assert torch.equal(seen.x, torch.cat([X[:2] + 1, X])) and seen.y.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert more["a.difference"].query.x is episodes["a"].query.x  # one pass for both
    outcome = meta_backward(model, recipes.joint(), more, losses)
    s, p = model.shared(X), model.private["a"](X)
    expected = 0.1 * (s.T @ p / 5).square().sum()
    torch.testing.assert_close(outcome.losses[4], expected.detach(), rtol=1e-12, atol=0.0)


def test_the_shared_encoder_climbs_what_the_discriminator_descends() -> None:
    model, episodes, loss = shared_private()
    more, losses = model.constrained(episodes, loss, adversarial=0.5, difference=0.1)
    meta_backward(model, recipes.joint(), more, losses)
    plain = {}
    for name, episode in more.items():
        if name == "discriminator":
            output = model.discriminator(model.shared(episode.query.x))  # not reversed
        else:
            output = model(episode.query.x, task=name)
        params = dict(model.named_parameters())
        value = losses[name](output, episode.query.y)
        found = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        plain[name] = dict(zip(params, found))
    rest = [name for name in more if name != "discriminator"]
    for name, param in model.named_parameters():
        if name.startswith("shared."):
            expected = (sum(plain[task][name] for task in rest) - plain["discriminator"][name]) / 5
        else:
            expected = sum(found[name] for found in plain.values() if found[name] is not None) / 5
        torch.testing.assert_close(param.grad, expected, rtol=1e-10, atol=1e-13)


def test_gumbel_noise_is_drawn_by_the_generator_alone() -> None:
    model = nets.Branching([body, block], [3, 2], 6, OUTPUTS).double()
    still = model(X, task="a")
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(draws))
        model.sample(torch.Generator().manual_seed(seed), temperature=0.5)
        draws.append(model(X, task="a"))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], still)
    many = nets.Branching([body, block], [500, 40], 6, OUTPUTS)
    many.sample(torch.Generator().manual_seed(0))
    assert abs(float(many.noise.mean()) - 0.5772) < 0.03  # Euler's constant
    assert abs(float(many.noise.var()) - torch.pi**2 / 6) < 0.06


def test_a_branch_is_a_mean_of_parents_in_training_and_one_of_them_in_eval() -> None:
    model = nets.Branching([body, block], [3, 2], 6, OUTPUTS).double()
    model.sample(torch.Generator().manual_seed(0), temperature=0.7)
    for logits in (*model.parents, *model.leaves.values()):
        nn.init.normal_(logits)
    noise = model.noise.split([6, 2, 2])
    first = torch.stack([node(X) for node in model.layers[0]])
    parents = ((model.parents[0] + noise[0].view(2, 3)) / 0.7).softmax(1)
    second = [
        node(sum(parents[j, i] * first[i] for i in range(3))) for j, node in enumerate(model.layers[1])
    ]
    leaf = ((model.leaves["b"] + noise[2]) / 0.7).softmax(0)
    expected = model.heads["b"](leaf[0] * second[0] + leaf[1] * second[1])
    torch.testing.assert_close(model(X, task="b"), expected, rtol=1e-12, atol=1e-13)

    model.parents[0].data = torch.tensor([[0, 3, 1], [2, 0, 1]]).double()
    model.leaves["a"].data, model.leaves["b"].data = torch.eye(2).double()
    assert model.branches() == {"a": (1, 0), "b": (0, 1)}
    model.eval()
    for name, (low, high) in model.branches().items():
        features = model.layers[1][high](model.layers[0][low](X))
        torch.testing.assert_close(model(X, task=name), model.heads[name](features), rtol=1e-13, atol=1e-14)


def test_branching_learns_which_tasks_belong_together() -> None:
    """Tasks a and c are one function, b another: with one node for each, a and c come to share theirs."""
    model = nets.Branching(
        [lambda: nn.Linear(4, 6), lambda: nn.Linear(6, 6)], [1, 2], 6, {"b": 1, "a": 1, "c": 1}
    )
    model = model.double()
    for head in model.heads.values():
        head.load_state_dict({"weight": torch.ones(1, 6).double(), "bias": torch.zeros(1).double()})
        head.requires_grad_(False)
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    y = {"a": X[:, :1], "c": X[:, :1], "b": -X[:, :1]}
    for step in range(150):
        model.sample(rng, temperature=max(0.3, 2.0 - step / 50))
        optimizer.zero_grad()
        sum(F.mse_loss(out, y[name]) for name, out in model(X).items()).backward()
        optimizer.step()
    found = model.branches()
    assert found["a"] == found["c"] != found["b"]
    model.eval()
    assert all(bool(F.mse_loss(out, y[name]) < 0.05) for name, out in model(X).items())
