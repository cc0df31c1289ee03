"""Step sizes of an inner loop: numbers, or learned by the outer loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..functional import Params, select_parameters, trainable

PER = ("model", "tensor", "element")


class LearnedRates(nn.Module):
    """Learned step sizes of an inner loop: `Gradient(K, lr=LearnedRates(model, 0.01))`.

    One number for each tensor and step is LSLR of MAML++, Antoniou, Edwards, Storkey 2019,
    https://arxiv.org/abs/1810.09502; one for each element of a parameter, for all the steps, is Meta-SGD,
    Li et al. 2017, https://arxiv.org/abs/1707.09835.

    They are the adapter's parameters: give `[*model.parameters(), *recipe.parameters()]` to the optimizer.
    In the state dict each has the name of the parameter that it is for (`lr.rates.head.weight`), or
    `lr.rates.rate` if there is one for the model.

    Args:
        model: whose parameters the rates are for.
        lr: what all the rates start from.
        per: one rate for the `"model"`, for each `"tensor"`, or for each `"element"`.
        steps: K, for rates of their own in every inner step, `[K, ...]`; None, for the same in all.
        adapts: as in `Gradient`.

    Raises:
        ValueError: an unknown `per`, `steps` below 1, a prefix that names no parameter.

    >>> rates = LearnedRates(nn.Linear(3, 2), 0.1, per="tensor", steps=5)
    >>> {name: list(rate.shape) for name, rate in rates.rates.named_parameters()}
    {'weight': [5], 'bias': [5]}
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        per: Literal["model", "tensor", "element"] = "tensor",
        *,
        steps: int | None = None,
        adapts: str | Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        if per not in PER:
            raise ValueError(f"per={per!r} is not one of {', '.join(map(repr, PER))}.")
        if steps is not None and steps < 1:
            raise ValueError(
                f"steps={steps}: give the number of inner steps, or None for rates of all steps."
            )
        self.per, self.steps = per, steps
        adapted = {name: dict(model.named_parameters())[name] for name in select_parameters(model, adapts)}
        if per == "model":
            adapted = {"rate": next(iter(adapted.values()))}
        # In a module of their own, so that a parameter may be called `steps` or `per`.
        self.rates = nn.Module()
        for name, param in adapted.items():
            shape = param.shape if per == "element" else ()
            full = shape if steps is None else (steps, *shape)
            _put(
                self.rates, name, nn.Parameter(torch.full(full, lr, dtype=param.dtype, device=param.device))
            )

    def __repr__(self) -> str:
        return f"LearnedRates(per={self.per!r}, steps={self.steps})"

    def check(self, model: nn.Module, names: Iterable[str], steps: int) -> None:
        """Refuse to serve an inner loop of `steps` steps that adapts `names`."""
        if self.steps not in (None, steps):
            raise ValueError(
                f"LearnedRates(steps={self.steps}) for {steps} inner steps; make them for {steps}, or with"
                " steps=None for rates that all the steps share."
            )
        if self.per == "model":
            return
        names, mine = set(names), {name for name, _ in self.rates.named_parameters()}
        lost, idle = sorted(names - mine), sorted((mine & trainable(model).keys()) - names)
        if lost or idle:
            what = f"have no rate for {lost[:5]}" if lost else f"are never used for {idle[:5]}"
            raise ValueError(f"LearnedRates {what}; give them and Gradient the same adapts=.")

    def at(self, values: Params, names: Iterable[str], k: Tensor) -> Params:
        """The rate of each of the parameters `names` at step `k`, with `values` in place of its own."""
        if self.per == "model":
            return dict.fromkeys(names, self._of_step(values["rate"], k))
        return {name: self._of_step(values[name], k) for name in names}

    def _of_step(self, rates: Tensor, k: Tensor) -> Tensor:
        if self.steps is None:
            return rates
        # By a mask: compiled, the gradient of index_select under vmap would be summed over tasks.
        chosen = torch.arange(self.steps, device=k.device) == k
        return rates.where(chosen.view(-1, *[1] * (rates.dim() - 1)), 0).sum(0)


def per_step_lr(lr: Any, steps: int) -> tuple[float, ...]:
    """The step size of each step, where they are not learned."""
    listed = list(lr) if isinstance(lr, Sequence) else [lr] * steps
    if any(not isinstance(rate, Real) for rate in listed or [lr]):
        raise ValueError(
            f"lr={lr!r}: give one number, or one for each step; for step sizes that are learned,"
            " adapters.LearnedRates(model)."
        )
    if len(listed) != steps:
        raise ValueError(f"lr gives {len(listed)} rates for {steps} steps; give one number, or {steps}.")
    return tuple(listed)


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register under a name with dots, by modules in modules."""
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, parameter)
