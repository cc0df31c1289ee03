"""The bargain of the tasks."""

from __future__ import annotations

from torch import Tensor

from .base import Aggregator
from .torchjd import missing_package


class NashMTL(Aggregator):
    """Nash-MTL: the weights with `G a = 1/a`, G the inner products of the rows; `d = sum_t a_t g_t`.

    Navon et al. 2022, https://arxiv.org/abs/2202.01017. No task gets worse, and the lengths of the rows do
    not matter: `|d| = sqrt(T)` however long the gradients are. Scale: own, at most `max_norm`.

    The equation is that of FairGrad with `alpha=1`, and TorchJD's `FairGrad` solves it here, on rows of
    length one, with no memory of the calls before. TorchJD's own `NashMTL` goes by the authors' sequence of
    convex programs, which misses the solution for one random matrix in twelve or so, and then answers with
    the weights that it had before.

    Args:
        max_norm: a longer direction is cut to this length, as in the authors' code; never, where 0.

    Raises:
        ImportError: scipy is missing.
        ValueError: the gradient of a task is zero; there is no bargain then.

    >>> import torch
    >>> rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> NashMTL(max_norm=0.0)(torch.ones(2), rows)
    tensor([0.0766, 0.9985, 0.9985])
    """

    reads = "gramian"

    def __init__(self, max_norm: float = 1.0) -> None:
        super().__init__()
        if max_norm < 0:
            raise ValueError(f"max_norm={max_norm}: give a length, or 0 for no limit.")
        from torchjd import aggregation

        try:
            self.inner = aggregation.FairGrad(alpha=1.0)
        except ImportError as error:
            raise missing_package("NashMTL", error) from error
        self.max_norm = max_norm

    def forward(self, losses: Tensor, rows: Tensor) -> Tensor:
        rows = rows.detach()
        norms = rows.norm(dim=1, keepdim=True)
        zero = (norms[:, 0] == 0).nonzero().flatten().tolist()
        if zero:
            raise ValueError(
                f"NashMTL has no solution where a task's gradient is zero, as those of tasks {zero} are;"
                " leave these tasks out of the step, or use another aggregator."
            )
        direction = self.inner(rows / norms)
        length = direction.norm()
        if self.max_norm == 0:
            return direction
        return direction * (self.max_norm / length.clamp(min=self.max_norm))
