"""Objectives of the outer loop, such as the query loss, and penalties that can be added to them."""

from .base import Adaptation, Objective, displacement, episode_loss, query_loss
from .evolution import EvolutionStrategy
from .multi_step import MultiStep, annealed_weights
from .penalties import Penalty, l2_to_mean, low_rank, nuclear_norm, penalized

__all__ = [
    "Adaptation",
    "EvolutionStrategy",
    "MultiStep",
    "Objective",
    "Penalty",
    "annealed_weights",
    "displacement",
    "episode_loss",
    "l2_to_mean",
    "low_rank",
    "nuclear_norm",
    "penalized",
    "query_loss",
]
