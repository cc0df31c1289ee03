"""Multi-task learning and meta-learning with one interface.

An adapter computes the parameters that a task uses. An aggregator combines the per-task gradients into one
update. `meta_backward` applies both: it turns episodes into `.grad`.
"""

from . import (
    adapters,
    aggregators,
    analysis,
    checkpoint,
    datasets,
    engines,
    losses,
    metrics,
    nets,
    objectives,
    recipes,
    rules,
    tasks,
)
from .backward import Outcome, meta_backward
from .episode import Batch, Episode, Inputs
from .estimate import Estimate, delta_m
from .evaluation import adaptation_curve, evaluate
from .loading import load
from .metrics import Metric
from .passes import backward_passes
from .recipes import Recipe
from .unrolled_model import unrolled

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Episode",
    "Estimate",
    "Inputs",
    "Metric",
    "Outcome",
    "Recipe",
    "adaptation_curve",
    "adapters",
    "aggregators",
    "analysis",
    "backward_passes",
    "checkpoint",
    "datasets",
    "delta_m",
    "engines",
    "evaluate",
    "load",
    "losses",
    "meta_backward",
    "metrics",
    "nets",
    "objectives",
    "recipes",
    "rules",
    "tasks",
    "unrolled",
]
