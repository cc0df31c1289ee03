"""Decompositions of fused layers into operations that support vmap and second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _WeightNorm
from torch.overrides import TorchFunctionMode

from .recurrent import RECURRENT_CELLS, RECURRENT_LAYERS, pad_packed

_OBSERVED: WeakKeyDictionary[nn.Module, set[Any]] = WeakKeyDictionary()  # functions that models call
LAYERS = (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag, nn.Bilinear, _NormBase, _WeightNorm)


class DecomposeOps(TorchFunctionMode):
    """Context manager that replaces functions of torch with the decompositions in `table`.

    If `table` is None, it is `REPLACED`. The replaced functions have these limitations: recurrent layers
    have no vmap rule, and with cuDNN no second derivative; under vmap, second derivatives of `F.batch_norm`
    lose three digits, and it cannot update running statistics; `F.embedding_bag` has no second derivative;
    that of `torch._weight_norm` is wrong (torch 2.13, CPU, according to `gradgradcheck`); `F.bilinear` is
    slow under vmap.
    """

    def __init__(self, table: dict[Any, Callable[..., Any]] | None = None) -> None:
        super().__init__()
        self.table = REPLACED if table is None else table

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.table.get(func, func)(*args, **(kwargs or {}))


def observe(model: nn.Module, function: Any) -> None:
    """Remember that the forward pass of `model` calls `function`, if it is one of `REPLACED`.

    A model may call it itself or in a hook (`torch.nn.utils.weight_norm`), without a layer of `LAYERS`.
    """
    if function in REPLACED:
        _OBSERVED.setdefault(model, set()).add(function)


def observed(model: nn.Module) -> frozenset[Any]:
    """The functions of `REPLACED` that earlier forward passes of `model` have called."""
    return frozenset(_OBSERVED.get(model, ()))


def normalize(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias` in the dtype of x; all but x are `[C]`, as axis 1."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    y = (_single(x) - mean.view(shape)) * scale.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance `[C]` over all axes except the channel axis 1."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    var, mean = torch.var_mean(_single(x), axes, correction=0)
    return mean, var


def _single(x: Tensor) -> Tensor:
    """`x` in float32 if it has half precision, which is too low for `x - mean`, as in torch's kernel."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` without an update of the running statistics."""
    if training and input.numel() == input.shape[1]:
        raise ValueError(
            f"expected more than one value per channel in training mode, got input of shape"
            f" {list(input.shape)}; pass more examples, or call model.eval()."
        )
    if training or running_mean is None or running_var is None:
        return normalize(input, *moments(input), weight, bias, eps)
    return normalize(input, running_mean, running_var, weight, bias, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.instance_norm` without an update of the running statistics."""
    statistics = (None, None) if use_input_stats else (running_mean, running_var)
    return F.instance_norm(input, *statistics, weight, bias, use_input_stats, momentum, eps)


def _as_torch(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` with the signature of `torch.batch_norm` and `torch.instance_norm`."""

    def run(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        from_input: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        return function(input, running_mean, running_var, weight, bias, from_input, momentum, eps)

    return run


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """`F.embedding_bag` as the product of a membership matrix (bags x indices) and rows of the table."""
    if max_norm is not None or (input.dim() == 1 and offsets is None):
        options = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights)
        return F.embedding_bag(input, weight, offsets, *options, include_last_offset, padding_idx)
    if input.dim() == 2:
        bags, length = input.shape
        offsets = torch.arange(0, bags * length, length, device=input.device)
        per_sample_weights = None if per_sample_weights is None else per_sample_weights.flatten()
        input = input.flatten()
    elif include_last_offset and offsets is not None:
        offsets = offsets[:-1]
    assert offsets is not None
    positions = torch.arange(len(input), device=input.device)
    ends = torch.cat([offsets[1:], positions.new_tensor([len(input)])])
    mask = (positions >= offsets[:, None]) & (positions < ends[:, None])
    if padding_idx is not None:
        mask = mask & (input != padding_idx % len(weight))
    rows = F.embedding(input, weight)
    if mode == "max":
        maximum = torch.where(mask[:, :, None], rows, -torch.inf).amax(1)
        return torch.where(mask.any(1, keepdim=True), maximum, 0.0)
    weights = mask.to(weight.dtype)
    if mode == "mean":
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    return (weights if per_sample_weights is None else weights * per_sample_weights) @ rows


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.bilinear` as an einsum."""
    y = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm`: `g * v / |v|`, with the norm over all axes except `dim`; if -1, over all."""
    axes = [axis for axis in range(v.dim()) if axis != dim]
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


REPLACED: dict[Any, Callable[..., Any]] = {
    **RECURRENT_LAYERS,
    **RECURRENT_CELLS,
    torch._pad_packed_sequence: pad_packed,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    torch.batch_norm: _as_torch(batch_norm),
    torch.instance_norm: _as_torch(instance_norm),
    F.embedding_bag: embedding_bag,
    F.bilinear: bilinear,
    torch._weight_norm: weight_norm,
}
# Layers whose fused kernels lack a second derivative, or have a wrong one.
TWICE: dict[Any, Callable[..., Any]] = {
    function: REPLACED[function]
    for function in (
        *RECURRENT_LAYERS,
        F.embedding_bag,
        torch._weight_norm,
        torch.lstm_cell,
        torch.gru_cell,
    )
}
