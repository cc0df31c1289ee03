"""Engines: how the tasks' rows are computed. All give the same numbers."""

from .auto import Auto, Choice
from .base import Engine, Rows
from .compiled import Compiled
from .features import feature_rows
from .loop import Loop
from .named import named_rows
from .task import Evaluation, TaskFunction
from .vmap import Vmap

__all__ = [
    "Auto",
    "Choice",
    "Compiled",
    "Engine",
    "Evaluation",
    "Loop",
    "Rows",
    "TaskFunction",
    "Vmap",
    "feature_rows",
    "named_rows",
]
