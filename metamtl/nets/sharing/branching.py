"""Learned branching: which layers the tasks share is learned with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from .named import Make, NamedTasks, Outputs, check_names, distinct


class Branching(NamedTasks):
    """Layers of nodes; every node, and every task, chooses which node of the layer below it reads.

    Node j of layer l reads `sum_i d[j, i] * y_i` of the layer below, with `d[j]` the softmax of
    `(logits[j] + noise[j]) / temperature`: a Gumbel-softmax sample of one parent. Guo, Lee, Ulbricht 2020,
    https://arxiv.org/abs/2006.01895. In eval mode each reads its likeliest parent alone, so the net is a
    tree, `branches()`.

    The noise is drawn by `sample(generator, temperature)`, not in `forward`: call it before every training
    step. It stays until the next call, so one step is one tree for all tasks, and the net a function of its
    inputs. Lower the temperature as training goes on. Before the first call there is no noise.

    Differs from the paper in: 1. any node of a layer may be any node's parent, in every layer.

    Args:
        layers: for each layer what builds one of its nodes, with parameters of its own at each call. Nodes
            of one layer return one shape, those of the last `[..., features]`.
        nodes: how many nodes each layer has; the first layer's all read the input.
        features: width of what the nodes of the last layer return.
        outputs: for each task the width of its linear head, or a module that is its head.

    Raises:
        ValueError: layers and numbers that do not match; a temperature that is not above 0.

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
                f"{kind}: {len(layers)} layers and nodes={list(nodes)}; give for each layer how many nodes"
                " it has, at least 1."
            )
        self.layers = nn.ModuleList(
            nn.ModuleList(distinct([make() for _ in range(many)], "the nodes of a layer"))
            for make, many in zip(layers, nodes)
        )
        self.parents = nn.ParameterList(
            nn.Parameter(torch.zeros(many, below)) for below, many in pairwise(nodes)
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
        drawn = torch.empty(self.noise.shape, dtype=self.noise.dtype, device=generator.device)
        self.noise = -drawn.exponential_(generator=generator).log().to(self.noise.device)

    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        noise = self.noise.split([choice.numel() for choice in (*self.parents, *self.leaves.values())])
        below: Tensor | None = None
        for level, nodes in enumerate(self.layers):
            made: list[Tensor] = []
            for i, node in enumerate(cast(nn.ModuleList, nodes)):
                if below is None:
                    made.append(node(*inputs, **keywords))
                else:
                    made.append(node(self._read(self.parents[level - 1], noise[level - 1], below, i)))
            if len({output.shape for output in made}) > 1:
                raise ValueError(
                    f"Branching: the nodes of layer {level} return"
                    f" {[list(output.shape) for output in made]}; they must return one shape."
                )
            below = torch.stack(made)
        assert below is not None
        left = dict(zip(self.leaves, noise[len(self.parents) :]))
        return {name: self.head(name, self._read(self.leaves[name], left[name], below)) for name in wanted}

    def _read(self, logits: Tensor, noise: Tensor, below: Tensor, node: int | None = None) -> Tensor:
        """What one node, or one task, reads of the layer below, `[nodes, ...]`."""
        noise = noise.view(logits.shape)
        row, drawn = (logits, noise) if node is None else (logits[node], noise[node])
        if self.training:
            share = ((row + drawn) / self.temperature).softmax(-1)
        else:
            share = (row.argmax(-1, keepdim=True) == torch.arange(len(row), device=row.device)).to(
                row.dtype
            )
        return torch.tensordot(share, below, 1)

    def branches(self) -> dict[str, tuple[int, ...]]:
        """For each task the node of each layer that it goes through in eval mode, from the input on."""
        found = {}
        for name, leaf in self.leaves.items():
            way = [int(leaf.argmax())]
            for logits in reversed(self.parents):
                way.append(int(logits[way[-1]].argmax()))
            found[name] = tuple(reversed(way))
        return found
