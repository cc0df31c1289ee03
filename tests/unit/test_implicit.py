"""The gradient of a minimum: closed forms, long unrolls, and what it must not be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, recipes, rules
from metamtl.functional.implicit import conjugate_gradients, neumann

T, N, BODY, PROXIMAL = 4, 5, 3, 0.7
ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(2)]


class Point(nn.Module):
    """The model's output is its parameters."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.body, self.head = nn.Parameter(theta[:BODY].clone()), nn.Parameter(theta[BODY:].clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body, self.head])


def quadratic(theta: Tensor, target: Tensor) -> Tensor:
    """`1/2 (theta - c)^T H (theta - c)`; the targets are c, and below it the rows of H."""
    gap = theta - target[0]
    return 0.5 * gap @ target[1:] @ gap


def quadratics() -> tuple[Point, Episode]:
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(T, N, N, generator=rng, dtype=torch.float64)
    h = root @ root.mT / N + 0.1 * torch.eye(N, dtype=torch.float64)
    centres = torch.randn(2, T, 1, N, generator=rng, dtype=torch.float64)
    support, query = (Batch(torch.zeros(T, N + 1), torch.cat([c, h], 1)) for c in centres)
    return Point(torch.randn(N, generator=rng, dtype=torch.float64)), Episode(support, query)


def gradient(
    model: nn.Module, adapter: adapters.Adapter, episode: Episode, loss: Any, engine: Any
) -> Tensor:
    model.zero_grad()
    meta_backward(model, Recipe(adapter), episode, loss, engine=engine)
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize(("solver", "solver_steps"), [("cg", 2 * N), ("neumann", 100)])
@pytest.mark.parametrize("adapts", [None, "head", "body"])
def test_on_quadratics_it_is_the_closed_form(
    adapts: str | None, solver: str, solver_steps: int, engine: engines.Engine
) -> None:
    """The minimum over the part solves a linear system, which plain autograd differentiates."""
    model, episode = quadratics()
    part = {None: slice(0, N), "head": slice(BODY, N), "body": slice(0, BODY)}[adapts]
    theta = torch.cat([model.body, model.head]).detach().requires_grad_()
    for task in range(T):
        (c, h), query = episode[task].support.y.split([1, N]), episode[task].query.y
        adapted = torch.zeros(N, dtype=torch.bool)
        adapted[part] = True
        base = torch.where(adapted, 0, theta) - c[0]  # the point, with zeros where it is adapted
        left = h[part, part] + PROXIMAL * torch.eye(int(adapted.sum()), dtype=torch.float64)
        minimum = torch.linalg.solve(left, PROXIMAL * theta[part] - h[part] @ base)
        point = theta.clone()
        point[part] = minimum
        (quadratic(point, query) / T).backward()
    adapter = adapters.Gradient(100, 0.3, adapts, adapters.Implicit(PROXIMAL, solver, solver_steps))
    assert error(gradient(model, adapter, episode, quadratic, engine), theta.grad) <= 1e-8


def classes() -> tuple[nn.Module, Episode]:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body, model.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)
    x = torch.randn(T, 12, 4, dtype=torch.float64)
    y = torch.arange(3).repeat(4).expand(T, -1)
    return model.double(), Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))


def unrolled(model: nn.Module, episode: Episode, loss: Any, steps: int, lr: float, adapts: str) -> Tensor:
    """The outer gradient through every step of the same proximal descent, by plain autograd."""
    model.zero_grad()
    theta = dict(model.named_parameters())
    names = [name for name in theta if name.startswith(adapts)]
    for task in range(T):
        one, params = episode[task], dict(theta)
        for _ in range(steps):
            value = loss(functional_call(model, params, (one.support.x,)), one.support.y)
            value = value + 0.5 * PROXIMAL * sum((params[n] - theta[n]).square().sum() for n in names)
            gradients = torch.autograd.grad(value, [params[n] for n in names], create_graph=True)
            params = {**params, **{n: params[n] - lr * g for n, g in zip(names, gradients)}}
        (loss(functional_call(model, params, (one.query.x,)), one.query.y) / T).backward()
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def regression() -> tuple[nn.Module, Episode]:
    model, episode = classes()
    sets = [Batch(x, F.one_hot(y, 3).double()) for x, y in (episode.support, episode.query)]
    return model, Episode(*sets)


@pytest.mark.parametrize("engine", ENGINES[:2], ids=repr)
@pytest.mark.parametrize("solver", ["cg", "neumann"])
@pytest.mark.parametrize(("make", "loss"), [(classes, F.cross_entropy), (regression, F.mse_loss)])
def test_a_long_unroll_comes_to_the_same(make: Any, loss: Any, solver: str, engine: engines.Engine) -> None:
    """A linear head on tanh features: strongly convex, and the body enters through the mixed derivative."""
    model, episode = make()
    expected = unrolled(model, episode, loss, 60, 0.4, "head")
    adapter = adapters.Gradient(60, 0.4, "head", adapters.Implicit(PROXIMAL, solver, 60))
    assert error(gradient(model, adapter, episode, loss, engine), expected) <= 1e-8


def test_the_way_to_the_minimum_does_not_matter() -> None:
    model, episode = classes()
    implicit = adapters.Implicit(PROXIMAL, solver_steps=40)
    plain = adapters.Gradient(60, 0.4, "head", implicit)
    heavy = adapters.Gradient(60, 0.2, "head", implicit, rule=rules.SGD(momentum=0.5))
    found = [gradient(model, adapter, episode, F.cross_entropy, None) for adapter in (plain, heavy)]
    assert error(found[1], found[0]) <= 1e-8


@pytest.mark.parametrize("adapts", [None, "head", "body"])
def test_engines_agree_before_the_minimum_is_reached(adapts: str | None) -> None:
    model, episode = classes()
    for solver in ("cg", "neumann"):
        adapter = adapters.Gradient(3, 0.2, adapts, adapters.Implicit(2.0, solver))
        loop, *others = (gradient(model, adapter, episode, F.cross_entropy, engine) for engine in ENGINES)
        assert all(error(found, loop) <= 1e-10 for found in others)


def test_solvers_on_a_system() -> None:
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    left, right = root @ root.T / 6 + torch.eye(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    expected = torch.linalg.solve(left, right)

    def product(x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((left @ torch.cat(x))[:2], (left @ torch.cat(x))[2:])

    pieces = (right[:2], right[2:])
    assert error(torch.cat(conjugate_gradients(product, pieces, 6)), expected) <= 1e-12
    assert error(torch.cat(conjugate_gradients(product, pieces, 100)), expected) <= 1e-12
    assert error(torch.cat(neumann(product, pieces, 400, 0.2)), expected) <= 1e-12
    zeros = (torch.zeros(2), torch.zeros(4))
    assert all((piece == 0).all() for piece in conjugate_gradients(lambda x: x, zeros, 3))
    # As documented: beyond 2 / rate the series diverges.
    assert torch.cat(neumann(product, pieces, 40, 2.0)).norm() > 1e6


def test_memory_does_not_grow_with_the_steps(stored: Callable[..., int]) -> None:
    model, episode = classes()

    def after(steps: int) -> int:
        adapter = adapters.Gradient(steps, 0.1, differentiation="implicit")
        return stored(adapter(model, episode[0].support, F.cross_entropy))

    assert after(20) == after(2) > 0


def test_the_path_ends_in_the_minimum_and_only_its_end_has_a_gradient() -> None:
    model, episode = classes()
    adapter = adapters.Gradient(3, 0.2, differentiation="implicit")
    *before, end = adapter.path(model, episode[0].support, F.cross_entropy)
    assert len(before) == 3 and not any(p.requires_grad for stage in before[1:] for p in stage.values())
    found = adapter(model, episode[0].support, F.cross_entropy)
    assert all(torch.equal(end[name], found[name]) and end[name].requires_grad for name in found)


@pytest.mark.parametrize("engine", ENGINES[:2], ids=repr)
def test_dropout_is_repeatable_and_leaves_the_stream_of_random_numbers(engine: engines.Engine) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.5), nn.Tanh(), nn.Linear(9, 3)).double()
    _, episode = classes()
    adapter = adapters.Gradient(4, 0.1, differentiation="implicit")
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((gradient(model, adapter, episode, F.cross_entropy, engine), torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_imaml_learns() -> None:
    model, episode = classes()
    recipe = recipes.imaml(5, 0.2, solver_steps=4)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(meta_backward(model, recipe, episode, F.cross_entropy).loss)
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": "learned"}, "does not depend on the step sizes.*would not be learned"),
        ({"rule": rules.AdamW()}, r"rule=AdamW\(\): with weight_decay, the steps"),
        ({"proximal": -1.0}, "proximal=-1.0 must be"),
        ({"proximal": 0.0}, "With 0, the minimum does not depend"),
        ({"proximal": -1.0, "adapts": "head"}, "proximal=-1.0"),
        ({"solver": "lu"}, "solver='lu'.*'cg' or 'neumann'"),
        ({"solver_steps": 0}, "solver_steps=0"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    if options.get("lr") == "learned":
        options = {"lr": adapters.LearnedRates(classes()[0])}
    own = {name: options[name] for name in ("proximal", "solver", "solver_steps") if name in options}
    others = {name: value for name, value in options.items() if name not in own}
    with pytest.raises(ValueError, match=words):
        adapters.Gradient(3, differentiation=adapters.Implicit(**own), **others)
