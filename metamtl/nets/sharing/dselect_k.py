"""DSelect-k: a mixture of experts with gates that learn to select at most k experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from .mixture import Constant, Gate, answers
from .named import NamedTasks, Outputs, check_names, distinct


class DSelectK(NamedTasks):
    """MMoE with a gate that is smooth during training and k-sparse at the end.

    Each of k selectors selects one of E experts with a binary code of `log2(E)` numbers z. The smooth step
    S maps each number to `[0, 1]`: `r(z)_e = prod_bits (S(z_i) or 1 - S(z_i))`. The weights of the task are
    `sum_j softmax(alpha)_j r(z_j)`. If every |z| is at least gamma/2, each r selects exactly one expert.
    Hazimeh et al. 2021, https://arxiv.org/abs/2106.03760.

    Differs from the authors' code in: 1. E must be a power of two; 2. no entropy penalty speeds up the
    selection.

    Args:
        experts: E modules `x -> [..., features]`, E a power of two.
        k: the maximum number of experts that a task uses after training.
        features: output width of the experts.
        outputs: for each task the width of its linear head, or a module to use as its head.
        gate: as in `MMoE`; `Constant` is the static gate of the paper, with one selection for all examples.
        gamma: width of the smooth step.

    Raises:
        ValueError: the number of experts, `k` or `gamma` is out of range.

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
        kind, count = type(self).__name__, len(experts)
        check_names(kind, outputs)
        if count < 2 or count & (count - 1):
            raise ValueError(f"{kind} codes experts in binary: {count} is not a power of two, at least 2.")
        if not 1 <= k <= count or gamma <= 0:
            raise ValueError(f"{kind}: k={k}, gamma={gamma}: k must be in 1..{count}, gamma above 0.")
        self.k, self.bits, self.gamma = k, count.bit_length() - 1, gamma
        self.experts = nn.ModuleList(distinct(experts, f"the experts of {kind}"))
        gates = distinct([gate(k * (1 + self.bits)) for _ in outputs], f"the gates of {kind}")
        self.gates = nn.ModuleDict(dict(zip(outputs, gates)))
        codes = (torch.arange(count)[:, None] >> torch.arange(self.bits)) & 1
        self.register_buffer("codes", codes.bool(), persistent=False)
        self.add_heads(outputs, features)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        return answers(self, task_names, *inputs, **keywords)

    def weights(self, task: str, *inputs: Any, **keywords: Any) -> Tensor:
        """The weights of the experts for the task, `[..., E]`; they sum to 1."""
        logits = self.gates[task](*inputs, **keywords)
        alpha, z = logits[..., : self.k], logits[..., self.k :]
        bits = smooth_step(z.unflatten(-1, (self.k, self.bits)), self.gamma).unsqueeze(-2)
        # Not torch.prod, which reads values to find zeros; vmap does not support that.
        selection = reduce(torch.mul, torch.where(self.codes, bits, 1 - bits).unbind(-1))  # [..., k, E]
        return (alpha.softmax(-1).unsqueeze(-1) * selection).sum(-2)


def smooth_step(z: Tensor, gamma: float = 1.0) -> Tensor:
    """0 below -gamma/2, 1 above gamma/2, and `-2 u^3 + 3/2 u + 1/2` with `u = z / gamma` between.

    >>> smooth_step(torch.tensor([-0.5, 0.0, 0.5, 9.0])).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    u = (z / gamma).clamp(-0.5, 0.5)
    return -2 * u**3 + 1.5 * u + 0.5
