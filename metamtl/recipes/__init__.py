"""Named algorithms, each a combination of an adapter, an aggregator and an objective.

Besides its own arguments every recipe takes `aggregator=` (default `Mean()`), `objective=` and `layer=`.
"""

from .base import Recipe
from .closed_form import logistic, metaoptnet, r2d2
from .gradient_steps import anil, boil, fomaml, imaml, lslr, maml, metasgd, reptile
from .metric import class_means, feat, matching, protonet, relation, simple_shot
from .multi_task import joint, mtl

__all__ = [
    "Recipe",
    "anil",
    "boil",
    "class_means",
    "feat",
    "fomaml",
    "imaml",
    "joint",
    "logistic",
    "lslr",
    "maml",
    "matching",
    "metaoptnet",
    "metasgd",
    "mtl",
    "protonet",
    "r2d2",
    "relation",
    "reptile",
    "simple_shot",
]
