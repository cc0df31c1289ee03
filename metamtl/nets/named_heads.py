"""Hard parameter sharing: one body, a head for each named task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class NamedHeads(nn.Module):
    """A shared `body` and one linear head for each task, `heads.<task>`.

    Called with `task="case"` it answers with that head's output; with a tuple of names, or none (all
    tasks), with a dict of outputs from one pass through the body.

    Args:
        body: `x -> [B, features]`.
        features: width of what the body returns.
        outputs: for each task the width of its head.
    """

    def __init__(self, body: nn.Module, features: int, outputs: Mapping[str, int]) -> None:
        super().__init__()
        if not outputs:
            raise ValueError("NamedHeads needs at least one task in outputs={name: width}.")
        self.body = body
        self.heads = nn.ModuleDict({name: nn.Linear(features, width) for name, width in outputs.items()})

    def forward(self, x: Tensor, task: str | tuple[str, ...] | None = None) -> Tensor | dict[str, Tensor]:
        wanted = (task,) if isinstance(task, str) else task or tuple(self.heads)
        unknown = [name for name in wanted if name not in self.heads]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]!r}; there are heads for {', '.join(self.heads)}.")
        features = self.body(x)
        outputs = {name: self.heads[name](features) for name in wanted}
        return outputs[task] if isinstance(task, str) else outputs


def named_heads(backbone: nn.Module, outputs: Mapping[str, int]) -> NamedHeads:
    """The body of a net that has `.body` and `.features`, under one head for each task.

    >>> from metamtl import nets
    >>> model = named_heads(nets.mlp(4, 8, 1), {"case": 3, "slant": 2})
    >>> import torch
    >>> {name: tuple(out.shape) for name, out in model(torch.zeros(5, 4)).items()}
    {'case': (5, 3), 'slant': (5, 2)}
    """
    body, features = backbone.body, backbone.features
    assert isinstance(body, nn.Module) and isinstance(features, int)
    return NamedHeads(body, features, outputs)
