"""Loss functions for missing labels and distillation."""

from ..functional.labels import MISSING, has_label, is_labeled
from .distillation import WithTeachers, add_teacher_targets, distillation_loss, soft_labels
from .labeled import Loss, image_mse, mean_over_labeled, token_cross_entropy

__all__ = [
    "MISSING",
    "Loss",
    "WithTeachers",
    "add_teacher_targets",
    "distillation_loss",
    "has_label",
    "image_mse",
    "is_labeled",
    "mean_over_labeled",
    "soft_labels",
    "token_cross_entropy",
]
