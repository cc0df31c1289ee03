"""Engines: different ways to compute the same per-task gradients."""

from .auto import Auto, Choice
from .base import Engine, TaskGradients
from .compiled import Compiled
from .loop import Loop
from .named import named_gradients
from .problem import TaskProblem
from .sharded import Sharded, combine
from .vmap import Vmap

__all__ = [
    "Auto",
    "Choice",
    "Compiled",
    "Engine",
    "Loop",
    "Sharded",
    "TaskGradients",
    "TaskProblem",
    "Vmap",
    "combine",
    "named_gradients",
]
