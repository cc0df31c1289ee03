"""Substituting the parameters and buffers of a module, and restoring the module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from .select import ADAPTER_VALUE, Params, canonical_names
from .structure import RECURRENT_STATE, Structure, attributes, holder, restore_attributes


@contextmanager
def substituted(model: nn.Module, structure: Structure, params: Params) -> Iterator[None]:
    """Context manager in which `model` has `params` and copies of its other buffers; restored on exit."""
    original = substitute(model, structure, params)
    try:
        yield
    finally:
        restore(structure, original)


class Original(NamedTuple):
    """The state of a model before a substitution."""

    tensors: list[Tensor | None]
    attributes: list[tuple[dict[str, Any], list[tuple[Any, Any]]]]
    numbers: list[int]
    flat_weights: list[list[Any]]


def substitute(model: nn.Module, structure: Structure, params: Params) -> Original:
    values = _values(model, structure, params)
    original = Original(
        [holder(slot)[slot.key] for slot in structure.slots],
        [attributes(module) for module in structure.custom],
        [len(vars(module)) for module in structure.plain],
        [[getattr(module, name, None) for name in RECURRENT_STATE] for module in structure.recurrent],
    )
    for slot, value in zip(structure.slots, values):
        holder(slot)[slot.key] = value
    for layer in structure.recurrent:
        _set_flat_weights(layer)
    return original


def restore(structure: Structure, original: Original) -> None:
    # This also restores a tensor that the forward pass itself has replaced, as spectral norm does.
    for slot, tensor in zip(structure.slots, original.tensors):
        holder(slot)[slot.key] = tensor
    for module, (own, contents) in zip(structure.custom, original.attributes):
        restore_attributes(module, own, contents)
    for module, number in zip(structure.plain, original.numbers):
        while len(vars(module)) > number:  # new attributes are the last entries
            vars(module).popitem()
    for layer, states in zip(structure.recurrent, original.flat_weights):
        vars(layer).pop("flatten_parameters", None)
        for name, state in zip(RECURRENT_STATE, states):
            if state is not None:
                vars(layer)[name] = state


def _values(model: nn.Module, structure: Structure, params: Params) -> list[Tensor | None]:
    """The tensor of each slot during a call. A tied tensor is the same object in all of its slots."""
    copies: dict[str, Tensor] = {}
    values: list[Tensor | None] = []
    used_names: set[str] = set()
    for slot in structure.slots:
        name, value = slot.name, params.get(slot.name)
        if value is not None:
            used_names.add(name)
        elif slot.is_buffer:
            value = copies.get(name)
            if value is None:
                original = slot.module._buffers[slot.key]
                assert original is not None
                value = copies[name] = original.clone()
        else:
            value = slot.module._parameters[slot.key]
        values.append(value)
    if len(used_names) < len(params):
        return _values(model, structure, _with_first_names(model, params, used_names))
    return values


def _with_first_names(model: nn.Module, params: Params, used_names: set[str]) -> Params:
    """`params`, with the other names of tied tensors replaced by their first names."""
    canonical = canonical_names(model)
    result = {name: params[name] for name in used_names}
    for name, value in params.items():
        if name.startswith(ADAPTER_VALUE):
            continue
        first = canonical.get(name)
        if first is None:
            raise ValueError(
                f"{type(model).__name__} has no parameter or buffer {name!r}; it has"
                f" {', '.join(list(canonical)[:10])}."
            )
        if first != name and first in params and params[first] is not value:
            raise ValueError(
                f"{name!r} and {first!r} are the same tensor in {type(model).__name__}, but have different"
                f" values in params; pass only {first!r}, or untie them."
            )
        result[first] = value
    return result


def _set_flat_weights(module: nn.RNNBase) -> None:
    """Update the list from which a recurrent layer reads its weights."""
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    # For cuDNN, flatten_parameters uses memory addresses, which tensors inside a transform do not have.
    module.flatten_parameters = lambda: None  # type: ignore[method-assign]
