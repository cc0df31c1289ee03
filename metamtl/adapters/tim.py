"""A classifier fitted to the mutual information of query features and predictions: TIM."""

from __future__ import annotations

from torch import Tensor

from ..functional import Features, gradient
from .class_means import squared_distances
from .feature_classifier import FeatureClassifier, class_means, unit


class TIM(FeatureClassifier):
    """Class weights that maximize the mutual information of query features and predictions: TIM-GD.

    Boudiaf et al. 2020, https://arxiv.org/abs/2008.11297. Features are l2-normalized. The weights `W` start
    at the class means; `p(n | f)` is the softmax of `-temperature / 2 |f - w_n|^2`. K gradient steps
    minimize
    `support_weight CE(support) - H(mean of p over the query set) + entropy_weight mean H(p of a query)`.
    **Transductive**: the prediction for one query example depends on all query inputs.

    Differs from the paper in: plain gradient steps instead of 1000 steps of Adam.

    Args:
        features, ways: as in `FeatureClassifier`.
        steps, lr: number and size of the gradient steps.
        temperature, support_weight, entropy_weight: as in the formula; the defaults are those of the paper.

    Raises:
        ValueError: `steps` is negative.

    >>> TIM(ways=5).transductive
    True
    """

    def __init__(
        self,
        features: Features = "body",
        *,
        ways: int | None = None,
        steps: int = 20,
        lr: float = 0.1,
        temperature: float = 15.0,
        support_weight: float = 0.1,
        entropy_weight: float = 0.1,
    ) -> None:
        super().__init__(features, ways=ways)
        if steps < 0:
            raise ValueError(f"TIM: steps={steps} cannot be negative.")
        self.steps, self.lr, self.temperature = steps, lr, temperature
        self.support_weight, self.entropy_weight = support_weight, entropy_weight

    @property
    def transductive(self) -> bool:
        return True

    def fit(self, features: Tensor, classes: Tensor) -> dict[str, Tensor]:
        features = unit(features)
        return {
            "support": features,
            "classes": classes,
            "weights": class_means(features, classes),
        }

    def classify(self, values: dict[str, Tensor], features: Tensor) -> Tensor:
        query, weights = unit(features), values["weights"]

        def objective(params: dict[str, Tensor]) -> Tensor:
            log_support = self._scores(values["support"], params["weights"]).log_softmax(1)
            log_p = self._scores(query, params["weights"]).log_softmax(1)
            marginal = log_p.exp().mean(0)
            conditional = -(log_p.exp() * log_p).sum(1).mean()
            cross_entropy = -(values["classes"] * log_support).sum(1).mean()
            return (
                self.support_weight * cross_entropy
                + (marginal * marginal.log()).sum()
                + self.entropy_weight * conditional
            )

        for _ in range(self.steps):
            # A view, because the weights may depend on the other variables through earlier steps.
            point = {"weights": weights.view_as(weights)}
            weights = weights - self.lr * gradient(objective, point)["weights"]
        return self._scores(query, weights)

    def _scores(self, features: Tensor, weights: Tensor) -> Tensor:
        return -0.5 * self.temperature * squared_distances(features, weights)
