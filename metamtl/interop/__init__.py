"""Adapters and episodes from other libraries: `interop.higher`, `interop.learn2learn`.

Each library is imported when one of its adapters is first called. Both use plain autograd on one task at a
time and therefore require `engine=engines.Loop()`.
"""

from .higher import HigherAdapter
from .learn2learn import Learn2Learn, episodes

__all__ = ["HigherAdapter", "Learn2Learn", "episodes"]
