"""Penalties on the distance between the towers of soft sharing, as part of the objective.

A penalty maps a dict of parameters by name to a scalar. There are two ways to use it:

- `penalized(penalty, weight)` as the objective of a recipe. The objective of every task then contains the
  full penalty, so all towers are shared parameters and have per-task gradients. The penalty counts **once**
  under an aggregator whose weights sum to 1 (`Mean`), and T times under a sum. Heads that the penalty does
  not include remain task-specific.
- after `meta_backward`, once for any aggregator, because `.grad` accumulates:
  `(weight * penalty(dict(model.named_parameters()))).backward()`. The tasks must then share other
  parameters, such as a bottom (`nets.SharedBottom`), so that an aggregator has per-task gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..functional import Params, with_prefix
from .base import Adaptation, Objective, query_loss

Penalty = Callable[[Params], Tensor]


def penalized(penalty: Penalty, weight: float, objective: Objective = query_loss) -> Objective:
    """`objective(task) + weight * penalty(theta)`, with theta the parameters before adaptation.

    >>> from torch import nn
    >>> from metamtl import nets, recipes
    >>> towers = nets.SoftSharing(lambda: nn.Linear(4, 8), features=8, outputs={"a": 3, "b": 1})
    >>> recipe = recipes.joint(objective=penalized(nuclear_norm("towers"), 0.01))
    """

    def total(task: Adaptation) -> Tensor:
        # `start` does not contain frozen parameters, but the penalty includes them.
        return objective(task) + weight * penalty({**task.end, **task.start})

    return total


def l2_to_mean(prefix: str = "towers") -> Penalty:
    """L2: `1/2 sum_t |theta_t - mean_s theta_s|^2` over all parameters of the towers.

    Evgeniou, Pontil 2004, https://doi.org/10.1145/1014052.1014067. Its gradient to tower t is
    `theta_t - mean`.

    Args:
        prefix: prefix of the towers: `"towers"` selects `towers.<task>.<parameter>`.
    """

    def penalty(params: Params) -> Tensor:
        return _sum([0.5 * (w - w.mean(0)).square().sum() for w in _stacks(params, prefix)])

    return penalty


def nuclear_norm(prefix: str = "towers") -> Penalty:
    """Nuclear norm: the sum of the singular values of `[T, n]`, for each parameter of the towers.

    Yang, Hospedales 2017, https://arxiv.org/abs/1606.04038, with the tensor of all towers flattened along
    the task axis. It is small if the towers are combinations of few patterns. The gradient is `U V^T`. The
    second derivative does not exist if two singular values are equal.
    """

    def penalty(params: Params) -> Tensor:
        return _sum([torch.linalg.svdvals(w).sum() for w in _stacks(params, prefix)])

    return penalty


def low_rank(rank: int, prefix: str = "towers") -> Penalty:
    """`sum_(i > rank) s_i^2`: squared distance of the towers `[T, n]` to the nearest subspace of `rank`.

    Each parameter has its own subspace, which all tasks share and which is fitted again at each call: the
    penalty of Ando, Zhang 2005, https://www.jmlr.org/papers/v6/ando05a.html, minimized over the subspace.
    `s` are the singular values. The penalty is zero if the towers already span at most `rank` dimensions.

    Raises:
        ValueError: `rank` is negative, or, on a call, at least the number of towers T.
    """
    if rank < 0:
        raise ValueError(f"rank={rank} cannot be negative.")

    def penalty(params: Params) -> Tensor:
        stacks = _stacks(params, prefix)
        if rank >= len(stacks[0]):
            raise ValueError(
                f"rank={rank}: {len(stacks[0])} towers always lie in a subspace of that rank, so the"
                " penalty would be zero; choose a smaller rank."
            )
        return _sum([torch.linalg.svdvals(w)[rank:].square().sum() for w in stacks])

    return penalty


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum()


def _stacks(params: Params, prefix: str) -> list[Tensor]:
    """Each parameter of the towers as a matrix `[T, n]` with one row per tower."""
    towers: dict[str, Params] = {}
    for name in with_prefix(params, prefix):
        tower, _, rest = name[len(prefix) + 1 :].partition(".")
        towers.setdefault(tower, {})[rest] = params[name]
    if len(towers) < 2:
        tops = sorted({name.split(".")[0] for name in params})
        raise ValueError(
            f"prefix={prefix!r} holds {len(towers)} towers, but a penalty needs two to compare; the"
            f" parameters are under {', '.join(map(repr, tops))}."
        )
    first, *others = towers
    shapes = {tower: {name: list(p.shape) for name, p in own.items()} for tower, own in towers.items()}
    for other in others:
        if shapes[other] != shapes[first]:
            raise ValueError(
                f"the towers {first!r} and {other!r} have parameters of different names or shapes"
                f" ({shapes[first]} and {shapes[other]}); a penalty compares them one by one."
            )
    return [torch.stack([own[name].flatten() for own in towers.values()]) for name in towers[first]]
