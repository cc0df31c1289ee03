"""Checks of arguments (once per call), losses (in every call) and results (before `.grad` changes)."""

from .arguments import check_call, check_features, check_tasks
from .losses import checked_loss
from .results import check_direction, check_finite, missing_derivatives_explained

__all__ = [
    "check_call",
    "check_direction",
    "check_features",
    "check_finite",
    "check_tasks",
    "checked_loss",
    "missing_derivatives_explained",
]
