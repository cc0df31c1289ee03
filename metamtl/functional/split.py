"""A model split in two, so that what the inner loop does not change is computed once for all its steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from . import canonical_names, has_adapter_buffers, with_prefix


@dataclass(frozen=True)
class Split:
    """The stages of a model before the first adapted parameter, and those from there on.

    Attributes:
        stem, remainder: modules, applied one after the other.
        reads: names of the parameters in `remainder`.
    """

    stem: tuple[nn.Module, ...]
    remainder: tuple[nn.Module, ...]
    reads: frozenset[str]


def split(model: nn.Module, adapted: Iterable[str]) -> Split | None:
    """The split before the first stage with a parameter of `adapted`; None if nothing is gained.

    Stages are known for `nn.Sequential`, and for modules whose class states by
    `sequence = ("body", "head")` that its forward pass applies these children one after the other. The
    stem must be made of torch's and this package's own modules, which are known to give the same output at
    every step. Dropout does not, so it stays in the remainder; a class from elsewhere might not either.

    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> parts = split(model, ["2.weight", "2.bias"])
    >>> parts.stem == (model[0], model[1]), sorted(parts.reads)
    (True, ['2.bias', '2.weight'])
    """
    if has_adapter_buffers(model) or _hooked(model):
        return None
    canonical = canonical_names(model)
    stem: list[str] = []
    remainder: list[str] = []
    _sort(model, "", canonical, set(adapted), stem, remainder)
    if not any(with_prefix(canonical, stage) for stage in stem):
        return None
    reads = frozenset(canonical[name] for stage in remainder for name in with_prefix(canonical, stage))
    modules = [tuple(model.get_submodule(stage) for stage in part) for part in (stem, remainder)]
    return Split(modules[0], modules[1], reads)


def _sort(
    module: nn.Module,
    path: str,
    canonical: dict[str, str],
    adapted: set[str],
    stem: list[str],
    remainder: list[str],
) -> None:
    """Sort the stages of `module` before and after the split point."""
    for child in _stages(module):
        stage = f"{path}.{child}" if path else child
        part = module.get_submodule(child)
        changes = any(canonical[name] in adapted for name in with_prefix(canonical, stage))
        if remainder or (not changes and not _constant(part)):
            remainder.append(stage)
        elif not changes:
            stem.append(stage)
        elif _stages(part) and not _hooked(part):
            _sort(part, stage, canonical, adapted, stem, remainder)
        else:
            remainder.append(stage)


def _stages(module: nn.Module) -> tuple[str, ...]:
    """The children that are the module's forward pass, one by one; none if that is not known."""
    if type(module).forward is nn.Sequential.forward:
        return tuple(module._modules)
    declared = vars(type(module)).get("sequence", ())
    return tuple(declared)


def _constant(module: nn.Module) -> bool:
    """Whether the module gives the same output for the same input at every call."""
    drops = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    return all(
        type(part).__module__.split(".")[0] in ("torch", "metamtl")
        and not (isinstance(part, drops) and part.training)
        and not (part.training and _drops(part))
        and "forward" not in vars(part)
        for part in module.modules()
    )


def _drops(module: nn.Module) -> bool:
    rate = getattr(module, "dropout", 0.0)  # a number in recurrent layers, a module in a transformer's
    return isinstance(rate, (int, float)) and rate > 0


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
