"""Recurrent layers written as single operations, which support vmap and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Cell = Callable[..., tuple[Tensor, ...]]


def _lstm(gates: Tensor, state: tuple[Tensor, ...], more: Tensor, project: Tensor | None) -> Any:
    input_gate, forget_gate, candidate, output_gate = (gates + more).chunk(4, -1)
    cell = forget_gate.sigmoid() * state[1] + input_gate.sigmoid() * candidate.tanh()
    hidden = output_gate.sigmoid() * cell.tanh()
    return (hidden if project is None else F.linear(hidden, project)), cell


def _gru(gates: Tensor, state: tuple[Tensor, ...], more: Tensor, project: None) -> tuple[Tensor, ...]:
    reset_x, update_x, candidate_x = gates.chunk(3, -1)
    reset_h, update_h, candidate_h = more.chunk(3, -1)
    candidate = (candidate_x + (reset_x + reset_h).sigmoid() * candidate_h).tanh()
    return (candidate + (update_x + update_h).sigmoid() * (state[0] - candidate),)


def _tanh(gates: Tensor, state: tuple[Tensor, ...], more: Tensor, project: None) -> tuple[Tensor, ...]:
    return ((gates + more).tanh(),)


def _relu(gates: Tensor, state: tuple[Tensor, ...], more: Tensor, project: None) -> tuple[Tensor, ...]:
    return ((gates + more).relu(),)


def _packed(args: Sequence[Any]) -> bool:
    """Whether these are the arguments of a recurrent function of torch for a packed sequence.

    The list of weights is then the fourth argument, otherwise the third.
    """
    return isinstance(args[3], (list, tuple))


def _layers(cell: Cell) -> Callable[..., Any]:
    """Several layers over a sequence, with the signature of the recurrent functions of torch."""

    def run(x: Tensor, *args: Any) -> Any:
        sizes = args[0].tolist() if _packed((x, *args)) else None
        hx, weights, biases, layers, dropout, training, bidirectional, *options = args[sizes is not None :]
        batch_first = bool(options and options[0])
        initial_states = hx if isinstance(hx, (list, tuple)) else (hx,)
        directions = 2 if bidirectional else 1
        count = len(weights) // (layers * directions)
        final_states: list[tuple[Tensor, ...]] = []
        x = x.transpose(0, 1) if batch_first else x
        for layer in range(layers):
            layer_outputs = []
            for direction in range(directions):
                i = layer * directions + direction
                parameters = weights[i * count : (i + 1) * count]
                state = tuple(initial[i] for initial in initial_states)
                outputs, state = _over_time(
                    cell, x, sizes, state, parameters, biases, backwards=direction == 1
                )
                layer_outputs.append(outputs)
                final_states.append(state)
            x = torch.cat(layer_outputs, -1)
            if dropout and layer < layers - 1:
                x = F.dropout(x, dropout, training)
        x = x.transpose(0, 1) if batch_first else x
        return x, *(torch.stack(states) for states in zip(*final_states))

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
    """One layer in one direction: its outputs `[L, B, H]` (or packed), and its last state."""
    w_input, w_state, *optional = weights
    b_input, b_state = optional[:2] if biases else (None, None)
    project = optional[-1] if len(optional) % 2 else None
    gates = F.linear(x, w_input, b_input)
    time_steps = gates.unbind(0) if sizes is None else gates.split(sizes)
    outputs = []
    for gate in reversed(time_steps) if backwards else time_steps:
        # In a packed batch, only the sequences that are long enough take this step.
        active, inactive = tuple(s[: len(gate)] for s in state), tuple(s[len(gate) :] for s in state)
        new_state = cell(gate, active, F.linear(active[0], w_state, b_state), project)
        state = (
            new_state
            if len(inactive[0]) == 0
            else tuple(torch.cat(pair) for pair in zip(new_state, inactive))
        )
        outputs.append(new_state[0])
    outputs = outputs[::-1] if backwards else outputs
    return torch.stack(outputs) if sizes is None else torch.cat(outputs), state


def pad_packed(
    data: Tensor, sizes: Tensor, batch_first: bool, padding: float, total: int
) -> tuple[Tensor, Tensor]:
    """`torch._pad_packed_sequence`: the padded sequences, and their lengths."""
    time_steps = data.split(sizes.tolist())
    batch = len(time_steps[0])
    shapes = [(batch - len(step), *step.shape[1:]) for step in time_steps]
    rows = [torch.cat([step, step.new_full(shape, padding)]) for step, shape in zip(time_steps, shapes)]
    rows += [torch.full_like(rows[0], padding)] * (total - len(rows))
    lengths = (sizes[:, None] > torch.arange(batch, device=sizes.device)).sum(0)
    return torch.stack(rows, 1 if batch_first else 0), lengths


def _if_packed(fused: Callable[..., Any], written: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: (written if _packed(args) else fused)(*args)


def _one(cell: Cell) -> Callable[..., Any]:
    """One step, with the signature of the cell functions of torch."""

    def run(
        x: Tensor, hx: Any, w_input: Tensor, w_state: Tensor, b_input: Any = None, b_state: Any = None
    ) -> Any:
        state = tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)
        new_state = cell(F.linear(x, w_input, b_input), state, F.linear(state[0], w_state, b_state), None)
        return new_state if len(new_state) > 1 else new_state[0]

    return run


RECURRENT_LAYERS: dict[Any, Callable[..., Any]] = {
    torch.lstm: _layers(_lstm),
    torch.gru: _layers(_gru),
    torch.rnn_tanh: _layers(_tanh),
    torch.rnn_relu: _layers(_relu),
}
RECURRENT_CELLS: dict[Any, Callable[..., Any]] = {
    torch.lstm_cell: _one(_lstm),
    torch.gru_cell: _one(_gru),
    torch.rnn_tanh_cell: _one(_tanh),
    torch.rnn_relu_cell: _one(_relu),
}
# Packed sequences fail inside any transform, including `torch.func.grad`.
PACKED: dict[Any, Callable[..., Any]] = {
    torch._pad_packed_sequence: pad_packed,
    **{fused: _if_packed(fused, decomposition) for fused, decomposition in RECURRENT_LAYERS.items()},
}
