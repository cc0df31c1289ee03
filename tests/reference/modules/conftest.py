"""Small modules of many kinds, each with what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from metamtl import nets

Params = dict[str, Tensor]
K, CLASSES = 2, 3
IMAGE, SEQUENCE = (2, 6, 6), (5, 4)


class Of(nn.Module):
    """`function(self, x)` over the modules given by name."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


class Keywords(nn.Module):
    """As in Hugging Face's transformers: takes keywords, and returns an object with `logits`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.classifier = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        mask = attention_mask[..., None].to(self.classifier.weight.dtype)
        hidden = (self.embedding(input_ids).tanh() * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.classifier(hidden), hidden_states=hidden)


class Counting(nn.Module):
    """Writes buffers in place: a counter, and with `keep=True` the mean of its input."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep, self.head = keep, nn.Linear(4, CLASSES)
        self.register_buffer("count", torch.ones(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.keep:
            self.mean.copy_(x.detach().mean(0))
        return self.head(x - self.mean) / self.count


class Remembers(nn.Module):
    """Stores its features as an attribute, from the first pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.body(x).tanh()
        return self.head(self.h)


class Graph(nn.Module):
    """Labels nodes `[N, 4]`, with the mean of each node's neighbors along the edges `[2, E]`."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.neighbors, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        ones = torch.ones_like(x[:, :1])
        total = torch.zeros_like(x).index_add(0, target, x[source])
        count = torch.zeros_like(ones).index_add(0, target, ones[source]).clamp(min=1)
        return self.head((self.own(x) + self.neighbors(total / count)).tanh())


class Square(torch.autograd.Function):
    """The square, as an operation of the user's without a rule for vmap, differentiable twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


class Once(torch.autograd.Function):
    """The square, without a second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


def plain(model: nn.Module, params: Params, x: Any, k: int, support: Any) -> Any:
    """The module itself, its buffers copied."""
    copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    return functional_call(model, {**params, **copies}, args, kwargs)


@dataclass(frozen=True)
class Refusal:
    """Where, with what error, and why."""

    where: tuple[str, ...]
    error: type[Exception]
    words: str
    why: str


SECOND, UNSLOPED = ("exact", "checkpointed"), NotImplementedError
WRITES, MARKED = "writes a buffer in place, another value for each task", "is marked `once_differentiable`"
IN_PLACE = Refusal(("Vmap",), RuntimeError, "writes in place.*engine=Loop", WRITES)
ONCE = Refusal(SECOND, UNSLOPED, "marked once_differentiable.*differentiation='first_order'", MARKED)
NO_RULE = Refusal(("Vmap",), RuntimeError, "vmap.*engine=Loop", "has an operation without a rule for vmap")
HOOKED = Refusal(("Vmap",), RuntimeError, "saved tensor hooks.*engine=Loop", "has hooks on saved tensors")
UNKNOWN = Refusal(SECOND, UNSLOPED, "derivative.*not implemented", "torch has no second derivative")


@dataclass(frozen=True)
class Row:
    """A module, the shape of one input, and what is known of it.

    `forward(model, params, x, k, support)` says what the module is after k inner steps; `support` holds
    the support inputs where x are the query's.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] | str = (4,)
    forward: Callable[..., Any] = plain
    training: bool = True
    tasks: int = 2
    refusal: Refusal | None = None
    peers: bool = True


def by_hand(policy: str) -> Callable[..., Tensor]:
    """`norm_net` under a policy, in a few lines of plain torch."""

    def run(model: nn.Module, params: Params, x: Tensor, k: int, support: Tensor | None) -> Tensor:
        def features(x: Tensor) -> Tensor:
            return F.linear(x, params["0.weight"], params["0.bias"])

        weight, bias = params["1.weight"], params["1.bias"]
        if policy == "per_step":
            weight, bias = weight[k], bias[k]
        seen = features(support if policy == "support" and support is not None else x)
        mean, var = seen.mean(0), seen.var(0, unbiased=False)
        if policy == "frozen":
            mean, var = model[1].running_mean, model[1].running_var
        hidden = (features(x) - mean) / (var + 1e-5).sqrt() * weight + bias
        return F.linear(hidden.tanh(), params["3.weight"], params["3.bias"])

    return run


def norm_net() -> nn.Module:
    norm = nn.BatchNorm1d(5)
    norm(torch.randn(20, 5) * 2 + 1)  # running statistics that are not the default
    return nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, CLASSES))


def policy(name: Any) -> Row:
    # The peers have no inner step to tell the module about, nor a pass for its statistics.
    peers = name in ("transductive", "frozen")
    return Row(lambda: nets.with_batchnorm(norm_net(), name, steps=K), forward=by_hand(name), peers=peers)


def head(features: int = 4) -> nn.Module:
    return nn.Linear(features, CLASSES)


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), *middle, head(6))


def image(features: int, *layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), head(features))


def pooled(mode: str) -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(7, 4, mode=mode), head())


def bag(pool: Any, model: nn.Module, params: Params, x: Tensor, k: int, support: Any) -> Tensor:
    return F.linear(pool(F.embedding(x, params["0.weight"]), 1), params["1.weight"], params["1.bias"])


def weight_normed(model: nn.Module, params: Params, x: Tensor, k: int, support: Any) -> Tensor:
    """By hand, because the second derivative of torch's own function is wrong."""
    length, direction = (params[f"0.parametrizations.weight.original{i}"] for i in (0, 1))
    weight = length * direction / direction.square().sum(1, keepdim=True).sqrt()
    hidden = F.linear(x, weight, params["0.bias"]).tanh()
    return F.linear(hidden, params["2.weight"], params["2.bias"])


def square(model: nn.Module, params: Params, x: Tensor, k: int, support: Any) -> Tensor:
    hidden = F.linear(x, params["layer.weight"], params["layer.bias"])
    return F.linear(hidden * hidden, params["head.weight"], params["head.bias"])


def two_layers(model: nn.Module, params: Params, x: Tensor, k: int, support: Any) -> Tensor:
    """By hand, because a checkpoint computes its pass again after `functional_call` has ended."""
    hidden = F.linear(x, params["body.0.weight"], params["body.0.bias"]).tanh()
    return F.linear(hidden, params["head.weight"], params["head.bias"])


def tied() -> nn.Module:
    """An autoencoder: one matrix, there and back."""
    there, back = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    back.weight = there.weight
    return Of(lambda m, x: m.head(m.there(x).tanh() @ m.back.weight), there=there, back=back, head=head())


def alias() -> nn.Module:
    """One layer under two names, applied twice."""
    layer = nn.Linear(4, 4)
    return Of(lambda m, x: m.head(m.again(m.layer(x).tanh()).tanh()), layer=layer, again=layer, head=head())


def hooked() -> nn.Module:
    """A forward hook that scales the features, and one on the gradient, which changes nothing."""
    model = mlp(nn.Tanh())
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    model[1].register_full_backward_hook(lambda module, inputs, outputs: None)
    return model


def checkpointed() -> nn.Module:
    """A body whose activations are computed again in the backward pass."""

    def run(model: Of, x: Tensor) -> Tensor:
        return model.head(checkpoint(model.body, x, use_reentrant=False))

    return Of(run, body=nn.Sequential(nn.Linear(4, 6), nn.Tanh()), head=head(6))


def normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(4, 4)), nn.Tanh(), head())


def recurrent(layer: nn.RNNBase, features: int) -> nn.Module:
    """The outputs of the last place, under a linear head; axes as `batch_first` says."""

    def run(model: Of, x: Tensor) -> Tensor:
        first = model.layer.batch_first
        out = model.layer(x if first else x.transpose(0, 1))[0]
        return model.head(out[:, -1] if first else out[-1])

    return Of(run, layer=layer, head=head(features))


def last(x: Tensor) -> Tensor:
    """A padding mask `[B, L]` over the last place."""
    return torch.arange(x.shape[1]).eq(x.shape[1] - 1).expand(x.shape[:2])


def attention() -> nn.Module:
    def run(model: Of, x: Tensor) -> Tensor:
        return model.head(model.layer(x, x, x, key_padding_mask=last(x), need_weights=False)[0].mean(1))

    return Of(run, layer=nn.MultiheadAttention(4, 2, batch_first=True), head=head())


def encoder() -> nn.Module:
    def run(model: Of, x: Tensor) -> Tensor:
        return model.head(model.layers(x, src_key_padding_mask=last(x))[:, :-1].mean(1))

    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return Of(run, layers=nn.TransformerEncoder(layer, 2), head=head())


ROWS = {
    "linear": Row(lambda: nn.Linear(4, CLASSES)),
    "MLP, ReLU": Row(lambda: mlp(nn.ReLU())),
    "MLP, GELU": Row(lambda: mlp(nn.GELU())),
    "MLP, dropout": Row(lambda: mlp(nn.Dropout(0.5), nn.Tanh()), tasks=1),
    "bilinear form": Row(lambda: Of(lambda m, x: m.form(x, x.sin()), form=nn.Bilinear(4, 4, CLASSES))),
    "weight norm": Row(lambda: normed(parametrizations.weight_norm), forward=weight_normed),
    "spectral norm, training": Row(lambda: normed(parametrizations.spectral_norm), refusal=IN_PLACE),
    "spectral norm, eval": Row(lambda: normed(parametrizations.spectral_norm), training=False),
    "orthogonal parametrization": Row(lambda: normed(parametrizations.orthogonal)),
    "tied parameters": Row(tied),
    "a layer under two names": Row(alias),
    "frozen body": Row(lambda: nn.Sequential(nn.Linear(4, 6).requires_grad_(False), nn.Tanh(), head(6))),
    "unused parameters": Row(lambda: Of(lambda m, x: m.head(x), spare=nn.Linear(4, 4), head=head())),
    "a counter as a buffer": Row(lambda: Counting(keep=False)),
    "a buffer written from the input": Row(lambda: Counting(keep=True), refusal=IN_PLACE),
    "features stored as an attribute": Row(Remembers),
    "forward and backward hooks": Row(hooked, refusal=NO_RULE),
    "torch.utils.checkpoint": Row(checkpointed, forward=two_layers, refusal=HOOKED),
    "Function without a rule for vmap": Row(
        lambda: Of(lambda m, x: m.head(Square.apply(m.layer(x))), layer=nn.Linear(4, 6), head=head(6)),
        forward=square,
        refusal=NO_RULE,
    ),
    "Function marked once_differentiable": Row(
        lambda: Of(lambda m, x: m.head(Once.apply(m.layer(x))), layer=nn.Linear(4, 6), head=head(6)),
        forward=square,
        refusal=ONCE,
    ),
    "torch.cdist, p=1": Row(
        lambda: Of(lambda m, x: torch.cdist(m.layer(x), m.layer.weight, p=1), layer=nn.Linear(4, 4)),
        refusal=UNKNOWN,
    ),
    "Conv1d": Row(lambda: image(18, nn.Conv1d(2, 3, 3), nn.ReLU()), (2, 8)),
    "Conv2d, stride 2": Row(lambda: image(12, nn.Conv2d(2, 3, 3, stride=2), nn.ReLU()), IMAGE),
    "Conv2d, max-pool": Row(lambda: image(12, nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ReLU()), IMAGE),
    "Conv2d, depthwise": Row(lambda: image(16, nn.Conv2d(2, 4, 3, groups=2), nn.AvgPool2d(2)), IMAGE),
    "Conv2d, transposed": Row(lambda: image(75, nn.ConvTranspose2d(2, 3, 2), nn.Tanh()), (2, 4, 4)),
    "Conv3d": Row(lambda: image(16, nn.Conv3d(1, 2, 2), nn.Tanh()), (1, 3, 3, 3)),
    "Conv-4": Row(lambda: nets.conv4(CLASSES, hidden=3, size=16), (1, 16, 16)),
    "ResNet-12": Row(lambda: nets.resnet12(CLASSES, channels=1, widths=(2, 2, 3, 3)), (1, 16, 16)),
    "ViT": Row(lambda: nets.vit(CLASSES, size=4, patch=2, width=4, depth=1, heads=2, hidden=6), (3, 4, 4)),
    "BatchNorm, training": Row(norm_net, forward=by_hand("transductive")),
    "BatchNorm, eval": Row(norm_net, forward=by_hand("frozen"), training=False),
    "BatchNorm, transductive": policy("transductive"),
    "BatchNorm, support": policy("support"),
    "BatchNorm, frozen": policy("frozen"),
    "BatchNorm, per_step": policy("per_step"),
    "GroupNorm": Row(lambda: image(64, nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), IMAGE),
    "LayerNorm": Row(lambda: mlp(nn.LayerNorm(6), nn.Tanh())),
    "InstanceNorm": Row(lambda: image(48, nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3), nn.ReLU()), IMAGE),
    "Embedding, mean": Row(
        lambda: Of(lambda m, x: m.head(m.table(x).mean(1)), table=nn.Embedding(7, 4), head=head()), "tokens"
    ),
    "EmbeddingBag, mean": Row(lambda: pooled("mean"), "tokens", partial(bag, torch.mean)),
    "EmbeddingBag, max": Row(lambda: pooled("max"), "tokens", partial(bag, torch.amax)),
    "LSTM, two layers": Row(lambda: recurrent(nn.LSTM(4, 3, 2, batch_first=True), 3), SEQUENCE),
    "GRU, both directions": Row(lambda: recurrent(nn.GRU(4, 3, bidirectional=True), 6), SEQUENCE),
    "RNN, tanh": Row(lambda: recurrent(nn.RNN(4, 3), 3), SEQUENCE),
    "LSTMCell": Row(lambda: Of(lambda m, x: m.head(m.cell(x)[0]), cell=nn.LSTMCell(4, 3), head=head(3))),
    "MultiheadAttention": Row(attention, SEQUENCE),
    "TransformerEncoder": Row(encoder, SEQUENCE),
    "TransformerEncoder, eval": Row(encoder, SEQUENCE, training=False),
    "keywords in, object with logits out": Row(Keywords, "keywords"),
    "a mapping that is no dict": Row(Keywords, "mapping"),
    "graph: nodes and edges": Row(Graph, "graph"),
}


@pytest.fixture(scope="session")
def rows() -> dict[str, Row]:
    return ROWS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", ROWS)
