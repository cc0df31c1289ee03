"""NAdam, RAdam and Adamax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Number, Slots, TorchRule, average, bias_correction, ratio, root, zero_count


class NAdam(TorchRule):
    """Adam with Nesterov momentum, Dozat 2016, as in `torch.optim.NAdam`.

    Let `mu_k = beta1 (1 - 0.96^(k momentum_decay) / 2)`, `M_k = mu_1 ... mu_k`, and let `v` be corrected
    for its bias. The direction at update k is
    `((1 - mu_k) / (1 - M_k) g + mu_{k+1} / (1 - M_{k+1}) m) / (sqrt(v) + eps)`.

    Args:
        betas, eps, momentum_decay: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.
        decoupled_weight_decay: add `weight_decay * p` to the direction instead.

    >>> NAdam(momentum_decay=0.1)
    NAdam(momentum_decay=0.1)
    """

    beta1: Number
    beta2: Number
    eps: Number
    momentum_decay: Number

    def __init__(
        self,
        *,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        momentum_decay: Number = 4e-3,
        decoupled_weight_decay: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_betas(betas)
        self.set_option("eps", eps)
        self.set_option("weight_decay", weight_decay)
        self.set_option("momentum_decay", momentum_decay)
        self.decoupled = decoupled_weight_decay

    def init_slots(self, param: Tensor) -> Slots:
        count = zero_count(param)
        zeros = torch.zeros_like(param)
        return {"count": count, "mean": zeros, "square": torch.zeros_like(param), "product": count + 1}

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        count = slots["count"].detach() + 1
        mu, mu_next = (
            self.beta1 * (1 - 0.5 * 0.96 ** (number * self.momentum_decay)) for number in (count, count + 1)
        )
        new_slots = {
            "count": count,
            "mean": average(slots["mean"], gradient, self.beta1),
            "square": average(slots["square"], gradient.square(), self.beta2),
            "product": slots["product"] * mu,
        }
        gradient_weight = ((1 - mu) / (1 - new_slots["product"])).to(gradient.dtype)
        mean_weight = (mu_next / (1 - new_slots["product"] * mu_next)).to(gradient.dtype)
        correction = bias_correction(self.beta2, count).sqrt().to(gradient.dtype)
        numerator = gradient_weight * gradient + mean_weight * new_slots["mean"]
        denominator = root(new_slots["square"]) / correction + self.eps
        return ratio(numerator, denominator), new_slots


class RAdam(TorchRule):
    """Rectified Adam, Liu et al. 2020, https://arxiv.org/abs/1908.03265, as in `torch.optim.RAdam`.

    Let `r_inf = 2 / (1 - beta2) - 1`, `r = r_inf - 2 k beta2^k / (1 - beta2^k)`, and let `m` be corrected
    for its bias. The direction at update k is `m` if `r <= 5`, and otherwise
    `m sqrt((r - 4) (r - 2) r_inf / ((r_inf - 4) (r_inf - 2) r)) sqrt(1 - beta2^k) / (sqrt(v) + eps)`.

    Args:
        betas, eps: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.
        decoupled_weight_decay: add `weight_decay * p` to the direction instead.

    >>> RAdam(betas=(0.9, 0.99))
    RAdam(betas=(0.9, 0.99))
    """

    beta1: Number
    beta2: Number
    eps: Number

    def __init__(
        self,
        *,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        decoupled_weight_decay: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_betas(betas)
        self.set_option("eps", eps)
        self.set_option("weight_decay", weight_decay)
        self.decoupled = decoupled_weight_decay

    def init_slots(self, param: Tensor) -> Slots:
        return {
            "count": zero_count(param),
            "mean": torch.zeros_like(param),
            "square": torch.zeros_like(param),
        }

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        count = slots["count"].detach() + 1
        new_slots = {
            "count": count,
            "mean": average(slots["mean"], gradient, self.beta1),
            "square": average(slots["square"], gradient.square(), self.beta2),
        }
        correction1, correction2 = (bias_correction(beta, count) for beta in (self.beta1, self.beta2))
        limit = 2 / (1 - self.beta2) - 1 + torch.zeros_like(count)
        length = limit - 2 * count * (1 - correction2) / correction2
        # Both branches are computed, so the unselected branch must be finite; 6 is an arbitrary value > 5.
        rectified = length > 5
        length, limit = torch.where(rectified, length, 6.0), torch.where(rectified, limit, 6.0)
        factor = ((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)).sqrt()
        numerator = (factor * correction2.sqrt()).to(gradient.dtype)
        adaptive_scale = ratio(numerator, root(new_slots["square"]) + self.eps)
        scale = torch.where(rectified, adaptive_scale, 1.0)
        return new_slots["mean"] / correction1.to(gradient.dtype) * scale, new_slots


class Adamax(TorchRule):
    """Adam with the infinity norm of the gradients, as in `torch.optim.Adamax`.

    With `u = max(beta2 u, |g| + eps)`, the direction at update k is `m / (1 - beta1^k) / u`.

    Args:
        betas, eps: as in the formula.
        weight_decay: use the gradient `g + weight_decay * p`.

    >>> Adamax(eps=1e-4)
    Adamax(eps=0.0001)
    """

    beta1: Number
    beta2: Number
    eps: Number

    def __init__(
        self,
        *,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown)
        self.set_betas(betas)
        self.set_option("eps", eps)
        self.set_option("weight_decay", weight_decay)

    def init_slots(self, param: Tensor) -> Slots:
        return {
            "count": zero_count(param),
            "mean": torch.zeros_like(param),
            "largest": torch.zeros_like(param),
        }

    def direction(self, gradient: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
        new_slots = {
            "count": slots["count"].detach() + 1,
            "mean": average(slots["mean"], gradient, self.beta1),
            "largest": torch.maximum(self.beta2 * slots["largest"], gradient.abs() + self.eps),
        }
        correction = bias_correction(self.beta1, new_slots["count"]).to(gradient.dtype)
        return ratio(new_slots["mean"], new_slots["largest"]) / correction, new_slots
