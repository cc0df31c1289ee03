"""Multi-gate mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .mixture import Gate, answers
from .named import NamedTasks, Outputs, check_names, distinct


class MMoE(NamedTasks):
    """Experts that all tasks share, with a separate gate for each task.

    `features_t = sum_e softmax(gate_t(x))_e * expert_e(x)`. Ma et al., KDD 2018,
    https://dl.acm.org/doi/10.1145/3219819.3220007. With one expert this is hard sharing.

    Args:
        experts: modules `x -> [..., features]`, of any architecture.
        gate: `gate(n)` builds a module that maps the same `x` to n logits: `lambda n: nn.Linear(16, n)` for
            vectors of 16, a small net for images, `nets.Constant` for a gate that does not depend on x.
        features: output width of the experts.
        outputs: for each task the width of its linear head, or a module to use as its head.

    Raises:
        ValueError: there is no expert, experts share parameters, or gate weights have a wrong shape.

    >>> import torch
    >>> experts = [nn.Sequential(nn.Linear(16, 8), nn.ReLU()) for _ in range(3)]
    >>> model = MMoE(experts, lambda n: nn.Linear(16, n), features=8, outputs={"a": 3, "b": 1})
    >>> x = torch.randn(5, 16)
    >>> model(x, task="a").shape, model.weights("a", x).shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(self, experts: Sequence[nn.Module], gate: Gate, features: int, outputs: Outputs) -> None:
        super().__init__()
        kind = type(self).__name__
        check_names(kind, outputs)
        if not experts:
            raise ValueError(f"{kind} needs at least one expert.")
        self.experts = nn.ModuleList(distinct(experts, f"the experts of {kind}"))
        gates = distinct([gate(len(experts)) for _ in outputs], f"the gates of {kind}")
        self.gates = nn.ModuleDict(dict(zip(outputs, gates)))
        self.add_heads(outputs, features)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        return answers(self, task_names, *inputs, **keywords)

    def weights(self, task: str, *inputs: Any, **keywords: Any) -> Tensor:
        """The weights of the experts for the task, `[..., E]`; they sum to 1."""
        return self.gates[task](*inputs, **keywords).softmax(-1)
