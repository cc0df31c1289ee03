"""The default engine: the fastest of those that give the same, found on real steps."""

from __future__ import annotations

import gc
import logging
import pickle
import weakref
from collections.abc import Iterator
from copy import deepcopy
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamtl import engines, evaluate, meta_backward, nets, recipes, tasks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
FAMILY = tasks.Sinusoid(shots=6, queries=6, dtype=torch.float64)


@pytest.fixture(autouse=True)
def compiling_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow a loaded machine makes the trials."""
    monkeypatch.setattr("metamtl.engines.probe.FIXED", float("inf"))


@pytest.fixture
def without_generated_code() -> Iterator[None]:
    """Torch traces and guards as always; `test_generated_code.py` looks at what a real compiler keeps."""
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):
        yield


def _step(model: nn.Module, engine: engines.Engine, recipe=None, seed: int = 0) -> torch.Tensor:
    model.zero_grad()
    episode = FAMILY.sample(12, torch.Generator().manual_seed(seed))
    meta_backward(model, recipe or recipes.maml(2, 0.01), episode, F.mse_loss, engine=engine)
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def test_every_trial_is_a_step_with_the_same_gradient(caplog):
    model, auto = nets.mlp(1, 8, 1).double(), engines.Auto()
    expected = _step(model, engines.Loop())
    with caplog.at_level(logging.INFO, "metamtl"):
        for _ in range(8):
            assert torch.allclose(_step(model, auto), expected, rtol=1e-10, atol=1e-14)
    (choice,) = auto.choices
    assert set(choice.seconds) == {"Loop()", "Vmap(chunk_size=None)", "Vmap(chunk_size=8)"}
    assert repr(choice.engine) == min(choice.seconds, key=choice.seconds.get)
    assert f"MLP runs under {choice.engine!r}: the fastest of Loop()" in caplog.text


@pytest.mark.slow
def test_it_compiles_if_the_steps_that_remain_pay_for_it(monkeypatch, caplog):
    monkeypatch.setattr("metamtl.engines.probe.FIXED", 3.0)
    monkeypatch.setattr("metamtl.engines.probe.PER_OPERATION", 0.0)
    model, auto = nets.mlp(1, 8, 1).double(), engines.Auto(steps=10**6)
    expected = _step(model, engines.Loop())
    with mock.patch("metamtl.engines.kinds.BACKEND", "eager"), caplog.at_level(logging.WARNING):
        for _ in range(12):
            assert torch.allclose(_step(model, auto), expected, rtol=1e-10, atol=1e-14)
    (choice,) = auto.choices
    assert "Compiled(chunk_size=None)" in choice.seconds
    assert choice.seconds[repr(choice.engine)] == min(choice.seconds.values())
    assert "compiling MLP, which is expected to take about 3 s" in caplog.text
    assert auto.compile_seconds > 0


@pytest.mark.parametrize("steps", [None, 12, 40])
def test_it_does_not_compile_in_a_run_that_cannot_pay_for_it(monkeypatch, steps):
    monkeypatch.setattr("metamtl.engines.probe.FIXED", 3.0)
    model, auto = nets.mlp(1, 8, 1).double(), engines.Auto(steps)
    for _ in range(12):
        _step(model, auto)
    (choice,) = auto.choices
    assert not any("Compiled" in name for name in choice.seconds) and auto.compile_seconds == 0


@pytest.mark.slow
def test_code_that_is_compiled_again_and_again_is_given_up(monkeypatch):
    monkeypatch.setattr("metamtl.engines.probe.FIXED", 0.0)
    monkeypatch.setattr("metamtl.engines.probe.PER_OPERATION", 0.0)
    model, auto = nets.mlp(1, 8, 1).double(), engines.Auto(steps=10**6)
    for _ in range(12):
        with mock.patch("metamtl.engines.kinds.BACKEND", "eager"):
            _step(model, auto)
    (tuner,) = auto._tuners.values()
    tuner.choice = tuner.engines["Compiled(chunk_size=None)"]
    tuner.recompilations = 2
    with pytest.warns(UserWarning, match="compiled again 3 times.*Put the value into a tensor"):
        tuner._count_recompilation(5.0)
    assert "Compiled" not in repr(auto.choices[0].engine)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "many"])
def test_the_number_of_steps_is_checked(steps):
    with pytest.raises(ValueError, match="steps="):
        engines.Auto(steps)


def test_another_shape_is_another_choice():
    model, auto = nets.mlp(1, 8, 1).double(), engines.Auto()
    for steps in (1, 3):
        for _ in range(7):
            _step(model, auto, recipes.maml(steps, 0.01))
    assert len(auto.choices) == 2


@pytest.mark.parametrize("recipe", [recipes.anil(1, 0.01), recipes.fomaml(1, 0.01)])
def test_other_parameters_or_another_order_is_another_choice(recipe):
    model, auto = nets.mlp(1, 8, 1).double(), engines.Auto()
    for one in (recipes.maml(1, 0.01), recipe):
        for _ in range(7):
            _step(model, auto, one)
    assert len(auto.choices) == 2


def test_random_work_gives_the_same_numbers_for_a_seed_from_the_first_step():
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    found = []
    for engine in (engines.Vmap(), engines.Auto()):
        torch.manual_seed(3)
        found.append([_step(model, engine) for _ in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_memory_bounds_the_tasks_at_a_time(monkeypatch):
    monkeypatch.setattr("metamtl.engines.candidates.free_memory", lambda device: 40_000.0)
    model, auto = nets.mlp(1, 8, 1).double(), engines.Auto()
    expected = _step(model, engines.Loop())
    for _ in range(7):
        assert torch.allclose(_step(model, auto), expected, rtol=1e-10, atol=1e-14)
    (choice,) = auto.choices
    sizes = [int(name[16:-1]) for name in choice.seconds if name.startswith("Vmap(chunk_size=")]
    assert sizes and all(1 <= size < 12 for size in sizes)


def test_work_that_runs_out_of_memory_goes_on_under_loop(monkeypatch):
    def full(self, *args):
        raise MemoryError("DefaultCPUAllocator: can't allocate memory")

    model, auto = nets.mlp(1, 8, 1).double(), engines.Auto()
    expected = _step(model, engines.Loop())
    monkeypatch.setattr(engines.Vmap, "gradients", full)
    for _ in range(8):
        assert torch.allclose(_step(model, auto), expected, rtol=1e-10, atol=1e-14)
    assert repr(auto.choices[0].engine) == "Loop()"


class Looks(nn.Module):
    """Looks at a value in its forward pass, which no batch of tasks can do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if float(x.detach().sum()) < 1e9 else x


def test_a_module_that_no_batch_can_run_is_run_by_loop_with_one_warning() -> None:
    model, auto = Looks().double(), engines.Auto()
    expected = _step(model, engines.Loop())
    with pytest.warns(UserWarning, match=r"cannot run as a batch \(.*\); they run under Loop\(\)") as found:
        for _ in range(6):
            assert torch.equal(_step(model, auto), expected)
    assert len(found) == 1 and repr(auto.choices[0].engine) == "Loop()"

    recipe, episodes = recipes.maml(2, 0.01), FAMILY.sample(3, torch.Generator().manual_seed(0))
    expected_loss = evaluate(model, recipe, episodes, F.mse_loss, engine=engines.Loop())
    with pytest.warns(UserWarning, match="cannot run as a batch") as found:
        for _ in range(3):
            assert evaluate(model, recipe, episodes, F.mse_loss, engine=auto) == expected_loss
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", [engines.Auto(), engines.Compiled()], ids=repr)
@pytest.mark.usefixtures("compiling_does_not_pay", "without_generated_code")
def test_a_model_goes_with_all_that_was_remembered_of_it(engine: engines.Engine) -> None:
    model, episodes = nets.mlp(1, 3, 1).double(), FAMILY.sample(2, torch.Generator())
    recipe = recipes.maml(1, 0.01)
    for _ in range(3):
        _step(model, engine, recipe)
    evaluate(model, recipe, episodes, F.mse_loss, engine=engine)
    # What is remembered is no part of a copy.
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(_step(copy, engines.Vmap()), _step(model, engines.Vmap()))
        assert vars(copy).keys() == vars(model).keys()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
