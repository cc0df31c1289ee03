"""Take over an optimizer of torch as the update rule of an inner loop."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adafactor import Adafactor
from .adam import Adam, AdamW
from .adam_variants import Adamax, NAdam, RAdam
from .base import Slots, TorchRule
from .groups import Groups
from .muon import Muon
from .root_mean_square import Adadelta, Adagrad, RMSprop
from .sgd import SGD
from .step_sizes import ASGD, Rprop

# The names of torch's state for the slots of our rules.
_MOMENTS = {"count": "step", "mean": "exp_avg", "square": "exp_avg_sq"}
_STATE: dict[type[TorchRule], dict[str, str]] = {
    ASGD: {"count": "step", "eta": "eta"},
    Adadelta: {"square": "square_avg", "step_square": "acc_delta"},
    Adafactor: {"count": "step", "row": "row_var", "column": "col_var", "square": "variance"},
    Adagrad: {"count": "step", "sum": "sum"},
    Adam: {**_MOMENTS, "largest": "max_exp_avg_sq"},
    AdamW: {**_MOMENTS, "largest": "max_exp_avg_sq"},
    Adamax: {"count": "step", "mean": "exp_avg", "largest": "exp_inf"},
    Muon: {"mean": "momentum_buffer"},
    NAdam: {**_MOMENTS, "product": "mu_product"},
    RAdam: _MOMENTS,
    RMSprop: {"square": "square_avg", "mean": "grad_avg", "momentum": "momentum_buffer"},
    Rprop: {"count": "step", "previous": "prev", "size": "step_size"},
    SGD: {"momentum": "momentum_buffer"},
}


class TakenOver(NamedTuple):
    """The arguments of `Gradient` that continue an optimizer: `Gradient(K, **taken._asdict())`.

    Attributes:
        rule: the update rules of the parameter groups, with the state of the optimizer.
        lr: the learning rate of each parameter by name.
        adapts: the names of the parameters of the optimizer.
    """

    rule: Groups
    lr: dict[str, float]
    adapts: tuple[str, ...]


def of(optimizer: torch.optim.Optimizer, model: nn.Module) -> TakenOver:
    """Take over a torch optimizer with its parameter groups, options and state (momentum, averages).

    The inner loop of every task starts from a copy of the optimizer's current state and computes the steps
    that `optimizer.step()` would compute. The optimizer itself does not change.

    Args:
        optimizer: one of torch's optimizers for which there is a rule.
        model: the model to which its parameters belong.

    Raises:
        TypeError: there is no rule for this class.
        ValueError: the optimizer maximizes, or has parameters that do not belong to the model.

    >>> from metamtl import adapters
    >>> model = nn.Linear(2, 1)
    >>> adapter = adapters.Gradient(5, **of(torch.optim.Adam(model.parameters(), lr=0.1), model)._asdict())
    """
    kinds = {rule.__name__: rule for rule in _STATE}
    name = type(optimizer).__name__
    if name not in kinds or type(optimizer) is not getattr(torch.optim, name):
        raise TypeError(f"no rule computes the steps of {name}; there are {', '.join(sorted(kinds))}.")
    kind = kinds[name]
    names = {id(param): key for key, param in model.named_parameters()}
    rules: dict[str, Any] = {}
    rates: dict[str, float] = {}
    states: dict[str, Slots] = {}
    for group in optimizer.param_groups:
        if group.get("maximize"):
            raise ValueError(f"{name} has maximize=True; negate the loss instead.")
        options = {key: group[key] for key in kind._defaults() if key in group}
        options = {k: v.item() if isinstance(v, Tensor) else v for k, v in options.items()}
        rule = kind(**options)
        for param in group["params"]:
            if id(param) not in names:
                raise ValueError(
                    f"a parameter of {name} with shape {list(param.shape)} does not belong to"
                    f" {type(model).__name__}; pass the model that the optimizer trains."
                )
            key = names[id(param)]
            rules[key], rates[key] = rule, float(group["lr"])
            state = optimizer.state.get(param)
            if state:
                states[key] = _slots(rule, param, state)
    return TakenOver(Groups(rules, states), rates, tuple(rules))


def _slots(rule: TorchRule, param: Tensor, state: dict[str, Any]) -> Slots:
    """The slots of our rule from the state of torch's optimizer."""
    slots: Slots = {}
    for slot, initial in rule.init_slots(param.detach()).items():
        value = state.get(_STATE[type(rule)].get(slot, ""))
        if isinstance(rule, SGD) and slot == "count":  # torch: the first gradient is not dampened
            value = torch.tensor(float(state.get("momentum_buffer") is not None))
        if value is None:
            slots[slot] = initial
            continue
        value = torch.as_tensor(value).detach().to(initial.device, initial.dtype)
        slots[slot] = value.expand(initial.shape).clone()
    if isinstance(rule, Adagrad):  # our sum is without the initial value
        slots["sum"] = slots["sum"] - torch.as_tensor(rule.initial_accumulator_value).detach()
    return slots
