"""Named algorithms, each a combination of an adapter, an aggregator and an objective.

Besides its own arguments every recipe takes `aggregator=` (default `Mean()`), `objective=` and `layer=`.
"""

from .base import Recipe
from .closed_form import logistic, metaoptnet, r2d2
from .gradient_steps import anil, boil, fomaml, imaml, lslr, maml, metasgd, reptile
from .metric import protonet
from .multi_task import joint, mtl

__all__ = [
    "Recipe",
    "anil",
    "boil",
    "fomaml",
    "imaml",
    "joint",
    "logistic",
    "lslr",
    "maml",
    "metaoptnet",
    "metasgd",
    "mtl",
    "protonet",
    "r2d2",
    "reptile",
]
