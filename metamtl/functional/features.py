"""Features of a model: the output of one of its modules, or of a function of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .call import forward
from .select import Params
from .split import stages_of

Features = str | Callable[[nn.Module, Any], Tensor] | None


@dataclass(frozen=True)
class _Call:
    """`function(model, x)`, as a stage of `functional.forward`."""

    function: Callable[[nn.Module, Any], Tensor]
    model: nn.Module

    def __call__(self, x: Any) -> Tensor:
        return self.function(self.model, x)


@dataclass(frozen=True)
class _Capture:
    """The output of the module `function` during a forward pass of the model."""

    function: nn.Module
    model: nn.Module
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        outputs: list[Tensor] = []

        def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs.append(output)

        handle = self.function.register_forward_hook(record)
        try:
            self.model(*args, **kwargs)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise ValueError(
                f"features={self.name!r}: the forward pass of {type(self.model).__name__} calls this module"
                f" {len(outputs)} times, so it has no unique output; name a module that is called once, or"
                " pass a function (model, x) -> features."
            )
        return outputs[0]


def check_features(model: nn.Module, features: Features) -> None:
    """Reject `features` that name no module of the model (ValueError) or have another type (TypeError)."""
    if not (features is None or isinstance(features, str) or callable(features)):
        raise TypeError(
            f"features={features!r}; pass the name of a module, a function (model, x) -> features, or None"
            " for the output of the model."
        )
    if isinstance(features, str) and features not in dict(model.named_modules(remove_duplicate=False)):
        tops = ", ".join(repr(name) for name, _ in model.named_children())
        kind = type(model).__name__
        raise ValueError(f"features={features!r} names no module of {kind}; it has {tops}.")


def features_of(
    model: nn.Module, params: Params, x: Any, features: Features, task: Any = None, **call: Any
) -> Tensor:
    """The features of `x`, `[B, F]`, with `params` instead of the model's own parameters.

    Args:
        features: the name of a module, whose output in a forward pass of the model is used; a function
            `(model, x) -> features`; or None for the output of the model. A module that the model applies
            first, such as the `body` of `nets.conv4`, is called alone.
        task: the name of the task; None if it has none.
        call: further arguments of `functional.forward`.

    Raises:
        ValueError: the features are not one vector for each example.
    """
    if features is None:
        values = forward(model, params, x, task, **call)
    elif isinstance(features, str) and not _comes_first(model, features):
        capture = _Capture(model.get_submodule(features), model, features)
        values = forward(model, params, x, task, stages=(capture,), **call)
    else:
        stage = model.get_submodule(features) if isinstance(features, str) else _Call(features, model)
        values = forward(model, params, x, stages=(stage,), **call)
    if not isinstance(values, Tensor) or values.dim() != 2:
        kind = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"features={features!r}: the features have {kind}, but a vector for each example, [B, F], is"
            " needed; name a later module (after pooling or flattening), or pass a function"
            " (model, x) -> features."
        )
    return values


def _comes_first(model: nn.Module, name: str) -> bool:
    """Whether the forward pass applies this module to the inputs of the model."""
    if model._forward_hooks or model._forward_pre_hooks:
        return False
    for part in name.split("."):
        if stages_of(model)[:1] != (part,):
            return False
        model = model.get_submodule(part)
    return True
