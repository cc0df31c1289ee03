"""A multi-class support vector machine on the features: MetaOptNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import Features
from ..functional.quadratic_program import quadratic_program
from .feature_classifier import FeatureClassifier


class SVM(FeatureClassifier):
    """A linear multi-class support vector machine, differentiated at its exact solution: MetaOptNet.

    Lee, Maji, Ravichandran, Soatto 2019, https://arxiv.org/abs/1904.03758; Crammer, Singer 2001,
    https://www.jmlr.org/papers/v2/crammer01a.html. `W` minimizes
    `1/2 |W|^2 + C sum_i max_n (w_n f_i + [n != y_i] - w_{y_i} f_i)`. The dual is a quadratic program with
    `S N` variables: maximize `sum_i a_{i y_i} - 1/2 sum_n |w_n|^2` with `w_n = sum_i a_in f_i`,
    `a_in <= C [n = y_i]` and `sum_n a_in = 0`. There is no intercept. The scores are `scale f W`; the scale
    is learned. The outer gradient is that of the exact solution; it is differentiable once.

    Differs from the authors' code in: their solver adds 1 to the diagonal of the dual's quadratic form.

    Args:
        features, ways: as in `FeatureClassifier`.
        C: weight of the violated margins; 0.1 in the paper.
        scale: the initial scale of the scores.
        steps: number of interior-point steps; 25 reach double precision.

    Raises:
        ValueError: `C` or `steps` is not positive.

    >>> SVM(ways=5, C=0.1).scale
    Parameter containing:
    tensor(1., requires_grad=True)
    """

    def __init__(
        self,
        features: Features = "body",
        *,
        ways: int | None = None,
        C: float = 0.1,
        scale: float = 1.0,
        steps: int = 25,
    ) -> None:
        super().__init__(features, ways=ways)
        if not C > 0 or steps < 1:
            raise ValueError(f"SVM: C={C} and steps={steps} must be positive.")
        self.C, self.steps = C, steps
        self.scale = nn.Parameter(torch.tensor(scale))

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        size, ways = classes.shape
        identity = torch.eye(ways, dtype=features.dtype, device=features.device)
        hessian = torch.kron(features @ features.T, identity)
        rows = torch.kron(
            torch.eye(size, dtype=features.dtype, device=features.device), identity.new_ones(1, ways)
        )
        start = self.C / 2 * (classes - (1 - classes) / (ways - 1))
        dual = quadratic_program(
            hessian, classes.flatten(), self.C * classes.flatten(), rows, start.flatten(), self.steps
        )
        return {"weight": self.scale.to(dual.dtype) * (features.T @ dual.view(size, ways))}

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        return features @ values["weight"]
