"""Adapters and episodes from other libraries: `interop.higher`, `interop.learn2learn`.

Neither library is imported before one of its adapters is called. Both work on one task at a time with
plain autograd, hence with `engine=engines.Loop()`.
"""

from .higher import HigherAdapter
from .learn2learn import Learn2Learn, episodes

__all__ = ["HigherAdapter", "Learn2Learn", "episodes"]
