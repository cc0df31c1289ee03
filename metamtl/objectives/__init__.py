"""Objectives of the outer loop, such as the query loss, and penalties that can be added to them."""

from .base import Adaptation, Objective, displacement, episode_loss, query_loss
from .penalties import Penalty, l2_to_mean, low_rank, nuclear_norm, penalized

__all__ = [
    "Adaptation",
    "Objective",
    "Penalty",
    "displacement",
    "episode_loss",
    "l2_to_mean",
    "low_rank",
    "nuclear_norm",
    "penalized",
    "query_loss",
]
