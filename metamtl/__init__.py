"""Multi-task learning and meta-learning as one thing.

An adapter says which parameters a task uses, an aggregator what the tasks' gradients say together;
`meta_backward` goes from episodes to `.grad` through both.
"""

from . import (
    adapters,
    aggregators,
    distillation,
    engines,
    nets,
    objectives,
    penalties,
    recipes,
    rules,
    self_supervision,
    tasks,
)
from .episode import Batch, Episode, Inputs
from .estimate import Estimate, delta_m
from .evaluation import adaptation_curve, evaluate
from .outer import Outcome, meta_backward
from .recipes import Recipe
from .task import Metric, Task

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Episode",
    "Estimate",
    "Inputs",
    "Metric",
    "Outcome",
    "Recipe",
    "Task",
    "adaptation_curve",
    "adapters",
    "aggregators",
    "delta_m",
    "distillation",
    "engines",
    "evaluate",
    "meta_backward",
    "nets",
    "objectives",
    "penalties",
    "recipes",
    "rules",
    "self_supervision",
    "tasks",
]
