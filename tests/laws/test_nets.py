"""What every architecture of sharing obeys. A new one joins by one row in `ROWS`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, meta_backward, nets, recipes
from metamtl.functional import forward, vmap_compatible_kernels
from metamtl.objectives import Objective, l2_to_mean, penalized, query_loss

TASKS = {"a": 3, "b": 1, "c": 2}
WIDTH, B = 6, 5
Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Row:
    """One architecture over any body `x -> [B, WIDTH]`.

    `private` are the modules that hold something under each task's name, for that task alone; `uses` says
    which tasks use what stands under other prefixes. What no prefix takes, all the tasks use.
    """

    make: Callable[[Make], nn.Module]
    private: tuple[str, ...] = ("heads",)
    uses: Mapping[str, str] = field(default_factory=dict)
    objective: Objective = query_loss

    def users(self, name: str) -> set[str]:
        found = set(TASKS)
        for prefix, tasks in self.uses.items():
            found = set(tasks) if name.startswith(prefix + ".") else found
        for task in TASKS:
            found = {task} if name.startswith(tuple(f"{p}.{task}" for p in self.private)) else found
        return found


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


def vector_gate(n: int) -> nn.Module:
    return nn.Linear(WIDTH, n)


class Then(nn.Module):
    """A layer behind a body of any number of inputs."""

    def __init__(self, body: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.body, self.layer = body, layer

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        return self.layer(self.body(*inputs, **keywords))


def gate(body: Make) -> Callable[[int], nn.Module]:
    return lambda n: Then(body(), nn.Linear(WIDTH, n))


def branching(body: Make) -> nn.Module:
    model = nets.Branching([body, block], [2, 2], WIDTH, TASKS)
    model.sample(torch.Generator().manual_seed(3), temperature=0.7)
    return model


def cooperative(body: Make) -> nn.Module:
    model = nets.Cooperative(body(), WIDTH, TASKS)
    for listen in model.listen.parameters():  # zero at the start, where it would not be seen
        nn.init.normal_(listen)
    return model


DECODER = {**TASKS, "b": nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, 1))}
GROUPS = {"near": ["a", "b"], "far": ["c"]}
ROWS = {
    "hard": Row(lambda body: nets.NamedHeads(body(), WIDTH, TASKS)),
    "hard, a module as head": Row(lambda body: nets.NamedHeads(body(), WIDTH, copy.deepcopy(DECODER))),
    "behind a bottom": Row(
        lambda body: nets.SharedBottom(body(), nets.NamedHeads(block(), WIDTH, TASKS)), ("top.heads",)
    ),
    "soft": Row(
        lambda body: nets.SoftSharing(body, WIDTH, TASKS),
        ("towers", "heads"),
        objective=penalized(l2_to_mean("towers"), 0.3),
    ),
    "hierarchical": Row(
        lambda body: nets.Hierarchical(body(), {name: block() for name in GROUPS}, GROUPS, WIDTH, TASKS),
        uses={"middles.near": "ab", "middles.far": "c"},
    ),
    "cross-stitch": Row(
        lambda body: nets.CrossStitch(lambda: nn.Sequential(body(), block()), WIDTH, TASKS)
    ),
    "mtan": Row(lambda body: nets.MTAN([body(), block()], [WIDTH] * 2, TASKS), ("attend", "heads")),
    "mmoe": Row(
        lambda body: nets.MMoE([body() for _ in range(3)], gate(body), WIDTH, TASKS), ("gates", "heads")
    ),
    "dselect-k": Row(
        lambda body: nets.DSelectK([body() for _ in range(4)], 2, WIDTH, TASKS), ("gates", "heads")
    ),
    "dselect-k, by example": Row(
        lambda body: nets.DSelectK([body() for _ in range(4)], 2, WIDTH, TASKS, gate(body), gamma=9.0),
        ("gates", "heads"),
    ),
    "cgc": Row(
        lambda body: nets.PLE([(body, gate(body))], WIDTH, TASKS, own=2, shared=2),
        ("layers.0.own", "layers.0.gates", "heads"),
    ),
    "ple": Row(
        lambda body: nets.PLE([(body, gate(body)), (block, vector_gate)], WIDTH, TASKS),
        ("layers.0.gates", "layers.1.own", "layers.1.gates", "heads"),
    ),
    "cascade": Row(
        lambda body: nets.Cascade(body(), WIDTH, TASKS, after={"b": ["a"], "c": ["b"]}),
        (),
        uses={"heads.b": "bc", "heads.c": "c"},
    ),
    "cooperative": Row(cooperative, ("listen",)),
    "shared-private": Row(
        lambda body: nets.SharedPrivate(body(), body, WIDTH, TASKS),
        ("private", "heads"),
        uses={"discriminator": ""},
    ),
    "branching": Row(branching, ("leaves", "heads")),
}


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


class Average(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Two(nn.Module):
    """Takes two inputs, or keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.words = nn.Linear(4, WIDTH), nn.Embedding(9, WIDTH)

    def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
        return torch.tanh(self.numbers(numbers) + self.words(words).mean(1))


PRETRAINED = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, WIDTH), nn.Tanh())
PRETRAINED[0].requires_grad_(False)
RNG = torch.Generator().manual_seed(0)
NUMBERS = torch.randn(B, 4, generator=RNG)
WORDS = torch.randint(9, (B, 7), generator=RNG)
SEQUENCE = torch.randn(B, 4, 3, generator=RNG)
BODIES: dict[str, tuple[Make, Any]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh()), NUMBERS),
    "cnn": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, WIDTH), nn.Tanh()),
        torch.randn(B, 1, 5, 5, generator=RNG),
    ),
    "lstm": (lambda: Last(nn.LSTM(3, WIDTH, batch_first=True)), SEQUENCE),
    "gru": (lambda: Last(nn.GRU(3, WIDTH, batch_first=True)), SEQUENCE),
    "transformer": (
        lambda: nn.Sequential(
            nn.Linear(3, WIDTH),
            nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True),
            Average(),
        ),
        SEQUENCE,
    ),
    "pretrained": (lambda: copy.deepcopy(PRETRAINED), NUMBERS),
    "words": (lambda: nn.Sequential(nn.Embedding(9, WIDTH), Average()), WORDS),
    "two inputs": (Two, (NUMBERS, WORDS)),
    "keywords": (Two, {"numbers": NUMBERS, "words": WORDS}),
}


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def double(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: double(value) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(double(value) for value in x)
    return x.double() if x.is_floating_point() else x


def build(row: str, body: str = "mlp") -> tuple[nn.Module, Any]:
    make, x = BODIES[body]
    return ROWS[row].make(make).double(), double(x)


def ask(model: nn.Module, x: Any, task: Any) -> Any:
    return forward(model, dict(model.named_parameters()), x, task)


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor | None]:
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    found = torch.autograd.grad(value, list(params.values()), allow_unused=True, retain_graph=True)
    return dict(zip(params, found))


each_row = pytest.mark.parametrize("row", ROWS)
each_body = pytest.mark.parametrize("body", BODIES)


@each_body
@each_row
def test_one_pass_for_several_names_equals_a_pass_for_each(row: str, body: str) -> None:
    model, x = build(row, body)
    model.eval()
    every = ask(model, x, tuple(TASKS))
    assert {name: tuple(out.shape) for name, out in every.items()} == {
        name: (B, width) for name, width in TASKS.items()
    }
    some = ask(model, x, ("c", "a"))
    assert list(some) == ["c", "a"]
    for name in TASKS:
        assert torch.equal(ask(model, x, name), every[name])
        assert name == "b" or torch.equal(some[name], every[name])
    assert bool(every["a"].std() > 0)


@each_row
def test_without_a_name_all_tasks_answer(row: str) -> None:
    model, x = build(row)
    every, named = model(x), model(x, task=tuple(TASKS))
    assert list(every) == list(TASKS)
    assert all(torch.equal(every[name], named[name]) for name in TASKS)
    assert torch.equal(model(x, "b"), named["b"]) and list(model(x, ("c", "a"))) == ["c", "a"]


@each_row
def test_a_task_uses_what_is_its_own_and_what_it_shares(row: str) -> None:
    model, x = build(row)
    for name in TASKS:
        alone = gradients(model, ask(model, x, name).square().sum())
        together = gradients(model, ask(model, x, tuple(TASKS))[name].square().sum())
        for param, found in alone.items():
            assert (found is not None) == (name in ROWS[row].users(param)), (name, param)
            assert (found is None) == (together[param] is None)
            assert found is None or torch.equal(found, together[param])


@each_row
def test_every_parameter_is_used_by_a_name(row: str) -> None:
    model, x = build(row)
    names = model.known() if isinstance(model, nets.NamedTasks) else tuple(TASKS)
    unused = set(dict(model.named_parameters()))
    for name in names:
        found = gradients(model, ask(model, x, name).square().sum())
        unused -= {param for param, gradient in found.items() if gradient is not None and gradient.any()}
    assert not unused


@each_row
def test_twice_differentiable(row: str) -> None:
    model, x = build(row)
    params = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    used = [name for name in params if ROWS[row].users(name) & {"a", "b"}]

    def outputs(*values: Tensor) -> Tensor:
        found = forward(model, {**params, **dict(zip(used, values))}, x[:3], ("a", "b"))
        return torch.cat([out.flatten() for out in found.values()]).sin()

    assert torch.autograd.gradcheck(outputs, [params[name] for name in used], fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, [params[name] for name in used], fast_mode=True)


@each_row
def test_vmap_is_a_loop(row: str) -> None:
    model, x = build(row)
    params, xs = dict(model.named_parameters()), torch.stack([x, -x, 2 * x])

    def answer(x: Tensor) -> dict[str, Tensor]:
        return functional_call(model, params, (x,), {"task": ("a", "b")})

    found = vmap(answer)(xs)
    for name in ("a", "b"):
        expected = torch.stack([answer(x)[name] for x in xs])
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)


@each_row
def test_a_state_dict_makes_the_same_net(row: str) -> None:
    (model, x), (other, _) = build(row), build(row)
    assert not torch.equal(model.eval()(x, task="a"), other.eval()(x, task="a"))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x, task="a"), other(x, task="a"))


@each_row
def test_a_copy_is_the_same_and_apart(row: str) -> None:
    model, x = build(row)
    twin = copy.deepcopy(model)
    before = model(x)
    assert all(torch.equal(before[name], out) for name, out in twin(x).items())
    for param in twin.parameters():
        param.data.add_(1.0)
    assert all(torch.equal(before[name], out) for name, out in model(x).items())


@each_row
def test_eval_mode_draws_nothing(row: str) -> None:
    model, x = build(row)
    model.eval()
    before = model(x, task="a")
    if isinstance(model, nets.Branching):
        model.sample(torch.Generator().manual_seed(9))
    torch.manual_seed(1)
    assert torch.equal(before, model(x, task="a"))


LOSS = {"a": F.cross_entropy, "b": F.mse_loss}


def two_tasks(x: Any) -> dict[str, Episode]:
    rng = torch.Generator().manual_seed(2)
    y = {"a": torch.randint(3, (B,), generator=rng), "b": torch.randn(B, 1, generator=rng).double()}
    return {name: Episode(None, Batch(x, y[name])) for name in y}


@each_body
@each_row
def test_meta_backward_gives_the_gradient_of_the_mean_loss(row: str, body: str) -> None:
    model, x = build(row, body)
    episodes, penalty = two_tasks(x), penalized(l2_to_mean("towers"), 0.3, lambda task: torch.zeros(()))
    meta_backward(model, recipes.joint(objective=ROWS[row].objective), episodes, LOSS)
    outputs, found = ask(model, x, ("a", "b")), []
    for name, episode in episodes.items():
        value = LOSS[name](outputs[name], episode.query.y)
        if ROWS[row].objective is not query_loss:
            params = dict(model.named_parameters())
            value = value + penalty(_Start(params, params))  # type: ignore[arg-type]
        found.append(gradients(model, value))
    for name, param in model.named_parameters():
        mine = [each[name] for each in found if each.get(name) is not None]
        if not mine:
            assert param.grad is None
            continue
        expected = torch.stack(mine).sum(0) / len(episodes)
        torch.testing.assert_close(param.grad, expected, rtol=1e-10, atol=1e-12)


@dataclass
class _Start:
    start: dict[str, Tensor]
    end: dict[str, Tensor]


@each_row
def test_one_head_adapts_to_its_support_set(row: str) -> None:
    model, x = build(row)
    episodes = two_tasks(x)
    support = Batch(x.flip(0), episodes["a"].query.y)
    episodes["a"] = Episode(support, episodes["a"].query)
    head = "top.heads.a" if row == "behind a bottom" else "heads.a"
    adapter = adapters.Gradient(steps=2, lr=0.5, adapts=head)
    recipe = Recipe(adapter, objective=ROWS[row].objective)
    outcome = meta_backward(model, recipe, episodes, LOSS)
    fast = adapter(model, support, LOSS["a"], task="a")
    changed = {name for name, param in model.named_parameters() if fast[name] is not param}
    assert changed == {f"{head}.weight", f"{head}.bias"}
    query = episodes["a"].query
    expected = F.cross_entropy(forward(model, fast, query.x, "a"), query.y)
    torch.testing.assert_close(outcome.losses[0], expected, rtol=1e-12, atol=0.0)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert bool(model.get_parameter(f"{head}.weight").grad.any())


@each_row
def test_an_unknown_task_is_refused(row: str) -> None:
    model, x = build(row)
    for wrong in ("z", ("a", "z"), "heads"):
        with pytest.raises(ValueError, match=r"unknown task '(z|heads)'; there are heads for a, b, c"):
            model(x, task=wrong)


@each_row
def test_no_task_at_all_is_refused(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "TASKS", {})
    monkeypatch.setitem(globals(), "DECODER", {})
    with pytest.raises(ValueError, match=r"needs at least one task in outputs"):
        build(row)


@each_body
@each_row
def test_every_body_has_a_second_derivative(row: str, body: str) -> None:
    model, x = build(row, body)
    with vmap_compatible_kernels():
        value = sum(out.sin().sum() for out in ask(model, x, ("a", "b")).values())
        params = [p for p in model.parameters() if p.requires_grad]
        first = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
        norm = sum(g.square().sum() for g in first if g is not None)
        second = torch.autograd.grad(norm, params, allow_unused=True)
    assert any(bool(g.any()) for g in second if g is not None)
    assert all(bool(torch.isfinite(g).all()) for g in second if g is not None)
