"""`Loop` takes every module that `backward()` takes.

The reference is an unroll by plain autograd (the fixture `plain`) on a copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from metamtl import Batch, Episode, engines, meta_backward, nets, recipes


class OldCube(torch.autograd.Function):
    """`x^3` whose forward has the context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope


class NewCube(torch.autograd.Function):
    """`x^3` with `setup_context`."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    backward = OldCube.backward


class Clamped(torch.autograd.Function):
    """The identity, whose gradient is halved and has no derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 0.5 * slope


class Net(nn.Module):
    """A body, a head, and something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(lambda x: torch.tanh(self.body(x)), x, use_reentrant=False)
        return self.head(hidden)


class Words(nn.Module):
    """Tokens by an embedding, whose gradient may be sparse, and a head."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Embedding(5, 3, sparse=sparse), nn.Linear(3, 2)

    def forward(self, x: Tensor, task: Any = None) -> Tensor:
        return self.head(torch.tanh(self.body(x)).mean(-2))


class Nested(Net):
    """A checkpoint inside of another, behind the first layer."""

    def forward(self, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return torch.tanh(checkpoint(self.body, x, use_reentrant=False))

        return self.head(checkpoint(inner, x, use_reentrant=False))


class Derivative(Net):
    """A physics-informed net: the output, and its derivative with respect to the input."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x.requires_grad_()
            output = super().forward(x)
            (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return output + 0.3 * slope


def halved(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return tuple(0.5 * slope for slope in inputs)


def with_backward_hook() -> nn.Module:
    model = Net()
    model.head.register_full_backward_hook(halved)
    return model


def half(module: nn.Module, slopes: Any) -> Any:
    return (0.5 * slopes[0],)


def with_backward_pre_hook() -> nn.Module:
    model = Net()
    model.head.register_full_backward_pre_hook(half)
    return model


def with_tensor_hook() -> nn.Module:
    def between(h: Tensor) -> Tensor:
        h = torch.tanh(h)
        if h.requires_grad:
            h.register_hook(lambda slope: 0.5 * slope)
        return h

    return Net(between)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "Function with a context": lambda: Net(lambda h: OldCube.apply(torch.tanh(h))),
    "Function with setup_context": lambda: Net(lambda h: NewCube.apply(torch.tanh(h))),
    "autograd.grad in forward": Derivative,
    "full backward hook": with_backward_hook,
    "full backward pre-hook": with_backward_pre_hook,
    "hook of a tensor": with_tensor_hook,
}
FIRST_ORDER: dict[str, Callable[[], nn.Module]] = {**MODULES, "once": lambda: Net(Clamped.apply)}
SHARED: dict[str, Callable[[], nn.Module]] = {**FIRST_ORDER, "checkpointing": Checkpointed}
LOOP = engines.Loop()


def episode(tasks: int = 2) -> Episode:
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(tasks, 6, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    return Episode(Batch(x[:, :3], y[:, :3]), Batch(x[:, 3:], y[:, 3:]))


def grads(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def assert_close(result: Any, reference: Any) -> None:
    ours, theirs = (torch.cat([t.flatten() for t in part]) for part in (result, reference))
    assert theirs.norm() > 1e-3
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-10


def assert_unrolled(model: nn.Module, recipe: Any, steps: int, order: str, plain: Any) -> None:
    net, data = plain(model), episode()

    def adapt(values: Any, support: Any, task: Any) -> Any:
        rates, first = dict.fromkeys(values, 0.2), order == "first_order"
        return net.steps(values, list(values), support, F.mse_loss, rates, steps, first_order=first)

    expected = net.gradient(episode(), F.mse_loss, adapt)
    meta_backward(model, recipe, data, F.mse_loss, engine=LOOP)
    assert_close(grads(model), expected)
    assert data.support is not None and not data.support.x.requires_grad and not data.query.x.requires_grad


@pytest.mark.parametrize("order", ["exact", "checkpointed"])
@pytest.mark.parametrize("name", MODULES)
def test_loop_differentiates_twice(name: str, order: str, plain: Any) -> None:
    recipe = recipes.maml(2, 0.2, differentiation=order)
    assert_unrolled(MODULES[name]().double(), recipe, 2, order, plain)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_loop_differentiates_once(name: str, steps: int, plain: Any) -> None:
    model = FIRST_ORDER[name]().double()
    assert_unrolled(model, recipes.fomaml(steps, 0.2), steps, "first_order", plain)


@pytest.mark.parametrize("name", SHARED)
def test_named_tasks_take_them_too(name: str) -> None:
    x, y = episode().query.x[0], episode().query.y[0]
    results = []
    for library in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            model = nets.NamedHeads(SHARED[name](), 2, {"a": 2, "b": 2}).double()
        if library:
            tasks = {task: Episode(None, Batch(x, y)) for task in "ab"}
            meta_backward(model, recipes.joint(), tasks, dict.fromkeys("ab", F.mse_loss))
        else:
            outputs = model(x)
            torch.stack([F.mse_loss(outputs[task], y) for task in "ab"]).mean().backward()
        results.append([p.grad for p in model.body.parameters()])
    assert_close(*results)


@pytest.mark.parametrize("engine", [LOOP, engines.Auto()], ids=["loop", "auto"])
@pytest.mark.parametrize("order", ["exact", "checkpointed", "first_order", "implicit"])
@pytest.mark.filterwarnings("ignore:tasks cannot run as a batch")
def test_checkpoints_of_an_adapted_model(order: Any, engine: engines.Engine) -> None:
    """They run again with the parameters of their inner step, which the model has no more by then."""
    found = []
    for model in (Net().double(), Checkpointed().double(), Nested().double()):
        for _ in range(2):
            model.zero_grad()
            recipe = recipes.maml(3, 0.2, differentiation=order)
            meta_backward(model, recipe, episode(), F.mse_loss, engine=engine)
        found.append(grads(model))
    for other in found[1:]:
        assert_close(other, found[0])


@pytest.mark.parametrize(
    "recipe",
    [recipes.joint(), recipes.fomaml(2, 0.2), recipes.maml(2, 0.2)],
    ids=["joint", "fomaml", "maml"],
)
@pytest.mark.parametrize("named", [False, True])
def test_sparse_gradients(recipe: Any, named: bool) -> None:
    rng, found = torch.Generator().manual_seed(0), []
    x = torch.randint(5, (2, 4, 3), generator=rng)
    y = torch.randn(2, 4, 2, generator=rng, dtype=torch.float64)
    for model in (Words(sparse=True).double(), Words(sparse=False).double()):
        if named:
            tasks = {name: Episode(Batch(x[i], y[i]), Batch(x[i], y[i])) for i, name in enumerate("ab")}
            meta_backward(model, recipe, tasks, dict.fromkeys("ab", F.mse_loss))
        else:
            meta_backward(model, recipe, Episode(Batch(x, y), Batch(x, y)), F.mse_loss, engine=LOOP)
        found.append(grads(model))
    assert_close(*found)


def test_checkpoints_of_a_shared_model(plain: Any) -> None:
    assert_unrolled(Checkpointed().double(), recipes.joint(), 0, "first_order", plain)


@contextmanager
def offloaded() -> Iterator[None]:
    """Saved tensors are packed, as `save_on_cpu` and gradient compression do."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.clone(),), lambda packed: packed[0]):
        yield


@pytest.mark.parametrize("context", [offloaded, torch.enable_grad, torch.autograd.detect_anomaly])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_loop_runs_inside(context: Any) -> None:
    model, recipe = Net().double(), recipes.maml(2, 0.2)
    meta_backward(model, recipe, episode(), F.mse_loss, engine=LOOP)
    expected = [gradient.clone() for gradient in grads(model)]
    model.zero_grad()
    with context():
        meta_backward(model, recipe, episode(), F.mse_loss, engine=LOOP)
    assert_close(grads(model), expected)


def test_compiled_code_that_cannot_run_leaves_checkpoints_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metamtl.engines.kinds.BACKEND", "eager")
    model, recipe = Checkpointed().double(), recipes.maml(2, 0.2)
    with (
        pytest.warns(UserWarning, match="not compiled .*saved tensor hooks"),
        pytest.raises(RuntimeError, match="vmap does not support"),
    ):
        meta_backward(model, recipe, episode(), F.mse_loss, engine=engines.Compiled())
    model(episode().query.x[0]).sum().backward()
    assert all(param.grad is not None for param in model.parameters())
