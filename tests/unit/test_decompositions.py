"""Layers written out are torch's own, in values and in first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from metamtl.functional.decompositions import REPLACED, DecomposeOps

SEQUENCE, FLAT = (5, 3, 4), (5, 4)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LSTM": (lambda: nn.LSTM(4, 3), SEQUENCE),
    "LSTM, two layers both ways": (lambda: nn.LSTM(4, 3, 2, bidirectional=True), SEQUENCE),
    "LSTM, batch first": (lambda: nn.LSTM(4, 3, batch_first=True), SEQUENCE),
    "LSTM, no bias, projected": (lambda: nn.LSTM(4, 3, bias=False, proj_size=2), SEQUENCE),
    "LSTM, projected both ways": (lambda: nn.LSTM(4, 3, proj_size=2, bidirectional=True), SEQUENCE),
    "LSTM, one sequence": (lambda: nn.LSTM(4, 3), FLAT),
    "GRU": (lambda: nn.GRU(4, 3), SEQUENCE),
    "GRU, two layers both ways": (lambda: nn.GRU(4, 3, 2, bidirectional=True), SEQUENCE),
    "GRU, no bias": (lambda: nn.GRU(4, 3, bias=False), SEQUENCE),
    "RNN": (lambda: nn.RNN(4, 3), SEQUENCE),
    "RNN, relu, batch first": (lambda: nn.RNN(4, 3, nonlinearity="relu", batch_first=True), SEQUENCE),
    "LSTMCell": (lambda: nn.LSTMCell(4, 3), FLAT),
    "GRUCell": (lambda: nn.GRUCell(4, 3), FLAT),
    "RNNCell": (lambda: nn.RNNCell(4, 3), FLAT),
    "RNNCell, relu": (lambda: nn.RNNCell(4, 3, nonlinearity="relu"), FLAT),
    "BatchNorm": (lambda: nn.BatchNorm1d(3), SEQUENCE),
    "BatchNorm, eval, no scale": (lambda: nn.BatchNorm1d(3, affine=False).eval(), SEQUENCE),
    "InstanceNorm": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), SEQUENCE),
    "Bilinear": (lambda: Twice(nn.Bilinear(4, 4, 2)), SEQUENCE),
}


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.sin())


class Watch(DecomposeOps):
    """Notes which functions were replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {func.__name__} if func in REPLACED else set()
        return super().__torch_function__(func, types, args, kwargs)


def close(found: Any, expected: Any) -> bool:
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in pairs)


def derivatives(run: Callable[[Tensor], Any], inputs: list[Tensor]) -> list[Tensor]:
    """The outputs, the first derivatives, and those of the sum of their squares."""
    outputs = tree_leaves(run(inputs[0]))
    first = torch.autograd.grad(sum(out.sin().sum() for out in outputs), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [*outputs, *first, *second]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_and_its_derivatives(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def written(x: Tensor) -> Any:
        with Watch() as watch:
            out = layer(x)
        assert len(watch.seen) == 1
        return out

    inputs = [x, *layer.parameters()]
    assert close(derivatives(written, inputs), derivatives(layer, inputs))


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm(dim: int | None) -> None:
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(4, 3).double(), dim=dim)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    with Watch() as watch:
        value = layer(x)
    assert watch.seen == {"_weight_norm"} and close(value, layer(x))
    assert close(*(torch.autograd.grad(out.sin().sum(), inputs) for out in (value, layer(x))))
    v, g = layer.parametrizations.weight.original1, layer.parametrizations.weight.original0
    given = (v.detach().requires_grad_(), g.detach().requires_grad_(), -1 if dim is None else dim)
    # Of torch's own function this is not so.
    assert torch.autograd.gradgradcheck(REPLACED[torch._weight_norm], given)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding_bag(mode: str, padding: int | None) -> None:
    torch.manual_seed(0)
    layer = nn.EmbeddingBag(6, 4, mode=mode, padding_idx=padding).double()
    whole = nn.EmbeddingBag.from_pretrained(layer.weight, freeze=False, mode=mode, include_last_offset=True)
    rows, flat, begins = torch.randint(6, (4, 3)), torch.randint(6, (9,)), torch.tensor([0, 0, 5, 7])
    cases = [(layer, (rows,)), (layer, (flat, begins)), (whole, (flat, torch.tensor([0, 3, 9])))]
    if mode == "sum":
        cases += [(layer, (flat, begins, torch.rand(9, dtype=torch.float64)))]
        cases += [(layer, (rows, None, torch.rand(4, 3, dtype=torch.float64)))]
    for module, args in cases:
        with Watch() as watch:
            found = module(*args)
        assert watch.seen == {"embedding_bag"} and close(found, module(*args))
        slopes = [torch.autograd.grad(out.sin().sum(), module.weight)[0] for out in (found, module(*args))]
        assert close(*slopes)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [2, 4, 1, 3]])
def test_packed_sequences(kind: type[nn.RNNBase], lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = kind(4, 3, 2, bidirectional=True).double()
    x = torch.randn(5, 4, 4, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=lengths[0] == 5)
    options: list[dict[str, Any]] = [{}, {"batch_first": True}, {"total_length": 7, "padding_value": 2.0}]
    for option in options:
        with Watch() as watch:
            found, ends = layer(packed)
            found, sizes = pad_packed_sequence(found, **option)
        assert len(watch.seen) == 2
        expected, last = layer(packed)
        assert close([found, sizes, ends], [*pad_packed_sequence(expected, **option), last])


@pytest.mark.parametrize("training", [True, False])
def test_dropout_between_layers(training: bool) -> None:
    torch.manual_seed(0)
    layer = nn.GRU(4, 3, 2, dropout=1.0).double().train(training)  # in training the second layer sees zeros
    x = torch.randn(SEQUENCE, dtype=torch.float64)
    with DecomposeOps():
        found = layer(x)
    assert close(found, layer(x)) and not close(found, layer.train(not training)(x))
