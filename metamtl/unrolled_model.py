"""An inner loop written by hand: a model whose parameters are replaced by differentiable update steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.inner_loop import device_of, step_number
from .adapters.rates import LearnedRates, check_prefixes, per_step_lr
from .functional import Params, canonical_names, forward, select_parameters, trainable
from .functional.inputs import Inputs
from .functional.select import longest_prefix
from .functional.structure import structure_of
from .functional.substitution import substituted
from .rules import Descent, Rule


class UnrolledModel:
    """A view of a model with parameters of its own, which `step` updates differentiably.

    Returned by `unrolled`. It is called as the model is. Attributes are those of the model; modules and
    methods compute with the current parameters. The model does not change.

    Attributes:
        num_steps: the number of steps so far.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        lr: Any,
        adapts: Any,
        *,
        first_order: bool = False,
        differentiable: bool = True,
        params: Params | None = None,
    ) -> None:
        self.model, self.rule = model, rule
        self.first_order, self.differentiable = first_order or not differentiable, differentiable
        self.names = tuple(select_parameters(model, adapts))
        self.lr = self._check_lr(lr)
        self.num_steps = 0
        self._structure = structure_of(model)
        self.params = trainable(model) if params is None else params
        self._state = rule.init({name: self.params[name] for name in self.names})

    @property
    def params(self) -> Params:
        """The current parameters by name, all of the model's trainable ones.

        Assign a dict to continue from other values, for example those of an update of your own. The state
        of the rule and the number of steps stay.
        """
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        if missing := sorted(trainable(self.model).keys() - params.keys()):
            raise ValueError(f"params lacks {missing[:5]}; pass all trainable parameters by name.")
        if unknown := sorted(params.keys() - set(canonical_names(self.model).values())):
            raise ValueError(
                f"params has {unknown[:5]}, which {type(self.model).__name__} does not have; remove them."
            )
        if not self.differentiable:
            params = {name: param.detach() for name, param in params.items()}
            self._params = {**params, **_leaves({name: params[name] for name in self.names})}
            return
        # Views, so that the gradient of a loss is a partial derivative even if the caller computed one
        # parameter from another.
        self._params = {name: p.view_as(p) if name in self.names else p for name, p in params.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = Inputs(args, kwargs)
        return forward(
            self.model, self.params, inputs, structure=self._structure, second_order=not self.first_order
        )

    def step(
        self, loss: Tensor, grad_callback: Callable[[Params], Params] | None = None, *, lr: Any = None
    ) -> Params:
        """Replace the adapted parameters by those after one update step; return them.

        Args:
            loss: a scalar computed with this object. Parameters that it does not use stay unchanged, and so
                does their state in the rule, as in `torch.optim` if `.grad` is None.
            grad_callback: maps the gradients by name to those that the rule receives, e.g. to clip them.
            lr: the step size of this step, in place of the one of `unrolled`.

        Raises:
            ValueError: the loss is not a scalar, or depends on none of the adapted parameters; the callback
                returns a name that is not adapted; `LearnedRates` has no rate for this step.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"step needs a loss that is a single number, not {found}; take its mean().")
        adapted = {name: self.params[name] for name in self.names}
        grads = self._gradients(loss, adapted)
        if grad_callback is not None:
            grads = dict(grad_callback(grads))
            if unknown := sorted(grads.keys() - adapted.keys()):
                raise ValueError(
                    f"grad_callback returns gradients of {unknown[:5]}, which are not adapted."
                )
        k = step_number(self.num_steps, device_of(adapted))
        rates = self._rates(self.lr if lr is None else self._check_lr(lr), k)
        if self.differentiable:
            adapted, self._state = self.rule(adapted, grads, self._state, rates, k)
        else:
            with torch.no_grad():
                adapted, self._state = self.rule(adapted, grads, self._state, rates, k)
            adapted = _leaves(adapted)
        self._params = {**self._params, **adapted}
        self.num_steps += 1
        return adapted

    def _gradients(self, loss: Tensor, adapted: Params) -> Params:
        values: tuple[Tensor | None, ...] = ()
        if loss.requires_grad:
            values = torch.autograd.grad(
                loss.sum(), list(adapted.values()), create_graph=not self.first_order, allow_unused=True
            )
        grads = {name: value for name, value in zip(adapted, values) if value is not None}
        if not grads:
            raise ValueError(
                f"the loss depends on none of the adapted parameters {', '.join(self.names[:5])}; compute"
                " it with this object (not with the model), without detach() and outside of"
                " torch.no_grad()."
            )
        return grads

    def _check_lr(self, lr: Any) -> Any:
        """Raise a ValueError if the step sizes do not fit the adapted parameters."""
        if isinstance(lr, LearnedRates):
            lr.check(self.model, self.names, lr.steps or 1)
            return lr
        if isinstance(lr, Mapping):
            check_prefixes(dict.fromkeys(lr, (0.0,)), self.names)
            return {prefix: _one_rate(rate) for prefix, rate in lr.items()}
        return _one_rate(lr)

    def _rates(self, lr: Any, k: Tensor) -> Mapping[str, float | Tensor]:
        if isinstance(lr, LearnedRates):
            if lr.steps is not None and self.num_steps >= lr.steps:
                raise ValueError(
                    f"step {self.num_steps + 1} has no rate in LearnedRates(steps={lr.steps}); pass more"
                    " steps to LearnedRates, or steps=None to share the rates among all steps."
                )
            return lr.at(dict(lr.rates.named_parameters()), self.names, k)
        if isinstance(lr, dict):
            return {name: lr[longest_prefix(name, lr) or ""] for name in self.names}
        return dict.fromkeys(self.names, lr)

    @contextmanager
    def substituted(self) -> Iterator[nn.Module]:
        """Context manager in which the model itself has the current parameters."""
        with substituted(self.model, self._structure, self.params):
            yield self.model

    def __getattr__(self, name: str) -> Any:
        model = self.__dict__.get("model")
        if model is None:
            raise AttributeError(name)
        value = getattr(model, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.substituted():
                return value(*args, **kwargs)

        return call


def _one_rate(lr: Any) -> float | Tensor:
    return lr if isinstance(lr, Tensor) else per_step_lr(lr, 1)[0]


def _leaves(params: Params) -> Params:
    return {name: param.detach().requires_grad_() for name, param in params.items()}


def unrolled(
    model: nn.Module,
    rule: Rule | None = None,
    *,
    lr: float | Tensor | Mapping[str, float | Tensor] | LearnedRates,
    adapts: str | Iterable[str] | None = None,
    first_order: bool = False,
    differentiable: bool = True,
    params: Params | None = None,
) -> UnrolledModel:
    """Start an inner loop in your own code: update steps through which the outer gradient goes.

    `phi_0 = theta`, and every `step(loss)` computes `phi_{k+1} = rule(phi_k, d loss / d phi_k)`
    (Grefenstette et al. 2019, https://arxiv.org/abs/1910.01727). `backward()` of a loss of the result adds
    to `.grad` of the model's parameters, of a learned `lr` and of learned options of the rule.

    Args:
        model: any module. It does not change; running statistics of BatchNorm neither.
        rule: an update rule of `metamtl.rules`; if None, gradient descent. `rules.of(optimizer, model)`
            takes over an optimizer of torch.
        lr: the step size: a number; a tensor, which may be an `nn.Parameter` of your own; a mapping of
            prefixes of parameter names to numbers or tensors; or `adapters.LearnedRates`.
        adapts: prefixes of the parameters to update; if None, all trainable ones.
        first_order: treat the gradients as constants. The steps then build no graph of second order.
        differentiable: if False, every step starts from detached parameters, so that memory does not grow
            with the number of steps. No gradient reaches the initial parameters, as evaluation requires.
        params: the parameters to start from instead of the model's.

    Raises:
        ValueError: a prefix matches no parameter; `lr` does not fit; `params` lacks a parameter or has an
            unknown one; `first_order` with `differentiable=False`.
        TypeError: `rule` is not an update rule.

    >>> import torch
    >>> import metamtl
    >>> model = torch.nn.Linear(2, 1)
    >>> fast = metamtl.unrolled(model, lr=0.1)
    >>> x, y = torch.ones(4, 2), torch.zeros(4, 1)
    >>> for _ in range(3):
    ...     _ = fast.step(torch.nn.functional.mse_loss(fast(x), y))
    >>> torch.nn.functional.mse_loss(fast(x), y).backward()
    >>> model.weight.grad.shape, fast.num_steps
    (torch.Size([1, 2]), 3)
    """
    rule = Descent() if rule is None else rule
    if not isinstance(rule, Rule):
        remedy = "rules.of(optimizer, model)" if isinstance(rule, torch.optim.Optimizer) else "rules.SGD()"
        raise TypeError(
            f"rule={type(rule).__name__} is not an update rule of metamtl.rules; pass {remedy}."
        )
    if first_order and not differentiable:
        raise ValueError(
            "first_order=True has no effect with differentiable=False, which keeps no graph; pass one of"
            " them."
        )
    return UnrolledModel(
        model, rule, lr, adapts, first_order=first_order, differentiable=differentiable, params=params
    )
