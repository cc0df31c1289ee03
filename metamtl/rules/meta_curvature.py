"""A learned linear transformation of the inner gradient: Meta-Curvature."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..functional import Params, select_parameters
from ..functional.register import register_parameter
from .base import OptState, Rates, Rule


class MetaCurvature(Rule):
    """Gradient descent with learned curvature matrices, `p - lr M_out g M_in`: Meta-Curvature.

    Park, Oliva 2019, https://arxiv.org/abs/1902.03356. The gradient of a matrix `[O, I]` is multiplied by
    `M_out` `[O, O]` and `M_in` `[I, I]`, that of a convolution `[O, I, H, W]` also along its `H W`
    positions by `M_kernel`, and that of a vector by one number for each element. All start as the identity
    and are learned by the outer loop: pass `recipe.parameters()` to the optimizer.

    Args:
        model: the model whose parameters are adapted.
        adapts: as in `Gradient`.

    Raises:
        ValueError: a prefix matches no parameter. In an inner loop: it adapts parameters without curvature.

    >>> rule = MetaCurvature(nn.Linear(3, 2))
    >>> {name: list(p.shape) for name, p in rule.factors.named_parameters()}
    {'weight.out': [2, 2], 'weight.in': [3, 3], 'bias.out': [2]}
    """

    def __init__(self, model: nn.Module, adapts: str | Iterable[str] | None = None) -> None:
        super().__init__()
        self.factors = nn.Module()
        params = dict(model.named_parameters())
        for name in select_parameters(model, adapts):
            param = params[name].detach()
            if param.dim() < 2:
                register_parameter(self.factors, f"{name}.out", nn.Parameter(torch.ones_like(param)))
                continue
            sizes = {"out": param.shape[0], "in": param.shape[1]}
            if param.dim() > 2:
                sizes["kernel"] = param.shape[2:].numel()
            for axis, size in sizes.items():
                identity = torch.eye(size, dtype=param.dtype, device=param.device)
                register_parameter(self.factors, f"{name}.{axis}", nn.Parameter(identity))

    def __repr__(self) -> str:
        return "MetaCurvature()"

    def init(self, params: Params) -> OptState:
        known = {name.rpartition(".")[0] for name, _ in self.factors.named_parameters()}
        missing = sorted(set(params) - known)
        if missing:
            raise ValueError(
                f"MetaCurvature has no matrices for {missing[:5]}; pass the same adapts= to MetaCurvature"
                " and Gradient."
            )
        return ()

    def update(
        self, params: Params, gradients: Params, opt_state: OptState, lr: Rates, k: Tensor
    ) -> tuple[Params, OptState]:
        factors = dict(self.factors.named_parameters())
        new_params = dict(params)
        for name, g in gradients.items():
            out = factors[f"{name}.out"]
            if g.dim() < 2:
                direction = out * g
            else:
                matrix = g.flatten(2) if g.dim() > 2 else g[..., None]
                direction = torch.einsum("op,pif,ij->ojf", out, matrix, factors[f"{name}.in"])
                if g.dim() > 2:
                    direction = direction @ factors[f"{name}.kernel"].T
                direction = direction.reshape(g.shape)
            new_params[name] = params[name] - lr[name] * direction
        return new_params, ()
