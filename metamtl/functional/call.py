"""Calling a module with substituted parameters, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .decompositions import PACKED, TWICE, DecomposeOps
from .differentiate import in_transform
from .inputs import Inputs
from .preflight import preflight
from .recomputation import SubstitutedRecomputation, uses_checkpoints
from .select import Params, canonical_names
from .structure import RECURRENT_STATE, Structure, attributes, holder, restore_attributes, structure_of


def forward(
    model: nn.Module,
    params: Params,
    x: Any,
    task: Any = None,
    *,
    structure: Structure | None = None,
    second_order: bool = False,
    stages: tuple[nn.Module, ...] | None = None,
    leftovers: tuple[tuple[nn.Module, str], ...] = (),
) -> Any:
    """Output of `model` on `x` with `params` in place of its own; they may name buffers too.

    A tuple is passed as positional arguments, a mapping as keywords, `Inputs` as both, anything else as
    the only argument. If `task` is a string (a named task, or a tuple of names) the model receives it as
    `task=` and chooses its head; task ids of few-shot episodes stay with the adapter.

    The model is left as it was: its parameters, its buffers (BatchNorm's running statistics, counters) and
    the attributes that its forward pass sets.

    Args:
        structure: of the model, if the caller has it already.
        second_order: whether the result is differentiated twice; layers whose fused kernel has no second
            derivative are decomposed.
        stages: submodules to apply one after the other, instead of the whole model.
        leftovers: attributes that the forward pass sets, which compiled code restores.

    Raises:
        ValueError: `params` has a name that the model does not have.
        RuntimeError: the model writes a parameter in place; under vmap, it writes a buffer that would have
            other values for every task, or reads values.
        NotImplementedError: the model has an operation without the second derivative that is needed.
    """
    args, kwargs = _arguments(x)
    if is_name(task):
        kwargs = {**kwargs, "task": task}
    structure = structure_of(model) if structure is None else structure
    if torch.compiler.is_compiling():
        return _call_compiled(model, structure, params, args, kwargs, stages, leftovers)
    transformed = in_transform()
    whole = not (is_name(task) or stages)  # a named task uses its own head only
    look = preflight(model, params, twice=second_order, whole=whole, stages=stages)
    checkpoints = not transformed and (look is not None or uses_checkpoints(model))

    @contextmanager
    def same_pass() -> Iterator[None]:
        decomposition = _decomposition(structure, transformed, second_order) or nullcontext()
        with decomposition, substituted(model, structure, params):
            yield

    contexts: tuple[AbstractContextManager[Any] | None, ...] = (
        look,
        SubstitutedRecomputation(model, same_pass) if checkpoints else None,
        _no_autocast_cache()
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        else None,
        _decomposition(structure, transformed, second_order),
    )
    if any(context is not None for context in contexts):
        with ExitStack() as stack:
            check, *_ = [None if c is None else stack.enter_context(c) for c in contexts]
            output = _substituted_call(model, structure, params, stages, args, kwargs, transformed)
            if check is not None:
                check(output)
            return output
    return _substituted_call(model, structure, params, stages, args, kwargs, transformed)


def _substituted_call(
    model: nn.Module,
    structure: Structure,
    params: Params,
    stages: tuple[nn.Module, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    transformed: bool,
) -> Any:
    before = _substitute(model, structure, params)
    try:
        return _apply(model, stages, args, kwargs)
    except RuntimeError as error:
        reason = _under_vmap(model, str(error)) if transformed else None
        if reason is None:
            raise
        raise RuntimeError(reason) from error
    finally:
        _put_back(structure, before)


def _apply(
    model: nn.Module, stages: tuple[nn.Module, ...] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if stages is None:
        return model(*args, **kwargs)
    (x,) = args
    for stage in stages:
        x = stage(x)
    return x


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, Inputs):
        return x.args, dict(x.kwargs)
    if isinstance(x, Mapping):
        return (), dict(x)
    return (x if isinstance(x, tuple) else (x,)), {}


@contextmanager
def substituted(model: nn.Module, structure: Structure, params: Params) -> Iterator[None]:
    """Within it, `model` holds `params`, and copies of its other buffers; afterwards it is as before."""
    before = _substitute(model, structure, params)
    try:
        yield
    finally:
        _put_back(structure, before)


class _Before(NamedTuple):
    """What a model held before a substitution."""

    tensors: list[Tensor | None]
    attributes: list[tuple[dict[str, Any], list[tuple[Any, Any]]]]
    numbers: list[int]
    flat_weights: list[list[Any]]


def _substitute(model: nn.Module, structure: Structure, params: Params) -> _Before:
    values = _values(model, structure, params)
    before = _Before(
        [holder(slot)[slot.key] for slot in structure.slots],
        [attributes(module) for module in structure.custom],
        [len(vars(module)) for module in structure.plain],
        [[getattr(module, name, None) for name in RECURRENT_STATE] for module in structure.recurrent],
    )
    for slot, value in zip(structure.slots, values):
        holder(slot)[slot.key] = value
    for layer in structure.recurrent:
        _hold_flat_weights(layer)
    return before


def _put_back(structure: Structure, before: _Before) -> None:
    # A tensor that a forward pass registers in place of its own (spectral norm does) is restored too.
    for slot, original in zip(structure.slots, before.tensors):
        holder(slot)[slot.key] = original
    for module, (own, contents) in zip(structure.custom, before.attributes):
        restore_attributes(module, own, contents)
    for module, number in zip(structure.plain, before.numbers):
        while len(vars(module)) > number:  # an added attribute is the last
            vars(module).popitem()
    for layer, kept in zip(structure.recurrent, before.flat_weights):
        vars(layer).pop("flatten_parameters", None)
        for name, state in zip(RECURRENT_STATE, kept):
            if state is not None:
                vars(layer)[name] = state


def _call_compiled(
    model: nn.Module,
    structure: Structure,
    params: Params,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    stages: tuple[nn.Module, ...] | None,
    leftovers: tuple[tuple[nn.Module, str], ...],
) -> Any:
    """The same in a form that torch.compile traces."""
    before = [holder(slot)[slot.key] for slot in structure.slots]
    for slot in structure.slots:
        value = params.get(slot.name)
        if value is None:
            value = holder(slot)[slot.key]
            value = value.clone() if slot.is_buffer and value is not None else value
        holder(slot)[slot.key] = value
    flat = [module._flat_weights for module in structure.recurrent]
    for layer in structure.recurrent:
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
    attributes = [(hasattr(module, key), getattr(module, key, None)) for module, key in leftovers]
    for (module, key), (_, original) in zip(leftovers, attributes):
        if original is not None and type(original) in (list, dict, set):  # the pass writes into a copy
            setattr(module, key, original.copy())
    if structure.fused:
        with DecomposeOps():
            output = _apply(model, stages, args, kwargs)
    else:
        output = _apply(model, stages, args, kwargs)
    for slot, original in zip(structure.slots, before):
        holder(slot)[slot.key] = original
    for layer, weights in zip(structure.recurrent, flat):
        layer._flat_weights = weights
    for (module, key), (existed, original) in zip(leftovers, attributes):
        if existed:
            setattr(module, key, original)
        else:
            delattr(module, key)
    return output


def _values(model: nn.Module, structure: Structure, params: Params) -> list[Tensor | None]:
    """What each slot holds during a call; a tensor with several slots is one object in all of them."""
    copies: dict[str, Tensor] = {}
    values: list[Tensor | None] = []
    taken: set[str] = set()
    for slot in structure.slots:
        name, value = slot.name, params.get(slot.name)
        if value is not None:
            taken.add(name)
        elif slot.is_buffer:
            value = copies.get(name)
            if value is None:
                original = slot.module._buffers[slot.key]
                assert original is not None
                value = copies[name] = original.clone()
        else:
            value = slot.module._parameters[slot.key]
        values.append(value)
    if len(taken) < len(params):
        return _values(model, structure, _with_first_names(model, params, taken))
    return values


def _with_first_names(model: nn.Module, params: Params, taken: set[str]) -> Params:
    """`params`, some of whose names are second names of tied tensors."""
    canonical = canonical_names(model)
    result = {name: params[name] for name in taken}
    for name, value in params.items():
        first = canonical.get(name)
        if first is None:
            raise ValueError(
                f"{type(model).__name__} has no parameter or buffer {name!r}; it has"
                f" {', '.join(list(canonical)[:10])}."
            )
        if first != name and first in params and params[first] is not value:
            raise ValueError(
                f"{name!r} and {first!r} are the same tensor in {type(model).__name__}, but two different"
                f" values are given; give {first!r} alone, or untie them."
            )
        result[first] = value
    return result


def _hold_flat_weights(module: nn.RNNBase) -> None:
    """A recurrent layer reads its weights from a list: put those that it holds now into it."""
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    # cuDNN would move the weights in memory by addresses, which tensors inside a transform do not have.
    module.flatten_parameters = lambda: None  # type: ignore[method-assign]


def _decomposition(structure: Structure, transformed: bool, second_order: bool) -> Any:
    if not structure.fused or not (transformed or second_order):
        return None
    if transformed:
        return DecomposeOps()
    return DecomposeOps({**PACKED, **TWICE})


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Autocast would keep its copies of all adapted weights until its context ends, and stale ones too."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def is_name(task: Any) -> bool:
    """Whether `task` names one task, or several, rather than giving ids."""
    return isinstance(task, str) or (
        isinstance(task, tuple) and bool(task) and all(isinstance(name, str) for name in task)
    )


def _under_vmap(model: nn.Module, message: str) -> str | None:
    """What torch's message about vmap means for a model and its tasks; None for other errors."""
    if "vmap: It looks like you're" in message:
        does = "reads tensor values in forward() (an `if`, `.item()`, packing sequences by their lengths)"
        cure = "use engine=Loop()"
    elif "is not possible because there exists a Tensor" in message or "doesn't work on out=" in message:
        buffers = ", ".join(repr(name) for name, _ in model.named_buffers())
        does = f"writes in place into a tensor that all tasks share (its buffers are {buffers or 'none'})"
        cure = "use engine=Loop(), or model.eval() if it writes in training mode only"
    elif "to use channels_last format" in message:
        does = "lays a tensor out channels-last"
        cure = "use engine=Loop(), or give the images in that layout"
    else:
        return None
    return f"{type(model).__name__} {does}, which vmap does not support; {cure}."
