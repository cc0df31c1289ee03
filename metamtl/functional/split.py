"""Split of a model into a part that inner steps do not change, which runs only once, and the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from .buffers import has_adapter_buffers
from .select import Params, canonical_names, with_prefix
from .structure import Structure


class Part(NamedTuple):
    """Stages of a model that are applied one after the other.

    Attributes:
        stages: the modules.
        structure: the part of the model's structure that belongs to them.
        names: the first names of their parameters and buffers.
    """

    stages: tuple[nn.Module, ...]
    structure: Structure
    names: frozenset[str]

    def select(self, params: Params) -> Params:
        """The parameters of this part."""
        return {name: value for name, value in params.items() if name in self.names}


class Split(NamedTuple):
    """The part of a model before the first adapted parameter, and the remaining part."""

    stem: Part
    remainder: Part


def split(model: nn.Module, structure: Structure, adapted: Iterable[str]) -> Split | None:
    """Split before the first stage with a parameter of `adapted`; None if this saves no computation.

    Stages are known for `nn.Sequential`, and for modules whose class declares with
    `sequence = ("body", "head")` that its forward pass applies these children one after the other. The
    stem may contain only modules of torch and this package that return the same output in every step.
    Dropout does not, so it is part of the remainder; so are other classes, which might not either.

    >>> from metamtl.functional import structure_of
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> parts = split(model, structure_of(model), ["2.weight", "2.bias"])
    >>> parts.stem.stages == (model[0], model[1]), sorted(parts.remainder.names)
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

    def part(paths: list[str]) -> Part:
        stages = tuple(model.get_submodule(path) for path in paths)
        names = frozenset(canonical[name] for path in paths for name in with_prefix(canonical, path))
        return Part(stages, structure.within(stages), names)

    return Split(part(stem), part(remainder))


def _sort(
    module: nn.Module,
    path: str,
    canonical: dict[str, str],
    adapted: set[str],
    stem: list[str],
    remainder: list[str],
) -> None:
    """Append each stage of `module` to `stem` (before the split point) or to `remainder`."""
    for child in stages_of(module):
        stage = f"{path}.{child}" if path else child
        part = module.get_submodule(child)
        is_adapted = any(canonical[name] in adapted for name in with_prefix(canonical, stage))
        if remainder or (not is_adapted and not _constant(part)):
            remainder.append(stage)
        elif not is_adapted:
            stem.append(stage)
        elif stages_of(part) and not _hooked(part):
            _sort(part, stage, canonical, adapted, stem, remainder)
        else:
            remainder.append(stage)


def stages_of(module: nn.Module) -> tuple[str, ...]:
    """The children that the forward pass applies one after the other; empty if this is not known."""
    if type(module).forward is nn.Sequential.forward:
        return tuple(module._modules)
    declared = vars(type(module)).get("sequence", ())
    return tuple(declared)


def _constant(module: nn.Module) -> bool:
    """Whether the module returns the same output for the same input in every call."""
    drops = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    return all(
        type(part).__module__.split(".")[0] in ("torch", "metamtl")
        and not (isinstance(part, drops) and part.training)
        and not (part.training and _drops(part))
        and "forward" not in vars(part)
        for part in module.modules()
    )


def _drops(module: nn.Module) -> bool:
    rate = getattr(module, "dropout", 0.0)  # a number in recurrent layers, a module in transformer layers
    return isinstance(rate, (int, float)) and rate > 0


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
