"""Transfer: freeze a part of a pretrained net, and learn the rest at rates of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..functional import with_prefix


def fine_tune(
    model: nn.Module, lr: float, *, frozen: Iterable[str] = (), rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Freeze the parameters under `frozen`, and group the others by learning rate, for a torch optimizer.

    A prefix of parameter names is a whole path: `body.0` takes `body.0.weight`, not `body.01.weight`.
    Where several fit, the longest decides, in `frozen` as in `rates`: `frozen=["body"],
    rates={"body.3": 1e-4}` freezes all of the body but its layer 3.

    Args:
        model: any module; `requires_grad` of all its parameters is set by this call.
        lr: the rate of what no prefix names.
        frozen: prefixes of what does not learn.
        rates: a rate for each prefix.

    Returns:
        Groups for `torch.optim.Adam(fine_tune(model, lr=1e-3, ...))`, of different rates.

    Raises:
        ValueError: a prefix that names nothing, or that stands in both; everything frozen.

    >>> from metamtl import nets
    >>> model = nets.NamedHeads(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)), 8, {"a": 3})
    >>> groups = fine_tune(model, lr=1e-3, frozen=["body.0"], rates={"body": 1e-5})
    >>> [(group["lr"], len(group["params"])) for group in groups]
    [(1e-05, 2), (0.001, 2)]
    >>> [name for name, param in model.named_parameters() if not param.requires_grad]
    ['body.0.weight', 'body.0.bias']
    """
    listed = [frozen] if isinstance(frozen, str) else list(frozen)
    rates = dict(rates or {})
    params = dict(model.named_parameters())
    for prefix in (*listed, *rates):
        if not with_prefix(params, prefix):
            tops = sorted({name.split(".")[0] for name in params})
            raise ValueError(
                f"{prefix!r} names no parameter of {type(model).__name__}; it has"
                f" {', '.join(map(repr, tops))}."
            )
    both = sorted(set(listed) & set(rates))
    if both:
        raise ValueError(f"{both[0]!r} is frozen and has a learning rate; choose one.")
    rate_of: dict[str, float | None] = dict.fromkeys(params, lr)
    choices: dict[str, float | None] = {**dict.fromkeys(listed), **rates}
    for prefix in sorted(choices, key=len):  # the longest last
        rate_of.update(dict.fromkeys(with_prefix(params, prefix), choices[prefix]))
    if all(rate is None for rate in rate_of.values()):
        raise ValueError(f"frozen={listed} leaves {type(model).__name__} nothing to learn.")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, param in params.items():
        rate = rate_of[name]
        param.requires_grad_(rate is not None)
        if rate is not None:
            groups.setdefault(rate, []).append(param)
    return [{"params": members, "lr": rate} for rate, members in groups.items()]
