"""Metrics of model outputs."""

from .base import Metric, absolute_error, accuracy, binary_accuracy, mse, token_accuracy
from .whole_set import entity_f1, roc_auc

__all__ = [
    "Metric",
    "absolute_error",
    "accuracy",
    "binary_accuracy",
    "entity_f1",
    "mse",
    "roc_auc",
    "token_accuracy",
]
