"""Named algorithms, each a combination of an adapter, an aggregator and an objective.

Besides its own arguments every recipe takes `aggregator=` (default `Mean()`), `objective=` and `layer=`.
"""

from .base import Recipe
from .baselines import fine_tuning, frozen_logistic, laplacian_shot, tim, transductive_fine_tuning
from .cavia import cavia
from .closed_form import logistic, metaoptnet, r2d2
from .drop_grad import drop_grad
from .es_maml import es_maml
from .gradient_steps import anil, boil, fomaml, imaml, lslr, maml, metasgd, reptile
from .learned_rule import learned_rule
from .maml_plus_plus import maml_plus_plus
from .meta_curvature import meta_curvature
from .metric import class_means, feat, matching, protonet, relation, simple_shot
from .multi_task import joint, mtl

__all__ = [
    "Recipe",
    "anil",
    "boil",
    "cavia",
    "class_means",
    "drop_grad",
    "es_maml",
    "feat",
    "fine_tuning",
    "fomaml",
    "frozen_logistic",
    "imaml",
    "joint",
    "laplacian_shot",
    "learned_rule",
    "logistic",
    "lslr",
    "maml",
    "maml_plus_plus",
    "matching",
    "meta_curvature",
    "metaoptnet",
    "metasgd",
    "mtl",
    "protonet",
    "r2d2",
    "relation",
    "reptile",
    "simple_shot",
    "tim",
    "transductive_fine_tuning",
]
