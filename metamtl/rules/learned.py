"""A learned update rule: a module that maps each gradient entry to its step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..functional import Params
from .base import OptState, Rates, Rule

CUTOFF = 10.0  # gradients below exp(-10) are scaled linearly


class Learned(Rule):
    """A learned update rule, `p - lr module(g)`, with the same module for every entry of every parameter.

    Andrychowicz et al. 2016, https://arxiv.org/abs/1606.04474. The inputs of the module are, as in the
    paper, `(log |g| / 10, sign g)` where `|g| >= exp(-10)`, and otherwise `(-1, exp(10) g)`, followed by
    `state` numbers that the module has returned for this entry in the previous step (0 in the first). The
    module returns the step, followed by the new state. It is trained by the outer loop: pass
    `recipe.parameters()` to the optimizer.

    Differs from the paper in: any module instead of a two-layer LSTM.

    Args:
        module: `[n, 2 + state] -> [n, 1 + state]`.
        state: the number of state variables of each entry.

    Raises:
        TypeError: `module` is not a module.
        ValueError: in an inner loop: the module returns another shape.

    >>> rule = Learned(nn.Sequential(nn.Linear(2 + 4, 8), nn.Tanh(), nn.Linear(8, 1 + 4)), state=4)
    >>> params = {"w": torch.ones(3)}
    >>> rule.update(params, params, rule.init(params), {"w": 0.1}, torch.tensor(0))[1]["w"].shape
    torch.Size([3, 4])
    """

    def __init__(self, module: nn.Module, state: int = 0) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"Learned: module={module!r}; pass a module [n, 2 + state] -> [n, 1 + state].")
        self.module, self.state = module, state

    def init(self, params: Params) -> OptState:
        return {name: p.new_zeros(p.numel(), self.state) for name, p in params.items()}

    def update(
        self, params: Params, gradients: Params, opt_state: OptState, lr: Rates, k: Tensor
    ) -> tuple[Params, OptState]:
        new_params, new_state = dict(params), dict(opt_state)
        for name, g in gradients.items():
            inputs = torch.cat([preprocessed(g.reshape(-1)), opt_state[name]], 1)
            output = self.module(inputs)
            if output.shape != (len(inputs), 1 + self.state):
                raise ValueError(
                    f"the module of Learned returns shape {list(output.shape)}; with state={self.state} it"
                    f" must return [{len(inputs)}, {1 + self.state}]."
                )
            new_params[name] = params[name] - lr[name] * output[:, 0].reshape(g.shape)
            new_state[name] = output[:, 1:]
        return new_params, new_state


def preprocessed(g: Tensor) -> Tensor:
    """The two inputs for each gradient entry, `[n, 2]`."""
    large = g.abs() >= math.exp(-CUTOFF)
    size = torch.where(large, g, 1.0).abs().log() / CUTOFF
    small = math.exp(CUTOFF) * g
    return torch.stack([torch.where(large, size, -1.0), torch.where(large, g.sign(), small)], 1)
