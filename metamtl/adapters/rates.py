"""Step sizes of an inner loop: numbers, or parameters learned by the outer loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..functional import Params, longest_prefix, select_parameters, trainable
from ..functional.register import register_parameter

PER = ("model", "tensor", "element")


class LearnedRates(nn.Module):
    """Learned step sizes of an inner loop: `Gradient(K, lr=LearnedRates(model, 0.01))`.

    One rate for each tensor and step is LSLR of MAML++, Antoniou, Edwards, Storkey 2019,
    https://arxiv.org/abs/1810.09502. One rate for each element of a parameter, the same in all steps, is
    Meta-SGD, Li et al. 2017, https://arxiv.org/abs/1707.09835.

    The rates are parameters of the adapter: pass `[*model.parameters(), *recipe.parameters()]` to the
    optimizer. In the state dict, each rate has the name of its parameter (`lr.rates.head.weight`); a single
    rate for the model is `lr.rates.rate`.

    Args:
        model: the model whose parameters are adapted.
        lr: the initial value of all rates.
        per: one rate for the `"model"`, for each `"tensor"`, or for each `"element"`.
        steps: K, for separate rates in each inner step, `[K, ...]`; if None, all steps share the rates.
        adapts: as in `Gradient`.

    Raises:
        ValueError: `per` is unknown, `steps` is less than 1, or a prefix matches no parameter.

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
                f"steps={steps}: pass the number of inner steps, or None to share rates among all steps."
            )
        self.per, self.steps = per, steps
        adapted = {name: dict(model.named_parameters())[name] for name in select_parameters(model, adapts)}
        if per == "model":
            adapted = {"rate": next(iter(adapted.values()))}
        # In a separate module, so that a parameter may have the name `steps` or `per`.
        self.rates = nn.Module()
        for name, param in adapted.items():
            shape = param.shape if per == "element" else ()
            full_shape = shape if steps is None else (steps, *shape)
            rate = torch.full(full_shape, lr, dtype=param.dtype, device=param.device)
            register_parameter(self.rates, name, nn.Parameter(rate))

    def __repr__(self) -> str:
        return f"LearnedRates(per={self.per!r}, steps={self.steps})"

    def check(self, model: nn.Module, names: Iterable[str], steps: int) -> None:
        """Raise an error if the rates do not fit an inner loop of `steps` steps that adapts `names`."""
        if self.steps not in (None, steps):
            raise ValueError(
                f"LearnedRates(steps={self.steps}) for {steps} inner steps; pass steps={steps}, or"
                " steps=None to share the rates among all steps."
            )
        if self.per == "model":
            return
        names, rate_names = set(names), {name for name, _ in self.rates.named_parameters()}
        missing = sorted(names - rate_names)
        unused = sorted((rate_names & trainable(model).keys()) - names)
        if missing or unused:
            what = f"have no rate for {missing[:5]}" if missing else f"are never used for {unused[:5]}"
            raise ValueError(f"LearnedRates {what}; pass the same adapts= to LearnedRates and Gradient.")

    def at(self, values: Params, names: Iterable[str], k: Tensor) -> Params:
        """The rate of each parameter in `names` at step `k`; `values` replace the stored rates."""
        if self.per == "model":
            return dict.fromkeys(names, self._of_step(values["rate"], k))
        return {name: self._of_step(values[name], k) for name in names}

    def _of_step(self, rates: Tensor, k: Tensor) -> Tensor:
        if self.steps is None:
            return rates
        # A mask, because compiled code would sum the gradient of index_select over the tasks of vmap.
        mask = torch.arange(self.steps, device=k.device) == k
        return rates.where(mask.view(-1, *[1] * (rates.dim() - 1)), 0).sum(0)


StepRates = tuple[float, ...]


def fixed_rates(lr: Any, steps: int) -> StepRates | dict[str, StepRates]:
    """The step size of each step; for a mapping, by prefix."""
    if not isinstance(lr, Mapping):
        return per_step_lr(lr, steps)
    if not lr:
        raise ValueError("lr={} has no prefix; pass a number, or {prefix: number}.")
    return {prefix: per_step_lr(rates, steps) for prefix, rates in lr.items()}


def with_steps(lr: Any, steps: int) -> Any:
    """These step sizes for another number of steps.

    Raises:
        ValueError: the step sizes differ between steps.
    """
    if isinstance(lr, LearnedRates):
        if lr.steps is not None and lr.steps != steps:
            raise ValueError(
                f"steps={steps}: {lr} has step sizes for {lr.steps} steps, so the number of steps is fixed."
            )
        return lr
    if isinstance(lr, dict):
        return {prefix: with_steps(rates, steps) for prefix, rates in lr.items()}
    if len(set(lr)) != 1 and len(lr) != steps:
        raise ValueError(
            f"steps={steps}: the step sizes {lr} belong to {len(lr)} steps; build the adapter with"
            f" {steps} of them."
        )
    return lr if len(lr) == steps else lr[:1] * steps


def check_prefixes(lr: Mapping[str, StepRates], names: Iterable[str]) -> None:
    """Raise a ValueError if an adapted parameter has no step size, or a prefix matches none of them."""
    used = {name: longest_prefix(name, lr) for name in names}
    missing = [name for name, prefix in used.items() if prefix is None]
    if missing:
        raise ValueError(
            f"lr has no step size for {missing[:5]}; its prefixes are {', '.join(map(repr, lr))}. The"
            " prefix '' matches every parameter."
        )
    unused = sorted(set(lr) - set(used.values()))
    if unused:
        raise ValueError(
            f"lr has step sizes for {unused[:5]}, which no adapted parameter uses; remove them."
        )


def per_step_lr(lr: Any, steps: int) -> StepRates:
    """The step size of each step, if step sizes are not learned."""
    rates = list(lr) if isinstance(lr, Sequence) else [lr] * steps
    if any(not isinstance(rate, Real) for rate in rates or [lr]):
        raise ValueError(
            f"lr={lr!r}: pass one number, or one number for each step; for learned step sizes, pass"
            " adapters.LearnedRates(model)."
        )
    if len(rates) != steps:
        raise ValueError(f"lr has {len(rates)} rates for {steps} steps; pass one number, or {steps}.")
    return tuple(rates)
