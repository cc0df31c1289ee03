"""The slots in which a model stores its tensors, and the other attributes of its modules."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor, nn

from .decompositions import LAYERS, observed

# Buffers that an adapter sets: the index of the inner step, and the statistics of the support set.
INNER_STEP, SUPPORT_MEAN, SUPPORT_VAR = "inner_step", "support_mean", "support_var"
RECURRENT_STATE = ("_flat_weights", "_flat_weight_refs")  # references to the weights in a recurrent layer
_REGISTERED = frozenset(vars(nn.Module()))


class Slot(NamedTuple):
    """One slot of a module for a parameter or buffer, and the first name of the tensor in the model."""

    module: nn.Module
    key: str
    name: str
    is_buffer: bool


class Structure(NamedTuple):
    """The slots in which a model stores its tensors, including layers with two names and tied weights.

    Attributes:
        slots: all slots; the slots of a tied tensor have the same name.
        custom: modules whose forward pass may set attributes: all except those in `plain`.
        plain: modules of torch without hooks; the modules that contain them may add attributes to them.
        recurrent: recurrent layers, which also store their weights in a list.
        calls_fused: whether a forward pass of the model has called a function that must be decomposed.
        fused: whether a layer must be decomposed for vmap or second derivatives, or such a function.
        support_norms: names and modules of the layers that store statistics of the support set.
        signature: differs between models with different classes of modules, tensors or hooks.
    """

    slots: tuple[Slot, ...]
    custom: tuple[nn.Module, ...]
    plain: tuple[nn.Module, ...]
    recurrent: tuple[nn.RNNBase, ...]
    calls_fused: bool
    fused: bool
    support_norms: tuple[tuple[str, nn.Module], ...]
    signature: int

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the buffers that hold the index of the inner step."""
        return tuple(slot.name for slot in self.slots if slot.is_buffer and slot.key == INNER_STEP)

    def within(self, modules: Iterable[nn.Module]) -> Structure:
        """The structure of some modules and their submodules, with the names of the whole model."""
        kept = {part for module in modules for part in module.modules()}
        return Structure(
            slots=tuple(slot for slot in self.slots if slot.module in kept),
            custom=tuple(module for module in self.custom if module in kept),
            plain=tuple(module for module in self.plain if module in kept),
            recurrent=tuple(module for module in self.recurrent if module in kept),
            calls_fused=self.calls_fused,
            fused=self.calls_fused or any(isinstance(module, LAYERS) for module in kept),
            support_norms=tuple((path, module) for path, module in self.support_norms if module in kept),
            signature=self.signature,
        )


def structure_of(model: nn.Module) -> Structure:
    """The structure of `model`. It is computed at every call of an engine, because models change."""
    first: dict[int, str] = {}
    slots: list[Slot] = []
    custom: list[nn.Module] = []
    plain: list[nn.Module] = []
    recurrent: list[nn.RNNBase] = []
    support_norms: list[tuple[str, nn.Module]] = []
    kinds: list[Any] = []
    calls_fused = fused = bool(observed(model))
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for tensors, is_buffer in ((module._parameters, False), (module._buffers, True)):
            for key, tensor in tensors.items():
                if tensor is not None:
                    slots.append(Slot(module, key, first.setdefault(id(tensor), prefix + key), is_buffer))
        if SUPPORT_MEAN in module._buffers:
            support_norms.append((path, module))
        hooks = module._forward_hooks or module._forward_pre_hooks
        kinds.append((type(module), tuple(module._forward_hooks), tuple(module._forward_pre_hooks)))
        is_torch = type(module).__module__.startswith("torch.nn.")
        (plain if is_torch and not hooks else custom).append(module)
        if isinstance(module, LAYERS):
            fused = True
            if isinstance(module, nn.RNNBase):
                recurrent.append(module)
    return Structure(
        tuple(slots),
        tuple(custom),
        tuple(plain),
        tuple(recurrent),
        calls_fused,
        fused,
        tuple(support_norms),
        signature=hash((*kinds, *(slot.name for slot in slots))),
    )


def holder(slot: Slot) -> dict[str, Tensor | None]:
    """The dict of parameters or buffers that contains the slot."""
    return slot.module._buffers if slot.is_buffer else slot.module._parameters  # type: ignore[return-value]


def attributes(module: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """The attributes of a module, and copies of the lists, dicts and sets among them."""
    values = dict(vars(module))
    own = [values[name] for name in values.keys() - _REGISTERED]
    return values, [(value, value.copy()) for value in own if type(value) in (list, dict, set)]


def restore_attributes(module: nn.Module, own: dict[str, Any], contents: list[tuple[Any, Any]]) -> None:
    """Restore the attributes of a module from a result of `attributes`."""
    current = vars(module)
    if list(current) != list(own) or not all(map(is_, current.values(), own.values())):
        current.clear()
        current.update(own)
    for value, copy in contents:
        if value is not copy and not _same(value, copy):
            value.clear()
            value.extend(copy) if isinstance(value, list) else value.update(copy)


def _same(value: Any, copy: Any) -> bool:
    """Whether a list, dict or set still contains the same objects as its copy."""
    if len(value) != len(copy):
        return False
    if isinstance(value, dict):
        return all(key in value and value[key] is entry for key, entry in copy.items())
    if isinstance(value, set):
        return bool(value == copy)
    return all(a is b for a, b in zip(value, copy))


def attributes_of(structure: Structure) -> list[Any]:
    """Copies of the attributes of all modules, for `changed_attributes`."""
    return [attributes(module) for module in (*structure.custom, *structure.plain)]


def changed_attributes(structure: Structure, before: list[Any]) -> tuple[tuple[nn.Module, str], ...]:
    """The attributes, `(module, name)`, whose values or contents differ from `before`."""
    changes, ignored_names = [], {*_REGISTERED, *RECURRENT_STATE, "flatten_parameters"}
    for module, (own, contents) in zip((*structure.custom, *structure.plain), before):
        changed_ids = {id(value) for value, copy in contents if not _same(value, copy)}
        for name in {**own, **vars(module)}:
            value = vars(module).get(name, own)
            if name not in ignored_names and (value is not own.get(name, own) or id(value) in changed_ids):
                changes.append((module, name))
    return tuple(changes)
