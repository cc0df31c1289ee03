"""Each architecture against what it must be in a case that is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import nets
from metamtl.nets.sharing.mixture import mixed

from .sharing_nets import OUTPUTS, X, block, body

pytestmark = pytest.mark.usefixtures("own_random_numbers")


def gate(n: int) -> nn.Module:
    return nn.Linear(4, n)


def same_heads(model: nn.Module, trunk: nn.Module) -> nets.NamedHeads:
    """Hard sharing over `trunk` with the heads of `model`."""
    hard = nets.NamedHeads(trunk, 6, OUTPUTS).double()
    hard.heads.load_state_dict(model.heads.state_dict())
    return hard


def assert_equal(model: nn.Module, expected: nn.Module) -> None:
    for name in OUTPUTS:
        torch.testing.assert_close(model(X, task=name), expected(X, task=name), rtol=1e-13, atol=1e-14)


def test_one_expert_is_hard_sharing() -> None:
    expert = body()
    model = nets.MMoE([expert], gate, 6, OUTPUTS).double()
    assert_equal(model, same_heads(model, expert))


def test_equal_experts_are_hard_sharing_whatever_the_gates() -> None:
    first = body()
    experts = [copy.deepcopy(first) for _ in range(4)]
    for model in (
        nets.MMoE(experts, gate, 6, OUTPUTS),
        nets.DSelectK(experts, 3, 6, OUTPUTS),
        nets.PLE([(lambda: copy.deepcopy(first), gate)], 6, OUTPUTS, own=2, shared=2),
    ):
        assert_equal(model.double(), same_heads(model, first.double()))


def test_mmoe_is_its_formula() -> None:
    model = nets.MMoE([body() for _ in range(3)], gate, 6, OUTPUTS).double()
    weights = torch.softmax(model.gates["a"](X), -1)
    assert torch.equal(weights, model.weights("a", X))
    features = sum(weights[:, e, None] * expert(X) for e, expert in enumerate(model.experts))
    torch.testing.assert_close(model(X, task="a"), model.heads["a"](features), rtol=1e-12, atol=1e-13)


def test_weights_reach_over_all_axes_behind_their_own() -> None:
    outputs = [torch.randn(2, 3, 4, 5) for _ in range(2)]
    for shape in [(2,), (2, 2), (2, 3, 2), (2, 3, 4, 2)]:
        weights = torch.rand(shape)
        full = weights.view(*shape[:-1], *(1,) * (5 - len(shape)), 2).expand(2, 3, 4, 5, 2)
        expected = outputs[0] * full[..., 0] + outputs[1] * full[..., 1]
        torch.testing.assert_close(mixed(outputs, weights), expected)


def test_a_layer_of_ple_is_its_formula() -> None:
    second = (block, lambda n: nn.Linear(6, n))
    model = nets.PLE([(body, gate), second], 6, OUTPUTS).double()
    one, two = model.layers
    own, common = {t: one.own[t][0](X) for t in OUTPUTS}, one.shared[0](X)

    def mean(gate: nn.Module, x: Tensor, experts: list[Tensor]) -> Tensor:
        weights = gate(x).softmax(-1)
        return sum(weights[:, [e]] * expert for e, expert in enumerate(experts))  # type: ignore[return-value]

    a = mean(one.gates["a"], X, [own["a"], common])
    shared = mean(one.gate, X, [own["a"], own["b"], common])
    features = mean(two.gates["a"], a, [two.own["a"][0](a), two.shared[0](shared)])
    torch.testing.assert_close(model(X, task="a"), model.heads["a"](features), rtol=1e-12, atol=1e-13)
    assert two.gate is None


def test_one_group_is_hard_sharing() -> None:
    bottom, middle = body(), block()
    model = nets.Hierarchical(bottom, {"all": middle}, {"all": ["b", "a"]}, 6, OUTPUTS).double()
    assert_equal(model, same_heads(model, nn.Sequential(bottom, middle)))


def test_only_what_the_wanted_tasks_need_is_run() -> None:
    calls: list[nn.Module] = []

    def watch(*modules: nn.Module) -> None:
        calls.clear()
        for module in modules:
            module.register_forward_hook(lambda module, *_: calls.append(module))

    middles = {"near": block(), "far": block()}
    grouped = nets.Hierarchical(body(), middles, {"near": ["a"], "far": ["b"]}, 6, OUTPUTS).double()
    watch(grouped.bottom, *grouped.middles.values())
    grouped(X, task="b")
    assert calls == [grouped.bottom, grouped.middles["far"]]
    cgc = nets.PLE([(body, gate)], 6, OUTPUTS).double()
    layer = cgc.layers[0]
    watch(layer.shared[0], layer.own["a"][0], layer.own["b"][0])
    cgc(X, task="b")
    assert calls == [layer.shared[0], layer.own["b"][0]]
    cascade = nets.Cascade(body(), 6, OUTPUTS, after={"b": ["a"]}).double()
    watch(*cascade.heads.values())
    cascade(X, task="a")
    assert calls == [cascade.heads["a"]]


def test_identity_stitches_are_separate_towers() -> None:
    model = nets.CrossStitch(lambda: nn.Sequential(body(), block()), 6, OUTPUTS, own=1.0).double()
    assert torch.equal(model.stitches, torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    for name in OUTPUTS:
        tower = nn.Sequential(*model.towers[name])
        assert torch.equal(model(X, task=name), model.heads[name](tower(X)))


def test_stitches_mix_rows_that_sum_to_one() -> None:
    model = nets.CrossStitch(lambda: [body(), block()], 6, {**OUTPUTS, "c": 2}).double()
    torch.testing.assert_close(model.stitches.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert bool((model.stitches.diagonal(dim1=1, dim2=2) - 0.9).abs().max() < 1e-7)
    nn.init.uniform_(model.stitches)  # not symmetric: a task reads its row
    first = [tower[0](X) for tower in model.towers.values()]
    second = [
        tower[1](sum(model.stitches[0, t, s] * first[s] for s in range(3)))
        for t, tower in enumerate(model.towers.values())
    ]
    features = sum(model.stitches[1, 1, s] * second[s] for s in range(3))
    torch.testing.assert_close(model(X, task="b"), model.heads["b"](features), rtol=1e-12, atol=1e-13)
    alone = nets.CrossStitch(lambda: [body()], 6, {"a": 3}, own=0.5)
    assert alone.stitches.tolist() == [[[1.0]]]


def test_mtan_with_masks_of_one_is_hard_sharing_and_with_a_half_halves() -> None:
    stages = [body(), block()]
    model = nets.MTAN(stages, [6, 6], OUTPUTS).double()
    for bias, scale in ((1e3, 1.0), (0.0, 0.5)):
        for attend in model.attend.modules():
            if isinstance(attend, nn.Sequential):
                nn.init.zeros_(attend[2].weight)
                nn.init.constant_(attend[2].bias, bias)
        features = scale * stages[1](stages[0](X))
        torch.testing.assert_close(model(X, task="a"), model.heads["a"](features), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("stages", "widths", "axis", "shape"),
    [
        ([nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3, stride=2), nn.Flatten(2)], [4, 5, 5], 1, (3, 2, 9, 9)),
        ([nn.Conv1d(2, 4, 3), nn.Conv1d(4, 5, 3, stride=2)], [4, 5], 1, (3, 2, 9)),
        ([nn.Linear(2, 4), nn.Linear(4, 5)], [4, 5], -1, (3, 7, 2)),
    ],
)
def test_mtan_brings_features_to_the_next_stage(
    stages: list[nn.Module], widths: list[int], axis: int, shape: tuple[int, ...]
) -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).mean(2) if axis == 1 else x.mean(1)

    model = nets.MTAN([*stages[:2], Pool()], [*widths[:2], 5], OUTPUTS, axis=axis).double()
    x = torch.randn(shape, dtype=torch.float64)
    p1 = stages[0](x)
    p2 = stages[1](p1)
    attend = model.attend["a"]

    def channels_last(features: Tensor) -> Tensor:
        return features.movedim(axis, -1)

    h1 = attend[0](channels_last(p1)).sigmoid() * channels_last(p1)
    if axis == 1:  # averaged to the places of the second stage
        places = p2.shape[2:]
        pool = F.adaptive_avg_pool2d if len(places) == 2 else F.adaptive_avg_pool1d
        h1 = pool(h1.movedim(-1, 1), places).movedim(1, -1)
    h2 = attend[1](torch.cat([h1, channels_last(p2)], -1)).sigmoid() * channels_last(p2)
    p3 = Pool()(p2)
    h3 = attend[2](torch.cat([h2.flatten(1, -2).mean(1), p3], -1)).sigmoid() * p3
    torch.testing.assert_close(model(x, task="a"), model.heads["a"](h3), rtol=1e-12, atol=1e-13)


def test_the_smooth_step_and_its_derivative() -> None:
    z = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    for gamma in (1.0, 3.0):
        step = nets.smooth_step(z, gamma)
        paper = -2 / gamma**3 * z**3 + 3 / (2 * gamma) * z + 0.5
        inside = z.abs() < gamma / 2
        expected = torch.where(inside, paper, (z > 0).double())
        torch.testing.assert_close(step, expected, rtol=1e-13, atol=1e-13)
        (slope,) = torch.autograd.grad(step.sum(), z)
        derivative = torch.where(inside, -6 / gamma**3 * z**2 + 3 / (2 * gamma), torch.zeros(()).double())
        torch.testing.assert_close(slope, derivative, rtol=1e-12, atol=1e-12)


def test_selectors_that_have_converged_choose_k_experts() -> None:
    model = nets.DSelectK([body() for _ in range(8)], 2, 6, OUTPUTS).double()
    soft = model.weights("a")
    torch.testing.assert_close(soft.sum(), torch.ones(()).double())
    assert int((soft > 0).sum()) == 8
    alpha, codes = [0.0, 2.0], [[1, 0, 1], [0, 1, 1]]  # experts 1 + 4 and 2 + 4
    z = [0.6 if bit else -0.6 for code in codes for bit in code]
    model.gates["a"].logits.data = torch.tensor([*alpha, *z]).double()
    hard = model.weights("a")
    expected = torch.zeros(8).double()
    expected[[5, 6]] = torch.tensor(alpha).double().softmax(0)
    assert torch.equal(hard, expected)
    (gradient,) = torch.autograd.grad(model(X, task="a").sum(), model.gates["a"].logits)
    assert bool(gradient[:2].any()) and not bool(gradient[2:].any())


def test_selectors_learn_to_choose_the_experts_that_fit() -> None:
    """Gradient descent takes the gates to a 1-sparse selection of the only expert that knows the answer."""
    experts = [nn.Linear(4, 6, bias=False) for _ in range(4)]
    model = nets.DSelectK(experts, 1, 6, {"a": 1}).double()
    with torch.no_grad():
        y = model.heads["a"](model.experts[2](X))
    optimizer = torch.optim.Adam(model.gates.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        F.mse_loss(model(X, task="a"), y).backward()
        optimizer.step()
    assert torch.equal(model.weights("a"), torch.tensor([0, 0, 1, 0]).double())


def test_a_cascade_reads_earlier_outputs() -> None:
    trunk = body()
    model = nets.Cascade(trunk, 6, {"c": 2, **OUTPUTS}, after={"c": ["b", "a"], "b": ["a"]}).double()
    z = trunk(X)
    a = model.heads["a"](z)
    b = model.heads["b"](torch.cat([z, a], 1))
    assert torch.equal(model(X, task="a"), a) and torch.equal(model(X, task="b"), b)
    assert torch.equal(model(X, task="c"), model.heads["c"](torch.cat([z, b, a], 1)))
    flat = nets.Cascade(trunk, 6, OUTPUTS, after={}).double()
    assert_equal(flat, same_heads(flat, trunk))


def test_cooperative_heads_start_as_hard_sharing_and_then_listen() -> None:
    trunk = body()
    model = nets.Cooperative(trunk, 6, OUTPUTS).double()
    hard = same_heads(model, trunk)
    assert_equal(model, hard)
    nn.init.ones_(model.listen["b"].weight)
    expected = hard(X, task="b") + hard(X, task="a").sum(1, keepdim=True)
    torch.testing.assert_close(model(X, task="b"), expected, rtol=1e-13, atol=1e-14)
    assert torch.equal(model(X, task="a"), hard(X, task="a"))
