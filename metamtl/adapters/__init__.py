"""Adapters: compute the task-specific parameters from a model and a support set."""

from .base import Adapter
from .chain import Chain
from .class_means import ClassMeans
from .differentiation import Checkpointed, Differentiation, FirstOrder, Implicit, Truncated, Unrolled
from .feat import FEAT
from .feature_classifier import FeatureClassifier
from .full_context import FullContext
from .gradient import Gradient
from .head_table import HeadTable
from .laplacian_shot import LaplacianShot
from .logistic import Logistic
from .matching import Matching
from .mean_predictor import MeanPredictor
from .prototype import Prototype
from .rates import LearnedRates
from .relation import Relation
from .ridge import Ridge
from .shared import Shared
from .simple_shot import SimpleShot, feature_mean
from .svm import SVM
from .tim import TIM
from .transductive_fine_tuning import TransductiveFineTuning
from .with_steps import with_steps
from .zeros import Zeros

__all__ = [
    "FEAT",
    "SVM",
    "TIM",
    "Adapter",
    "Chain",
    "Checkpointed",
    "ClassMeans",
    "Differentiation",
    "FeatureClassifier",
    "FirstOrder",
    "FullContext",
    "Gradient",
    "HeadTable",
    "Implicit",
    "LaplacianShot",
    "LearnedRates",
    "Logistic",
    "Matching",
    "MeanPredictor",
    "Prototype",
    "Relation",
    "Ridge",
    "Shared",
    "SimpleShot",
    "TransductiveFineTuning",
    "Truncated",
    "Unrolled",
    "Zeros",
    "feature_mean",
    "with_steps",
]
