"""Functional calls of a module with substituted parameters, which leave the module unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from .attention import AUTOCAST
from .decompositions import REPLACED, TWICE, DecomposeOps, observed
from .differentiate import in_transform
from .inputs import Inputs
from .preflight import preflight
from .recomputation import SubstitutedRecomputation, uses_checkpoints
from .recurrent import PACKED
from .select import Params
from .structure import Structure, holder, structure_of
from .substitution import restore, substitute, substituted

Stage = Callable[..., Any]  # a submodule, or a function that calls modules of the model


def forward(
    model: nn.Module,
    params: Params,
    x: Any,
    task: Any = None,
    *,
    structure: Structure | None = None,
    second_order: bool = False,
    stages: tuple[Stage, ...] | None = None,
    leftovers: tuple[tuple[nn.Module, str], ...] = (),
) -> Any:
    """Compute the output of `model` on `x` with `params` instead of its own parameters and buffers.

    If `x` is a tuple, it is passed as positional arguments; a mapping as keyword arguments; `Inputs` as
    both; any other object as the only argument. If `task` is a name (or a tuple of names), the model
    receives it as `task=` and selects its head. Task ids of few-shot episodes are used by the adapter only.

    The model stays unchanged: its parameters, its buffers (running statistics of BatchNorm, counters) and
    the attributes that its forward pass sets.

    Args:
        structure: the structure of the model; if None, it is computed.
        second_order: whether the result is differentiated twice. Then layers whose fused kernels have no
            second derivative are decomposed.
        stages: submodules, or functions that call modules of the model, to apply one after the other,
            instead of the whole model.
        leftovers: attributes that the forward pass sets, which compiled code restores.

    Raises:
        ValueError: `params` has a name that the model does not have. Values of an adapter
            (`ADAPTER_VALUE`) are ignored.
        RuntimeError: the model writes a parameter in place. Under vmap: the model reads tensor values, or
            writes a buffer whose values would differ between tasks.
        NotImplementedError: a second derivative is needed, but an operation of the model has none.
    """
    args, kwargs = _arguments(x)
    if is_name(task):
        kwargs = {**kwargs, "task": task}
    structure = structure_of(model) if structure is None else structure
    if torch.compiler.is_compiling():
        return _call_compiled(model, structure, params, args, kwargs, stages, leftovers)
    transformed = in_transform()
    all_params = not (is_name(task) or stages)  # a named task uses only its own head
    look = preflight(
        model, params, twice=second_order, whole=all_params, signature=structure.signature, stages=stages
    )
    fused = structure.fused or look is not None or bool(observed(model))  # a first pass is not known yet
    watches_checkpoints = not transformed and (look is not None or uses_checkpoints(model))
    contexts: tuple[AbstractContextManager[Any] | None, ...] = (
        SubstitutedRecomputation(
            model, _same_settings(model, structure, params, fused, transformed, second_order)
        )
        if watches_checkpoints
        else None,
        _no_autocast_cache() if _under_autocast() else None,
        _decomposition(fused, transformed, second_order),
        look,  # entered last, so it sees functions before they are decomposed
    )
    if any(context is not None for context in contexts):
        with ExitStack() as stack:
            *_, check = [None if c is None else stack.enter_context(c) for c in contexts]
            output = _substituted_call(model, structure, params, stages, args, kwargs, transformed)
            if check is not None:
                check(output)
            return output
    return _substituted_call(model, structure, params, stages, args, kwargs, transformed)


def _same_settings(
    model: nn.Module,
    structure: Structure,
    params: Params,
    fused: bool,
    transformed: bool,
    second_order: bool,
) -> Callable[[], AbstractContextManager[None]]:
    """A function that returns a context in which `model` has the parameters and kernels of this pass."""

    @contextmanager
    def same_settings() -> Iterator[None]:
        decomposition = _decomposition(fused, transformed, second_order) or nullcontext()
        with decomposition, substituted(model, structure, params):
            yield

    return same_settings


def _substituted_call(
    model: nn.Module,
    structure: Structure,
    params: Params,
    stages: tuple[Stage, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    transformed: bool,
) -> Any:
    original = substitute(model, structure, params)
    try:
        return _apply(model, stages, args, kwargs)
    except RuntimeError as error:
        reason = _under_vmap(model, str(error)) if transformed else None
        if reason is None:
            raise
        raise RuntimeError(reason) from error
    finally:
        restore(structure, original)


def _apply(
    model: nn.Module, stages: tuple[Stage, ...] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if stages is None:
        return model(*args, **kwargs)
    first, *others = stages
    x = first(*args, **kwargs)
    for stage in others:
        x = stage(x)
    return x


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, Inputs):
        return x.args, dict(x.kwargs)
    if isinstance(x, Mapping):
        return (), dict(x)
    return (x if isinstance(x, tuple) else (x,)), {}


def _call_compiled(
    model: nn.Module,
    structure: Structure,
    params: Params,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    stages: tuple[Stage, ...] | None,
    leftovers: tuple[tuple[nn.Module, str], ...],
) -> Any:
    """`_substituted_call` in a form that torch.compile can trace."""
    tensors = [holder(slot)[slot.key] for slot in structure.slots]
    for slot in structure.slots:
        value = params.get(slot.name)
        if value is None:
            value = holder(slot)[slot.key]
            value = value.clone() if slot.is_buffer and value is not None else value
        holder(slot)[slot.key] = value
    flat_weights = [module._flat_weights for module in structure.recurrent]
    for layer in structure.recurrent:
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
    attributes = [(hasattr(module, key), getattr(module, key, None)) for module, key in leftovers]
    for (module, key), (_, original) in zip(leftovers, attributes):
        if original is not None and type(original) in (list, dict, set):  # the pass modifies a copy
            setattr(module, key, original.copy())
    decomposition = _decomposition(structure.fused, transformed=True, second_order=True)
    if decomposition is not None:
        with decomposition:
            output = _apply(model, stages, args, kwargs)
    else:
        output = _apply(model, stages, args, kwargs)
    for slot, tensor in zip(structure.slots, tensors):
        holder(slot)[slot.key] = tensor
    for layer, weights in zip(structure.recurrent, flat_weights):
        layer._flat_weights = weights
    for (module, key), (existed, original) in zip(leftovers, attributes):
        if existed:
            setattr(module, key, original)
        else:
            delattr(module, key)
    return output


def _decomposition(fused: bool, transformed: bool, second_order: bool) -> DecomposeOps | None:
    table: dict[Any, Callable[..., Any]] = {}
    if fused and transformed:
        table |= REPLACED
    elif fused and second_order:
        table |= {**PACKED, **TWICE}
    if transformed and _under_autocast():
        table |= AUTOCAST
    return DecomposeOps(table) if table else None


def _under_autocast() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Disable the autocast cache, which would store copies of all adapted weights, including stale ones."""
    original = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(original)


def is_name(task: Any) -> bool:
    """Whether `task` is a name or a tuple of names, and not ids."""
    return isinstance(task, str) or (
        isinstance(task, tuple) and bool(task) and all(isinstance(name, str) for name in task)
    )


def _under_vmap(model: nn.Module, message: str) -> str | None:
    """Translate an error message of torch about vmap into one about the model; None for other errors."""
    if "vmap: It looks like you're" in message:
        cause = "reads tensor values in forward() (an `if`, `.item()`, packing sequences by their lengths)"
        remedy = "use engine=Loop()"
    elif "is not possible because there exists a Tensor" in message or "doesn't work on out=" in message:
        buffers = ", ".join(repr(name) for name, _ in model.named_buffers())
        cause = f"writes in place into a tensor that all tasks share (its buffers are {buffers or 'none'})"
        remedy = "use engine=Loop(), or model.eval() if it writes only in training mode"
    elif "to use channels_last format" in message:
        cause = "converts a tensor to the channels-last format"
        remedy = "use engine=Loop(), or pass the images in that format"
    else:
        return None
    return f"{type(model).__name__} {cause}, which vmap does not support; {remedy}."
