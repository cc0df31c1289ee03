"""Modules for the matrix, with the forward passes that they must equal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
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
UNKNOWN = Refusal(
    SECOND,
    UNSLOPED,
    "no second derivative of an operation.*cdist.*differentiation='first_order'",
    "torch has no second derivative",
)


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
    hidden = F.linear(x, scaled(direction, length), params["0.bias"]).tanh()
    return F.linear(hidden, params["2.weight"], params["2.bias"])


def hook_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but in use
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Tanh(), head(6))


def hook_normed_by_hand(model: nn.Module, params: Params, x: Tensor, k: int, support: Any) -> Tensor:
    weight = scaled(params["0.weight_v"], params["0.weight_g"])
    return F.linear(F.linear(x, weight, params["0.bias"]).tanh(), params["2.weight"], params["2.bias"])


def called_by_hand(model: nn.Module, params: Params, x: Tensor, k: int, support: Any) -> Tensor:
    return F.linear(x, scaled(params["v.weight"], params["g.weight"])).tanh()


def real_parts(model: nn.Module, x: Tensor) -> Tensor:
    return torch.view_as_real(model.layer(x.to(torch.complex128))).flatten(1)[:, :CLASSES]


def scaled(direction: Tensor, length: Tensor) -> Tensor:
    return length * direction / direction.square().sum(1, keepdim=True).sqrt()


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
