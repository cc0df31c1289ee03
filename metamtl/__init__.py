"""Multi-task learning and meta-learning as one thing.

An adapter says which parameters a task uses, an aggregator what the tasks' gradients say together;
`meta_backward` goes from episodes to `.grad` through both.
"""

from . import (
    adapters,
    aggregators,
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
from .metrics import Metric
from .recipes import Recipe

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
    "checkpoint",
    "datasets",
    "delta_m",
    "engines",
    "evaluate",
    "losses",
    "meta_backward",
    "metrics",
    "nets",
    "objectives",
    "recipes",
    "rules",
    "tasks",
]
