"""The examples of named tasks, divided among processes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_leaves, tree_map

from ..episode import Batch, Episode
from ..functional import Params
from ..functional.labels import num_examples, num_labels
from ..losses import Loss
from ..objectives import episode_loss
from .agreement import Agreement
from .problem import TaskProblem

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def own_examples(episodes: Mapping[str, Episode], group: ProcessGroup | None = None) -> dict[str, Episode]:
    """This process's query examples of named tasks, if every process has all of them.

    Process r of W receives the examples `Q r / W .. Q (r + 1) / W - 1` of Q. Tasks that share one input
    still share one. Support sets stay whole, because every process adapts to all of them. A tensor without
    an example axis stays whole, too.

    Args:
        group: the process group; if None, all processes.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    inputs: dict[int, Any] = {}
    parts = {}
    for name, episode in episodes.items():
        x, y = episode.query
        count = num_examples(x, y) or 0
        part = slice(count * rank // size, count * (rank + 1) // size)

        def own(tree: Any, count: int = count, part: slice = part) -> Any:
            def select(leaf: Any) -> Any:
                has_examples = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count
                return leaf[part] if has_examples else leaf

            return tree_map(select, tree)

        if id(x) not in inputs:
            inputs[id(x)] = own(x)
        parts[name] = replace(episode, query=Batch(inputs[id(x)], own(y)))
    return parts


def setting(
    problems: Mapping[str, TaskProblem], episodes: Mapping[str, Episode], params: Params, layer: str | None
) -> Agreement:
    """What must be the same in all processes.

    Raises:
        ValueError: a task has a support set, and its objective depends on more than the query loss.
    """
    adapted = {task: episodes[task].support for task, problem in problems.items() if problem.adapts}
    for task in adapted:
        if problems[task].objective is episode_loss:
            raise ValueError(
                f"task {task!r} has a support set, which all processes share, so that the objective"
                " episode_loss would count its labels once for each process; put these examples into the"
                " query set, or use objective=query_loss."
            )
    return {
        "tasks": list(problems),
        "layer": layer,
        "parameters": {name: list(param.shape) for name, param in params.items()},
        "support sets": {task: _digest(support) for task, support in adapted.items()},
    }


def label_count(loss: Loss, batch: Batch) -> Tensor:
    """The denominator of a loss that is a mean over the labels of the batch that are not missing.

    Cross-entropy with weights of the classes has the sum of the weights of the labels.

    Raises:
        ValueError: the loss is a sum.
    """
    loss = getattr(loss, "loss", loss)  # of a checked loss
    if getattr(loss, "reduction", "mean") == "sum":
        raise ValueError(
            f"the loss {loss!r} is a sum, but under engines.Sharded the loss of a task is the mean over the"
            " labels of all processes; use reduction='mean'."
        )
    y = next((leaf for leaf in tree_leaves(batch[1]) if isinstance(leaf, Tensor)), None)
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and y is not None and not y.is_floating_point():
        labeled = y != loss.ignore_index
        if loss.weight is None:
            return labeled.sum()
        return (loss.weight[y.where(labeled, torch.zeros_like(y))] * labeled).sum()
    return num_labels(batch)


def _digest(batch: Batch | None) -> list[int]:
    """Checksums of the tensors of a support set."""
    tensors = [leaf.detach().cpu() for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    return [zlib.crc32(leaf.reshape(-1).view(torch.uint8).numpy().tobytes()) for leaf in tensors]
