"""Batch normalisation, each policy of where its statistics come from in a class of its own."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..functional import INNER_STEP, SUPPORT_MEAN, SUPPORT_VAR
from ..functional.decompositions import moments, normalise

Policy = Literal["transductive", "support", "frozen", "per_step"]


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the batch at hand, at training and at test.

    `y = (x - mean) / sqrt(var + eps) * weight + bias`, mean and biased variance over all axes but the
    channels', axis 1. There are no running statistics, so support and query set are each normalised by
    themselves (transductive, as in the MAML authors' code), and the module is a pure function: any
    engine runs it, in any order of differentiation.

    The formula is written out because the fused kernel loses three digits in second order under vmap.
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
        return normalise(x, *moments(x), self.weight, self.bias, self.eps)


class SupportBatchNorm(BatchNorm):
    """The query set is normalised by the support set's statistics, under the adapted parameters.

    So the answer to one query example does not depend on the others. Every adapter makes one more pass
    over the support set when it is done, and puts the statistics of that pass among the parameters it
    returns, as `support_mean` and `support_var`; gradients go through them. Where there are none (in the
    inner loop, or for a task without a support set) the batch at hand gives them.
    """

    statistics = "support: the support set's for the query set"
    support_mean: Tensor
    support_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, eps, affine)
        # Empty: not given.
        self.register_buffer(SUPPORT_MEAN, torch.empty(0), persistent=False)
        self.register_buffer(SUPPORT_VAR, torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        given = (self.support_mean, self.support_var)
        mean, var = given if len(self.support_mean) else moments(x)
        return normalise(x, mean, var, self.weight, self.bias, self.eps)


class FrozenBatchNorm(BatchNorm):
    """Stored statistics, `running_mean` and `running_var`, which nothing updates, `train()` neither."""

    statistics = "frozen: stored running statistics"
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, eps, affine)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)


class PerStepBatchNorm(BatchNorm):
    """The batch's own statistics, with a scale and shift for each number of inner steps taken, 0 to K.

    Antoniou, Edwards, Storkey 2019 (MAML++), https://arxiv.org/abs/1810.09502. `weight` and `bias` are
    `[K + 1, C]`: row k normalises after k inner steps, the last also after more than K.

    Differs from their code in: 1. no running statistics are kept for each step (theirs are written and
    never read); 2. an inner loop over all parameters adapts row k in step k, where nothing uses it again.
    """

    statistics = "transductive: support and query batch, each its own; scale and shift per_step"
    weight: nn.Parameter
    bias: nn.Parameter
    inner_step: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True, *, steps: int) -> None:
        super().__init__(channels, eps, affine=False)
        if not affine:
            raise ValueError(
                "per_step batch norm is a scale and shift for each step; affine=False has none."
            )
        self.weight = nn.Parameter(torch.ones(steps + 1, channels))
        self.bias = nn.Parameter(torch.zeros(steps + 1, channels))
        self.register_buffer(INNER_STEP, torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        row = self.inner_step.clamp(max=len(self.weight) - 1).reshape(1)
        weight, bias = (rows.index_select(0, row).squeeze(0) for rows in (self.weight, self.bias))
        return normalise(x, *moments(x), weight, bias, self.eps)


KINDS: dict[str, type[BatchNorm]] = {
    "transductive": BatchNorm,
    "support": SupportBatchNorm,
    "frozen": FrozenBatchNorm,
    "per_step": PerStepBatchNorm,
}


def batchnorm(policy: Policy, *, steps: int | None = None) -> Callable[..., BatchNorm]:
    """The class of norms that follow `policy`, to be called with a number of channels.

    Args:
        policy: `"transductive"` (`BatchNorm`), `"support"` (`SupportBatchNorm`), `"frozen"`
            (`FrozenBatchNorm`) or `"per_step"` (`PerStepBatchNorm`).
        steps: for `per_step`, the inner steps K.

    Raises:
        ValueError: an unknown policy, or `per_step` without `steps`.
    """
    if policy not in KINDS:
        raise ValueError(f"batchnorm={policy!r} is not one of {', '.join(map(repr, KINDS))}.")
    if policy != "per_step":
        return KINDS[policy]
    if steps is None or steps < 0:
        raise ValueError(f"per_step batch norm needs the number of inner steps, steps=K; found {steps}.")
    return partial(PerStepBatchNorm, steps=steps)


def with_batchnorm(model: nn.Module, policy: Policy, *, steps: int | None = None) -> nn.Module:
    """A copy of `model` whose BatchNorms, torch's (1d, 2d, 3d) or ours, follow `policy`.

    Names and weights stay; under `per_step` every row starts as the one there was. Arguments as those of
    `batchnorm`.

    Raises:
        ValueError: as in `batchnorm`; `frozen` where there are no stored statistics; `per_step` where
            there is no scale and shift, or where there is one for each step already.

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
        raise ValueError(f"{name!r} has a scale and shift for each step; convert the model it was made of.")
    channels = norm.num_features if isinstance(norm, _BatchNorm) else norm.channels
    new = kind(channels, norm.eps, affine=norm.weight is not None)
    tensors = [*norm.parameters(), *norm.buffers()]
    new = new.to(tensors[0]) if tensors else new
    for key, param in norm.named_parameters():
        rows = param.detach().expand_as(getattr(new, key)).clone()
        setattr(new, key, nn.Parameter(rows, requires_grad=param.requires_grad))
    if isinstance(new, FrozenBatchNorm):
        stored = {key: getattr(norm, key, None) for key in ("running_mean", "running_var")}
        if stored["running_mean"] is None:
            raise ValueError(
                f"{name!r} has no stored statistics to freeze; take another policy, or convert a model that"
                " was trained with track_running_stats=True."
            )
        new.load_state_dict({**new.state_dict(), **stored})
    return new.train(norm.training)


def batchnorm_statistics(model: nn.Module) -> str:
    """Where the model's BatchNorms take their statistics from: what a result must state.

    >>> batchnorm_statistics(nn.Sequential(nn.Linear(1, 1), BatchNorm(1)))
    'transductive: support and query batch, each its own'
    """
    kinds = set()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            kinds.add(module.statistics)
        elif isinstance(module, _BatchNorm):
            stored = module.running_mean is not None and not module.training
            kinds.add((FrozenBatchNorm if stored else BatchNorm).statistics)
    return "; ".join(sorted(kinds)) or "no BatchNorm"
