"""Calling a module with parameters that are not its own, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .decomposed import LAYERS, PACKED, Decomposed, moments
from .first_look import first_look

Params = dict[str, Tensor]
INNER_STEP = "inner_step"
SUPPORT_MEAN, SUPPORT_VAR = "support_mean", "support_var"

_plain: ContextVar[bool] = ContextVar("_plain", default=False)
_twice: ContextVar[bool] = ContextVar("_twice", default=False)


def forward(model: nn.Module, params: Params, x: Any, task: Any = None) -> Any:
    """Output of `model` on `x` with `params` in place of its own; they may name buffers too.

    A tuple is handed over as positional arguments, a dict as keywords, anything else as the one
    argument. Where `task` is a string (a named task, or a tuple of names) the model gets it as
    `task=`, to choose its head; task ids of few-shot episodes stay with the adapter.

    No buffer is ever written: what a forward pass would leave in one (BatchNorm its running statistics,
    others a counter) goes into a copy, which is dropped.

    Raises:
        RuntimeError: the model writes a parameter in place; under vmap, it writes a buffer that would get
            other values for every task, or looks at values.
        NotImplementedError: the model has an operation without the second derivative that is needed.
    """
    args, kwargs = ((), dict(x)) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    if is_name(task):
        kwargs["task"] = task
    copies = {name: params.get(name, own).clone() for name, own in model.named_buffers()}
    fused = [module for module in model.modules() if isinstance(module, LAYERS)]
    with ExitStack() as around:
        if not torch.compiler.is_compiling():
            # A named task uses its own head only, so that nothing is known of what no task uses.
            around.enter_context(first_look(model, {} if is_name(task) else params, _twice.get()))
            # Autocast would keep its copies of the weights until its context ends: all that are ever
            # adapted, and the old ones after the user's optimizer has written the new.
            around.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
            torch.set_autocast_cache_enabled(False)
        recurrent = [module for module in fused if isinstance(module, nn.RNNBase)]
        for module in recurrent:
            around.enter_context(_own_weights_after(module))
        if fused and _plain.get():
            around.enter_context(Decomposed())
        elif recurrent:
            around.enter_context(Decomposed(PACKED))
        try:
            return functional_call(model, {**params, **copies}, args, kwargs)
        except RuntimeError as error:
            reason = _under_vmap(model, str(error))
            if reason is None:
                raise
            raise RuntimeError(reason) from error


def told_by_adapter(model: nn.Module) -> bool:
    """Whether `at_step` or `with_support_statistics` has anything to tell this model."""
    return any(name.rpartition(".")[2] in (INNER_STEP, SUPPORT_MEAN) for name, _ in model.named_buffers())


def with_support_statistics(model: nn.Module, params: Params, x: Any, task: Any = None) -> Params:
    """`params` with the statistics that the support inputs `x` have under them, for the query set.

    For modules with buffers `support_mean` and `support_var` (`nets.SupportBatchNorm`), by one more pass
    over `x`; other models get `params` back as is.

    Raises:
        ValueError: such a module that the pass uses more than once.
    """
    norms = {m: name for name, m in model.named_modules() if SUPPORT_MEAN in m._buffers}
    if not norms or x is None:
        return params
    found: Params = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        prefix = f"{norms[module]}." if norms[module] else ""
        if prefix + SUPPORT_MEAN in found:
            raise ValueError(
                f"{type(module).__name__} {norms[module]!r} normalises twice in one forward pass, so it has"
                " no single mean of the support set; use one module for each place."
            )
        found[prefix + SUPPORT_MEAN], found[prefix + SUPPORT_VAR] = moments(inputs[0])

    params = without_support_statistics(params)
    with ExitStack() as around:
        for module in norms:
            around.callback(module.register_forward_pre_hook(note).remove)
        forward(model, params, x, task)
    return {**params, **found}


def without_support_statistics(params: Params) -> Params:
    """`params` before `with_support_statistics`."""
    return {n: p for n, p in params.items() if n.rpartition(".")[2] not in (SUPPORT_MEAN, SUPPORT_VAR)}


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Within it, layers run in operations that vmap batches and that have a second derivative.

    The fused kernels of attention and recurrent layers lack one or the other, and are faster: so this is
    entered only where vmap or second order asks for it.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    token = _plain.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _plain.reset(token)
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """`plain_kernels`, where a second derivative will be taken: what has none is refused."""
    token = _twice.set(True)
    try:
        with plain_kernels():
            yield
    finally:
        _twice.reset(token)


@contextmanager
def _own_weights_after(module: nn.RNNBase) -> Iterator[None]:
    """A recurrent layer keeps a list of its weights; within, that of those it is called with."""
    kept = {name: list(getattr(module, name)) for name in ("_flat_weights", "_flat_weight_refs")}
    # Which cuDNN would move in memory, by addresses that tensors inside a transform do not have.
    module.flatten_parameters = lambda: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.flatten_parameters
        for name, value in kept.items():
            setattr(module, name, value)


def _under_vmap(model: nn.Module, said: str) -> str | None:
    """What torch's words about vmap mean for a model and its tasks; None for other errors."""
    if "vmap: It looks like you're" in said:
        does = "looks at the values of a tensor (an `if`, `.item()`, packing sequences by their lengths)"
        cure = "use engine=Loop()"
    elif "is not possible because there exists a Tensor" in said or "doesn't work on out=" in said:
        buffers = ", ".join(repr(name) for name, _ in model.named_buffers())
        does = f"writes in place into a tensor that all tasks share (its buffers are {buffers or 'none'})"
        cure = "use engine=Loop(), or model.eval() if it writes in training mode only"
    elif "to use channels_last format" in said:
        does = "lays a tensor out channels-last"
        cure = "use engine=Loop(), or give the images in that layout"
    else:
        return None
    kind = type(model).__name__
    return f"{kind} {does} in its forward pass, which vmap cannot do for several tasks at once; {cure}."


def is_name(task: Any) -> bool:
    """Whether `task` names one task, or several at once, rather than giving ids."""
    return isinstance(task, str) or (
        isinstance(task, tuple) and bool(task) and all(isinstance(name, str) for name in task)
    )


def at_step(model: nn.Module, params: Params, k: Tensor) -> Params:
    """`params` for a pass after `k` inner steps, in modules that have something for each of them.

    Those are the modules with a buffer named `inner_step` (`nets.BatchNorm` under the policy
    `per_step`); it is set to `k`, an int64 tensor without axes. Other models get `params` back as is.
    """
    counters = [name for name, _ in model.named_buffers() if name.rpartition(".")[2] == INNER_STEP]
    return {**params, **dict.fromkeys(counters, k)} if counters else params


def trainable(model: nn.Module) -> Params:
    """The parameters that require a gradient, by name; a tied one stands once."""
    return trainable_and_frozen(model)[0]


def trainable_and_frozen(model: nn.Module) -> tuple[Params, Params]:
    """The parameters that require a gradient, and those that do not."""
    named = list(model.named_parameters())
    moving: Params = {name: param for name, param in named if param.requires_grad}
    return moving, {name: param.detach() for name, param in named if not param.requires_grad}


def under(names: Iterable[str], prefix: str) -> list[str]:
    """Those of `names` that are `prefix` or begin with it as a whole path: `head` takes `head.weight`."""
    return [name for name in names if not prefix or name == prefix or name.startswith(prefix + ".")]


def named_by(model: nn.Module, prefixes: str | Iterable[str] | None, argument: str = "adapts") -> list[str]:
    """Names of the trainable parameters under one or several prefixes; all, where None.

    Raises:
        ValueError: a prefix that names no parameter, or only frozen ones.
    """
    candidates = list(trainable(model))
    if prefixes is None:
        return candidates
    listed = [prefixes] if isinstance(prefixes, str) else list(prefixes)
    chosen: dict[str, None] = {}
    for prefix in listed:
        found = under(candidates, prefix)
        if not found:
            raise ValueError(_no_parameter(model, prefix, argument))
        chosen.update(dict.fromkeys(found))
    return [name for name in candidates if name in chosen]


def _no_parameter(model: nn.Module, prefix: str, argument: str) -> str:
    every = [name for name, _ in model.named_parameters()]
    kind = type(model).__name__
    if under(every, prefix):
        return (
            f"{argument}={prefix!r} names only frozen parameters of {kind};"
            " call requires_grad_(True) on them, or name others."
        )
    tops = sorted({name.split(".")[0] for name in every})
    return f"{argument}={prefix!r} names no parameter of {kind}; it has {', '.join(map(repr, tops))}."
