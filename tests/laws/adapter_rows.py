"""The table of adapters (`ROWS`) for the laws over them, and the problem on which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Recipe,
    adapters,
    engines,
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
    "matching, full context": Row(
        lambda: recipes.matching(context=adapters.FullContext(FEATURES, steps=2))
    ),
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


# Few steps, because tracing takes long; test_compiled.py has the gradient steps.
COMPILED = {
    "r2d2": ROWS["r2d2"],
    **{name: ROWS[name] for name in ("class means", "matching", "relation", "feat")},
    "logistic": Row(lambda: recipes.logistic(steps=2)),
    "metaoptnet": Row(lambda: recipes.metaoptnet(steps=2)),
    "maml++": ROWS["maml++"],
    "tim": Row(lambda: recipes.tim(steps=1)),
}
