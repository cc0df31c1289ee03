"""Named tasks with a small net, and their gradients computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, nets

LOSSES: dict[str, Callable[..., Tensor]] = {"case": F.cross_entropy, "slant": F.mse_loss, "size": F.l1_loss}


OUTPUTS = {"case": 3, "slant": 1, "size": 2}


def net() -> nets.NamedHeads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        return nets.NamedHeads(body, 5, OUTPUTS).double()


def targets(task: str, examples: int, rng: torch.Generator) -> Tensor:
    if task == "case":
        return torch.randint(3, (examples,), generator=rng)
    return torch.randn(examples, OUTPUTS[task], generator=rng, dtype=torch.float64)


def episodes(*, shared_input: bool) -> dict[str, Episode]:
    rng = torch.Generator().manual_seed(1)
    one = torch.randn(8, 4, generator=rng, dtype=torch.float64)
    found = {}
    for examples, task in zip((8, 5, 11), LOSSES):
        x = one if shared_input else torch.randn(examples, 4, generator=rng, dtype=torch.float64)
        found[task] = Episode(None, Batch(x, targets(task, len(x), rng)))
    return found


def by_hand(model: nn.Module, data: dict[str, Episode]) -> dict[str, dict[str, Tensor | None]]:
    """Each task's gradient by plain autograd, by parameter."""
    names, params = zip(*model.named_parameters())
    found = {}
    for task, episode in data.items():
        loss = LOSSES[task](model(episode.query.x, task), episode.query.y)
        found[task] = dict(zip(names, torch.autograd.grad(loss, params, allow_unused=True)))
    return found
