"""Tasks with different ways, shots and queries in one call: what each of them is alone, in their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Metric,
    adaptation_curve,
    adapters,
    aggregators,
    analysis,
    engines,
    evaluate,
    meta_backward,
    recipes,
)
from metamtl.meta_batch import MetaBatch

from .adapter_rows import ROWS, Case, distance, grad_of, make_case

WEIGHTS = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0], dtype=torch.float64)


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


def shortened(episode: Episode, support: int, query: int) -> Episode:
    """The same tasks with fewer examples; labels are balanced, in the order of `make_case`."""
    assert episode.support is not None
    (xs, ys), (xq, yq) = episode.support, episode.query
    return replace(
        episode, support=Batch(xs[:, :support], ys[:, :support]), query=Batch(xq[:, :query], yq[:, :query])
    )


def mixed(episode: Episode) -> list[Episode]:
    """Five tasks: two shapes alternate, and the third and fourth tasks are one episode."""
    return [
        episode[:1],
        shortened(episode[1:2], 3, 6),
        shortened(episode[2:4], 6, 3),
        shortened(episode[4:], 3, 6),
    ]


def tasks_of(episodes: list[Episode]) -> list[Episode]:
    return [episode[t : t + 1] for episode in episodes for t in range(episode.num_tasks)]


def assert_sum_of_single_tasks(case: Case, engine: engines.Engine) -> None:
    """The gradient is a weighted sum, whose weights belong to the positions of the tasks."""
    loop, episodes = engines.Loop(), mixed(case.episode)
    alone = replace(case, recipe=replace(case.recipe, aggregator=aggregators.Mean()))
    grads, losses = [], []
    for episode in tasks_of(episodes):
        grads.append(alone.gradient(loop, episode))
        losses.append(evaluate(case.model, case.recipe, episode, case.loss, engine=loop).values)
    case = replace(case, recipe=replace(case.recipe, aggregator=aggregators.Constant(WEIGHTS)))
    case.zero()
    outcome = meta_backward(case.model, case.recipe, episodes, case.loss, engine=engine)
    found = torch.cat([grad_of(param).flatten() for param in case.params().values()])
    assert distance(found, WEIGHTS @ torch.stack(grads)) <= 1e-10
    assert outcome.losses.shape == (5,) and distance(outcome.losses, torch.cat(losses)) <= 1e-10
    values = evaluate(case.model, case.recipe, episodes, case.loss, engine=engine).values
    assert distance(values, torch.cat(losses)) <= 1e-10


@pytest.mark.slow
def test_every_adapter(case: Case) -> None:
    assert_sum_of_single_tasks(case, engines.Vmap())


@pytest.mark.parametrize("engine", [engines.Loop(), engines.Auto(), engines.Vmap(1)], ids=repr)
def test_every_engine(engine: engines.Engine) -> None:
    assert_sum_of_single_tasks(make_case(ROWS["anil"]), engine)


def ways_and_shots() -> tuple[nn.Module, list[Episode]]:
    """Tasks of 2, 3 and 2 classes, which have class ids."""
    rng = torch.Generator().manual_seed(0)
    episodes = []
    for ways, shots, queries in ((2, 1, 3), (3, 2, 1), (2, 1, 3), (2, 4, 3)):
        x = torch.randn(1, ways * (shots + queries), 4, generator=rng, dtype=torch.float64)
        y = torch.arange(ways).repeat(shots + queries)[None]
        cut = ways * shots
        ids = torch.randperm(8, generator=rng)[None, :ways]
        support, query = Batch(x[:, :cut], y[:, :cut]), Batch(x[:, cut:], y[:, cut:])
        episodes.append(Episode(support, query, task=ids, ways=ways))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential()
        model.body, model.head = nn.Linear(4, 3), nn.Linear(3, 3)
    return model.double(), episodes


@pytest.mark.parametrize(
    "recipe",
    [recipes.class_means(), recipes.matching(), recipes.r2d2(), recipes.mtl(range(8), 3)],
    ids=["class means", "matching", "r2d2", "mtl"],
)
def test_different_ways(recipe: recipes.Recipe) -> None:
    model, episodes = ways_and_shots()
    recipe.adapter.double()
    recipe = replace(recipe, aggregator=aggregators.Constant(WEIGHTS[:4]))
    params = [*model.parameters(), *recipe.adapter.parameters()]
    found = []
    for engine in (engines.Loop(), engines.Vmap()):
        for param in params:
            param.grad = None
        losses = meta_backward(model, recipe, episodes, F.cross_entropy, engine=engine).losses
        found.append(torch.cat([losses, *(grad_of(param).flatten() for param in params)]))
    assert distance(found[1], found[0]) <= 1e-10
    single = [evaluate(model, recipe, e, F.cross_entropy, engine=engines.Loop()).values for e in episodes]
    assert distance(found[0][:4], torch.cat(single)) <= 1e-10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_compiled_engine_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metamtl.engines.kinds.BACKEND", "eager")
    case, engine = make_case(ROWS["class means"]), engines.Compiled()
    case = replace(case, recipe=replace(case.recipe, aggregator=aggregators.Constant(WEIGHTS)))
    episodes: Any = mixed(case.episode)
    assert distance(case.gradient(engine, episodes), case.gradient(engines.Loop(), episodes)) <= 1e-10
    assert engine.compilations == 3  # one for each shape


def test_metrics_and_stages_have_the_order_of_the_tasks() -> None:
    case = make_case(ROWS["anil"])
    wrong = Metric(lambda output, y: (output.argmax(-1) != y).double(), higher_is_better=False)
    episodes, metrics = mixed(case.episode.map(torch.clone)), {"wrong": wrong}
    episodes[2].query.y[0, 0] = -100  # a missing label
    args = (case.model, case.recipe)
    curve = adaptation_curve(*args, episodes, case.loss, metrics=metrics)
    single = [adaptation_curve(*args, e, case.loss, metrics=metrics) for e in tasks_of(episodes)]
    assert len(curve) == len(single[0]) > 1
    for stage, estimates in enumerate(curve):
        expected = torch.cat([results[stage]["wrong"].values for results in single])
        assert torch.equal(estimates["wrong"].values, expected)
        assert estimates["wrong"].n == 5 and estimates["wrong"].num_missing == 1
    assert len(set(curve[0]["wrong"].values.tolist())) > 1


def test_tasks_of_equal_shape_run_in_one_call() -> None:
    """One forward pass under Vmap for each of three shapes, whatever the order of the tasks."""
    case = make_case(ROWS["joint"])
    calls: list[torch.Size] = []
    case.model.head.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    tasks = tasks_of(mixed(case.episode))
    episodes = [tasks[t] for t in (1, 0, 3, 4, 2)]
    meta_backward(case.model, case.recipe, episodes, case.loss, engine=engines.Vmap())
    assert sorted(shape[0] for shape in calls) == [3, 6, 9]


def test_groups_keep_what_is_equal_together() -> None:
    x = torch.zeros(1, 2, 3)
    kinds = [Batch(x, x), Batch((x, "a"), x), Batch((x, "b"), x), Batch(x.double(), x), Batch({"x": x}, x)]
    episodes = [Episode(None, batch) for batch in [*kinds, *kinds[::-1]]]
    groups = MetaBatch.of(episodes)
    assert groups.positions == ([0, 9], [1, 8], [2, 7], [3, 6], [4, 5])
    assert [group.num_tasks for group in groups.groups] == [2] * 5
    assert groups[7].query.x[1] == "b" and groups[7].query.y.shape == (2, 3)
    alone = Episode(None, kinds[0])
    assert MetaBatch.of(alone).groups == (alone,)
    assert len(MetaBatch.of([alone, replace(alone, ways=2), Episode(kinds[0], kinds[0])]).groups) == 3


def test_errors_name_the_position_of_a_task() -> None:
    case = make_case(ROWS["anil"])
    episodes = tasks_of(mixed(case.episode))
    bad = episodes[3].map(lambda leaf: leaf * torch.nan if leaf.is_floating_point() else leaf)
    args: Any = (case.model, case.recipe, [*episodes[:3], bad, episodes[4]], case.loss)
    with pytest.raises(
        FloatingPointError, match=r"tasks \[3\] of 5.*Task 3: the support loss is nan after 0"
    ):
        meta_backward(*args)
    with pytest.raises(FloatingPointError, match="task 3 is not finite"):
        evaluate(*args)
    with pytest.raises(TypeError, match=r"got a list; .*one episode in each call"):
        analysis.gradients(case.model, case.recipe, episodes, case.loss)
    with pytest.raises(ValueError, match="the list of episodes is empty"):
        evaluate(case.model, case.recipe, [], case.loss)
    with pytest.raises(ValueError, match="ways"):
        meta_backward(
            case.model, recipes.Recipe(adapters.ClassMeans()), [replace(episodes[0], task=None)], case.loss
        )


def test_an_aggregator_sees_all_tasks_at_once() -> None:
    """UPGrad, against its result for the matrix of the single tasks' gradients."""
    case = make_case(ROWS["joint"])
    episodes = mixed(case.episode)
    rows = [case.gradient(engines.Loop(), episode) for episode in tasks_of(episodes)]
    expected: Tensor = aggregators.UPGrad().double()(torch.zeros(5).double(), torch.stack(rows))
    case = replace(case, recipe=replace(case.recipe, aggregator=aggregators.UPGrad()))
    found = case.gradient(engines.Vmap(), episodes)  # type: ignore[arg-type]
    assert distance(found, expected) <= 1e-8
