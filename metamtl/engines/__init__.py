"""Engines: different ways to compute the same per-task gradients."""

from .auto import Auto, Choice
from .base import Engine, TaskGradients
from .compiled import Compiled
from .loop import Loop
from .named import named_gradients
from .problem import TaskProblem
from .vmap import Vmap

__all__ = [
    "Auto",
    "Choice",
    "Compiled",
    "Engine",
    "Loop",
    "TaskGradients",
    "TaskProblem",
    "Vmap",
    "named_gradients",
]
