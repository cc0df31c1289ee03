"""What an inner loop does to a user's module: nothing. Buffers, parameters, bad operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from metamtl import Batch, Episode, Recipe, engines, evaluate, meta_backward, recipes
from metamtl.functional import forward, vmap_compatible_kernels

from ..reference.modules.cases import Once

ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=1)]


def gradient(model: nn.Module, recipe: Recipe, episode: Episode, engine: Any = None) -> Tensor:
    model.zero_grad()
    meta_backward(model, recipe, episode, F.cross_entropy, engine=engine)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in grads])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class Writes(nn.Module):
    """Leaves something behind in every forward pass."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layer = what, nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "count":
            self.count += 1
        elif self.what == "rebound":
            self.last = x.detach().mean(0)
        elif self.what == "copied":
            self.last.copy_(x.detach().mean(0))
        elif self.what == "parameter":
            with torch.no_grad():
                self.layer.weight.clamp_(-10, 10)
        elif self.what == "branch" and x.sum() > 1e9:
            return self.layer(2 * x)
        return self.layer(x)


def vectors(tasks: int = 2, shape: tuple[int, ...] = (4,)) -> Episode:
    x = torch.randn(tasks, 9, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(3).repeat(3).expand(tasks, -1)
    return Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))


@pytest.mark.parametrize("what", ["count", "rebound", "copied"])
@pytest.mark.parametrize("order", ["exact", "checkpointed", "first_order"])
def test_a_written_buffer_is_a_copy(what: str, order: str) -> None:
    model, episode, recipe = Writes(what).double(), vectors(), recipes.maml(2, 0.3, differentiation=order)
    kept = {name: (id(t), t.clone()) for name, t in model.named_buffers()}
    expected = gradient(model.layer, recipe, episode)
    for engine in ENGINES:
        if what == "copied" and isinstance(engine, engines.Vmap):
            words = r"Writes writes in place.*buffers are 'count', 'last'.*vmap.*engine=Loop\(\)"
            with pytest.raises(RuntimeError, match=words):
                gradient(model, recipe, episode, engine)
            continue
        assert distance(gradient(model, recipe, episode, engine), expected) <= 1e-12
        evaluate(model, recipe, episode, F.cross_entropy, engine=engine)
    assert all(id(t) == kept[n][0] and torch.equal(t, kept[n][1]) for n, t in model.named_buffers())


def test_a_written_parameter_is_refused() -> None:
    for _ in range(2):  # every time
        with pytest.raises(RuntimeError, match=r"Writes writes its parameters layer\.weight in place"):
            gradient(Writes("parameter").double(), recipes.maml(), vectors(), engines.Loop())
    table = nn.Sequential(nn.Embedding(7, 4, max_norm=0.1), nn.Flatten(), nn.Linear(8, 3)).double()
    tokens = vectors(shape=(2,)).map(lambda t: (t.abs() * 2).long().clamp(max=6) if t.dim() > 2 else t)
    with pytest.raises(RuntimeError, match=r"writes its parameters 0\.weight.*max_norm"):
        gradient(table, recipes.maml(), tokens, engines.Loop())


def test_a_branch_on_values_is_refused_by_vmap() -> None:
    model, episode = Writes("branch").double(), vectors()
    assert gradient(model, recipes.maml(), episode, engines.Loop()).any()
    with pytest.raises(RuntimeError, match=r"Writes reads tensor values.*vmap.*engine=Loop"):
        gradient(model, recipes.maml(), episode, engines.Vmap())


class Squared(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


@pytest.mark.parametrize("engine", ENGINES[:2], ids=repr)
def test_no_silent_first_order_gradient(engine: Any) -> None:
    model, plain, episode = Squared(Once.apply).double(), Squared(torch.square).double(), vectors()
    plain.load_state_dict(model.state_dict())
    first = recipes.fomaml(2, 0.1)
    assert distance(gradient(model, first, episode, engine), gradient(plain, first, episode)) <= 1e-12
    words = r"Once in Squared is marked once_differentiable.*differentiation='first_order'"
    for order in ("exact", "checkpointed", "exact"):  # after a first-order run, and every time
        with pytest.raises(NotImplementedError, match=words):
            gradient(model, recipes.maml(2, 0.1, differentiation=order), episode, engine)


def test_unused_parameters_are_named_once() -> None:
    model, episode = nn.ModuleDict({"spare": nn.Linear(4, 2), "layer": nn.Linear(4, 3)}).double(), vectors()
    model.forward = model["layer"].forward  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"ModuleDict does not use spare\.weight, spare\.bias in its for"):
        found = gradient(model, recipes.maml(2, 0.3), episode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = gradient(
            model, recipes.maml(2, 0.3, differentiation="checkpointed"), episode, engines.Loop()
        )
    assert distance(again, found) <= 1e-12 and not found[:10].any() and found[10:].any()
    fast = recipes.maml(2, 0.3).adapter(model, episode[0].support, F.cross_entropy)
    assert torch.equal(fast["spare.weight"], model["spare"].weight)


class Recurrent(nn.Module):
    """The last output of a recurrent layer, or of a packed one, under a linear head."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed, self.layer, self.head = packed, nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            return self.head(self.layer(x[:, :4])[0][:, -1])
        packed = pack_padded_sequence(x, torch.full((len(x),), 4), batch_first=True)
        return self.head(pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0][:, -1])


def test_a_recurrent_layer_uses_the_weights_it_is_given_and_keeps_its_own() -> None:
    model, x = Recurrent(False).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    other = Recurrent(False).double()
    weights = list(model.layer._flat_weights)
    expected = other(x)
    assert torch.equal(forward(model, dict(other.named_parameters()), x), expected)
    found = forward(model, dict(other.named_parameters()), x, second_order=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert all(a is b for a, b in zip(model.layer._flat_weights, weights))
    assert "flatten_parameters" not in vars(model.layer)


# Before vmap fails on the lengths, it says that it is slow.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_packed_sequences_need_a_loop() -> None:
    packed, plain, episode = Recurrent(True).double(), Recurrent(False).double(), vectors(shape=(5, 4))
    plain.load_state_dict(packed.state_dict())
    for order in ("exact", "checkpointed", "first_order"):
        recipe = recipes.maml(2, 0.3, differentiation=order)
        found, expected = (gradient(m, recipe, episode, engines.Loop()) for m in (packed, plain))
        assert distance(found, expected) <= 1e-12
        words = r"Recurrent reads tensor values .*packing sequences.*engine=Loop\(\)"
        with pytest.raises(RuntimeError, match=words):
            gradient(packed, recipe, episode, engines.Vmap())


def test_the_fast_paths_are_left_as_they_were() -> None:
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(ZeroDivisionError), vmap_compatible_kernels():
        assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
        raise ZeroDivisionError
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.cuda.flash_sdp_enabled()
