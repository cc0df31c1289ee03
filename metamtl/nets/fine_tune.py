"""Transfer learning: freeze a part of a pretrained net, and train the rest with its own learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..functional import with_prefix


def fine_tune(
    model: nn.Module, lr: float, *, frozen: Iterable[str] = (), rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Freeze the parameters under `frozen`, and group the others by learning rate, for a torch optimizer.

    A prefix of parameter names ends at a dot: `body.0` selects `body.0.weight`, not `body.01.weight`. If
    several prefixes of `frozen` and `rates` match, the longest one applies: `frozen=["body"],
    rates={"body.3": 1e-4}` freezes the body except its layer 3.

    Args:
        model: any module; the call sets `requires_grad` of all its parameters.
        lr: learning rate of the parameters that no prefix selects.
        frozen: prefixes of the parameters to freeze.
        rates: a learning rate for each prefix.

    Returns:
        Parameter groups for `torch.optim.Adam(fine_tune(model, lr=1e-3, ...))`.

    Raises:
        ValueError: a prefix selects no parameter or is in both arguments, or everything is frozen.

    >>> from metamtl import nets
    >>> model = nets.NamedHeads(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)), 8, {"a": 3})
    >>> groups = fine_tune(model, lr=1e-3, frozen=["body.0"], rates={"body": 1e-5})
    >>> [(group["lr"], len(group["params"])) for group in groups]
    [(1e-05, 2), (0.001, 2)]
    >>> [name for name, param in model.named_parameters() if not param.requires_grad]
    ['body.0.weight', 'body.0.bias']
    """
    prefixes = [frozen] if isinstance(frozen, str) else list(frozen)
    rates = dict(rates or {})
    params = dict(model.named_parameters())
    for prefix in (*prefixes, *rates):
        if not with_prefix(params, prefix):
            tops = sorted({name.split(".")[0] for name in params})
            raise ValueError(
                f"{prefix!r} names no parameter of {type(model).__name__}; it has"
                f" {', '.join(map(repr, tops))}."
            )
    common = sorted(set(prefixes) & set(rates))
    if common:
        raise ValueError(f"{common[0]!r} is frozen and has a learning rate; choose one.")
    rate_of: dict[str, float | None] = dict.fromkeys(params, lr)
    choices: dict[str, float | None] = {**dict.fromkeys(prefixes), **rates}
    for prefix in sorted(choices, key=len):  # the longest last
        rate_of.update(dict.fromkeys(with_prefix(params, prefix), choices[prefix]))
    if all(rate is None for rate in rate_of.values()):
        raise ValueError(f"frozen={prefixes} leaves {type(model).__name__} nothing to learn.")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, param in params.items():
        rate = rate_of[name]
        param.requires_grad_(rate is not None)
        if rate is not None:
            groups.setdefault(rate, []).append(param)
    return [{"params": members, "lr": rate} for rate, members in groups.items()]
