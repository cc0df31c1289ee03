"""Examples of tasks: how many, which are drawn, and how they form an episode."""

from __future__ import annotations

import torch
from torch import Tensor

from ..episode import Batch, Episode


def check_counts(shots: int, queries: int) -> None:
    """Reject numbers of support and query examples of which no task can consist."""
    if min(shots, queries) < 0 or shots + queries < 1:
        raise ValueError(
            f"shots={shots}, queries={queries}: a task needs at least one example, and neither number may"
            " be negative. With shots=0 it has no support set, for joint training; with queries=0 its query"
            " set is empty, for Reptile."
        )


def episode_of(
    x: Tensor, y: Tensor, num_support: int, task: Tensor | None = None, ways: int | None = None
) -> Episode:
    """The episode with the first `num_support` examples of `x` `[T, n, ...]` as support set, if any."""
    support, query = (
        Batch(x[:, part].contiguous(), y[:, part].contiguous())
        for part in (slice(num_support), slice(num_support, None))
    )
    return Episode(support if num_support else None, query, task, ways)


def distinct(sizes: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Draw `count` distinct integers from `range(size)` for each of `sizes` `[...]`: `[..., count]`.

    Robert Floyd's algorithm: step j draws from `range(size - count + j + 1)`, and uses the largest number
    of that range if the drawn number is already taken. The time does not depend on the sizes.
    """
    steps = torch.arange(count, device="cpu")
    tops = (sizes[..., None] - count + steps).contiguous()
    draws = torch.rand(tops.shape, generator=rng, dtype=torch.float64, device="cpu").mul(tops + 1).long()
    draws = draws.minimum(tops)  # the product may round up
    for j in range(1, count):
        duplicate = (draws[..., :j] == draws[..., j, None]).any(-1)
        draws[..., j] = torch.where(duplicate, tops[..., j], draws[..., j])
    order = torch.rand(tops.shape, generator=rng, dtype=torch.float64, device="cpu").argsort(-1)
    return draws.gather(-1, order)


def members(labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions sorted by label `[M]`; the start and the size of each class in `wanted`, both `[C]`."""
    order = labels.argsort(stable=True)
    ranked = labels[order]
    starts = torch.searchsorted(ranked, wanted)
    return order, starts, torch.searchsorted(ranked, wanted, right=True) - starts


def unequal(
    counts: Tensor, num_each: int, num_more: int, weights: Tensor | None, rng: torch.Generator
) -> Tensor:
    """Divide examples among N classes: the class of each, `[T, N * num_each + num_more]`.

    If `num_each` > 0, the first N examples are one of each class, so that each class is among the first
    `N * num_each`. The class of every further example has a probability proportional to its weight among
    the classes that have examples left. Without weights, it is proportional to the number of examples left,
    as in a random sample from all examples of the N classes.

    Args:
        counts: examples per class, `[T, N]`.
        num_each, num_more: see above.
        weights: `[T, N]`, or None.
        rng: a generator on the CPU.
    """
    num_tasks, ways = counts.shape
    left = counts.clone()
    slots = [torch.arange(ways).expand(num_tasks, ways)] if num_each else []
    left -= 1 if num_each else 0
    for _ in range(ways * max(num_each - 1, 0) + num_more):
        likely = left.double() if weights is None else weights * (left > 0)
        row = torch.multinomial(likely, 1, generator=rng)
        left.scatter_add_(1, row, torch.full_like(row, -1))
        slots.append(row)
    return torch.cat(slots, 1)


def distinct_of(counts: Tensor, slots: Tensor, rng: torch.Generator) -> Tensor:
    """Distinct examples for the classes in `slots` `[T, n]`: integers below `counts` `[T, N]`, `[T, n]`."""
    found = torch.empty_like(slots)
    for task in range(len(slots)):
        for way in range(counts.shape[1]):
            mask = slots[task] == way
            found[task, mask] = distinct(counts[task, way], int(mask.sum()), rng)
    return found
