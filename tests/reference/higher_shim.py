"""The functions of `higher` over `metamtl.unrolled`, to run code that is written for higher.

Run the test suite of higher (https://github.com/facebookresearch/higher, not part of this repository) from
a checkout; it needs the package `parameterized`:

    python -W ignore tests/reference/higher_shim.py <checkout>/tests [<seed>]

All 174 tests pass. Their data are random: `testDiffOptCallback` fails for 18 of the first 60 seeds, with
higher itself and for the same seeds. `test_higher_shim.py` runs inner loops with both.

Differs from higher in: 1. no call changes the buffers, whereas higher updates its copies; 2. there is no
`device` argument; 3. a differentiable optimizer needs an `fmodel`.
"""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from metamtl import rules, unrolled
from metamtl.functional import Params

Override = dict[str, list[Any]]
Callback = Callable[[list[Tensor | None]], Iterable[Tensor | None]]


class FunctionalModel:
    """`fmodel`: an unrolled model and its parameters after every update, as lists."""

    def __init__(self, model: nn.Module, params: Sequence[Tensor], track_higher_grads: bool = True) -> None:
        self.model, self.track_higher_grads = model, track_higher_grads
        self.names = [name for name, _ in model.named_parameters()]
        self.history = [list(params)]
        self.start(rules.Descent(), 0.0, None)

    def start(self, rule: rules.Rule, lr: Any, adapts: Any) -> None:
        self.unrolled = unrolled(
            self.model,
            rule,
            lr=lr,
            adapts=adapts,
            differentiable=self.track_higher_grads,
            params=dict(zip(self.names, self.history[-1])),
        )
        if not self.track_higher_grads:
            self.append(self.unrolled.params)

    def append(self, params: Params) -> None:
        values = [params[name] for name in self.names]
        self.history = [*self.history, values] if self.track_higher_grads else [values]

    @property
    def fast_params(self) -> list[Tensor]:
        return self.history[-1]

    @fast_params.setter
    def fast_params(self, params: Iterable[Tensor]) -> None:
        self.unrolled.params = dict(zip(self.names, params, strict=True))
        self.append(self.unrolled.params)

    def parameters(self, time: int | None = None) -> Iterator[Tensor]:
        return iter(self.history[-1 if time is None else time])

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self.names, self.history[-1])

    def __call__(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        if params is not None:
            self.fast_params = params
        return self.unrolled(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "unrolled":
            raise AttributeError(name)
        return getattr(self.unrolled, name)


class Overridden(rules.Rule):
    """The rules of an optimizer, with tensors as options, which need not be parameters."""

    def __init__(self, groups: rules.Groups) -> None:
        super().__init__()
        self.groups = groups
        self.options: Params = {}

    def override(self, rule: rules.Rule, option: str, value: Any) -> None:
        names = ("beta1", "beta2") if option == "betas" else (option,)
        for name, part in zip(names, value if option == "betas" else (value,)):
            if isinstance(part, Tensor):
                prefix = next(path for path, module in self.groups.named_modules() if module is rule)
                self.options[f"{prefix}.{name}"] = part
                part = nn.Parameter(part.detach().clone())
            if isinstance(part, nn.Parameter) != isinstance(getattr(rule, name), nn.Parameter):
                delattr(rule, name)
            rule.set_option(name, part)

    def init(self, params: Params) -> rules.OptState:
        return self.groups.init(params)

    def update(self, *args: Any) -> tuple[Params, rules.OptState]:
        return functional_call(self.groups, self.options, args, tie_weights=False)


class DifferentiableOptimizer:
    """`diffopt`: the rule of a torch optimizer, which updates a `FunctionalModel`."""

    def __init__(
        self,
        opt: torch.optim.Optimizer,
        fmodel: FunctionalModel,
        override: Override | None = None,
        grad_callback: Callback | None = None,
    ) -> None:
        self.fmodel, self.grad_callback = fmodel, grad_callback
        names = {id(param): name for name, param in fmodel.model.named_parameters()}
        self.groups = [[names[id(param)] for param in group["params"]] for group in opt.param_groups]
        taken = rules.of(opt, fmodel.model)
        self.rule, self.lr = Overridden(taken.rule), dict[str, Any](taken.lr)
        self.override(override or {})
        fmodel.start(self.rule, self.lr, taken.adapts)

    def override(self, options: Override) -> None:
        for option, values in options.items():
            for index, group in enumerate(self.groups):
                value = values[index] if len(values) > 1 else values[0]
                if option == "lr":
                    self.lr.update(dict.fromkeys(group, value))
                else:
                    groups = self.rule.groups
                    rule = groups.rules[groups.prefixes.index(group[0])]
                    self.rule.override(rule, option, value)

    def step(
        self,
        loss: Tensor,
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: Callback | None = None,
    ) -> list[Tensor]:
        fmodel, callback = self.fmodel, grad_callback or self.grad_callback
        if params is not None:
            fmodel.fast_params = params
        self.override(override or {})

        def by_name(grads: Params) -> Params:
            result = zip(fmodel.names, callback([grads.get(name) for name in fmodel.names]))
            return {name: grad for name, grad in result if grad is not None}

        fmodel.unrolled.step(loss, by_name if callback else None, lr=self.lr)
        fmodel.append(fmodel.unrolled.params)
        return fmodel.fast_params


def get_func_params(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone().requires_grad_(param.requires_grad) for param in model.parameters()]


def monkeypatch(
    model: nn.Module, copy_initial_weights: bool = True, track_higher_grads: bool = True
) -> FunctionalModel:
    params = get_func_params(model) if copy_initial_weights else list(model.parameters())
    return FunctionalModel(model, params, track_higher_grads)


def get_diff_optim(
    opt: torch.optim.Optimizer, reference_params: Iterable[Tensor], fmodel: FunctionalModel, **options: Any
) -> DifferentiableOptimizer:
    return DifferentiableOptimizer(opt, fmodel, **options)


def create_diff_optim(
    opt_type: type[torch.optim.Optimizer],
    opt_kwargs: dict[str, Any] | None = None,
    *,
    fmodel: FunctionalModel,
    **options: Any,
) -> DifferentiableOptimizer:
    opt = opt_type(fmodel.model.parameters(), **(opt_kwargs or {}))
    return DifferentiableOptimizer(opt, fmodel, **options)


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[FunctionalModel, DifferentiableOptimizer]]:
    fmodel = monkeypatch(model, copy_initial_weights, track_higher_grads)
    yield fmodel, DifferentiableOptimizer(opt, fmodel, override)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def get_trainable_opt_params(opt: torch.optim.Optimizer) -> Override:
    """The numeric options of an optimizer as tensors that require gradients, in the form of `override`."""
    result: Override = {}
    for group in opt.param_groups:
        for name, value in group.items():
            if name != "params" and all(map(_is_number, tree_leaves(value))):
                tensors = tree_map(lambda x: torch.tensor(float(x), requires_grad=True), value)
                result.setdefault(name, []).append(tensors)
    return result


def apply_trainable_opt_params(opt: torch.optim.Optimizer, override: Override) -> None:
    """Write the values of learned options into the parameter groups of an optimizer."""
    for name, values in override.items():
        for index, group in enumerate(opt.param_groups):
            value = values[index] if len(values) > 1 else values[0]
            group[name] = tree_map(lambda new, old: type(old)(new.item()), value, group[name])


def modules() -> dict[str, ModuleType]:
    """The modules `higher`, `higher.patch`, `higher.optim` and `higher.utils`, by name."""
    functions = {name: value for name, value in globals().items() if callable(value)}
    functions |= {"make_functional": monkeypatch, "flatten": tree_leaves}
    functions["_recursive_map"] = lambda tree, function: tree_map(function, tree)
    result = {}
    for name in ("higher", "higher.patch", "higher.optim", "higher.utils"):
        result[name] = ModuleType(name)
        vars(result[name]).update(functions)
    for name in ("patch", "optim", "utils"):
        setattr(result["higher"], name, result[f"higher.{name}"])
    return result


def main(folder: str, seed: int) -> int:
    """Run the tests in a folder with this module as `higher`; return the exit status."""
    sys.modules.update(modules())
    suite = unittest.defaultTestLoader.discover(folder)
    torch.manual_seed(seed)
    return 0 if unittest.TextTestRunner().run(suite).wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1))
