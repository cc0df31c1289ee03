"""Traps of torch that cost others their gradients, each with what the library makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from metamtl import Batch, Episode, Recipe, aggregators, engines, meta_backward, nets, recipes


def _episode(x: torch.Tensor, y: torch.Tensor) -> Episode:
    half = x.shape[1] // 2
    return Episode(Batch(x[:, :half], y[:, :half]), Batch(x[:, half:], y[:, half:]))


def _gradient(model: nn.Module, recipe: Recipe, episode: Episode, loss, engine) -> torch.Tensor:
    model.zero_grad()
    meta_backward(model, recipe, episode, loss, engine=engine)
    return torch.cat([param.grad.flatten() for param in model.parameters() if param.grad is not None])


def _by_hand(model: nn.Module, lr: float, episode: Episode, loss) -> torch.Tensor:
    """One exact inner step with plain autograd."""
    names = [name for name, param in model.named_parameters() if param.requires_grad]
    params = [param for param in model.parameters() if param.requires_grad]
    total = 0
    for task in range(episode.num_tasks):
        one = episode[task]
        inner = torch.autograd.grad(loss(model(one.support.x), one.support.y), params, create_graph=True)
        fast = {name: p - lr * g for name, p, g in zip(names, params, inner)}
        total = total + loss(torch.func.functional_call(model, fast, (one.query.x,)), one.query.y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total / episode.num_tasks, params)])


class Attention(nn.Module):
    """One encoder layer over a sequence, as a user has it."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    """The last state of a recurrent layer, under a linear head."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


MODELS = {
    "attention": Attention,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
}


def _sequences() -> Episode:
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    return _episode(x, torch.arange(3).repeat(2).expand(2, -1))


@pytest.mark.parametrize("order", ["exact", "checkpointed"])
@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
@pytest.mark.parametrize("kind", MODELS)
def test_sequence_models_have_second_derivatives(kind, engine, order):
    torch.manual_seed(0)
    model, episode, recipe = (
        MODELS[kind]().double(),
        _sequences(),
        recipes.maml(1, 0.1, differentiation=order),
    )
    with sdpa_kernel(SDPBackend.MATH):
        expected = _by_hand(model, 0.1, episode, F.cross_entropy)
    found = _gradient(model, recipe, episode, F.cross_entropy, engine)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)


def test_first_order_leaves_attention_its_fused_kernel():
    torch.manual_seed(0)
    model, used = Attention(), []
    original = F.scaled_dot_product_attention

    def spy(*args, **kwargs):
        used.append(torch.backends.cuda.flash_sdp_enabled())
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        episode = _sequences().map(lambda t: t.float() if t.is_floating_point() else t)
        _gradient(model, recipes.fomaml(1, 0.1), episode, F.cross_entropy, engines.Loop())
        assert used and all(used)
        used.clear()
        _gradient(model, recipes.maml(1, 0.1), episode, F.cross_entropy, engines.Loop())
    assert used == [False, True] * 2  # support, query: the query needs one derivative only


def test_dropout_draws_its_own_numbers_for_every_task():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1, bias=False))
    nn.init.ones_(model[1].weight)
    x = torch.ones(8, 2, 64)
    outcome = meta_backward(
        model, recipes.joint(), _episode(x, torch.zeros(8, 2, 1)), F.mse_loss, engine=engines.Vmap()
    )
    assert outcome.losses.unique().numel() > 1


def test_a_regression_loss_survives_forward_over_reverse_trouble():
    torch.manual_seed(0)
    model = nets.mlp(1, 8, 1).double()
    x = torch.randn(3, 8, 1, dtype=torch.float64)
    episode = _episode(x, x.sin())
    found = _gradient(model, recipes.maml(1, 0.1), episode, F.mse_loss, engines.Vmap())
    assert torch.allclose(found, _by_hand(model, 0.1, episode, F.mse_loss), rtol=1e-12)


def test_recipes_do_not_share_an_aggregator_or_an_adapter():
    assert recipes.maml().aggregator is not recipes.maml().aggregator
    assert recipes.maml().adapter is not recipes.maml().adapter


def test_directional_derivatives_between_tasks_are_minus_the_gramian():
    """`d/d eta L_j(theta - eta g_i)` at 0, by differences, against the rows of joint training."""
    torch.manual_seed(0)
    model = nets.mlp(2, 8, 1).double()
    x, y = torch.randn(3, 8, 2, dtype=torch.float64), torch.randn(3, 8, 1, dtype=torch.float64)
    seen = {}

    class Keep(aggregators.Aggregator):
        def forward(self, losses, rows):
            seen["rows"] = rows
            return rows.mean(0)

    meta_backward(model, recipes.joint(aggregator=Keep()), _episode(x, y), F.mse_loss)
    rows, start = seen["rows"], nn.utils.parameters_to_vector(model.parameters()).detach()

    def loss(vector: torch.Tensor, task: int) -> torch.Tensor:
        nn.utils.vector_to_parameters(vector, model.parameters())
        return F.mse_loss(model(x[task, 4:]), y[task, 4:]).detach()

    eta = 1e-5
    derivative = torch.stack(
        [
            torch.stack(
                [(loss(start - eta * g, j) - loss(start + eta * g, j)) / (2 * eta) for j in range(3)]
            )
            for g in rows
        ]
    )
    assert torch.allclose(derivative, -rows @ rows.T, rtol=1e-6)
