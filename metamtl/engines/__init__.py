"""Engines: different ways to compute the same per-task gradients."""

from .auto import Auto, Choice
from .base import Engine, TaskGradients, TaskGroup
from .compiled import Compiled
from .examples import own_examples
from .loop import Loop
from .named import named_gradients
from .problem import TaskProblem
from .sharded import Sharded, combine, example_exchange
from .vmap import Vmap

__all__ = [
    "Auto",
    "Choice",
    "Compiled",
    "Engine",
    "Loop",
    "Sharded",
    "TaskGradients",
    "TaskGroup",
    "TaskProblem",
    "Vmap",
    "combine",
    "example_exchange",
    "named_gradients",
    "own_examples",
]
