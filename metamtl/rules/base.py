"""Base classes of the update rules of an inner loop."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import Params

Rates = Mapping[str, float | Tensor]
OptState = Any  # tensors in any nesting of tuples and dicts
Number = float | Tensor  # an option: a constant or a learned nn.Parameter
Slots = dict[str, Tensor]  # the state of one parameter


class Rule(nn.Module, ABC):
    """Base class of update rules: pure functions that map a gradient to the next parameters.

    A subclass defines `init` and `update`. They must use operations that `torch.vmap`, `torch.func.grad`,
    autograd with `create_graph=True` and `torch.compile(fullgraph=True)` support: no in-place writes and no
    branches on tensor values. Parameters of the rule are learned by the outer loop. `forward` calls
    `update`, so `torch.func.functional_call(rule, values, ...)` evaluates it with other parameter values.
    """

    @property
    def decays(self) -> bool:
        """Whether the rule shrinks parameters toward zero independently of the gradient (weight decay)."""
        return False

    @abstractmethod
    def init(self, params: Params) -> OptState:
        """The state before the first update."""

    @abstractmethod
    def update(
        self, params: Params, gradients: Params, opt_state: OptState, lr: Rates, k: Tensor
    ) -> tuple[Params, OptState]:
        """The parameters and the state after inner step `k`.

        Args:
            params: the adapted parameters by name.
            gradients: their gradients by name. A parameter that the loss does not use has no entry; it and
                its state stay unchanged, as in `torch.optim` if `.grad` is None.
            opt_state: the result of `init` or of the previous update.
            lr: the learning rate of each parameter, a number or a tensor that broadcasts to its shape.
            k: the index of the inner step, a zero-dimensional int64 tensor, counted from 0.
        """

    def forward(
        self, params: Params, gradients: Params, opt_state: OptState, lr: Rates, k: Tensor
    ) -> tuple[Params, OptState]:
        return self.update(params, gradients, opt_state, lr, k)


class TorchRule(Rule):
    """Base class of the rules that compute the update of the `torch.optim` optimizer of the same name.

    The new parameter is `p - lr * d`; a subclass defines the direction `d` of one parameter,
    or the whole `step`. Parameters
    in half precision are updated in float32 and rounded once; their state is float32. In float16, whose
    largest number is 65504, the slope `1 / eps` at a zero gradient overflows. Therefore, gradient entries
    of exactly 0 are constants for the outer gradient in float16. The state of each parameter counts its
    own updates, because a parameter that the loss does not use is skipped.

    Raises:
        TypeError: an option is unknown, or is neither a number nor an `nn.Parameter`.
        ValueError: an option is out of range.
    """

    decoupled = False  # whether weight decay is applied to the parameter instead of the gradient
    adaptive = True  # whether the direction is a quotient; its slope at a zero gradient is about 1 / eps
    weight_decay: Number

    def __init__(self, unknown: Mapping[str, Any]) -> None:
        super().__init__()
        self.check_unknown(unknown)

    @classmethod
    def check_unknown(cls, unknown: Mapping[str, Any]) -> None:
        """Raise a TypeError if there are unknown keyword arguments."""
        if unknown:
            lr = (
                " The learning rate is an argument of the adapter: Gradient(lr=...)."
                if "lr" in unknown
                else ""
            )
            names = ", ".join(cls._defaults())
            raise TypeError(
                f"{cls.__name__} has no option {', '.join(unknown)}; its options are {names}.{lr}"
            )

    def set_option(
        self,
        name: str,
        value: Any,
        *,
        least: float = 0.0,
        most: float = float("inf"),
        below: float = float("inf"),
    ) -> None:
        """Check an option and set it as an attribute. An `nn.Parameter` becomes a parameter of the rule."""
        rule = type(self).__name__
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"{rule}: {name} has shape {list(value.shape)}; an option must be one number."
                )
            if value.requires_grad and not isinstance(value, nn.Parameter):
                raise TypeError(
                    f"{rule}: {name} is a tensor with requires_grad=True but not an nn.Parameter, so its"
                    f" .grad would stay None; pass {name}=nn.Parameter(...) to learn it, or a number."
                )
        elif not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(
                f"{rule}: {name}={value!r} is a {type(value).__name__}; pass a number, or an nn.Parameter"
                " to learn it."
            )
        number = float(value.detach()) if isinstance(value, Tensor) else float(value)
        if not (least <= number < below and number <= most):
            bounds = [f"at least {least:g}"] if least > -float("inf") else ["finite"]
            bounds += [f"at most {most:g}"] if most < float("inf") else []
            bounds += [f"less than {below:g}"] if below < float("inf") else []
            raise ValueError(
                f"{rule}: {name}={number:g} is out of range; it must be {' and '.join(bounds)}."
            )
        setattr(self, name, value if isinstance(value, nn.Parameter) else number)

    def set_betas(self, betas: Any) -> None:
        """Set the options `beta1` and `beta2`."""
        if isinstance(betas, Tensor) or not hasattr(betas, "__len__") or len(betas) != 2:
            raise TypeError(
                f"{type(self).__name__}: betas={betas!r}; pass a pair of numbers, such as"
                " betas=(0.9, 0.999)."
            )
        for name, beta in zip(("beta1", "beta2"), betas):
            self.set_option(name, beta, below=1.0)

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def __repr__(self) -> str:
        options = []
        for name, default in self._defaults().items():
            value = (
                (self.beta1, self.beta2) if name == "betas" else getattr(self, _ATTRIBUTES.get(name, name))
            )
            values = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, Tensor) for part in values) or value != default:
                texts = [f"Parameter({p.item():.4g})" if isinstance(p, Tensor) else repr(p) for p in values]
                is_tuple = isinstance(value, tuple)
                options.append(f"{name}=({', '.join(texts)})" if is_tuple else f"{name}={texts[0]}")
        return f"{type(self).__name__}({', '.join(options)})"

    @property
    def decays(self) -> bool:
        return active(self.weight_decay)

    def init(self, params: Params) -> OptState:
        """The initial state of every parameter, `{name: {slot: tensor}}`."""
        return {name: self.init_slots(_accumulated(param.detach())) for name, param in params.items()}

    def update(
        self, params: Params, gradients: Params, opt_state: OptState, lr: Rates, k: Tensor
    ) -> tuple[Params, OptState]:
        new_params, new_state = dict(params), dict(opt_state)
        for name, param in params.items():
            if name not in gradients:
                continue
            if self.adaptive and param.is_complex():
                raise TypeError(
                    f"{type(self).__name__} compares real numbers, but {name} is complex; use SGD, or store"
                    " real and imaginary parts in one real parameter [..., 2] and call"
                    " torch.view_as_complex in the forward pass."
                )
            value, gradient = _accumulated(param), gradients[name]
            if self.adaptive and gradient.dtype == torch.float16:
                gradient = torch.where(gradient == 0, gradient.detach(), gradient)
            gradient = _accumulated(gradient)
            if self.decays and not self.decoupled:
                gradient = gradient + self.weight_decay * value
            slots = opt_state[name]
            new_value, new_slots = self.step(value, gradient, slots, lr[name])
            # A learned option may have a higher precision than the parameter.
            new_state[name] = {slot: tensor.to(slots[slot].dtype) for slot, tensor in new_slots.items()}
            new_params[name] = new_value.to(param.dtype)
        return new_params, new_state

    def step(
        self, value: Tensor, gradient: Tensor, slots: Slots, lr: float | Tensor
    ) -> tuple[Tensor, Slots]:
        """The next value of one parameter, and its new state: `p - lr * d` with its `direction`."""
        direction, new_slots = self.direction(gradient, slots)
        if self.decays and self.decoupled:
            direction = direction + self.weight_decay * value
        return descended(value, direction, lr), new_slots

    @abstractmethod
    def init_slots(self, param: Tensor) -> Slots:
        """The state of one parameter before its first update."""

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        """The update direction of one parameter, and its new state; unless `step` is defined."""
        raise NotImplementedError(f"{type(self).__name__} defines neither direction nor step.")


_ATTRIBUTES = {"decoupled_weight_decay": "decoupled"}


def active(option: Number) -> bool:
    """Whether an option has an effect: always if it is learned; if it is a number, unless it is 0."""
    return isinstance(option, Tensor) or option != 0


def descended(value: Tensor, direction: Tensor, lr: float | Tensor) -> Tensor:
    """`value - lr * direction`."""
    if isinstance(lr, Tensor):
        return value - lr * direction
    return value.add(direction, alpha=-lr)  # one operation; the backward pass of sub(alpha=lr) takes two


def average(old: Tensor, new: Tensor, decay: Number) -> Tensor:
    """The exponential moving average `decay * old + (1 - decay) * new`."""
    return decay * old + (1 - decay) * new


def root(x: Tensor) -> Tensor:
    """`sqrt(x)` for `x > 0`; for `x <= 0`, 0 with derivative 0.

    The gradient of a dead unit is exactly 0, and so is the average of its squares. At 0, the derivative of
    the root is infinite and the chain rule multiplies it by 0; the limit of the product is 0.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`; where the denominator is 0, 0 with derivative 0."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def zero_count(param: Tensor) -> Tensor:
    """The number of updates before the first one, 0, as a tensor.

    Its dtype is float64 if the device supports it, because `1 - beta ** count` is a small difference.
    """
    dtype = torch.float32 if param.device.type == "mps" else torch.float64
    return torch.zeros((), dtype=dtype, device=param.device)


def bias_correction(beta: Number, count: Tensor) -> Tensor:
    """`1 - beta ** count`, the total weight of the terms of an exponential moving average."""
    return 1 - beta**count


def _accumulated(tensor: Tensor) -> Tensor:
    """The tensor in the precision of the update, float32 or higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
