"""K gradient steps on the support set: MAML, ANIL, BOIL, Meta-SGD, iMAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..episode import Batch
from ..functional import Params, longest_prefix, select_parameters, structure_of, trainable
from ..functional.split import split
from ..losses import Loss
from ..rules import Descent, Rates, Rule
from .base import Adapter, initial_params
from .differentiation import Differentiation, Implicit, Shorthand, as_differentiation
from .gradient_loop import GradientLoop
from .inner_loop import InnerLoop
from .rates import LearnedRates, StepRates, check_prefixes, fixed_rates, with_steps


class Gradient(Adapter):
    """K steps of gradient descent on the support loss.

    `phi_0 = theta`, `phi_{k+1} = phi_k - lr_k * grad L_support(phi_k)` for the parameters selected by
    `adapts`; the others stay unchanged. Finn, Abbeel, Levine 2017, https://arxiv.org/abs/1703.03400. With
    `adapts="head"` this is ANIL (https://arxiv.org/abs/1909.09157), with `adapts="body"` BOIL
    (https://arxiv.org/abs/2008.08882), with `lr=LearnedRates(...)` Meta-SGD or the rates of MAML++.

    Args:
        steps: the number of inner steps K; with 0, nothing is adapted.
        lr: one step size, a sequence of K step sizes, or learned step sizes; a mapping of prefixes of
            parameter names to the former, of which the longest that matches counts.
        adapts: one or several prefixes of parameter names (`"head"` selects `head.weight` and
            `head.bias`); if None, all trainable parameters.
        differentiation: how the outer gradient is computed through the steps: `Unrolled()`,
            `Checkpointed(every)`, `Truncated(backprop_steps)`, `FirstOrder()` or `Implicit(...)`. The
            strings "exact", "checkpointed", "truncated", "first_order" and "implicit" select these with
            default options.
        rule: an update rule of `metamtl.rules`; if None, plain gradient descent.
        batch_size: number of support examples of each step; if None, all. The examples are shuffled, and
            again after each pass over the support set, as determined by `seed`.

    Raises:
        TypeError: `steps` is not an int; `differentiation` or `rule` has the wrong type.
        ValueError: an argument is out of range; the number of rates is not K; an option contradicts
            `differentiation`. When called: a prefix matches no parameter, or the learned rates belong to
            other parameters.

    >>> import torch
    >>> model, loss = nn.Linear(1, 1, bias=False), nn.functional.mse_loss
    >>> fast = Gradient(steps=1, lr=0.5)(model, (torch.ones(4, 1), torch.ones(4, 1)), loss)
    >>> bool(torch.isclose(fast["weight"], torch.ones(1)).all())  # one step reaches the minimum
    True
    """

    def __init__(
        self,
        steps: int = 1,
        lr: float | Sequence[float] | Mapping[str, float | Sequence[float]] | LearnedRates = 0.01,
        adapts: str | Iterable[str] | None = None,
        differentiation: Differentiation | Shorthand = "exact",
        *,
        rule: Rule | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.steps = _checked_steps(steps)
        self.rule = Descent() if rule is None else rule
        if not isinstance(self.rule, Rule):
            raise TypeError(
                f"rule={rule!r} is not an update rule; pass one of metamtl.rules, such as"
                " rules.SGD(momentum=0.9)."
            )
        self.lr = lr if isinstance(lr, LearnedRates) else fixed_rates(lr, steps)
        self.differentiation = as_differentiation(differentiation)
        self.differentiation.check(lr, self.rule, adapts)
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"batch_size={batch_size!r}: pass a number of examples, or None for all.")
        if batch_size is not None and isinstance(self.differentiation, Implicit):
            raise ValueError("Implicit differentiates the minimum of one loss; use batch_size=None.")
        if batch_size is None and seed:
            raise ValueError(f"seed={seed} shuffles mini-batches; pass batch_size=, too.")
        self.batch_size, self.seed = batch_size, seed
        self.adapts = adapts if adapts is None or isinstance(adapts, str) else tuple(adapts)

    def replaced(
        self,
        *,
        steps: int | None = None,
        rule: Rule | None = None,
        differentiation: Differentiation | None = None,
    ) -> Gradient:
        """The same adapter with the same parameters, but other steps, rule, or way to differentiate.

        More steps than in training show how a meta-learned model continues to adapt.

        Raises:
            ValueError: `steps` is negative, or the step sizes differ between steps.
        """
        other = copy(self)
        other._modules = dict(self._modules)
        if steps is not None:
            other.steps, other.lr = _checked_steps(steps), with_steps(self.lr, steps)
        if rule is not None:
            other.rule = rule
        if differentiation is not None:
            other.differentiation = differentiation
        return other

    def __repr__(self) -> str:
        parts = [f"steps={self.steps}, lr={self.lr}, adapts={self.adapts!r}"]
        parts.append(f"differentiation={self.differentiation}")
        if self.batch_size is not None:
            parts.append(f"batch_size={self.batch_size}, seed={self.seed}")
        if not isinstance(self.rule, Descent):
            parts.append(f"rule={self.rule}")
        return f"Gradient({', '.join(parts)})"

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        names = select_parameters(model, self.adapts)
        if isinstance(self.lr, LearnedRates):
            self.lr.check(model, names, self.steps)
        elif isinstance(self.lr, dict):
            check_prefixes(self.lr, names)

    def inner_loop(self, model: nn.Module, loss: Loss, name: str | None = None) -> InnerLoop:
        if type(self).forward is not Gradient.forward:  # a subclass that overrides the computation
            return super().inner_loop(model, loss, name)
        names = tuple(select_parameters(model, self.adapts))
        structure = structure_of(model)
        parts = None if name is not None else split(model, structure, names)
        unadapted = [param for param in trainable(model) if param not in names]
        return GradientLoop(
            adapter=self,
            model=model,
            structure=structure,
            loss=loss,
            names=names,
            reads=tuple(param for param in unadapted if parts is None or param in parts.remainder.names),
            task=name,
            parts=parts,
            counters=structure.counters,
            num_steps=self.steps,
            starts_from_params=parts is None,
            proximal=self.differentiation.proximal,
        )

    def rates(self, params: Params, adapter_params: Params, k: Tensor) -> Rates:
        """The step size of every parameter at step `k`."""
        if isinstance(self.lr, LearnedRates):
            prefix = "lr.rates."
            return self.lr.at({n.removeprefix(prefix): p for n, p in adapter_params.items()}, params, k)
        like = next(iter(params.values()))
        if isinstance(self.lr, dict):
            by_prefix = {prefix: _at(rates, k, like) for prefix, rates in self.lr.items()}
            return {name: by_prefix[longest_prefix(name, by_prefix) or ""] for name in params}
        return dict.fromkeys(params, _at(self.lr, k, like))

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        self.check(model, task)
        loop = self.inner_loop(model, loss, task if isinstance(task, str) else None)
        return loop.adapt(initial_params(model, params), dict(self.named_parameters()), support, None)

    def path(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Iterator[Params]:
        """The parameters after 0, 1, ..., K steps. With `Implicit`, only the last ones have a gradient."""
        self.check(model, task)
        loop = self.inner_loop(model, loss, task if isinstance(task, str) else None)
        return loop.path(initial_params(model, params), dict(self.named_parameters()), support, None)


def _at(rates: StepRates, k: Tensor, like: Tensor) -> float | Tensor:
    """The step size at step `k`, as a number if it is the same in all steps."""
    if len(set(rates)) == 1:  # multiplication by a Python number is faster than by a tensor
        return rates[0]
    tensor = torch.tensor(rates, dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)
    return tensor.index_select(0, k.reshape(1)).squeeze(0)


def _checked_steps(steps: int) -> int:
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"steps={steps!r}: the number of inner steps must be an int.")
    if steps < 0:
        raise ValueError(f"steps={steps}: the number of inner steps cannot be negative.")
    return steps
