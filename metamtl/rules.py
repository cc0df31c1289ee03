"""Update rules of an inner loop: where a step goes, given the gradient.

`Gradient(5, lr=0.01, rule=rules.Adam(betas=(0.9, 0.99)))`. But for `Descent` they are torch's own, by its
functional implementations, and take the options of the optimizer of that name, `lr` apart, which is
`Gradient`'s. What a rule carries from step to step (momentum, averages of squares) is differentiated too,
unlike in `torch.optim`.

A root at zero. Where a gradient is exactly 0 (a dead rectifier, an unused row), an average of its squares
is 0, and the root's derivative there infinite: times 0, not a number. So averages of squares under a root
are kept at 1e-30 at least, which moves no parameter and gives the derivative its limit. Where the rule is
steep it stays steep: from rest, Adam's first step is `g / (|g| + eps)`, of slope `1 / eps` at 0.

Not here: `Rprop` and `ASGD`, which are not linear in the step size (nor can vmap run `Rprop`'s masks);
`Adafactor`, which reads norms as Python numbers; `SparseAdam`, `LBFGS`, `Muon`, which want something else
than a dense gradient of every parameter.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adadelta import adadelta
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamax import adamax
from torch.optim.adamw import adamw
from torch.optim.nadam import nadam
from torch.optim.radam import radam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .functional import Params

Rates = Mapping[str, float | Tensor]
Memory = Any  # tensors in any nesting of tuples and dicts
RESERVED = {"lr", "params", "foreach", "fused", "capturable", "differentiable"}
OPTIONAL = {"grad_avgs": "centered", "max_exp_avg_sqs": "amsgrad", "momentum_buffer_list": "momentum"}
LEAST = 1e-30


class Rule(ABC):
    """An update rule; pure, and linear in the step size.

    Linear, so that a step size may be anything that multiplies: a number, a learned number, a learned
    tensor of the parameter's shape.
    """

    @property
    def weight_decay(self) -> float:
        """By how much it pulls the parameters to 0, whatever the gradient."""
        return 0.0

    @abstractmethod
    def begin(self, params: Params) -> Memory:
        """What the rule carries from step to step, before the first."""

    @abstractmethod
    def step(
        self, params: Params, gradients: Params, memory: Memory, rates: Rates, k: Tensor
    ) -> tuple[Params, Memory]:
        """The parameters and the memory after step `k`, an int64 tensor without axes, counted from 0."""


class Descent(Rule):
    """`p - lr * g`."""

    def __repr__(self) -> str:
        return "Descent()"

    def begin(self, params: Params) -> Memory:
        return ()

    def step(
        self, params: Params, gradients: Params, memory: Memory, rates: Rates, k: Tensor
    ) -> tuple[Params, Memory]:
        return {name: param - rates[name] * gradients[name] for name, param in params.items()}, ()


class Torch(Rule):
    """One of torch's rules: `p + lr * (function(p; lr=1) - p)`, the function run on copies.

    Raises:
        ValueError, TypeError: options that torch refuses, and those that are not the rule's to choose.
    """

    optimizer: ClassVar[type[torch.optim.Optimizer]]
    function: ClassVar[Callable[..., None]]
    slots: ClassVar[tuple[str, ...]]  # what is carried, by the function's arguments for it
    squares: ClassVar[str] = ""  # of these, the one under a root

    def __init__(self, **options: Any) -> None:
        wrong = RESERVED & options.keys()
        if wrong:
            raise ValueError(
                f"{type(self).__name__} takes no {', '.join(sorted(wrong))} here: the step size is given to"
                " Gradient as lr=, and how the rule is computed is not a choice."
            )
        self.given = options
        found = dict(self.optimizer([torch.zeros(1)], lr=1.0, **options).defaults)  # type: ignore[call-arg]
        if "betas" in found:
            found["beta1"], found["beta2"] = found.pop("betas")
        if self.squares and 0.0 in (found.get("beta2"), found.get("alpha")):
            raise ValueError(
                f"{self}: an average of squares that forgets at once is g**2, whose root has no derivative"
                " at g = 0; take a small number instead of 0."
            )
        fixed = {"lr": 1.0, "foreach": False, "fused": False, "differentiable": True}
        self.takes = inspect.signature(self.function).parameters.keys()
        self.all = found
        self.options = {name: value for name, value in {**found, **fixed}.items() if name in self.takes}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in self.given.items())})"

    @property
    def weight_decay(self) -> float:
        return float(self.all["weight_decay"])

    def begin(self, params: Params) -> Memory:
        return {
            slot: {name: self.first(slot, param.detach()) for name, param in params.items()}
            for slot in self.slots
            if slot not in OPTIONAL or self.all[OPTIONAL[slot]]
        }

    def first(self, slot: str, param: Tensor) -> Tensor:
        """What is carried for a parameter before the first step."""
        return torch.zeros_like(param)

    def step(
        self, params: Params, gradients: Params, memory: Memory, rates: Rates, k: Tensor
    ) -> tuple[Params, Memory]:
        # The functions write in place: into copies, which vmap has batched wherever gradients are.
        def copy(name: str, tensor: Tensor) -> Tensor:
            gradient = gradients[name]
            alike = tensor.shape == gradient.shape
            return tensor + torch.zeros_like(gradient) if alike else tensor.clone()

        moved = [copy(name, param) for name, param in params.items()]
        lists: dict[str, list[Tensor]] = {slot: [] for slot in self.slots}
        for slot, carried in memory.items():
            if slot == self.squares:
                carried = {name: tensor.clamp(min=LEAST) for name, tensor in carried.items()}
            lists[slot] = [copy(name, carried[name]) for name in params]
        if "state_steps" in self.takes:
            # In double precision, for 1 - beta**step is a small difference.
            dtype = torch.float32 if k.device.type == "mps" else torch.float64
            lists["state_steps"] = [k.to(dtype, copy=True) for _ in moved]
        with _Traceable():
            type(self).function(moved, [gradients[name] for name in params], **lists, **self.options)
        new = {n: p + rates[n] * (to - p) for (n, p), to in zip(params.items(), moved)}
        return new, {slot: dict(zip(params, lists[slot])) for slot in memory}


class _Traceable(TorchFunctionMode):
    """Torch's rules without what vmap runs task by task, and what waits for a value on the device.

    In-place operations that vmap cannot batch are replaced by their out-of-place forms, and the count of
    steps stays a tensor, so that one trace serves every step.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "item":
            return args[0]
        if name == "addcdiv_":
            moved, numerator, denominator = args
            return moved.copy_(moved + kwargs.get("value", 1) * (numerator / denominator))
        if name in ("addcmul_", "lerp_"):
            return args[0].copy_(getattr(torch, name[:-1])(*args, **kwargs))
        return func(*args, **kwargs)


class SGD(Torch):
    """Momentum: `m = momentum * m + g`, `p - lr * m`; options `dampening`, `nesterov`, `weight_decay`.

    >>> SGD(momentum=0.9, nesterov=True)
    SGD(momentum=0.9, nesterov=True)
    """

    optimizer, function = torch.optim.SGD, staticmethod(sgd)
    slots = ("momentum_buffer_list",)

    def step(
        self, params: Params, gradients: Params, memory: Memory, rates: Rates, k: Tensor
    ) -> tuple[Params, Memory]:
        found = super().step(params, gradients, memory, rates, k)
        if not (memory and self.options["dampening"]):
            return found
        # The first step is not dampened.
        plain = SGD(**{**self.given, "dampening": 0.0})
        first = plain.step(params, gradients, memory, rates, k)
        return tree_map(lambda then, now: torch.where(k == 0, then, now), first, found)


class Adam(Torch):
    """`torch.optim.Adam`: options `betas`, `eps`, `weight_decay`, `amsgrad`.

    >>> Adam(betas=(0.0, 0.999))
    Adam(betas=(0.0, 0.999))
    """

    optimizer, function = torch.optim.Adam, staticmethod(adam)
    squares = "exp_avg_sqs"
    slots = ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")


class AdamW(Torch):
    """`torch.optim.AdamW`: as `Adam`, with `weight_decay` (0.01 unless given) apart from the gradient."""

    optimizer, function = torch.optim.AdamW, staticmethod(adamw)
    squares = "exp_avg_sqs"
    slots = Adam.slots


class NAdam(Torch):
    """`torch.optim.NAdam`: options `betas`, `eps`, `weight_decay`, `momentum_decay`."""

    optimizer, function = torch.optim.NAdam, staticmethod(nadam)
    squares = "exp_avg_sqs"
    slots = ("exp_avgs", "exp_avg_sqs", "mu_products")

    def first(self, slot: str, param: Tensor) -> Tensor:
        return param.new_ones(()) if slot == "mu_products" else torch.zeros_like(param)


class RAdam(Torch):
    """`torch.optim.RAdam`: options `betas`, `eps`, `weight_decay`.

    It looks at the count of steps to choose its form, which `engines.Compiled` leaves to `Vmap`.
    """

    optimizer, function = torch.optim.RAdam, staticmethod(radam)
    squares = "exp_avg_sqs"
    slots = ("exp_avgs", "exp_avg_sqs")


class Adamax(Torch):
    """`torch.optim.Adamax`: options `betas`, `eps`, `weight_decay`."""

    optimizer, function = torch.optim.Adamax, staticmethod(adamax)
    slots = ("exp_avgs", "exp_infs")


class RMSprop(Torch):
    """`torch.optim.RMSprop`: options `alpha`, `eps`, `weight_decay`, `momentum`, `centered`."""

    optimizer, function = torch.optim.RMSprop, staticmethod(rmsprop)
    squares = "square_avgs"
    slots = ("square_avgs", "grad_avgs", "momentum_buffer_list")


class Adagrad(Torch):
    """`torch.optim.Adagrad`: options `lr_decay`, `eps`, `weight_decay`, `initial_accumulator_value`."""

    optimizer, function = torch.optim.Adagrad, staticmethod(adagrad)
    squares = "state_sums"
    slots = ("state_sums",)

    def first(self, slot: str, param: Tensor) -> Tensor:
        return torch.full_like(param, self.all["initial_accumulator_value"])


class Adadelta(Torch):
    """`torch.optim.Adadelta`: options `rho`, `eps`, `weight_decay`."""

    optimizer, function = torch.optim.Adadelta, staticmethod(adadelta)
    slots = ("square_avgs", "acc_deltas")
