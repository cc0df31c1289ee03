"""The compiled engine: Vmap's numbers, compiled once for each shape, never a silent mistake."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import Episode, Recipe, adapters, engines, meta_backward, nets, recipes, rules, tasks

# torch.compile warns of its own use of deprecated functions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

FAMILY = tasks.Sinusoid(shots=6, queries=6, dtype=torch.float64)
RECIPES = {
    "maml": recipes.maml(3, (0.01, 0.02, 0.03)),
    "fomaml": recipes.fomaml(3, 0.01),
    "anil": recipes.anil(3, 0.01),
    "truncated": Recipe(adapters.Gradient(3, 0.01, differentiation=adapters.Truncated(1))),
    "reptile": recipes.reptile(3, 0.01),
    "joint": recipes.joint(),
    "one step": recipes.maml(1, 0.01),
    "momentum": Recipe(adapters.Gradient(3, 0.01, rule=rules.SGD(momentum=0.9))),
    "adam": Recipe(adapters.Gradient(3, 0.01, rule=rules.Adam())),
    "recomputed": recipes.maml(3, 0.01, differentiation="checkpointed"),
}


def _rows(model: nn.Module, recipe: Recipe, episode: Episode, engine: engines.Engine):
    model.zero_grad()
    outcome = meta_backward(model, recipe, episode, F.mse_loss, engine=engine)
    return outcome, torch.cat([param.grad.flatten() for param in model.parameters()])


@pytest.fixture
def without_generated_code() -> Iterator[None]:
    """Torch traces and guards as always, and runs the graph itself, which saves the time of a compiler."""
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):
        yield


@pytest.fixture
def by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few operations a task has."""
    monkeypatch.setattr("metamtl.engines.probe.WHOLE", 0)


GENERATED = ["maml"]  # with the real compiler, for all tasks at once
TRACED = [name for name in RECIPES if name not in GENERATED]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chunk_size"), [*((name, None) for name in TRACED), *((name, 1) for name in GENERATED)]
)
def test_traced_code_gives_the_numbers_of_vmap(name, chunk_size, without_generated_code, by_parts):
    _same_numbers(name, chunk_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATED)
def test_generated_code_gives_the_numbers_of_vmap(name, by_parts):
    _same_numbers(name, None)


def _same_numbers(name, chunk_size):
    torch.manual_seed(0)
    model = nets.mlp(1, 8, 1).double()
    episode = FAMILY.sample(4, torch.Generator().manual_seed(0))
    plain, expected = _rows(model, RECIPES[name], episode, engines.Vmap())
    engine = engines.Compiled(chunk_size)
    compiled, found = _rows(model, RECIPES[name], episode, engine)
    assert engine.compilations == 1
    _, again = _rows(model, RECIPES[name], episode, engine)
    assert torch.equal(found, again)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)
    assert torch.allclose(compiled.losses, plain.losses, rtol=1e-10)


@pytest.mark.slow
def test_learned_rates_get_their_gradient(without_generated_code):
    model = nets.mlp(1, 8, 1).double()
    recipe = Recipe(adapters.Gradient(3, adapters.LearnedRates(model, 0.01, steps=3)))
    episode = FAMILY.sample(4, torch.Generator().manual_seed(0))
    found = []
    for engine in (engines.Vmap(), engines.Compiled(3)):  # the second chunk begins early
        recipe.adapter.zero_grad()
        meta_backward(model, recipe, episode, F.mse_loss, engine=engine)
        found.append(torch.cat([param.grad.flatten() for param in recipe.adapter.parameters()]))
    assert found[0].any() and torch.allclose(found[1], found[0], rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_one_compilation_serves_a_shape_and_another_shape_is_counted_and_logged(
    caplog, without_generated_code
):
    model, engine, recipe = nets.mlp(1, 8, 1).double(), engines.Compiled(), recipes.maml(2, 0.01)
    rng = torch.Generator().manual_seed(0)
    with caplog.at_level(logging.INFO, "metamtl"):
        for _ in range(3):
            _rows(model, recipe, FAMILY.sample(4, rng), engine)
        assert engine.compilations == 1
        _, found = _rows(model, recipe, episode := FAMILY.sample(5, rng), engine)
    assert engine.compilations == 2
    messages = [record.message for record in caplog.records if "compiled MLP in" in record.message]
    assert len(messages) == 2 and engine.compile_seconds > 0
    assert torch.allclose(found, _rows(model, recipe, episode, engines.Vmap())[1], rtol=1e-10, atol=1e-14)


def test_random_layers_are_left_to_vmap():
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    episode, engine = FAMILY.sample(4, torch.Generator().manual_seed(0)), engines.Compiled()
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=r"not compiled \(it draws random numbers\) and runs under Vmap"):
        _, first = _rows(model, recipes.maml(2, 0.01), episode, engine)
    torch.manual_seed(1)
    _, again = _rows(model, recipes.maml(2, 0.01), episode, engine)
    torch.manual_seed(1)
    _, expected = _rows(model, recipes.maml(2, 0.01), episode, engines.Vmap())
    assert engine.compilations == 0 and torch.equal(first, again) and torch.equal(first, expected)


@pytest.mark.slow
def test_where_compiling_fails_vmap_runs_with_one_warning():
    model, engine = nets.mlp(1, 7, 1).double(), engines.Compiled()
    episode = FAMILY.sample(4, torch.Generator().manual_seed(0))
    no_compiler = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    with (
        torch._inductor.config.patch(no_compiler),
        pytest.warns(UserWarning, match=r"not compiled \(.*\) and runs under Vmap"),
    ):
        _, found = _rows(model, recipes.maml(1, 0.01), episode, engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _rows(model, recipes.maml(1, 0.01), episode, engine)
    _, expected = _rows(model, recipes.maml(1, 0.01), episode, engines.Vmap())
    assert torch.allclose(found, expected, rtol=1e-12)
    assert engine.compilations == 0


@pytest.mark.slow
def test_a_changed_setting_of_the_model_is_not_overlooked(without_generated_code):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.factor = nn.Linear(1, 1), 2.0
            self.register_buffer("shift", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * self.layer(x) + self.shift

    model, engine = Scaled().double(), engines.Compiled()
    episode = FAMILY.sample(4, torch.Generator().manual_seed(0))
    for _ in range(2):
        _, found = _rows(model, recipes.maml(1, 0.01), episode, engine)
        _, expected = _rows(model, recipes.maml(1, 0.01), episode, engines.Vmap())
        assert torch.allclose(found, expected, rtol=1e-12)
        model.factor = 3.0
        model.shift += 1.0


def test_wrong_input_raises_the_error_of_the_other_engines():
    model = nets.mlp(2, 8, 3)
    x, y = torch.randn(4, 5, 2), torch.full((4, 5), 7)
    with pytest.raises(ValueError, match="labels reach up to 7"):
        meta_backward(
            model, recipes.maml(2, 0.1), Episode((x, y), (x, y)), F.cross_entropy, engine=engines.Compiled()
        )
    assert all(param.grad is None for param in model.parameters())
