"""Engines: how the tasks' rows are computed. All give the same numbers."""

from .base import Engine, Rows
from .loop import Loop
from .named import named_rows
from .task import TaskFunction
from .vmap import Vmap

__all__ = ["Engine", "Loop", "Rows", "TaskFunction", "Vmap", "named_rows"]
