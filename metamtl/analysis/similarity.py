"""Similarity of the representations that tasks compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..recipes import Recipe
from .arguments import Episodes, Losses, check_analysis
from .functions import TaskFunctions
from .relatedness import Relatedness


def cka(
    model: nn.Module, recipe: Recipe, episodes: Episodes, loss: Losses, x: Any, layer: str
) -> Relatedness:
    """Linear centered kernel alignment of the tasks' representations of the same inputs.

    `|X_i^T X_j|^2 / (|X_i^T X_i| |X_j^T X_j|)` (Frobenius norms), where `X_t` `[B, d]` is the output of the
    module `layer` on `x` with the parameters of task t, after adaptation, centered over the examples. 1:
    equal up to rotation and scale. Kornblith et al. 2019, https://arxiv.org/abs/1905.00414. If named tasks
    use a layer unchanged and in common, it is 1.

    Args:
        model, recipe, episodes, loss: as in `gradients`; the support sets are those that tasks adapt to.
        x: inputs of the model, `[B, ...]`, without a task axis; at least three examples.
        layer: the name of a module that runs once in a pass and returns one tensor `[B, ...]`.

    Raises:
        TypeError, ValueError: as `gradients`; `layer` names no module, or does not run once; the
            representation is constant.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(3, torch.Generator().manual_seed(0))
    >>> x = torch.linspace(-5, 5, 20)[:, None]
    >>> similarity = cka(model, recipes.boil(), episodes, family.loss, x, layer="body")
    >>> bool((similarity.pairs > 0.5).all())
    True
    """
    episodes = check_analysis(model, recipe, episodes, loss, least=2)
    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        names = ", ".join(map(repr, list(modules)[1:11]))
        raise ValueError(f"layer={layer!r} names no module of {type(model).__name__}; it has {names}.")
    tasks = TaskFunctions.of(model, recipe, episodes, loss)
    features = [_features(tasks, task, modules[layer], layer, x) for task in range(len(tasks))]
    # The Gramians [B, B] of the examples have the same inner products as the covariances [d, d].
    kernels = torch.stack([(f @ f.T).flatten() for f in features])
    norms = kernels.norm(dim=1)
    if bool((norms == 0).any()):
        name = tasks.names[int((norms == 0).nonzero()[0])]
        raise ValueError(
            f"the output of layer={layer!r} is the same for all examples of task {name!r}, so no similarity"
            " is defined; pass different inputs, or another layer."
        )
    return Relatedness(kernels @ kernels.T / torch.outer(norms, norms), tasks.names, f"CKA of {layer}")


def _features(tasks: TaskFunctions, task: int, module: nn.Module, layer: str, x: Any) -> Tensor:
    """The centered output `[B, d]` of a module."""
    outputs: list[Any] = []
    with torch.no_grad():
        params = tasks.adapt(task, {})
        handle = module.register_forward_hook(lambda *call: outputs.append(call[2]))
        try:
            with tasks.seeded(task):
                tasks.problems[task].output(params, x)
        finally:
            handle.remove()
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
        kind = f"ran {len(outputs)} times"
        if len(outputs) == 1:
            kind = f"returned a {type(outputs[0]).__name__}"
        raise ValueError(
            f"layer={layer!r} {kind} in one pass for task {tasks.names[task]!r}; use a module that runs"
            " once and returns one tensor."
        )
    features = outputs[0].detach().flatten(1).double().cpu()
    if len(features) < 3:
        raise ValueError(f"x has {len(features)} examples; centered representations need at least three.")
    return features - features.mean(0)
