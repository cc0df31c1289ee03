"""What the outer loop minimises, once a task has been adapted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..episode import Batch
from ..functional import Params
from ..functional.labels import is_labeled


@dataclass
class Adaptation:
    """One task after its adapter has run; what an objective sees.

    Attributes:
        start: the shared parameters theta, by name.
        end: the parameters phi that the task uses.
        support: the support set, or None.
        query: the query set.
        measure: `measure(params, batch) -> scalar`, the task's loss.
        known: the query loss, if it is known already.
        evaluations: backward passes over a support or query set that the objective takes so far.
    """

    start: Params
    end: Params
    support: Batch | None
    query: Batch
    measure: Callable[[Params, Batch], Tensor]
    known: Tensor | None = field(default=None, repr=False)
    evaluations: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        uncounted = self.measure

        def measure(params: Params, batch: Batch) -> Tensor:
            if torch.is_grad_enabled():
                self.evaluations += 1
            return uncounted(params, batch)

        self.measure = measure
        if self.known is not None:
            self.evaluations += 1

    @property
    def query_loss(self) -> Tensor:
        """The loss of the adapted parameters on the query set; computed once."""
        # By hand, because compilers do not see through the lock of functools.cached_property.
        if self.known is None:
            self.known = self.measure(self.end, self.query)
        return self.known


Objective = Callable[[Adaptation], Tensor]


def query_loss(task: Adaptation) -> Tensor:
    """`L_query(phi)`: MAML's objective, and that of every recipe that does not say otherwise."""
    return task.query_loss


def episode_loss(task: Adaptation) -> Tensor:
    """Mean loss over all labels of the episode, `(S L_support(phi) + Q L_query(phi)) / (S + Q)`.

    S and Q are the numbers of labels that are not missing. For adapters that do not look at the support
    set (joint and multi-task training), so that they learn from every label that a meta-learner uses. The
    two sets pass through the model one by one, as they do at test. `loss` must be a mean over the labels
    that are not missing, as torch's cross-entropy and `metamtl.losses.mean_over_labeled` are. A support set
    without any label has weight 0. If `y` holds several tensors, the first one holds the labels.
    """
    if task.support is None:
        return task.query_loss
    support, query = Batch(*task.support), Batch(*task.query)
    counts = [_num_labels(batch) for batch in (support, query)]
    # Without a label the mean is 0 / 0, whose gradient is NaN even at weight 0: its labels become zeros.
    empty = counts[0] == 0
    y = tree_map(lambda leaf: _zeros_if(empty, leaf), support.y)
    losses = task.measure(task.end, Batch(support.x, y)), task.query_loss
    dtype = torch.promote_types(losses[1].dtype, torch.float32)
    first, second = (count.to(dtype) for count in counts)
    return ((first * losses[0] + second * losses[1]) / (first + second)).to(losses[1].dtype)


def _num_labels(batch: Batch) -> Tensor:
    """Number of labels that are not missing, a scalar; of examples if there are no labels."""
    tensors = [leaf for leaf in tree_leaves((batch.y, batch.x)) if isinstance(leaf, Tensor)]
    labels = [leaf for leaf in tree_leaves(batch.y) if isinstance(leaf, Tensor)]
    if labels:
        return is_labeled(labels[0]).sum()
    return torch.full((), len(tensors[0]), device=tensors[0].device)


def _zeros_if(condition: Tensor, y: Any) -> Any:
    return torch.where(condition, torch.zeros_like(y), y) if isinstance(y, Tensor) else y


def displacement(task: Adaptation) -> Tensor:
    """`1/2 |theta - phi|^2` with phi held constant: its gradient is Reptile's row, `theta - phi`.

    Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999.
    """
    gaps = [(start - task.end[name].detach()) for name, start in task.start.items()]
    return 0.5 * torch.stack([gap.square().sum() for gap in gaps]).sum()
