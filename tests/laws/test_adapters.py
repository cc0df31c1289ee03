"""What every adapter obeys. A new adapter joins by one row in `ROWS`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Metric,
    Recipe,
    adapters,
    aggregators,
    engines,
    evaluate,
    meta_backward,
    nets,
    objectives,
    recipes,
    rules,
)

T, WAYS, IDS, FEATURES = 5, 3, 8, 6


@dataclass(frozen=True)
class Row:
    """One recipe, the problem it is for, and whether its gradient is that of a true function."""

    make: Callable[[], Recipe]
    kind: str = "classes"
    exact: bool = True
    step: int | None = None  # of the outer loop, for a recipe that changes
    context: int = 0  # size of a context vector before the last hidden layer


ROWS = {
    "joint": Row(recipes.joint),
    "mtl": Row(lambda: recipes.mtl(range(IDS), FEATURES)),
    "mtl, query alone": Row(lambda: Recipe(adapters.HeadTable(range(IDS), FEATURES))),
    "maml, K=0": Row(lambda: recipes.maml(0)),
    "maml, K=1": Row(lambda: recipes.maml(1, 0.3)),
    "maml, K=3": Row(lambda: recipes.maml(3, 0.3)),
    "maml, regression": Row(lambda: recipes.maml(3, 0.3), "numbers"),
    "maml, a rate for each step": Row(lambda: recipes.maml(3, lr=[0.5, 0.2, 0.1])),
    "maml, recomputed": Row(lambda: recipes.maml(3, 0.3, differentiation="checkpointed")),
    "maml, recomputed by segments": Row(
        lambda: Recipe(adapters.Gradient(5, 0.1, differentiation=adapters.Checkpointed(2)))
    ),
    "maml, truncated": Row(
        lambda: Recipe(adapters.Gradient(3, 0.3, differentiation=adapters.Truncated(2))), exact=False
    ),
    "fomaml": Row(lambda: recipes.fomaml(3, 0.3), exact=False),
    "maml, momentum": Row(lambda: recipes.maml(3, 0.1, rule=rules.SGD(momentum=0.9))),
    "maml, Adam": Row(lambda: recipes.maml(3, 0.1, rule=rules.Adam(eps=1e-2))),
    "maml, Adam recomputed": Row(
        lambda: recipes.maml(3, 0.1, rule=rules.Adam(eps=1e-2), differentiation="checkpointed")
    ),
    "fomaml, RMSprop": Row(
        lambda: recipes.maml(3, 0.1, differentiation="first_order", rule=rules.RMSprop(eps=1e-2)),
        exact=False,
    ),
    "meta-sgd": Row(lambda: recipes.metasgd(small_model(), 2, 0.3)),
    "meta-sgd, first order": Row(
        lambda: recipes.metasgd(small_model(), 2, 0.3, differentiation="first_order"), exact=False
    ),
    "learned rates of steps": Row(lambda: recipes.lslr(small_model(), 3, 0.3)),
    "learned rates, momentum, recomputed": Row(
        lambda: Recipe(
            adapters.Gradient(
                3,
                adapters.LearnedRates(small_model(), 0.1, "model", steps=3),
                differentiation=adapters.Checkpointed(2),
                rule=rules.SGD(momentum=0.9),
            )
        )
    ),
    "imaml": Row(lambda: recipes.imaml(3, 0.3), exact=False),
    "imaml of the head, to the end": Row(
        lambda: recipes.imaml(25, 0.3, adapts="head", proximal=2.0, solver_steps=15)
    ),
    "anil": Row(lambda: recipes.anil(3, 0.3)),
    "anil, first order": Row(lambda: recipes.anil(3, 0.3, differentiation="first_order"), exact=False),
    "anil, recomputed": Row(lambda: recipes.anil(3, 0.3, differentiation="checkpointed")),
    "boil": Row(lambda: recipes.boil(3, 0.3)),
    "two prefixes": Row(lambda: recipes.maml(2, 0.3, adapts=("body.0.weight", "head.bias"))),
    "reptile": Row(lambda: recipes.reptile(3, 0.3), exact=False),
    "protonet": Row(recipes.protonet),
    "proto-maml": Row(lambda: Recipe(adapters.Chain(adapters.Prototype(), adapters.Gradient(2, 0.1)))),
    "table, then steps": Row(
        lambda: Recipe(adapters.Chain(adapters.HeadTable(range(IDS), FEATURES), adapters.Gradient(2, 0.1)))
    ),
    "r2d2": Row(recipes.r2d2),
    "logistic": Row(lambda: recipes.logistic(steps=8)),
    "metaoptnet": Row(lambda: recipes.metaoptnet(C=0.5, steps=14)),
    "class means": Row(recipes.class_means),
    "class means, cosine": Row(lambda: recipes.class_means(distance="cosine")),
    "class means, of a function": Row(lambda: recipes.class_means(lambda model, x: model.body(x).square())),
    "class means, of the output": Row(lambda: recipes.class_means(None)),
    "class means, captured": Row(lambda: recipes.class_means("body.1")),
    "matching": Row(lambda: recipes.matching(scale=2.0)),
    "relation": Row(lambda: Recipe(adapters.Relation(smooth_mlp(2 * FEATURES, 5, 1)))),
    "simple shot": Row(lambda: recipes.simple_shot(torch.linspace(-1, 1, FEATURES))),
    "feat": Row(lambda: recipes.feat(FEATURES)),
    "cavia": Row(lambda: recipes.cavia(3, 0.5, context="body.3"), context=2),
    "maml++": Row(lambda: recipes.maml_plus_plus(small_model(), 3, 0.3, multi_step_until=10), step=4),
    "maml++, first order": Row(
        lambda: recipes.maml_plus_plus(
            small_model(), 3, 0.3, multi_step_until=10, first_order_until=9, adapts="head"
        ),
        exact=False,
        step=8,
    ),
    "multi-step loss": Row(lambda: recipes.anil(3, 0.3, objective=objectives.MultiStep([0.5, 0.0, 1.5]))),
    "es-maml": Row(lambda: recipes.es_maml(2, 0.3, samples=3), exact=False, step=1),
    "drop-grad": Row(lambda: recipes.drop_grad(3, 0.3, rate=0.3), step=2),
    "drop-grad, gaussian": Row(
        lambda: recipes.drop_grad(2, 0.1, rate=0.3, kind="gaussian", rule=rules.SGD(momentum=0.9)), step=2
    ),
    "meta-curvature": Row(lambda: recipes.meta_curvature(small_model(), 3, 0.3)),
    "learned rule": Row(lambda: recipes.learned_rule(2, 0.1, hidden=5, state=2)),
    "mini-batches": Row(lambda: Recipe(adapters.Gradient(3, 0.3, batch_size=4, seed=1))),
    "mini-batches, head": Row(lambda: Recipe(adapters.Gradient(3, 0.3, "head", batch_size=4))),
    "fine-tuning": Row(lambda: recipes.fine_tuning(3, 0.3), exact=False),
    "fine-tuning of the head": Row(lambda: recipes.fine_tuning(3, 0.3, adapts="head"), exact=False),
    "frozen logistic": Row(lambda: recipes.frozen_logistic(penalty=0.2)),
    "tim": Row(lambda: recipes.tim(steps=3)),
    "laplacian shot": Row(recipes.laplacian_shot),
    "transductive fine-tuning": Row(lambda: recipes.transductive_fine_tuning(2, 0.3)),
    "class means, then transductive": Row(
        lambda: Recipe(adapters.Chain(adapters.Prototype(), adapters.TransductiveFineTuning(2, 0.1)))
    ),
    "maml, rates by prefix": Row(lambda: recipes.maml(3, {"": 0.3, "head": [0.3, 0.2, 0.1]})),
    "maml, groups, clipped": Row(
        lambda: recipes.maml(
            2,
            0.1,
            rule=rules.Clipped(
                rules.Groups({"": rules.Adam(eps=1e-2), "head": rules.SGD(momentum=0.9)}), max_norm=0.1
            ),
        )
    ),
    "support mean": Row(lambda: Recipe(adapters.MeanPredictor()), "numbers"),
}


def small_model(outputs: int = WAYS, context: int = 0) -> nn.Module:
    """Smooth, with BatchNorm."""
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(4, FEATURES), nets.BatchNorm(FEATURES), nn.Tanh())
    if context:
        model.body.extend([nets.Context(context), nn.Linear(FEATURES + context, FEATURES), nn.Tanh()])
    model.head = nn.Linear(FEATURES, outputs)
    return model


def smooth_mlp(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


@dataclass
class Case:
    row: Row
    model: nn.Module
    recipe: Recipe
    episode: Episode
    loss: Any

    def params(self) -> dict[str, Tensor]:
        """All that is learned, the model's and the adapter's."""
        own = self.recipe.adapter.named_parameters()
        return {**dict(self.model.named_parameters()), **{f"adapter:{n}": p for n, p in own}}

    def zero(self) -> None:
        for param in self.params().values():
            param.grad = None

    def gradient(self, engine: engines.Engine | None = None, episode: Episode | None = None) -> Tensor:
        self.zero()
        meta_backward(self.model, self.recipe, episode or self.episode, self.loss, engine=engine)
        return torch.cat([grad_of(p).flatten() for p in self.params().values()])

    def adapt(self, task: int) -> dict[str, Tensor]:
        """The adapter, called as somebody's own loop calls it."""
        one = self.episode[task]
        return self.recipe.adapter(self.model, one.support, self.loss, task=one.task)

    def predict(self, fast: dict[str, Tensor], x: Tensor) -> Tensor:
        return self.recipe.adapter.predict(self.model, fast, x)

    def objective(self) -> Tensor:
        """The mean objective, by adapter calls and plain autograd alone."""
        start = dict(self.model.named_parameters())
        return torch.stack([self.recipe.objective(self.adaptation(start, t)) for t in range(T)]).mean()

    def adaptation(self, start: dict[str, Tensor], task: int) -> objectives.Adaptation:
        one, adapter = self.episode[task], self.recipe.adapter

        def measure(params: dict[str, Tensor], batch: Batch) -> Tensor:
            return self.loss(self.predict(params, batch.x), batch.y)

        def adapt(params: dict[str, Tensor] | None) -> dict[str, Tensor]:
            return adapter(self.model, one.support, self.loss, params=params, task=one.task)

        end = adapt(None)
        stages = tuple(adapter.path(self.model, one.support, self.loss, task=one.task))
        return objectives.Adaptation(
            start, end, one.support, one.query, measure, stages=stages, adapt=adapt
        )


def grad_of(param: Tensor) -> Tensor:
    return torch.zeros_like(param) if param.grad is None else param.grad.clone()


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, as whole vectors."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-3))


def make_case(row: Row) -> Case:
    """A small smooth model with BatchNorm, 5 tasks, support of 6 and query of 9, all in float64."""
    rng = torch.Generator().manual_seed(0)
    outputs = WAYS if row.kind == "classes" else 1
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = small_model(outputs, row.context)
        recipe = row.make()
    if row.step is not None:
        recipe = recipe.at(row.step)
    recipe.adapter.double()
    x = torch.randn(T, 15, 4, generator=rng, dtype=torch.float64)
    if row.kind == "classes":
        y, loss = torch.arange(WAYS).repeat(5).expand(T, -1), F.cross_entropy
    else:
        y, loss = torch.randn(T, 15, 1, generator=rng, dtype=torch.float64), F.mse_loss
    ids = torch.stack([torch.randperm(IDS, generator=rng)[:WAYS] for _ in range(T)])
    episode = Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]), task=ids)
    return Case(row, model.double(), recipe, episode, loss)


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture(
    params=[row for row in ROWS.values() if row.exact], ids=[n for n, r in ROWS.items() if r.exact]
)
def exact(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


def state(module: nn.Module) -> dict[str, Any]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (t.detach().clone(), t.requires_grad, t.data_ptr()) for name, t in tensors}


def same_state(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(found.values(), expected.values())
    )


@pytest.mark.parametrize("engine", [engines.Vmap(), engines.Vmap(chunk_size=2), engines.Vmap(1)], ids=repr)
def test_engines_agree(case: Case, engine: engines.Engine) -> None:
    shared = {n: p for n, p in case.model.named_parameters()}
    own = {n: p for n, p in case.recipe.adapter.named_parameters()}
    problem = engines.TaskProblem.of(
        case.model, case.recipe.adapter, case.recipe.objective, case.loss, case.episode
    )
    data = (case.episode.support, case.episode.query, case.episode.task)
    loop = engines.Loop().gradients(problem, shared, own, data)
    grads = engine.gradients(problem, shared, own, data)
    assert distance(grads.losses, loop.losses) <= 1e-12
    assert loop.shared.keys() == grads.shared.keys()
    assert loop.adapter_params.keys() == grads.adapter_params.keys() == own.keys()
    pairs = ((loop.shared, grads.shared), (loop.adapter_params, grads.adapter_params))
    for theirs, ours in pairs:
        if theirs:
            flat = [torch.cat([rows[name].flatten() for name in theirs]) for rows in (ours, theirs)]
            assert distance(*flat) <= 1e-12
    tensors = [grads.losses, *grads.shared.values(), *grads.adapter_params.values()]
    assert not any(tensor.requires_grad for tensor in tensors)


# Few steps, because tracing takes long; test_compiled.py has the gradient steps.
COMPILED = {
    "r2d2": ROWS["r2d2"],
    **{
        name: ROWS[name]
        for name in ("class means", "class means, captured", "matching", "relation", "feat")
    },
    "logistic": Row(lambda: recipes.logistic(steps=2)),
    "metaoptnet": Row(lambda: recipes.metaoptnet(steps=2)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("row", COMPILED.values(), ids=COMPILED)
def test_the_compiled_engine_agrees(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch traces and guards as always, and runs the graph itself."""
    monkeypatch.setattr("metamtl.engines.kinds.BACKEND", "eager")
    case, engine = make_case(row), engines.Compiled()
    assert distance(case.gradient(engine), case.gradient(engines.Loop())) <= 1e-10
    found = evaluate(case.model, case.recipe, case.episode, case.loss, engine=engine)
    expected = evaluate(case.model, case.recipe, case.episode, case.loss, engine=engines.Loop())
    assert engine.compilations == 2 and distance(found.values, expected.values) <= 1e-10


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_nothing_changes_but_grad(case: Case, engine: engines.Engine) -> None:
    before = state(case.model), state(case.recipe.adapter)
    data = case.episode.map(torch.clone)
    case.gradient(engine)
    evaluate(case.model, case.recipe, case.episode, case.loss, engine=engine)
    assert same_state(state(case.model), before[0]) and same_state(state(case.recipe.adapter), before[1])
    assert torch.equal(case.episode.support.x, data.support.x)
    assert torch.equal(case.episode.query.y, data.query.y)


def test_a_call_of_the_adapter_changes_nothing(case: Case) -> None:
    before = state(case.model), state(case.recipe.adapter)
    case.gradient()
    gradients = {name: grad_of(param) for name, param in case.params().items()}
    case.adapt(0)
    assert same_state(state(case.model), before[0]) and same_state(state(case.recipe.adapter), before[1])
    assert all(torch.equal(grad_of(p), gradients[name]) for name, p in case.params().items())


def test_running_statistics_stay_and_a_frozen_model_stays_frozen(case: Case) -> None:
    case.model.body[1] = nn.BatchNorm1d(FEATURES).double()
    case.model.body[0].weight.requires_grad_(False)
    case.recipe.adapter.requires_grad_(True)
    if case.row.make is ROWS["two prefixes"].make:
        case = replace(case, recipe=recipes.maml(2, 0.3, adapts=("body.0.bias", "head.bias")))
    before = state(case.model)
    case.gradient(engines.Loop())
    case.adapt(1)
    evaluate(case.model, case.recipe, case.episode, case.loss, engine=engines.Loop())
    assert same_state(state(case.model), before)
    assert case.model.body[0].weight.grad is None and case.model.body[0].bias.grad is not None


def test_frozen_parameters_are_constants(case: Case) -> None:
    """They get no gradient and are not adapted; the others get the one they would get anyway."""
    frozen = case.model.body[0].bias
    before = case.gradient()
    start = sum(p.numel() for p in list(case.model.parameters())[:1])
    frozen.requires_grad_(False)
    after = case.gradient()
    assert frozen.grad is None
    parts = case.recipe.adapter.modules()
    if not any(
        part.steps for part in parts if isinstance(part, adapters.Gradient)
    ):  # no inner loop that would have moved it
        kept = torch.ones_like(after, dtype=torch.bool)
        kept[start : start + frozen.numel()] = False
        assert distance(after[kept], before[kept]) <= 1e-12
    assert torch.equal(case.adapt(0)["body.0.bias"], frozen)


def test_grad_accumulates(case: Case) -> None:
    engine = engines.Vmap()
    once = case.gradient(engine)
    meta_backward(case.model, case.recipe, case.episode, case.loss, engine=engine)
    twice = torch.cat([grad_of(p).flatten() for p in case.params().values()])
    assert torch.equal(twice, 2 * once) and (case.row.kind == "numbers" or once.norm() > 1e-3)


def test_the_order_of_tasks_does_not_matter_for_the_mean(case: Case) -> None:
    turned = case.episode[torch.tensor([3, 0, 4, 2, 1])]
    assert distance(case.gradient(episode=turned), case.gradient()) <= 1e-12


def test_a_repeated_call_gives_the_same(case: Case) -> None:
    assert torch.equal(case.gradient(engines.Loop()), case.gradient(engines.Loop()))
    first, second = case.adapt(2), case.adapt(2)
    own = [name for name in first if not name.startswith("adapter:")]
    assert list(first) == list(second) and own == [name for name, _ in case.model.named_parameters()]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_transductive_adapters_look_at_other_query_examples(case: Case) -> None:
    case.model.body[1] = nn.Identity()
    one = case.episode[0]
    fast = case.adapt(0)
    together = case.predict(fast, one.query.x)
    alone = torch.cat([case.predict(fast, x[None]) for x in one.query.x])
    assert (distance(alone.detach(), together.detach()) <= 1e-12) != case.recipe.adapter.transductive


def test_the_path_ends_where_the_call_does(case: Case) -> None:
    one = case.episode[0]
    *_, last = case.recipe.adapter.path(case.model, one.support, case.loss, task=one.task)
    found = case.adapt(0)
    assert all(torch.equal(last[name], found[name]) for name in found)


def test_given_params_take_the_place_of_the_models_own(case: Case) -> None:
    expected = {name: param.clone() for name, param in case.adapt(1).items()}
    params = {name: p.detach().clone() for name, p in case.model.named_parameters()}
    with torch.no_grad():
        for param in case.model.parameters():
            param.add_(1.0)
    one = case.episode[1]
    found = case.recipe.adapter(case.model, one.support, case.loss, params=params, task=one.task)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_outer_gradient_is_that_of_central_differences(exact: Case) -> None:
    found, params = exact.gradient(), list(exact.params().values())
    rng = torch.Generator().manual_seed(3)
    for _ in range(4):
        aim = torch.randn(found.shape, generator=rng, dtype=torch.float64)
        aim /= aim.norm()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for param, piece in zip(params, aim.split([p.numel() for p in params])):
                    param.add_(step * piece.view_as(param))
                values.append(float(exact.objective()))
                for param, piece in zip(params, aim.split([p.numel() for p in params])):
                    param.sub_(step * piece.view_as(param))
        slope = (values[0] - values[1]) / 2e-5
        assert abs(float(aim @ found) - slope) <= 1e-6 * max(1.0, float(found.norm()))


def test_the_adapter_alone_is_differentiable_by_plain_autograd(case: Case) -> None:
    expected = case.gradient()
    case.zero()
    case.objective().backward()
    found = torch.cat([grad_of(p).flatten() for p in case.params().values()])
    assert distance(found, expected) <= 1e-12


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=2)], ids=repr)
def test_reported_losses_are_the_query_losses(case: Case, engine: engines.Engine) -> None:
    outcome = meta_backward(case.model, case.recipe, case.episode, case.loss, engine=engine)
    measured = evaluate(case.model, case.recipe, case.episode, case.loss, engine=engine)
    by_hand = []
    for task in range(T):
        query = case.episode[task].query
        by_hand.append(case.loss(case.predict(case.adapt(task), query.x), query.y).detach())
    assert distance(outcome.losses, torch.stack(by_hand)) <= 1e-12
    assert distance(measured.values, torch.stack(by_hand)) <= 1e-12
    assert outcome.tasks is None and outcome.loss == pytest.approx(measured.mean, rel=1e-12)


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """Objects of earlier test modules are neither collected nor counted."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def histories(frozen: None) -> Callable[[], int]:
    """Counts the tensors with a history that were made since the test began and are alive."""
    gc.collect()
    gc.freeze()
    return lambda: sum(isinstance(t, Tensor) and t.grad_fn is not None for t in gc.get_objects())


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Vmap()], ids=repr)
def test_evaluation_builds_no_graph(
    case: Case, engine: engines.Engine, histories: Callable[[], int]
) -> None:
    kept, seen = case.adapt(0), []
    known = histories()  # those of a call outside of evaluation

    def look(output: Tensor, y: Tensor) -> Tensor:
        seen.append(histories())
        assert not output.requires_grad
        return output.sum(-1)

    metrics = {"look": Metric(look, higher_is_better=True)}
    found = evaluate(case.model, case.recipe, case.episode, case.loss, metrics=metrics, engine=engine)
    assert not found["look"].values.requires_grad
    assert len(seen) == 3  # the first task, the last one, and all of them at once
    assert set(seen) == {known} and histories() == known
    assert known > 0 or all(param.is_leaf for param in kept.values())


class Once(engines.Vmap):
    """Computes the gradients of a case once, for one aggregator after the other."""

    found: engines.TaskGradients | None = None

    def gradients(self, *args: Any) -> engines.TaskGradients:
        self.found = super().gradients(*args) if self.found is None else self.found
        return self.found


def test_every_aggregator_takes_the_rows_of_adaptation(
    case: Case, make: Callable[..., aggregators.Aggregator]
) -> None:
    """`.grad` is its direction; the adapter's parameters get the weighted, or the mean, gradient."""
    engine = Once()
    for name in aggregators.names():
        case.zero()
        recipe = replace(case.recipe, aggregator=make(name, T))
        if name == "NashMTL" and case.row.make is ROWS["support mean"].make:  # adapts to a constant
            with pytest.raises(ValueError, match="gradient is zero"):
                meta_backward(case.model, recipe, case.episode, case.loss, engine=engine)
            continue
        meta_backward(case.model, recipe, case.episode, case.loss, engine=engine)
        assert engine.found is not None
        rows = torch.cat([part.reshape(T, -1) for part in engine.found.shared.values()], 1)
        expected = make(name, T)(engine.found.losses, rows)
        got = torch.cat([param.grad.flatten() for param in case.model.parameters()])  # type: ignore[union-attr]
        assert torch.equal(got, expected) and bool(got.isfinite().all()), name
        assert bool(got.any()) == bool(rows.any()), name
        for key, param in case.recipe.adapter.named_parameters():
            of_tasks = engine.found.adapter_params[key]
            weights = make(name, T).combine(engine.found.losses, rows).weights
            mean = of_tasks.mean(0) if weights is None else torch.tensordot(weights, of_tasks, 1)
            assert torch.allclose(grad_of(param), mean, rtol=1e-12, atol=1e-14), name
