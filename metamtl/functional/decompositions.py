"""Fused layers written out in operations that vmap batches and that have a second derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _WeightNorm
from torch.overrides import TorchFunctionMode

Cell = Callable[..., tuple[Tensor, ...]]
LAYERS = (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag, nn.Bilinear, _NormBase, _WeightNorm)


class DecomposeOps(TorchFunctionMode):
    """Within it, functions of torch run as written here: those of `REPLACED`, or of a smaller `table`.

    torch's recurrent layers have no rule for vmap, cuDNN's no second derivative either; `F.batch_norm`
    loses three digits in second order under vmap, and cannot update running statistics there;
    `F.embedding_bag` has no second derivative, and that of `torch._weight_norm` is wrong (torch 2.13, CPU,
    by `gradgradcheck`); the bilinear form is slow under vmap.
    """

    def __init__(self, table: dict[Any, Callable[..., Any]] | None = None) -> None:
        super().__init__()
        self.table = REPLACED if table is None else table

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.table.get(func, func)(*args, **(kwargs or {}))


def normalise(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias`, each `[C]` along axis 1 of x; in the dtype of x."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    y = (_single(x) - mean.view(shape)) * scale.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all axes but the channels', axis 1: each `[C]`."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    var, mean = torch.var_mean(_single(x), axes, correction=0)
    return mean, var


def _single(x: Tensor) -> Tensor:
    """float32 for half precision, which has too few digits for `x - mean`; torch's kernel does the same."""
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
    """`F.batch_norm`, leaving running statistics as they are."""
    if training and input.numel() == input.shape[1]:
        raise ValueError(
            f"expected more than one value per channel in training mode, got input of shape"
            f" {list(input.shape)}; give more examples, or call model.eval()."
        )
    if training or running_mean is None or running_var is None:
        return normalise(input, *moments(input), weight, bias, eps)
    return normalise(input, running_mean, running_var, weight, bias, eps)


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
    """`F.instance_norm`, leaving running statistics as they are."""
    stored = (None, None) if use_input_stats else (running_mean, running_var)
    return F.instance_norm(input, *stored, weight, bias, use_input_stats, momentum, eps)


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
    """`F.embedding_bag` as a matrix of membership, bags by indices, times the rows of the table."""
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
    place = torch.arange(len(input), device=input.device)
    ends = torch.cat([offsets[1:], place.new_tensor([len(input)])])
    member = (place >= offsets[:, None]) & (place < ends[:, None])
    if padding_idx is not None:
        member = member & (input != padding_idx % len(weight))
    rows = F.embedding(input, weight)
    if mode == "max":
        largest = torch.where(member[:, :, None], rows, -torch.inf).amax(1)
        return torch.where(member.any(1, keepdim=True), largest, 0.0)
    share = member.to(weight.dtype)
    if mode == "mean":
        share = share / share.sum(1, keepdim=True).clamp(min=1)
    return (share if per_sample_weights is None else share * per_sample_weights) @ rows


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.bilinear`."""
    y = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm`: `g * v / |v|`, the norm over all axes but `dim`; over all, where it is -1."""
    axes = [axis for axis in range(v.dim()) if axis != dim]
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


def _lstm(gates: Tensor, state: tuple[Tensor, ...], more: Tensor, project: Tensor | None) -> Any:
    write, keep, new, show = (gates + more).chunk(4, -1)
    cell = keep.sigmoid() * state[1] + write.sigmoid() * new.tanh()
    hidden = show.sigmoid() * cell.tanh()
    return (hidden if project is None else F.linear(hidden, project)), cell


def _gru(gates: Tensor, state: tuple[Tensor, ...], more: Tensor, project: None) -> tuple[Tensor, ...]:
    (reset, keep, new), (reset_h, keep_h, new_h) = gates.chunk(3, -1), more.chunk(3, -1)
    new = (new + (reset + reset_h).sigmoid() * new_h).tanh()
    return (new + (keep + keep_h).sigmoid() * (state[0] - new),)


def _tanh(gates: Tensor, state: tuple[Tensor, ...], more: Tensor, project: None) -> tuple[Tensor, ...]:
    return ((gates + more).tanh(),)


def _relu(gates: Tensor, state: tuple[Tensor, ...], more: Tensor, project: None) -> tuple[Tensor, ...]:
    return ((gates + more).relu(),)


def _packed(args: Sequence[Any]) -> bool:
    """Whether a recurrent function got a packed sequence: batch sizes, state and weights, not these two."""
    return isinstance(args[3], (list, tuple))


def _layers(cell: Cell) -> Callable[..., Any]:
    """Several layers over a sequence, with the arguments and results of torch's functions."""

    def run(x: Tensor, *args: Any) -> Any:
        sizes = args[0].tolist() if _packed((x, *args)) else None
        hx, weights, biases, layers, dropout, training, bidirectional, *more = args[sizes is not None :]
        turned = bool(more and more[0])  # batch_first
        starts = hx if isinstance(hx, (list, tuple)) else (hx,)
        ways = 2 if bidirectional else 1
        each = len(weights) // (layers * ways)
        ends: list[tuple[Tensor, ...]] = []
        x = x.transpose(0, 1) if turned else x
        for layer in range(layers):
            sides = []
            for way in range(ways):
                place = layer * ways + way
                own = weights[place * each : (place + 1) * each]
                state = tuple(start[place] for start in starts)
                outputs, state = _over_time(cell, x, sizes, state, own, biases, backwards=way == 1)
                sides.append(outputs)
                ends.append(state)
            x = torch.cat(sides, -1)
            if dropout and layer < layers - 1:
                x = F.dropout(x, dropout, training)
        x = x.transpose(0, 1) if turned else x
        return x, *(torch.stack(states) for states in zip(*ends))

    return run


def _over_time(
    cell: Cell,
    x: Tensor,
    sizes: list[int] | None,
    state: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    biases: bool,
    *,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: its outputs `[L, B, H]`, or packed, and its last state."""
    w_input, w_state, *others = weights
    b_input, b_state = others[:2] if biases else (None, None)
    project = others[-1] if len(others) % 2 else None
    gates = F.linear(x, w_input, b_input)
    pieces = gates.unbind(0) if sizes is None else gates.split(sizes)
    outputs = []
    for piece in reversed(pieces) if backwards else pieces:
        # Of a packed batch, only the sequences that are long enough take this step.
        now, rest = tuple(s[: len(piece)] for s in state), tuple(s[len(piece) :] for s in state)
        after = cell(piece, now, F.linear(now[0], w_state, b_state), project)
        state = after if len(rest[0]) == 0 else tuple(torch.cat(pair) for pair in zip(after, rest))
        outputs.append(after[0])
    outputs = outputs[::-1] if backwards else outputs
    return torch.stack(outputs) if sizes is None else torch.cat(outputs), state


def pad_packed(
    data: Tensor, sizes: Tensor, batch_first: bool, padding: float, total: int
) -> tuple[Tensor, Tensor]:
    """`torch._pad_packed_sequence`: the sequences side by side, and their lengths."""
    pieces = data.split(sizes.tolist())
    batch = len(pieces[0])
    shapes = [(batch - len(piece), *piece.shape[1:]) for piece in pieces]
    rows = [torch.cat([p, p.new_full(shape, padding)]) for p, shape in zip(pieces, shapes)]
    rows += [torch.full_like(rows[0], padding)] * (total - len(rows))
    lengths = (sizes[:, None] > torch.arange(batch, device=sizes.device)).sum(0)
    return torch.stack(rows, 1 if batch_first else 0), lengths


def _if_packed(fused: Callable[..., Any], written: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: (written if _packed(args) else fused)(*args)


def _one(cell: Cell) -> Callable[..., Any]:
    """One step, with the arguments and results of torch's functions for cells."""

    def run(
        x: Tensor, hx: Any, w_input: Tensor, w_state: Tensor, b_input: Any = None, b_state: Any = None
    ) -> Any:
        state = tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)
        after = cell(F.linear(x, w_input, b_input), state, F.linear(state[0], w_state, b_state), None)
        return after if len(after) > 1 else after[0]

    return run


RECURRENT: dict[Any, Callable[..., Any]] = {
    torch.lstm: _layers(_lstm),
    torch.gru: _layers(_gru),
    torch.rnn_tanh: _layers(_tanh),
    torch.rnn_relu: _layers(_relu),
}
REPLACED: dict[Any, Callable[..., Any]] = {
    **RECURRENT,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    F.embedding_bag: embedding_bag,
    F.bilinear: bilinear,
    torch._weight_norm: weight_norm,
    torch.lstm_cell: _one(_lstm),
    torch.gru_cell: _one(_gru),
    torch.rnn_tanh_cell: _one(_tanh),
    torch.rnn_relu_cell: _one(_relu),
    torch._pad_packed_sequence: pad_packed,
}
# Layers whose fused kernels lack a second derivative, or have a wrong one.
TWICE: dict[Any, Callable[..., Any]] = {
    function: REPLACED[function]
    for function in (*RECURRENT, F.embedding_bag, torch._weight_norm, torch.lstm_cell, torch.gru_cell)
}
# Packed sequences fail inside any transform, `torch.func.grad` too.
PACKED = {
    torch._pad_packed_sequence: pad_packed,
    **{fused: _if_packed(fused, written) for fused, written in RECURRENT.items()},
}
