"""Half precision: autocast around inner and outer pass, and models of another dtype."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from metamtl import Batch, Episode, Recipe, adapters, engines, evaluate, meta_backward, nets, recipes
from metamtl.engines.backend import inductor

# torch.compile warns of its own use of deprecated functions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=2), engines.Auto()]
WAYS: dict[str, adapters.Differentiation] = {
    "exact": adapters.Unrolled(),
    "checkpointed": adapters.Checkpointed(),
    "first_order": adapters.FirstOrder(),
    "truncated": adapters.Truncated(1),
    # A series, because conjugate gradients break down where the loss curves down.
    "implicit": adapters.Implicit(solver="neumann", solver_steps=2),
}


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


def smooth_conv4() -> nn.Module:
    """Without kinks: a rectifier that falls to the other side of its own moves the gradient by 0.1 to 1."""
    net = nets.conv4(3, hidden=8, size=16)
    for name, layer in net.body.named_children():
        if isinstance(layer, nn.ReLU):
            net.body[int(name)] = nn.Softplus()
    return net


# The model, the shape of an input, and how far bf16's 8 bits may move its meta-gradient.
NETS = {
    "mlp": (lambda: nets.mlp(4, 16, 3), (4,), 0.03),
    "conv4": (smooth_conv4, (1, 16, 16), 0.15),
    "transformer": (Encoder, (5, 8), 0.06),
}


def made(name: str, device: torch.device) -> tuple[nn.Module, Episode]:
    make, shape, _ = NETS[name]
    rng = torch.Generator().manual_seed(0)
    classes = torch.randn(3, 3, *shape, generator=rng)
    y = torch.arange(3).repeat(10).expand(3, -1)
    x = torch.stack([each[labels] for each, labels in zip(classes, y)])
    x = (x + 0.5 * torch.randn(x.shape, generator=rng)).to(device)
    y = y.to(device)
    torch.manual_seed(0)
    return make().to(device), Episode(Batch(x[:, :15], y[:, :15]), Batch(x[:, 15:], y[:, 15:]), ways=3)


def gradient(model: nn.Module, recipe: Recipe, episode: Episode, engine: Any, bf16: bool) -> Tensor:
    model.zero_grad()
    with torch.autocast(episode.query.y.device.type, torch.bfloat16, enabled=bf16):
        outcome = meta_backward(model, recipe, episode, F.cross_entropy, engine=engine)
    assert outcome.losses.dtype == torch.float32
    assert all(param.grad.dtype == param.dtype for param in model.parameters())
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_every_engine_and_differentiation(name: str, way: str, device: torch.device) -> None:
    model, episode = made(name, device)
    recipe = Recipe(adapters.Gradient(2, 0.1, differentiation=WAYS[way]))
    expected = gradient(model, recipe, episode, engines.Loop(), bf16=False)
    found = [gradient(model, recipe, episode, engine, bf16=True) for engine in ENGINES]
    for each in found:
        assert 1e-4 < distance(each, expected) < NETS[name][2]
        assert distance(each, found[0]) < NETS[name][2]


class Attention(nn.Module):
    """With torch's function, and no layer of torch around it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.scaled_dot_product_attention(*self.body(x).chunk(3, -1)).mean(1))


class Softmaxes(TorchDispatchMode):
    """The dtypes of the softmax within attention; its derivative has to have one dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.within: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten._safe_softmax:
            self.within.add(args[0].dtype)
        if func.overloadpacket is torch.ops.aten._softmax_backward_data:
            grad, output, _, dtype = args
            assert grad.dtype == output.dtype == dtype
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [Attention, Encoder])
@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_the_softmax_of_attention_is_of_single_precision(
    engine: Any, make: type[nn.Module], device: torch.device
) -> None:
    """Otherwise autocast on a GPU changes the dtype of its output alone, and there is no derivative."""
    _, episode = made("transformer", device)
    torch.manual_seed(0)
    model, recipe = make().to(device), recipes.maml(2, 0.1)
    expected = gradient(model, recipe, episode, engines.Loop(), bf16=True)
    with Softmaxes() as softmaxes:
        meta_gradient = gradient(model, recipe, episode, engine, bf16=True)
    assert softmaxes.within <= {torch.float32}
    assert distance(meta_gradient, expected) < 0.06


@pytest.mark.parametrize("name", NETS)
def test_evaluation(name: str, device: torch.device) -> None:
    model, episode = made(name, device)
    recipe = recipes.maml(2, 0.1)
    plain = evaluate(model, recipe, episode, F.cross_entropy)
    for engine in [None, *ENGINES]:
        with torch.autocast(device.type, torch.bfloat16):
            found = evaluate(model, recipe, episode, F.cross_entropy, engine=engine)
        assert found.mean != plain.mean
        assert found.mean == pytest.approx(plain.mean, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "backend", "modes"),
    [(3, "eager", (True, False, True)), (1, inductor, (True,))],
    ids=["traced", "generated"],
)
def test_compiled_code_is_of_one_precision(
    steps: int, backend: Any, modes: tuple[bool, ...], device: torch.device
) -> None:
    """Code is generated for half precision alone, and only traced to go back and forth."""
    with mock.patch("metamtl.engines.kinds.BACKEND", backend):
        _one_precision(steps, modes, device)


def _one_precision(steps: int, modes: tuple[bool, ...], device: torch.device) -> None:
    model, episode = made("mlp", device)
    recipe, engine = recipes.maml(steps, 0.1), engines.Compiled()
    plain, half = (gradient(model, recipe, episode, engines.Vmap(), bf16) for bf16 in (False, True))
    for bf16 in modes:
        found = gradient(model, recipe, episode, engine, bf16)
        assert distance(found, half if bf16 else plain) < (0.03 if bf16 else 1e-5)
    assert engine.compilations == len(set(modes))


@pytest.mark.parametrize(
    "way", [adapters.Checkpointed(), adapters.Checkpointed(2), adapters.Implicit(10.0)], ids=repr
)
def test_the_way_back_has_the_precision_of_the_way_there(
    way: adapters.Differentiation, device: torch.device
) -> None:
    model, episode = made("mlp", device)
    support, query = episode[0].support, episode[0].query
    adapt = adapters.Gradient(5, 0.5, differentiation=way)

    def loss() -> Tensor:
        model.zero_grad()
        fast = adapt(model, support, F.cross_entropy)
        return F.cross_entropy(functional_call(model, fast, (query.x,)), query.y)

    def found() -> Tensor:
        return torch.cat([param.grad.flatten() for param in model.parameters()])

    with torch.autocast(device.type, torch.bfloat16):
        loss().backward()
        inside = found()
        value = loss()
    value.backward()
    assert torch.equal(found(), inside)
    loss().backward()
    assert distance(found(), inside) > 1e-3


@pytest.mark.parametrize("engine", [None, *ENGINES], ids=repr)
def test_one_context_around_many_steps_keeps_no_copy_of_the_weights(
    engine: Any, device: torch.device
) -> None:
    model, episode = made("mlp", device)
    caching: list[bool] = []
    model.register_forward_pre_hook(lambda *_: caching.append(torch.is_autocast_cache_enabled()))

    def measured() -> float:
        return evaluate(model, recipes.joint(), episode, F.cross_entropy, engine=engine).mean

    with torch.autocast(device.type, torch.bfloat16):
        before = measured()
        meta_backward(model, recipes.maml(2, 0.1), episode, F.cross_entropy, engine=engine)
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        after = measured()
        assert torch.is_autocast_cache_enabled()
    with torch.autocast(device.type, torch.bfloat16):
        assert measured() == after != before
    assert not any(caching)


def test_prototypes_that_are_adapted_further_are_kept_in_full(device: torch.device) -> None:
    model, episode = made("mlp", device)
    adapter = adapters.Chain(adapters.Prototype(), adapters.Gradient(2, 1e-3))
    with torch.autocast(device.type, torch.bfloat16):
        fast = adapter(model, episode[0].support, F.cross_entropy)
    assert {param.dtype for param in fast.values()} == {torch.float32}
    recipe = Recipe(adapter)
    expected = gradient(model, recipe, episode, engines.Loop(), bf16=False)
    assert distance(gradient(model, recipe, episode, engines.Vmap(), bf16=True), expected) < 0.03


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_of_half_precision_has_statistics_of_single(
    dtype: torch.dtype, device: torch.device
) -> None:
    x = (100 + torch.randn(64, 3, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    norm = nets.BatchNorm(3).to(device)
    expected = F.batch_norm(x.double(), None, None, training=True)
    found = norm(x).detach()
    assert found.dtype == dtype
    assert distance(found.double(), expected) < torch.finfo(dtype).eps


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("way", WAYS)
def test_models_of_another_dtype(way: str, engine: Any, device: torch.device) -> None:
    recipe = Recipe(adapters.Gradient(2, 0.1, differentiation=WAYS[way]))
    for dtype, far in ((torch.bfloat16, 0.03), (torch.float16, 0.004), (torch.float64, 1e-6)):
        model, episode = made("mlp", device)
        model = model.to(dtype).float()  # one rounding of the weights for both
        expected = gradient(model, recipe, episode, engines.Loop(), bf16=False)
        data = episode.map(lambda leaf, to=dtype: leaf.to(to) if leaf.is_floating_point() else leaf)
        model.to(dtype).zero_grad()
        assert meta_backward(model, recipe, data, F.cross_entropy, engine=engine).losses.dtype == dtype
        assert all(param.grad.dtype == dtype for param in model.parameters())
        found = torch.cat([param.grad.flatten() for param in model.parameters()])
        assert distance(found.to(expected), expected) < far
        assert evaluate(model, recipe, data, F.cross_entropy, engine=engine).mean > 0


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_model_and_data_of_two_dtypes_are_refused(engine: Any, device: torch.device) -> None:
    model, episode = made("mlp", device)
    with pytest.raises(RuntimeError, match=r"(?i)float.*bfloat16"):
        meta_backward(model.bfloat16(), recipes.maml(), episode, F.cross_entropy, engine=engine)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_where_autocast_has_no_such_precision_one_warning_and_the_full_one(engine: Any) -> None:
    model, episode = made("mlp", torch.device("cpu"))
    recipe = recipes.maml(2, 0.1, differentiation="checkpointed")
    expected = gradient(model, recipe, episode, engines.Loop(), bf16=False)
    model.zero_grad()
    words = r"not supported\. Disabling autocast"
    with pytest.warns(UserWarning, match=words) as caught, torch.autocast("cpu", torch.float64):
        meta_backward(model, recipe, episode, F.cross_entropy, engine=engine)
    assert len(caught) == 1
    found = torch.cat([param.grad.flatten() for param in model.parameters()])
    assert distance(found, expected) < 1e-6
