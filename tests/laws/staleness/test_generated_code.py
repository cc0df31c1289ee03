"""A few changes of every kind with the real compiler; and `Loop`, the reference of the others."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metamtl import Recipe, engines, recipes, rules
from metamtl.adapters import Gradient
from metamtl.objectives import episode_loss, query_loss

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


class Net(nn.Module):
    """A smooth net with a mode."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
            self.head = nn.Linear(3, 2)
        self.mode = "sin"

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(torch.sin(h) if self.mode == "sin" else torch.cos(h))


class Weighted:
    """Mean squared error with a penalty."""

    beta = 0.5

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean() + self.beta * output.square().mean()


class hooked:
    """Within, the head has a hook that halves its output."""

    def __init__(self, case: Any) -> None:
        self.module = case.model.head

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(lambda module, inputs, output: 0.5 * output)

    def __exit__(self, *error: Any) -> None:
        self.handle.remove()


CHANGES: dict[str, Any] = {
    "string": (lambda case: case.model, "mode", "cos"),
    "module": (lambda case: case.model.body, "1", nn.Softplus()),
    "hook": hooked,
    "loss": (lambda case: case.loss, "beta", 0.1),
    "recipe": (lambda case: case, "recipe", recipes.maml(1, 0.9)),
    "method": (lambda case: Net, "forward", lambda self, x: self.head(self.body(x))),
}


@pytest.mark.slow
def test_compiled(build: Any, check_change: Any) -> None:
    case, engine = build(Net(), loss=Weighted()), engines.Compiled()
    check_change(case, engine, CHANGES["hook"])  # guards do not depend on the code that is generated
    model = weakref.ref(case.model)
    del case
    gc.collect()
    assert model() is None  # though the engine is there


@pytest.mark.slow
def test_auto(build: Any, check_change: Any, settled: Any) -> None:
    case = build(Net(), loss=Weighted())
    auto = settled(case)
    assert "Compiled" in repr(auto.choices), auto.choices
    for name in ("module", "loss"):
        check_change(case, auto, CHANGES[name])


@pytest.mark.slow
def test_inner_steps_by_parts(build: Any, check_change: Any, guards_only: None) -> None:
    """One call of compiled code runs all the steps; its guards see what any of its parts reads."""

    def recipe(objective: Any = query_loss, **options: Any) -> Recipe:
        return Recipe(Gradient(3, 0.3, rule=rules.SGD(**options)), objective=objective)

    case, engine = build(Net(), recipe(), Weighted()), engines.Compiled()
    changes = {
        **{name: CHANGES[name] for name in ("string", "loss")},
        "the rule gets a state": (lambda case: case, "recipe", recipe(momentum=0.9)),
        "objective": (lambda case: case, "recipe", recipe(episode_loss)),
    }
    for mutation in changes.values():
        check_change(case, engine, mutation)
    assert all(kind.by_parts and kind.reason is None for kind in engine._kinds.values())


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_loop_is_plain_autograd(change: str | None, build: Any, changed: Any, plain: Any) -> None:
    case = build(Net(), loss=Weighted())
    with changed(CHANGES.get(change or ""), case):
        net = plain(case.model)
        rates = dict.fromkeys(net.start, 0.9 if change == "recipe" else 0.3)

        def adapt(values: Any, support: Any, task: Any) -> Any:
            return net.steps(values, list(rates), support, case.loss, rates, 1)

        expected = net.gradient(case.episode, case.loss, adapt)
        result = case.gradient(engines.Loop())
    assert all(torch.allclose(result[name], g, 1e-10, 1e-14) for name, g in zip(net.start, expected))
