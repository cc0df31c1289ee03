"""Loss functions: missing labels, distillation."""

from ..functional.labels import MISSING, labelled, present
from .distillation import Taught, distilled, soft_labels, teach
from .labeled import Loss, image_mse, masked, token_cross_entropy

__all__ = [
    "MISSING",
    "Loss",
    "Taught",
    "distilled",
    "image_mse",
    "labelled",
    "masked",
    "present",
    "soft_labels",
    "teach",
    "token_cross_entropy",
]
