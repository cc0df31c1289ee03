"""Adapters: which parameters does this task use?"""

from .base import Adapter
from .chain import Chain
from .gradient import Gradient
from .head_table import HeadTable
from .prototype import Prototype
from .rates import LearnedRates
from .shared import Shared
from .support_mean import SupportMean

__all__ = [
    "Adapter",
    "Chain",
    "Gradient",
    "HeadTable",
    "LearnedRates",
    "Prototype",
    "Shared",
    "SupportMean",
]
