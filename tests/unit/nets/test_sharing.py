"""Each architecture against what it must be in a case that is known."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import Batch, Episode, meta_backward, nets, recipes
from metamtl.nets.sharing.mixture import mixed

OUTPUTS = {"a": 3, "b": 1}
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def body() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh())


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


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


def test_gradient_reversal_flips_exactly() -> None:
    x = X.clone().requires_grad_()
    assert torch.equal(nets.reverse_gradient(x), x)
    plain, reversed_ = ((f(x) ** 3).sum() for f in (lambda x: x, nets.reverse_gradient))
    (there,) = torch.autograd.grad(plain, x, create_graph=True)
    (back,) = torch.autograd.grad(reversed_, x, create_graph=True)
    assert torch.equal(back, -there)
    (halved,) = torch.autograd.grad((nets.reverse_gradient(x, 0.5) ** 3).sum(), x)
    assert torch.equal(halved, -0.5 * there)

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (nets.reverse_gradient(x) ** 3).sum())(x)

    torch.testing.assert_close(torch.func.vmap(slope)(X), -3 * X**2, rtol=1e-14, atol=0.0)


def shared_private() -> tuple[nets.SharedPrivate, dict[str, Episode], dict[str, object]]:
    model = nets.SharedPrivate(body(), body, 6, OUTPUTS).double()
    episodes = {
        "b": Episode(None, Batch(X[:2] + 1, torch.zeros(2, 1).double())),
        "a": Episode(None, Batch(X, torch.tensor([0, 1, 2, 0, 1]))),
    }
    return model, episodes, {"a": F.cross_entropy, "b": F.mse_loss}


def test_the_constraints_of_shared_and_private_features() -> None:
    model, episodes, loss = shared_private()
    more, losses = model.constrained(episodes, loss, adversarial=0.5, difference=0.1)
    assert list(more) == ["b", "a", "discriminator", "b.difference", "a.difference"] and set(losses) == set(
        more
    )
    seen = more["discriminator"].query
    assert torch.equal(seen.x, torch.cat([X[:2] + 1, X])) and seen.y.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert more["a.difference"].query.x is episodes["a"].query.x  # one pass for both
    outcome = meta_backward(model, recipes.joint(), more, losses)
    s, p = model.shared(X), model.private["a"](X)
    expected = 0.1 * (s.T @ p / 5).square().sum()
    torch.testing.assert_close(outcome.losses[4], expected.detach(), rtol=1e-12, atol=0.0)


def test_the_shared_encoder_climbs_what_the_discriminator_descends() -> None:
    model, episodes, loss = shared_private()
    more, losses = model.constrained(episodes, loss, adversarial=0.5, difference=0.1)
    meta_backward(model, recipes.joint(), more, losses)
    plain = {}
    for name, episode in more.items():
        if name == "discriminator":
            output = model.discriminator(model.shared(episode.query.x))  # not reversed
        else:
            output = model(episode.query.x, task=name)
        params = dict(model.named_parameters())
        value = losses[name](output, episode.query.y)
        found = torch.autograd.grad(value, list(params.values()), allow_unused=True)
        plain[name] = dict(zip(params, found))
    rest = [name for name in more if name != "discriminator"]
    for name, param in model.named_parameters():
        if name.startswith("shared."):
            expected = (sum(plain[task][name] for task in rest) - plain["discriminator"][name]) / 5
        else:
            expected = sum(found[name] for found in plain.values() if found[name] is not None) / 5
        torch.testing.assert_close(param.grad, expected, rtol=1e-10, atol=1e-13)


def test_gumbel_noise_is_drawn_by_the_generator_alone() -> None:
    model = nets.Branching([body, block], [3, 2], 6, OUTPUTS).double()
    still = model(X, task="a")
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(draws))
        model.sample(torch.Generator().manual_seed(seed), temperature=0.5)
        draws.append(model(X, task="a"))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], still)
    many = nets.Branching([body, block], [500, 40], 6, OUTPUTS)
    many.sample(torch.Generator().manual_seed(0))
    assert abs(float(many.noise.mean()) - 0.5772) < 0.03  # Euler's constant
    assert abs(float(many.noise.var()) - torch.pi**2 / 6) < 0.06


def test_a_branch_is_a_mean_of_parents_in_training_and_one_of_them_in_eval() -> None:
    model = nets.Branching([body, block], [3, 2], 6, OUTPUTS).double()
    model.sample(torch.Generator().manual_seed(0), temperature=0.7)
    for logits in (*model.parents, *model.leaves.values()):
        nn.init.normal_(logits)
    noise = model.noise.split([6, 2, 2])
    first = torch.stack([node(X) for node in model.layers[0]])
    parents = ((model.parents[0] + noise[0].view(2, 3)) / 0.7).softmax(1)
    second = [
        node(sum(parents[j, i] * first[i] for i in range(3))) for j, node in enumerate(model.layers[1])
    ]
    leaf = ((model.leaves["b"] + noise[2]) / 0.7).softmax(0)
    expected = model.heads["b"](leaf[0] * second[0] + leaf[1] * second[1])
    torch.testing.assert_close(model(X, task="b"), expected, rtol=1e-12, atol=1e-13)

    model.parents[0].data = torch.tensor([[0, 3, 1], [2, 0, 1]]).double()
    model.leaves["a"].data, model.leaves["b"].data = torch.eye(2).double()
    assert model.branches() == {"a": (1, 0), "b": (0, 1)}
    model.eval()
    for name, (low, high) in model.branches().items():
        features = model.layers[1][high](model.layers[0][low](X))
        torch.testing.assert_close(model(X, task=name), model.heads[name](features), rtol=1e-13, atol=1e-14)


def test_branching_learns_which_tasks_belong_together() -> None:
    """Tasks a and c are one function, b another: with one node for each, a and c come to share theirs."""
    model = nets.Branching(
        [lambda: nn.Linear(4, 6), lambda: nn.Linear(6, 6)], [1, 2], 6, {"b": 1, "a": 1, "c": 1}
    )
    model = model.double()
    for head in model.heads.values():
        head.load_state_dict({"weight": torch.ones(1, 6).double(), "bias": torch.zeros(1).double()})
        head.requires_grad_(False)
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    y = {"a": X[:, :1], "c": X[:, :1], "b": -X[:, :1]}
    for step in range(150):
        model.sample(rng, temperature=max(0.3, 2.0 - step / 50))
        optimizer.zero_grad()
        sum(F.mse_loss(out, y[name]) for name, out in model(X).items()).backward()
        optimizer.step()
    found = model.branches()
    assert found["a"] == found["c"] != found["b"]
    model.eval()
    assert all(bool(F.mse_loss(out, y[name]) < 0.05) for name, out in model(X).items())
