"""A model cut in two: what the inner loop does not change is computed once for all its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from .episode import Batch
from .functional import Params, forward, is_name, told_by_adapter, under
from .task import Loss

Measure = Callable[[Params, Batch], Tensor]


def from_first_change(
    model: nn.Module, adapted: Iterable[str], params: Params, support: Batch, loss: Loss, task: Any
) -> tuple[Batch, Measure]:
    """The support set and the loss of inner steps that change `adapted`, `measure(params, support)`.

    Where the model can be `split`, the set holds the features at the cut instead of its inputs.
    """
    cut = None if is_name(task) else split(model, adapted)
    if cut is None:
        return support, lambda params, batch: loss(forward(model, params, batch.x, task), batch.y)
    features = Batch(cut.features(params, support.x), support.y)
    return features, lambda params, batch: loss(cut.rest(params, batch.x), batch.y)


class Split:
    """The stages of a model before the first adapted parameter, and those from there on."""

    def __init__(self, model: nn.Module, front: list[str], back: list[str]) -> None:
        self.model, self.front, self.back = model, front, back

    def features(self, params: Params, x: Any) -> Any:
        """What the front makes of `x`."""
        return self._run(self.front, params, x)

    def rest(self, params: Params, features: Any) -> Any:
        """The model's output, from there."""
        return self._run(self.back, params, features)

    def _run(self, stages: list[str], params: Params, x: Any) -> Any:
        for stage in stages:
            inner = {name[len(stage) + 1 :]: params[name] for name in under(params, stage)}
            x = forward(self.model.get_submodule(stage), inner, x)
        return x


def split(model: nn.Module, adapted: Iterable[str]) -> Split | None:
    """The cut before the first stage with a parameter of `adapted`; None where there is nothing to gain.

    Stages are known for `nn.Sequential`, and for modules whose class says by `sequence = ("body", "head")`
    that its forward pass is these children one after the other. The front must be made of torch's and this
    package's own modules, which are known to give the same at every step: dropout, which is not, stays
    behind the cut, and a class from elsewhere might draw random numbers too.

    >>> cut = split(nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)), ["2.weight", "2.bias"])
    >>> cut.front, cut.back
    (['0', '1'], ['2'])
    """
    if told_by_adapter(model) or _hooked(model):
        return None
    names = set(adapted)
    front: list[str] = []
    back: list[str] = []
    _cut(model, "", names, front, back)
    parameters = [name for stage in front for name in under(dict(model.named_parameters()), stage)]
    return Split(model, front, back) if parameters else None


def _cut(module: nn.Module, path: str, adapted: set[str], front: list[str], back: list[str]) -> None:
    """Sort the stages of `module` before and behind the cut."""
    for child in _stages(module):
        stage = f"{path}.{child}" if path else child
        part = module.get_submodule(child)
        if back or (not under(adapted, stage) and not _constant(part)):
            back.append(stage)
        elif not under(adapted, stage):
            front.append(stage)
        elif _stages(part) and not _hooked(part):
            _cut(part, stage, adapted, front, back)
        else:
            back.append(stage)


def _stages(module: nn.Module) -> tuple[str, ...]:
    """The children that are the module's forward pass, one by one; none where that is not known."""
    if type(module).forward is nn.Sequential.forward:
        return tuple(name for name, _ in module.named_children())
    declared = vars(type(module)).get("sequence", ())
    return tuple(declared)


def _constant(module: nn.Module) -> bool:
    """Whether the module gives the same output for the same input, whenever it is asked."""
    drops = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
    return all(
        type(part).__module__.split(".")[0] in ("torch", __package__)
        and not (isinstance(part, drops) and part.training)
        and not (part.training and float(getattr(part, "dropout", False)))
        for part in module.modules()
    )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
