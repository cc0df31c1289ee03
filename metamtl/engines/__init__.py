"""Engines: how the tasks' rows are computed. All give the same numbers."""

from .base import Engine, Rows
from .compiled import Compiled
from .loop import Loop
from .named import named_rows
from .task import TaskFunction
from .vmap import Vmap

__all__ = ["Compiled", "Engine", "Loop", "Rows", "TaskFunction", "Vmap", "named_rows"]
