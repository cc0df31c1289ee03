"""Buffers that an adapter sets: the index of the inner step, and the statistics of the support set."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .call import forward
from .decompositions import moments
from .select import Params
from .structure import INNER_STEP, SUPPORT_MEAN, SUPPORT_VAR, Structure, structure_of


def has_adapter_buffers(model: nn.Module) -> bool:
    """Whether the model has buffers that an adapter sets."""
    return any(key in module._buffers for module in model.modules() for key in (INNER_STEP, SUPPORT_MEAN))


def with_support_statistics(
    model: nn.Module, params: Params, x: Any, task: Any = None, *, structure: Structure | None = None
) -> Params:
    """`params` with the statistics of the support inputs `x`, computed with `params`, for the query set.

    If the model has modules with buffers `support_mean` and `support_var` (`nets.SupportBatchNorm`), one
    more pass over `x` computes them. For other models, `params` is returned unchanged.

    Raises:
        ValueError: the pass uses such a module more than once.
    """
    structure = structure_of(model) if structure is None else structure
    norms = {module: name for name, module in structure.support_norms}
    if not norms or x is None:
        return params
    statistics: Params = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        prefix = f"{norms[module]}." if norms[module] else ""
        if prefix + SUPPORT_MEAN in statistics:
            raise ValueError(
                f"{type(module).__name__} {norms[module]!r} normalizes twice in one forward pass, so it has"
                " no unique mean of the support set; use one module for each place."
            )
        statistics[prefix + SUPPORT_MEAN], statistics[prefix + SUPPORT_VAR] = moments(inputs[0])

    params = without_support_statistics(params)
    with ExitStack() as hooks:
        for module in norms:
            hooks.callback(module.register_forward_pre_hook(record).remove)
        forward(model, params, x, task, structure=structure)
    return {**params, **statistics}


def without_support_statistics(params: Params) -> Params:
    """`params` without the entries that `with_support_statistics` adds."""
    return {n: p for n, p in params.items() if n.rpartition(".")[2] not in (SUPPORT_MEAN, SUPPORT_VAR)}
