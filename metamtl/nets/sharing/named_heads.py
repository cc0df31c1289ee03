"""Hard parameter sharing: one body, a head for each named task."""

from __future__ import annotations

from typing import Any

from torch import nn

from .named import NamedTasks, Outputs


class NamedHeads(NamedTasks):
    """A shared `body` and a head for each task, `heads.<task>` (Caruana 1997).

    With `task="case"` the result is the output of that head; with a tuple of names, or without a name (all
    tasks), a dict of outputs from one pass through the body.

    Args:
        body: `x -> [..., features]`, any module: one vector for each example, or one for each token.
        features: output width of the body.
        outputs: for each task the width of its linear head, or a module to use as its head (a decoder).

    Raises:
        ValueError: there is no task, a name is unknown, or the features do not match the heads.

    >>> import torch
    >>> decoder = nn.Sequential(nn.ReLU(), nn.Linear(8, 4))
    >>> model = NamedHeads(nn.Linear(4, 8), features=8, outputs={"kind": 3, "copy": decoder})
    >>> model(torch.zeros(5, 4), task="copy").shape
    torch.Size([5, 4])
    """

    def __init__(self, body: nn.Module, features: int, outputs: Outputs) -> None:
        super().__init__()
        self.body = body
        self.add_heads(outputs, features)

    def answer(self, task_names: tuple[str, ...], *inputs: Any, **keywords: Any) -> dict[str, Any]:
        features = self.body(*inputs, **keywords)
        return {name: self.head(name, features) for name in task_names}


def named_heads(backbone: nn.Module, outputs: Outputs) -> NamedHeads:
    """The body of a net with `.body` and `.features`, followed by one head for each task.

    >>> from metamtl import nets
    >>> model = named_heads(nets.mlp(4, 8, 1), {"case": 3, "slant": 2})
    >>> import torch
    >>> {name: tuple(out.shape) for name, out in model(torch.zeros(5, 4)).items()}
    {'case': (5, 3), 'slant': (5, 2)}
    """
    body, features = backbone.body, backbone.features
    assert isinstance(body, nn.Module) and isinstance(features, int)
    return NamedHeads(body, features, outputs)
