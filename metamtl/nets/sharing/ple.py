"""Progressive layered extraction: layers of task-specific and shared experts; CGC is one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .mixture import Gate, mixed
from .named import Make, NamedTasks, Outputs, check_names, distinct

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class PLE(NamedTasks):
    """In each layer, the gate of each task mixes the task's own experts and the shared experts.

    In a layer, `h_t = sum_e softmax(gate_t(x_t))_e * expert_e(x_e)` over the experts of task t, with input
    `x_t`, and the shared experts, with input `x_shared`. All layers but the last also compute a new
    `x_shared` from the experts of all tasks. Customized gate control (CGC) is one layer, progressive
    layered extraction (PLE) several. Tang et al., RecSys 2020, https://dl.acm.org/doi/10.1145/3383313.3412236.

    Args:
        layers: for each layer a pair `(make, gate)`: `make()` builds one expert, with new parameters at
            each call, and `gate(n)` builds a module that maps the input of the layer to n logits.
        features: output width of the experts of the last layer.
        outputs: for each task the width of its linear head, or a module to use as its head.
        own: number of experts of each task in a layer.
        shared: number of shared experts in a layer.

    Raises:
        ValueError: a number is less than 1, or the weights of a gate have a wrong shape.

    >>> import torch
    >>> first = (lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU()), lambda n: nn.Linear(16, n))
    >>> second = (lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU()), lambda n: nn.Linear(8, n))
    >>> model = PLE([first, second], features=6, outputs={"a": 3, "b": 1})
    >>> model(torch.zeros(5, 16), task="a").shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        layers: Sequence[tuple[Make, Gate]],
        features: int,
        outputs: Outputs,
        own: int = 1,
        shared: int = 1,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        if not layers or own < 1 or shared < 1:
            raise ValueError(
                f"{kind}: {len(layers)} layers, own={own}, shared={shared}: each must be at least 1"
                " (without own experts it is MMoE, without shared ones the tasks have nothing in common)."
            )
        last = len(layers) - 1
        self.layers = nn.ModuleList(
            _Layer(make, gate, tuple(outputs), own, shared, onward=i < last)
            for i, (make, gate) in enumerate(layers)
        )
        self.add_heads(outputs, features)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        states: dict[str | None, Inputs] = {name: (inputs, keywords) for name in (*self.heads, None)}
        for layer in self.layers[:-1]:
            outputs = layer(tuple(self.heads), states)
            states = {name: ((output,), {}) for name, output in outputs.items()}
        features = self.layers[-1](task_names, states)
        return {name: self.head(name, features[name]) for name in task_names}


class _Layer(nn.Module):
    """One layer; the key of the shared state is None."""

    def __init__(
        self, make: Make, gate: Gate, tasks: tuple[str, ...], own: int, shared: int, onward: bool
    ) -> None:
        super().__init__()
        experts = distinct([make() for _ in range(own * len(tasks) + shared)], "the experts of make()")
        self.shared = nn.ModuleList(experts[:shared])
        self.own = nn.ModuleDict(
            {name: nn.ModuleList(experts[shared + own * i :][:own]) for i, name in enumerate(tasks)}
        )
        gates = distinct([gate(own + shared) for _ in tasks], "the gates of a layer")
        self.gates = nn.ModuleDict(dict(zip(tasks, gates)))
        self.gate = gate(len(experts)) if onward else None

    def forward(
        self, task_names: tuple[str, ...], states: dict[str | None, Inputs]
    ) -> dict[str | None, Tensor]:
        common, all_tasks = _run(self.shared, states[None]), self.gate is not None
        own = {
            name: _run(experts, states[name])  # type: ignore[arg-type]
            for name, experts in self.own.items()
            if all_tasks or name in task_names
        }
        results: dict[str | None, Tensor] = {
            name: mixed([*own[name], *common], _weights(self.gates[name], states[name]))
            for name in task_names
        }
        if self.gate is not None:
            task_outputs = [output for outputs in own.values() for output in outputs]
            results[None] = mixed([*task_outputs, *common], _weights(self.gate, states[None]))
        return results


def _run(experts: nn.ModuleList, inputs: Inputs) -> list[Tensor]:
    args, keywords = inputs
    return [expert(*args, **keywords) for expert in experts]


def _weights(gate: nn.Module, inputs: Inputs) -> Tensor:
    args, keywords = inputs
    return gate(*args, **keywords).softmax(-1)
