"""Adapters: compute the task-specific parameters from a model and a support set."""

from .base import Adapter
from .chain import Chain
from .differentiation import Checkpointed, Differentiation, FirstOrder, Implicit, Truncated, Unrolled
from .feature_classifier import FeatureClassifier
from .gradient import Gradient
from .head_table import HeadTable
from .logistic import Logistic
from .mean_predictor import MeanPredictor
from .prototype import Prototype
from .rates import LearnedRates
from .ridge import Ridge
from .shared import Shared
from .svm import SVM

__all__ = [
    "SVM",
    "Adapter",
    "Chain",
    "Checkpointed",
    "Differentiation",
    "FeatureClassifier",
    "FirstOrder",
    "Gradient",
    "HeadTable",
    "Implicit",
    "LearnedRates",
    "Logistic",
    "MeanPredictor",
    "Prototype",
    "Ridge",
    "Shared",
    "Truncated",
    "Unrolled",
]
