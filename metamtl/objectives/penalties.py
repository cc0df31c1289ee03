"""Penalties that hold the towers of soft sharing together, as a part of the objective.

A penalty goes from parameters by name to a number. There are two places for it:

- `penalized(penalty, weight)` as a recipe's objective. Every task's objective then holds the whole
  penalty, so that all the towers are parameters of all the tasks, and have rows. It enters **once** under
  an aggregator whose weights sum to 1 (`Mean`), T times under a sum. A head that no penalty names stays
  its task's own.
- beside `meta_backward`, once whatever the aggregator, because `.grad` accumulates:
  `(weight * penalty(dict(model.named_parameters()))).backward()`. The tasks must then share something
  else, a bottom (`nets.SharedBottom`), for an aggregator to have rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..functional import Params, with_prefix
from .base import Adaptation, Objective, query_loss

Penalty = Callable[[Params], Tensor]


def penalized(penalty: Penalty, weight: float, objective: Objective = query_loss) -> Objective:
    """`objective(task) + weight * penalty(theta)`, at the parameters before adaptation.

    >>> from torch import nn
    >>> from metamtl import nets, recipes
    >>> towers = nets.SoftSharing(lambda: nn.Linear(4, 8), features=8, outputs={"a": 3, "b": 1})
    >>> recipe = recipes.joint(objective=penalized(nuclear_norm("towers"), 0.01))
    """

    def both(task: Adaptation) -> Tensor:
        # What is frozen does not stand in `start`, and counts all the same.
        return objective(task) + weight * penalty({**task.end, **task.start})

    return both


def l2_to_mean(prefix: str = "towers") -> Penalty:
    """L2: `1/2 sum_t |theta_t - mean_s theta_s|^2` over all parameters of the towers.

    Evgeniou, Pontil 2004, https://doi.org/10.1145/1014052.1014067. Its gradient to tower t is
    `theta_t - mean`.

    Args:
        prefix: where the towers are: `"towers"` takes `towers.<task>.<parameter>`.
    """

    def penalty(params: Params) -> Tensor:
        return _sum([0.5 * (w - w.mean(0)).square().sum() for w in _stacks(params, prefix)])

    return penalty


def nuclear_norm(prefix: str = "towers") -> Penalty:
    """Nuclear norm: the sum of the singular values of `[T, n]`, for each parameter of the towers.

    Yang, Hospedales 2017, https://arxiv.org/abs/1606.04038, with the tensor of all towers flattened along
    the tasks' axis. Small where the towers are few patterns mixed; the gradient is `U V^T`. No second
    derivative where two singular values are equal.
    """

    def penalty(params: Params) -> Tensor:
        return _sum([torch.linalg.svdvals(w).sum() for w in _stacks(params, prefix)])

    return penalty


def low_rank(rank: int, prefix: str = "towers") -> Penalty:
    """`sum_(i > rank) s_i^2`: squared distance of the towers `[T, n]` to the nearest subspace of `rank`.

    Each parameter has a subspace of its own that all tasks share and that is fitted anew at each call: the
    penalty of Ando, Zhang 2005, https://www.jmlr.org/papers/v6/ando05a.html, minimised over the subspace.
    `s` are the singular values; zero where the towers already lie in `rank` dimensions.

    Raises:
        ValueError: a negative `rank`; when called, one that every set of T towers has.
    """
    if rank < 0:
        raise ValueError(f"rank={rank} cannot be negative.")

    def penalty(params: Params) -> Tensor:
        stacks = _stacks(params, prefix)
        if rank >= len(stacks[0]):
            raise ValueError(
                f"rank={rank}: {len(stacks[0])} towers always lie in a subspace of that rank, so the"
                " penalty would be zero; choose a smaller one."
            )
        return _sum([torch.linalg.svdvals(w)[rank:].square().sum() for w in stacks])

    return penalty


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum()


def _stacks(params: Params, prefix: str) -> list[Tensor]:
    """Each parameter of the towers as a matrix with a row for each tower, `[T, n]`."""
    towers: dict[str, Params] = {}
    for name in with_prefix(params, prefix):
        tower, _, rest = name[len(prefix) + 1 :].partition(".")
        towers.setdefault(tower, {})[rest] = params[name]
    if len(towers) < 2:
        tops = sorted({name.split(".")[0] for name in params})
        raise ValueError(
            f"prefix={prefix!r} holds {len(towers)} towers, and a penalty needs two to compare; the"
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
