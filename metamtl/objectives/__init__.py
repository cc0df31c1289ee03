"""What the outer loop minimizes: the query loss and other objectives, and penalties added to them."""

from .base import Adaptation, Objective, displacement, episode_loss, query_loss
from .penalties import Penalty, nuclear, penalised, spread, subspace

__all__ = [
    "Adaptation",
    "Objective",
    "Penalty",
    "displacement",
    "episode_loss",
    "nuclear",
    "penalised",
    "query_loss",
    "spread",
    "subspace",
]
