"""Published accuracies of few-shot methods, with which the tables compare the trainings here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Accuracy in percent, by data set, ways, shots and recipe, with four convolutions of 64 filters. From the
# methods' own papers, except: FOMAML on Omniglot from Nichol et al. 2018; MAML, ProtoNet, R2D2 and
# RelationNet on CIFAR-FS from Bertinetto et al. 2019 (https://arxiv.org/abs/1805.08136); FC100 and ANIL
# from PaddleFSL (https://github.com/tata1661/FSL-Mate), where MAML and ANIL are of first order. Reptile
# is transductive, and MAML++ an ensemble of five models. Splits and test protocols differ between papers.
PUBLISHED: dict[tuple[str, int, int], dict[str, float]] = {
    ("Omniglot", 5, 1): {
        "maml": 98.7,
        "fomaml": 98.3,
        "reptile": 97.68,
        "maml_plus_plus": 99.47,
        "anil": 96.06,
        "protonet": 98.8,
        "relation": 99.6,
    },
    ("Omniglot", 5, 5): {
        "maml": 99.9,
        "fomaml": 99.2,
        "reptile": 99.48,
        "maml_plus_plus": 99.93,
        "anil": 98.74,
        "protonet": 99.7,
        "relation": 99.8,
    },
    ("Omniglot", 20, 1): {
        "maml": 95.8,
        "fomaml": 89.4,
        "reptile": 89.43,
        "maml_plus_plus": 97.65,
        "protonet": 96.0,
    },
    ("Omniglot", 20, 5): {
        "maml": 98.9,
        "fomaml": 97.9,
        "reptile": 97.12,
        "maml_plus_plus": 99.33,
        "protonet": 98.9,
    },
    ("CIFARFS", 5, 1): {"maml": 58.9, "protonet": 55.5, "r2d2": 60.0, "relation": 55.0, "anil": 56.19},
    ("CIFARFS", 5, 5): {"maml": 71.5, "protonet": 72.0, "r2d2": 76.1, "relation": 69.3, "anil": 68.60},
    ("FC100", 5, 1): {"fomaml": 37.63, "anil": 40.69, "protonet": 35.90, "relation": 35.80},
    ("FC100", 5, 5): {"fomaml": 49.14, "anil": 48.01, "protonet": 49.26, "relation": 47.80},
}
NOTE = (
    "Published: with four convolutions of 64 filters, trained for longer, of other splits and test tasks;"
    " in brackets, the accuracy here, adapted as trained, minus the published one."
)


def published(task: Mapping[str, Any], recipe: str) -> float | None:
    """The published accuracy of a recipe in percent; None if there is none for this task.

    Args:
        task: the config of the task.
        recipe: the name of the recipe.
    """
    name = str(task["_target_"]).rpartition(".")[2]
    return PUBLISHED.get((name, task.get("ways", 0), task.get("shots", 0)), {}).get(recipe)


def cell(value: float | None, accuracy: float) -> str:
    """The published accuracy, and the difference of `accuracy` (a fraction) from it."""
    return "-" if value is None else f"{value:.1f} ({100 * accuracy - value:+.1f})"
