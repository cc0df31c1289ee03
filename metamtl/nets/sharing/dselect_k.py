"""DSelect-k: a mixture of experts whose gates come to select at most k of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from .mixture import Constant, Gate, answers
from .named import NamedTasks, Outputs, check_names, distinct


class DSelectK(NamedTasks):
    """As MMoE, with a gate that is smooth while it is learned and k-sparse in the end.

    Each of k selectors picks one of E experts by a binary code of `log2(E)` numbers z, each pressed to
    0 or 1 by the smooth step S: `r(z)_e = prod_bits (S(z_i) or 1 - S(z_i))`; the task's weights are
    `sum_j softmax(alpha)_j r(z_j)`. Where every |z| is at least gamma/2, each r is one expert exactly.
    Hazimeh et al. 2021, https://arxiv.org/abs/2106.03760.

    Differs from the authors' code in: 1. E must be a power of two; 2. no entropy penalty speeds up the
    selection.

    Args:
        experts: E modules `x -> [..., features]`, E a power of two.
        k: how many of them a task may use in the end.
        features: width of what the experts return.
        outputs: for each task the width of its linear head, or a module that is its head.
        gate: as for `MMoE`; `Constant` is the paper's static gate, one selection for all examples.
        gamma: width of the smooth step.

    Raises:
        ValueError: a number of experts, `k` or `gamma` that cannot be.

    >>> experts = [nn.Sequential(nn.Linear(16, 8), nn.ReLU()) for _ in range(4)]
    >>> model = DSelectK(experts, k=2, features=8, outputs={"a": 3, "b": 1})
    >>> model(torch.zeros(5, 16), task="a").shape, model.weights("a").shape
    (torch.Size([5, 3]), torch.Size([4]))
    """

    codes: Tensor

    def __init__(
        self,
        experts: Sequence[nn.Module],
        k: int,
        features: int,
        outputs: Outputs,
        gate: Gate = Constant,
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        kind, many = type(self).__name__, len(experts)
        check_names(kind, outputs)
        if many < 2 or many & (many - 1):
            raise ValueError(f"{kind} codes experts in binary: {many} is not a power of two from 2 on.")
        if not 1 <= k <= many or gamma <= 0:
            raise ValueError(f"{kind}: k={k}, gamma={gamma}: k must be in 1..{many}, gamma above 0.")
        self.k, self.bits, self.gamma = k, many.bit_length() - 1, gamma
        self.experts = nn.ModuleList(distinct(experts, f"the experts of {kind}"))
        gates = distinct([gate(k * (1 + self.bits)) for _ in outputs], f"the gates of {kind}")
        self.gates = nn.ModuleDict(dict(zip(outputs, gates)))
        codes = (torch.arange(many)[:, None] >> torch.arange(self.bits)) & 1
        self.register_buffer("codes", codes.bool(), persistent=False)
        self.add_heads(outputs, features)

    def answer(self, wanted: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        return answers(self, wanted, *inputs, **keywords)

    def weights(self, task: str, *inputs: Any, **keywords: Any) -> Tensor:
        """How much of each expert the task takes, `[..., E]`; they sum to 1."""
        found = self.gates[task](*inputs, **keywords)
        alpha, z = found[..., : self.k], found[..., self.k :]
        on = smooth_step(z.unflatten(-1, (self.k, self.bits)), self.gamma).unsqueeze(-2)
        # One factor after the other: torch's product looks for zeros, which vmap cannot.
        selected = reduce(torch.mul, torch.where(self.codes, on, 1 - on).unbind(-1))  # [..., k, E]
        return (alpha.softmax(-1).unsqueeze(-1) * selected).sum(-2)


def smooth_step(z: Tensor, gamma: float = 1.0) -> Tensor:
    """0 up to -gamma/2, 1 from gamma/2 on, `-2 u^3 + 3/2 u + 1/2` of `u = z / gamma` between.

    >>> smooth_step(torch.tensor([-0.5, 0.0, 0.5, 9.0])).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    u = (z / gamma).clamp(-0.5, 0.5)
    return -2 * u**3 + 1.5 * u + 0.5
