"""What the outer loop minimises, once a task has been adapted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .episode import Batch
from .functional import Params


@dataclass
class Adaptation:
    """One task after its adapter has run; what an objective sees.

    Attributes:
        start: the shared parameters theta, by name.
        end: the parameters phi that the task uses.
        support: the support set, or None.
        query: the query set.
        measure: `measure(params, batch) -> scalar`, the task's loss.
    """

    start: Params
    end: Params
    support: Batch | None
    query: Batch
    measure: Callable[[Params, Batch], Tensor]

    _query_loss: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def query_loss(self) -> Tensor:
        """The loss of the adapted parameters on the query set; computed once."""
        # By hand, because compilers do not see through the lock of functools.cached_property.
        if self._query_loss is None:
            self._query_loss = self.measure(self.end, self.query)
        return self._query_loss


Objective = Callable[[Adaptation], Tensor]


def query_loss(task: Adaptation) -> Tensor:
    """`L_query(phi)`: MAML's objective, and that of every recipe that does not say otherwise."""
    return task.query_loss


def episode_loss(task: Adaptation) -> Tensor:
    """`(S L_support(phi) + Q L_query(phi)) / (S + Q)`: the mean loss over all examples of the episode.

    For adapters that do not look at the support set (joint and multi-task training), so that they learn
    from every example that a meta-learner sees. The two sets pass through the model one by one, as they
    do at test. `loss` must be a mean over examples.
    """
    if task.support is None:
        return task.query_loss
    sizes = [tree_leaves(batch.y)[0].shape[0] for batch in (task.support, task.query)]
    whole = sizes[0] * task.measure(task.end, task.support) + sizes[1] * task.query_loss
    return whole / sum(sizes)


def displacement(task: Adaptation) -> Tensor:
    """`1/2 |theta - phi|^2` with phi held constant: its gradient is Reptile's row, `theta - phi`.

    Nichol, Achiam, Schulman 2018, https://arxiv.org/abs/1803.02999.
    """
    gaps = [(start - task.end[name].detach()) for name, start in task.start.items()]
    return 0.5 * torch.stack([gap.square().sum() for gap in gaps]).sum()
