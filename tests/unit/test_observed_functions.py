"""Functions that a model calls itself, and complex weights."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from metamtl import Batch, Episode, Recipe, adapters, aggregators, engines, meta_backward, recipes, rules


def close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm()) <= 1e-10 * float(b.norm())


def test_a_hook_added_after_the_first_pass_is_seen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    by_layer = copy.deepcopy(model)
    parametrizations.weight_norm(by_layer[0])
    x, y = torch.randn(2, 6, 4).double(), torch.arange(6).expand(2, -1) % 3
    episode = Episode(Batch(x, y), Batch(-x, y))
    for engine in (engines.Loop(), engines.Vmap(), engines.Compiled()):
        hooked = copy.deepcopy(model)
        meta_backward(hooked, recipes.maml(2, 0.1), episode, F.cross_entropy, engine=engine)
        hooked.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(hooked[0])
            meta_backward(hooked, recipes.maml(2, 0.1), episode, F.cross_entropy, engine=engine)
        by_layer.zero_grad()
        meta_backward(by_layer, recipes.maml(2, 0.1), episode, F.cross_entropy, engine=engines.Loop())
        assert close(hooked[0].weight_v.grad, by_layer[0].parametrizations.weight.original1.grad)
        assert close(hooked[0].weight_g.grad, by_layer[0].parametrizations.weight.original0.grad)


def test_what_compares_real_numbers_rejects_complex_weights() -> None:
    model = nn.Linear(4, 3, dtype=torch.complex128)
    x = torch.randn(2, 6, 4, dtype=torch.complex128)
    episode = Episode(Batch(x, x[..., :3]), Batch(x, x[..., :3]))

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output - y).abs().square().mean()

    mgda = Recipe(adapters.Gradient(1, 0.1), aggregator=aggregators.MGDA())
    with pytest.raises(TypeError, match=r"those of weight, bias are complex.*view_as_complex"):
        meta_backward(model, mgda, episode, loss)
    with pytest.raises(TypeError, match="Adam compares real numbers, but weight is complex"):
        meta_backward(model, Recipe(adapters.Gradient(1, 0.1, rule=rules.Adam())), episode, loss)
    assert model.weight.grad is None
    meta_backward(model, Recipe(adapters.Gradient(1, 0.1, rule=rules.SGD(momentum=0.5))), episode, loss)
    assert model.weight.grad is not None and model.weight.grad.abs().max() > 0
