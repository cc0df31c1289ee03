"""Meta-gradients that can be written down: quadratics, heads, tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamtl import Batch, Episode, Recipe, adapters, engines, meta_backward, nets, recipes

T, N, A = 4, 5, 0.05  # tasks, parameters, size of an inner step
BODY = 3  # the first parameters are the body, the others the head


class Point(nn.Module):
    """No input, no layers: the model's output is its parameters."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.body = nn.Parameter(theta[:BODY].clone())
        self.head = nn.Parameter(theta[BODY:].clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body, self.head])


def quadratic(theta: Tensor, target: Tensor) -> Tensor:
    """`1/2 (theta - c)^T H (theta - c)`; the targets are c, and below it the rows of H."""
    gap = theta - target[0]
    return 0.5 * gap @ target[1:] @ gap


class Quadratics:
    """T tasks, each with an H of its own, a centre c for the support and another for the query."""

    def __init__(self, *, same: bool = False) -> None:
        rng = torch.Generator().manual_seed(0)
        root = torch.randn(T, N, N, generator=rng, dtype=torch.float64)
        self.h = root @ root.mT + 0.1 * torch.eye(N, dtype=torch.float64)
        self.theta = torch.randn(N, generator=rng, dtype=torch.float64)
        self.c, other = torch.randn(2, T, N, generator=rng, dtype=torch.float64)
        self.q = self.c if same else other
        self.model = Point(self.theta)
        batches = [Batch(torch.zeros(T, N + 1), self._targets(c)) for c in (self.c, self.q)]
        self.episode = Episode(batches[0], batches[1])

    def _targets(self, centre: Tensor) -> Tensor:
        return torch.cat([centre[:, None], self.h], 1)

    def gradient(self, recipe: Recipe, engine: engines.Engine) -> Tensor:
        self.model.zero_grad()
        meta_backward(self.model, recipe, self.episode, quadratic, engine=engine)
        return torch.cat([self.model.body.grad, self.model.head.grad])

    def contraction(self, adapted: slice = slice(None)) -> Tensor:
        """`I - a P H` of each task: one inner step over the part P of the parameters, about c."""
        part = torch.zeros(N, dtype=torch.float64)
        part[adapted] = 1
        return torch.eye(N, dtype=torch.float64) - A * part[:, None] * self.h

    def adapted(self, steps: int, contraction: Tensor) -> Tensor:
        """`phi - c` after K steps."""
        return (torch.linalg.matrix_power(contraction, steps) @ (self.theta - self.c)[..., None])[..., 0]

    def pulled(self, steps: int, contraction: Tensor) -> Tensor:
        """The rows `(M^K)^T H (phi - q)`."""
        gap = self.c + self.adapted(steps, contraction) - self.q
        back = torch.linalg.matrix_power(contraction, steps).mT
        return (back @ self.h @ gap[..., None])[..., 0]


@pytest.fixture(params=[engines.Loop(), engines.Vmap()], ids=repr)
def engine(request: pytest.FixtureRequest) -> engines.Engine:
    return request.param


def close(found: Tensor, expected: Tensor, relative: float = 1e-10) -> bool:
    assert found.shape == expected.shape and expected.norm() > 1e-3
    return float((found - expected).norm() / expected.norm()) <= relative


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_maml_with_one_centre(steps: int, engine: engines.Engine) -> None:
    problem = Quadratics(same=True)
    power = torch.linalg.matrix_power(problem.contraction(), steps)
    expected = (power @ problem.h @ power @ (problem.theta - problem.c)[..., None])[..., 0].mean(0)
    assert close(problem.gradient(recipes.maml(steps, A), engine), expected)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_maml_with_a_centre_of_the_query_set(steps: int, engine: engines.Engine) -> None:
    problem = Quadratics()
    expected = problem.pulled(steps, problem.contraction()).mean(0)
    assert close(problem.gradient(recipes.maml(steps, A), engine), expected)


@pytest.mark.parametrize("steps", [1, 4])
def test_fomaml_is_the_query_gradient_where_adaptation_ends(steps: int, engine: engines.Engine) -> None:
    problem = Quadratics()
    gap = problem.c + problem.adapted(steps, problem.contraction()) - problem.q
    expected = (problem.h @ gap[..., None])[..., 0].mean(0)
    assert close(problem.gradient(recipes.fomaml(steps, A), engine), expected)


@pytest.mark.parametrize("steps", [1, 4])
def test_reptile_is_the_way_back_to_the_start(steps: int, engine: engines.Engine) -> None:
    problem = Quadratics()
    phi = problem.c + problem.adapted(steps, problem.contraction())
    expected = (problem.theta - phi).mean(0)
    assert close(problem.gradient(recipes.reptile(steps, A), engine), expected)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("recipe", "part"), [("anil", slice(BODY, None)), ("boil", slice(BODY))])
def test_anil_and_boil_step_over_their_part_alone(
    recipe: str, part: slice, steps: int, engine: engines.Engine
) -> None:
    """`M = I - a P H`; the outer gradient is over all the parameters, through `M^T`."""
    problem = Quadratics()
    expected = problem.pulled(steps, problem.contraction(part)).mean(0)
    assert close(problem.gradient(getattr(recipes, recipe)(steps, A), engine), expected)


def test_rates_of_their_own_for_each_step(engine: engines.Engine) -> None:
    problem, rates = Quadratics(), [0.05, 0.01, 0.1]
    phi, back = problem.theta.expand(T, N), torch.eye(N, dtype=torch.float64).expand(T, N, N)
    for rate in rates:
        phi = phi - rate * (problem.h @ (phi - problem.c)[..., None])[..., 0]
        back = (torch.eye(N, dtype=torch.float64) - rate * problem.h) @ back
    expected = (back.mT @ problem.h @ (phi - problem.q)[..., None])[..., 0].mean(0)
    assert close(problem.gradient(recipes.maml(3, rates), engine), expected)


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "boil", "joint"])
def test_no_step_gives_the_stacked_gradients_of_the_tasks(name: str, engine: engines.Engine) -> None:
    problem = Quadratics()
    recipe = recipes.joint() if name == "joint" else getattr(recipes, name)(0, A)
    model, episode = problem.model, problem.episode
    task = engines.TaskProblem.of(model, recipe.adapter, recipe.objective, quadratic, episode)
    data = (episode.support, episode.query, episode.task)
    found = engine.gradients(task, dict(model.named_parameters()), {}, data).shared
    expected = (problem.h @ (problem.theta - problem.q)[..., None])[..., 0]
    assert close(torch.cat([found["body"], found["head"]], 1), expected)


def test_maml_is_multi_task_learning_plus_gradient_alignment() -> None:
    """`g_q - a grad <g_s, g_q>`, up to a remainder that a quarters when it is halved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x, y = torch.randn(T, 8, 2, dtype=torch.float64), torch.randn(T, 8, 1, dtype=torch.float64)
    episode = Episode(Batch(x[:, :4], y[:, :4]), Batch(x[:, 4:], y[:, 4:]))
    params = list(model.parameters())
    plain, alignment = torch.zeros(25, dtype=torch.float64), torch.zeros(25, dtype=torch.float64)
    for task in range(T):
        one = episode[task]
        assert one.support is not None
        g_s, g_q = (
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(F.mse_loss(model(x), y), params, create_graph=True)
                ]
            )
            for x, y in (one.support, one.query)
        )
        plain += g_q.detach() / T
        alignment += torch.cat([g.flatten() for g in torch.autograd.grad(g_s @ g_q, params)]) / T

    def remainder(a: float) -> float:
        model.zero_grad()
        meta_backward(model, recipes.maml(1, a), episode, F.mse_loss)
        found = torch.cat([p.grad.flatten() for p in params])
        return float((found - (plain - a * alignment)).norm())

    # Without the alignment the remainder would halve.
    assert [remainder(a) / remainder(a / 2) for a in (1e-2, 1e-3)] == pytest.approx([4, 4], rel=0.1)


def test_anil_with_an_exact_head_has_the_stationary_points_of_joint_training() -> None:
    """Support = query, head at its minimum given the body: only the body's plain gradient is left.

    With a least-squares head, `dL/dhead = 0` where the inner loop has converged, so the outer gradient
    of the body is that of multi-task learning at (body, best head).
    """
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    model.head = nn.Linear(2, 1, bias=False)
    model.double()
    x, y = torch.randn(T, 12, 3, dtype=torch.float64), torch.randn(T, 12, 1, dtype=torch.float64)
    meta_backward(model, recipes.anil(400, 1.0), Episode(Batch(x, y), Batch(x, y)), F.mse_loss)
    total = torch.zeros((), dtype=torch.float64)
    for task in range(T):
        features = model.body(x[task])
        with torch.no_grad():
            best = torch.linalg.lstsq(features, y[task]).solution
        total = total + F.mse_loss(features @ best, y[task]) / T
    expected = torch.autograd.grad(total, list(model.body.parameters()))
    for param, gradient in zip(model.body.parameters(), expected):
        torch.testing.assert_close(param.grad, gradient, rtol=1e-6, atol=1e-9)
    assert float(model.head.weight.grad.norm()) < 1e-6  # where the head started is forgotten


def test_prototype_head_scores_by_squared_distance() -> None:
    """`W = 2c, b = -|c|^2`: the softmax is that of minus the squared distances to the class means."""
    torch.manual_seed(0)
    model = nets.mlp(3, 8, 4).double()
    y = torch.tensor([2, 0, 1, 3, 3, 0, 1, 2, 0])  # classes of unequal size, unordered
    support = Batch(torch.randn(9, 3, dtype=torch.float64), y)
    query = torch.randn(7, 3, dtype=torch.float64)
    fast = adapters.Prototype()(model, support, F.cross_entropy)
    centres = torch.stack([model.body(support.x)[y == label].mean(0) for label in range(4)])
    torch.testing.assert_close(fast["head.weight"], 2 * centres, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(fast["head.bias"], -centres.square().sum(1), rtol=1e-12, atol=1e-14)
    found = functional_call(model, fast, (query,)).softmax(1)
    expected = (-(torch.cdist(model.body(query), centres) ** 2)).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_prototype_with_fewer_ways_than_the_head() -> None:
    model = nets.mlp(3, 8, 10)
    support = Batch(torch.randn(6, 3), torch.arange(3).repeat(2))
    fast = adapters.Prototype(ways=3)(model, support, F.cross_entropy)
    assert functional_call(model, fast, (torch.randn(2, 3),)).shape == (2, 3)


def test_head_table_selects_rows() -> None:
    table, model = adapters.HeadTable([3, 7, 9, 12], features=8), nets.mlp(3, 8, 3)
    fast = table(model, None, F.cross_entropy, task=torch.tensor([12, 3, 9]))
    assert torch.equal(fast["head.weight"], table.weight[[3, 0, 2]])
    assert torch.equal(fast["head.bias"], table.bias[[3, 0, 2]])
    assert fast["body.0.weight"] is model.body[0].weight


def test_head_table_learns_the_mean_over_tasks_of_the_rows_used(engine: engines.Engine) -> None:
    """A row that no task uses gets zero; one that two tasks use gets both their gradients."""
    torch.manual_seed(0)
    model = nets.mlp(3, 8, 2).double()
    table = adapters.HeadTable(range(5), features=8).double()
    ids = torch.tensor([[0, 1], [1, 3]])
    x, y = torch.randn(2, 6, 3, dtype=torch.float64), torch.arange(2).repeat(3).expand(2, -1)
    meta_backward(model, Recipe(table), Episode(None, Batch(x, y), ids), F.cross_entropy, engine=engine)
    params = [*model.body.parameters(), table.weight, table.bias]
    losses = [F.linear(model.body(x[t]), table.weight[ids[t]], table.bias[ids[t]]) for t in range(2)]
    total = sum(F.cross_entropy(output, y[0]) for output in losses) / 2
    for param, gradient in zip(params, torch.autograd.grad(total, params)):
        torch.testing.assert_close(param.grad, gradient, rtol=1e-12, atol=1e-14)
    assert not table.weight.grad[[2, 4]].any() and bool(table.weight.grad[[0, 1, 3]].any(1).all())
    assert not model.head.weight.grad.any()


def test_support_mean_answers_with_the_mean() -> None:
    model, y = nets.mlp(3, 8, 1), torch.randn(5, 1)
    fast = adapters.MeanPredictor()(model, Batch(torch.randn(5, 3), y), F.mse_loss)
    output = functional_call(model, fast, (torch.randn(4, 3),))
    torch.testing.assert_close(output, y.mean(0).expand(4, 1))
