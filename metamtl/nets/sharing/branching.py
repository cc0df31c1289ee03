"""Learned branching: learn which layers the tasks share, together with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from .named import Make, NamedTasks, Outputs, check_names, distinct


class Branching(NamedTasks):
    """Layers of nodes; every node and every task selects its input from the nodes of the previous layer.

    The input of node j is `sum_i d[j, i] * y_i` over the previous layer, with `d[j]` the softmax of
    `(logits[j] + noise[j]) / temperature`: a Gumbel-softmax sample of one parent. Guo, Lee, Ulbricht 2020,
    https://arxiv.org/abs/2006.01895. In eval mode each node uses only its most likely parent, so the net is
    a tree, `branches()`.

    `sample(generator, temperature)` draws the noise, not `forward`: call it before every training step. The
    noise is constant until the next call, so one step uses the same tree for all tasks, and the net is a
    function of its inputs. Lower the temperature during training. Before the first call there is no noise.

    Differs from the paper in: 1. in every layer, any node of the previous layer can be the parent.

    Args:
        layers: for each layer a function that builds one of its nodes, with new parameters at each call.
            All nodes of a layer must return the same shape, those of the last layer `[..., features]`.
        nodes: number of nodes of each layer; all nodes of the first layer take the input.
        features: output width of the nodes of the last layer.
        outputs: for each task the width of its linear head, or a module to use as its head.

    Raises:
        ValueError: the lengths of `layers` and `nodes` differ, or a temperature is not above 0.

    >>> layers = [lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh()), lambda: nn.Linear(8, 6)]
    >>> model = Branching(layers, nodes=[1, 2], features=6, outputs={"a": 3, "b": 1})
    >>> model.sample(torch.Generator().manual_seed(0), temperature=2.0)
    >>> model(torch.zeros(5, 4), task="a").shape, sorted(model.branches())
    (torch.Size([5, 3]), ['a', 'b'])
    """

    noise: Tensor

    def __init__(
        self, layers: Sequence[Make], nodes: Sequence[int], features: int, outputs: Outputs
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        if not layers or len(layers) != len(nodes) or min(nodes) < 1:
            raise ValueError(
                f"{kind}: {len(layers)} layers and nodes={list(nodes)}; pass a number of nodes, at least 1,"
                " for each layer."
            )
        self.layers = nn.ModuleList(
            nn.ModuleList(distinct([make() for _ in range(size)], "the nodes of a layer"))
            for make, size in zip(layers, nodes)
        )
        self.parents = nn.ParameterList(
            nn.Parameter(torch.zeros(size, previous)) for previous, size in pairwise(nodes)
        )
        self.leaves = nn.ParameterDict({name: nn.Parameter(torch.zeros(nodes[-1])) for name in outputs})
        numbers = sum(choice.numel() for choice in (*self.parents, *self.leaves.values()))
        self.register_buffer("noise", torch.zeros(numbers), persistent=False)
        self.temperature = 1.0
        self.add_heads(outputs, features)

    def sample(self, generator: torch.Generator, temperature: float = 1.0) -> None:
        """Draw the noise of the next steps: standard Gumbel, `-log(-log u)`."""
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0; eval mode is the limit of 0.")
        self.temperature = temperature
        noise = torch.empty(self.noise.shape, dtype=self.noise.dtype, device=generator.device)
        self.noise = -noise.exponential_(generator=generator).log().to(self.noise.device)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        noise = self.noise.split([choice.numel() for choice in (*self.parents, *self.leaves.values())])
        features: Tensor | None = None
        for level, nodes in enumerate(self.layers):
            outputs: list[Tensor] = []
            for i, node in enumerate(cast(nn.ModuleList, nodes)):
                if features is None:
                    outputs.append(node(*inputs, **keywords))
                else:
                    outputs.append(node(self._read(self.parents[level - 1], noise[level - 1], features, i)))
            if len({output.shape for output in outputs}) > 1:
                raise ValueError(
                    f"Branching: the nodes of layer {level} return"
                    f" {[list(output.shape) for output in outputs]}; all must return the same shape."
                )
            features = torch.stack(outputs)
        assert features is not None
        leaf_noise = dict(zip(self.leaves, noise[len(self.parents) :]))
        return {
            name: self.head(name, self._read(self.leaves[name], leaf_noise[name], features))
            for name in task_names
        }

    def _read(self, logits: Tensor, noise: Tensor, below: Tensor, node: int | None = None) -> Tensor:
        """The input of one node or one task: a mixture of `below`, the previous layer `[nodes, ...]`."""
        noise = noise.view(logits.shape)
        row, noise = (logits, noise) if node is None else (logits[node], noise[node])
        if self.training:
            weights = ((row + noise) / self.temperature).softmax(-1)
        else:
            weights = (row.argmax(-1, keepdim=True) == torch.arange(len(row), device=row.device)).to(
                row.dtype
            )
        return torch.tensordot(weights, below, 1)

    def branches(self) -> dict[str, tuple[int, ...]]:
        """For each task its node in each layer in eval mode, from the first layer to the last."""
        branches = {}
        for name, leaf in self.leaves.items():
            path = [int(leaf.argmax())]
            for logits in reversed(self.parents):
                path.append(int(logits[path[-1]].argmax()))
            branches[name] = tuple(reversed(path))
        return branches
