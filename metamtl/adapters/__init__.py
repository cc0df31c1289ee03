"""Adapters: compute the task-specific parameters from a model and a support set."""

from .base import Adapter
from .chain import Chain
from .differentiation import Checkpointed, Differentiation, FirstOrder, Implicit, Truncated, Unrolled
from .gradient import Gradient
from .head_table import HeadTable
from .mean_predictor import MeanPredictor
from .prototype import Prototype
from .rates import LearnedRates
from .shared import Shared

__all__ = [
    "Adapter",
    "Chain",
    "Checkpointed",
    "Differentiation",
    "FirstOrder",
    "Gradient",
    "HeadTable",
    "Implicit",
    "LearnedRates",
    "Prototype",
    "Shared",
    "MeanPredictor",
    "Truncated",
    "Unrolled",
]
