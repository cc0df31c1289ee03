"""Batch normalization, with one class for each policy for the statistics."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..functional import INNER_STEP, SUPPORT_MEAN, SUPPORT_VAR
from ..functional.decompositions import moments, normalize

Policy = Literal["transductive", "support", "frozen", "per_step"]


class BatchNorm(nn.Module):
    """Batch normalization with the statistics of the current batch, in training and in evaluation.

    `y = (x - mean) / sqrt(var + eps) * weight + bias`, with mean and biased variance over all axes except
    the channel axis 1. There are no running statistics, so support and query sets are normalized separately
    (transductive, as in the MAML authors' code), and the module is a pure function that every engine can
    run and differentiate to any order.

    The formula is written out because the second derivative of the fused kernel under vmap loses three
    digits.
    """

    statistics = "transductive: support and query batch, each its own"

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, *moments(x), self.weight, self.bias, self.eps)


class SupportBatchNorm(BatchNorm):
    """Normalize the query set with the support statistics under the adapted parameters.

    The prediction for one query example therefore does not depend on the others. After adaptation, every
    adapter makes one more pass over the support set and adds the statistics of that pass to the parameters
    that it returns, as `support_mean` and `support_var`. They are differentiable. If there are none (in the
    inner loop, or for a task without a support set), the statistics of the current batch are used.
    """

    statistics = "support: the support set's for the query set"
    support_mean: Tensor
    support_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, eps, affine)
        # Empty if there are no support statistics.
        self.register_buffer(SUPPORT_MEAN, torch.empty(0), persistent=False)
        self.register_buffer(SUPPORT_VAR, torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        statistics = (self.support_mean, self.support_var)
        mean, var = statistics if len(self.support_mean) else moments(x)
        return normalize(x, mean, var, self.weight, self.bias, self.eps)


class FrozenBatchNorm(BatchNorm):
    """Normalize with stored `running_mean` and `running_var`, which are not updated even in train mode."""

    statistics = "frozen: stored running statistics"
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, eps, affine)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)


class PerStepBatchNorm(BatchNorm):
    """Statistics of the current batch, with a separate scale and shift after each inner step, 0 to K.

    Antoniou, Edwards, Storkey 2019 (MAML++), https://arxiv.org/abs/1810.09502. `weight` and `bias` are
    `[K + 1, C]`: row k is used after k inner steps, the last row also after more than K.

    Differs from their code in: 1. there are no running statistics for each step (their code writes and
    never reads them); 2. an inner loop over all parameters adapts row k in step k, and then never uses it.
    """

    statistics = "transductive: support and query batch, each its own; scale and shift per_step"
    weight: nn.Parameter
    bias: nn.Parameter
    inner_step: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True, *, steps: int) -> None:
        super().__init__(channels, eps, affine=False)
        if not affine:
            raise ValueError(
                "per_step batch norm needs a scale and shift for each step, but affine=False has none."
            )
        self.weight = nn.Parameter(torch.ones(steps + 1, channels))
        self.bias = nn.Parameter(torch.zeros(steps + 1, channels))
        self.register_buffer(INNER_STEP, torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        row = self.inner_step.clamp(max=len(self.weight) - 1).reshape(1)
        weight, bias = (rows.index_select(0, row).squeeze(0) for rows in (self.weight, self.bias))
        return normalize(x, *moments(x), weight, bias, self.eps)


KINDS: dict[str, type[BatchNorm]] = {
    "transductive": BatchNorm,
    "support": SupportBatchNorm,
    "frozen": FrozenBatchNorm,
    "per_step": PerStepBatchNorm,
}


def batchnorm(policy: Policy, *, steps: int | None = None) -> Callable[..., BatchNorm]:
    """The BatchNorm class for `policy`; call it with the number of channels.

    Args:
        policy: `"transductive"` (`BatchNorm`), `"support"` (`SupportBatchNorm`), `"frozen"`
            (`FrozenBatchNorm`) or `"per_step"` (`PerStepBatchNorm`).
        steps: number of inner steps K, for `per_step`.

    Raises:
        ValueError: the policy is unknown, or `per_step` has no `steps`.
    """
    if policy not in KINDS:
        raise ValueError(f"batchnorm={policy!r} is not one of {', '.join(map(repr, KINDS))}.")
    if policy != "per_step":
        return KINDS[policy]
    if steps is None or steps < 0:
        raise ValueError(f"per_step batch norm needs the number of inner steps, steps=K; found {steps}.")
    return partial(PerStepBatchNorm, steps=steps)


def with_batchnorm(model: nn.Module, policy: Policy, *, steps: int | None = None) -> nn.Module:
    """A copy of `model` with all BatchNorms, torch's (1d, 2d, 3d) or metamtl's, converted to `policy`.

    Names and weights are unchanged; with `per_step` every row is a copy of the original weights. The
    arguments are those of `batchnorm`.

    Raises:
        ValueError: as in `batchnorm`; or a norm has no stored statistics for `frozen`, has no scale and
            shift for `per_step`, or is already a `PerStepBatchNorm`.

    >>> with_batchnorm(nn.Sequential(nn.BatchNorm2d(8)), "support")
    Sequential(
      (0): SupportBatchNorm(8, eps=1e-05)
    )
    """
    kind = batchnorm(policy, steps=steps)
    model = deepcopy(model)
    new: dict[nn.Module, nn.Module] = {
        norm: _converted(norm, name, kind)
        for name, norm in model.named_modules()
        if isinstance(norm, (_BatchNorm, BatchNorm))
    }
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child in new:
                setattr(module, name, new[child])
    return new.get(model, model)


def _converted(norm: nn.Module, name: str, kind: Callable[..., BatchNorm]) -> BatchNorm:
    if isinstance(norm, PerStepBatchNorm):
        raise ValueError(f"{name!r} has a scale and shift for each step; convert the original model.")
    channels = norm.num_features if isinstance(norm, _BatchNorm) else norm.channels
    new = kind(channels, norm.eps, affine=norm.weight is not None)
    tensors = [*norm.parameters(), *norm.buffers()]
    new = new.to(tensors[0]) if tensors else new
    for key, param in norm.named_parameters():
        rows = param.detach().expand_as(getattr(new, key)).clone()
        setattr(new, key, nn.Parameter(rows, requires_grad=param.requires_grad))
    if isinstance(new, FrozenBatchNorm):
        statistics = {key: getattr(norm, key, None) for key in ("running_mean", "running_var")}
        if statistics["running_mean"] is None:
            raise ValueError(
                f"{name!r} has no stored statistics to freeze; use another policy, or convert a model that"
                " was trained with track_running_stats=True."
            )
        new.load_state_dict({**new.state_dict(), **statistics})
    return new.train(norm.training)


def batchnorm_statistics(model: nn.Module) -> str:
    """Describe which statistics the BatchNorms of a model use, to be stated with every result.

    >>> batchnorm_statistics(nn.Sequential(nn.Linear(1, 1), BatchNorm(1)))
    'transductive: support and query batch, each its own'
    """
    kinds = set()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            kinds.add(module.statistics)
        elif isinstance(module, _BatchNorm):
            frozen = module.running_mean is not None and not module.training
            kinds.add((FrozenBatchNorm if frozen else BatchNorm).statistics)
    return "; ".join(sorted(kinds)) or "no BatchNorm"
