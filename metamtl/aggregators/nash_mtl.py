"""Nash-MTL: the Nash bargaining solution of the tasks."""

from __future__ import annotations

from torch import Tensor

from .base import Aggregator
from .torchjd import missing_package


class NashMTL(Aggregator):
    """Nash-MTL: the Nash bargaining solution of the tasks.

    Formula: `d = sum_t a_t g_t` with `(G a)_t = 1 / a_t`, `G` the Gramian; shortened to `max_norm`.

    Navon et al. 2022, https://arxiv.org/abs/2202.01017. No task gets worse, and the norms of the gradients
    have no effect: `|d| = sqrt(T)` for any gradients. Scale: own, at most `max_norm`.

    The equation is that of FairGrad with `alpha=1`. TorchJD's `FairGrad` solves it for gradients of norm 1,
    without state from earlier calls. TorchJD's own `NashMTL` uses the authors' sequence of convex programs,
    which fails to find the solution for about one random matrix in twelve, and then returns the weights of
    the previous call.

    Args:
        max_norm: the maximum norm of the direction, as in the authors' code; 0 means no limit.

    Raises:
        ImportError: scipy is not installed.
        ValueError: the gradient of a task is zero, so that there is no solution.

    >>> import torch
    >>> rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> NashMTL(max_norm=0.0)(torch.ones(2), rows)
    tensor([0.0766, 0.9985, 0.9985])
    """

    reads = "gramian"

    def __init__(self, max_norm: float = 1.0) -> None:
        super().__init__()
        if max_norm < 0:
            raise ValueError(f"max_norm={max_norm}: pass a norm, or 0 for no limit.")
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
                f"NashMTL has no solution if a task's gradient is zero, as those of tasks {zero} are;"
                " exclude these tasks from the step, or use another aggregator."
            )
        direction = self.inner(rows / norms)
        length = direction.norm()
        if self.max_norm == 0:
            return direction
        return direction * (self.max_norm / length.clamp(min=self.max_norm))
