"""Workloads and contenders of `experiments.bench`; a contender is a way to compute a meta-gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from metamtl import Batch, Episode, Recipe, engines, meta_backward, nets, recipes, tasks
from metamtl.losses import Loss

Gradient = Callable[[], Tensor]


class Work(NamedTuple):
    """A workload: one meta-gradient of a model, with `steps` inner steps of learning rate `lr`."""

    model: nn.Module
    recipe: Recipe
    steps: int
    lr: float
    episode: Episode
    loss: Loss
    head: bool = False  # adapt only the head

    def double(self) -> Work:
        """The same workload in float64; converts the model in place."""
        assert self.episode.support is not None
        support, query = (
            Batch(batch.x.double(), batch.y.double() if batch.y.is_floating_point() else batch.y)
            for batch in (self.episode.support, self.episode.query)
        )
        episode = replace(self.episode, support=support, query=query)
        return self._replace(model=self.model.double(), episode=episode)

    def to(self, device: str) -> Work:
        """The same workload on this device; moves the model in place."""
        return self._replace(model=self.model.to(device), episode=self.episode.to(device))


def sinusoid(steps: int, differentiation: Any = "exact") -> Work:
    family = tasks.Sinusoid(10, 10)
    episode = family.sample(25, torch.Generator().manual_seed(0))
    recipe = recipes.maml(steps, 0.01, differentiation=differentiation)
    return Work(_seeded(lambda: nets.mlp(1, 40, 40, 1)), recipe, steps, 0.01, episode, F.mse_loss)


def images(
    num_tasks: int,
    queries: int,
    downsample: Any,
    steps: int = 1,
    *,
    shots: int = 1,
    lr: float = 0.1,
    differentiation: Any = "exact",
    head: bool = False,
) -> Work:
    """Few-shot classification of random images, because the speed does not depend on the images."""
    pixels = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    family = tasks.FewShot(pixels, torch.arange(200) // 20, ways=5, shots=shots, queries=queries)
    episode = family.sample(num_tasks, torch.Generator().manual_seed(0))
    recipe = (recipes.anil if head else recipes.maml)(steps, lr, differentiation=differentiation)
    model = _seeded(lambda: nets.conv4(5, downsample=downsample))
    return Work(model, recipe, steps, lr, episode, F.cross_entropy, head)


class Transformer(nn.Module):
    """One encoder layer, and a linear head on the mean of the tokens: `[B, L, 16] -> [B, 5]`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(-2))


def transformer(num_tasks: int = 8) -> Work:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(num_tasks, 20, 8, 16, generator=rng), torch.arange(20).expand(num_tasks, -1) % 5
    episode = Episode(Batch(x[:, :10], y[:, :10]), Batch(x[:, 10:], y[:, 10:]))
    return Work(_seeded(Transformer), recipes.maml(3, 0.1), 3, 0.1, episode, F.cross_entropy)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


WORK: dict[str, Callable[[], Work]] = {
    "sinusoid_1": lambda: sinusoid(1),
    "sinusoid_5": lambda: sinusoid(5),
    "sinusoid_50": lambda: sinusoid(50),
    "omniglot": lambda: images(32, 1, "stride"),
    "conv4": lambda: images(8, 15, "pool"),
    "anil": lambda: images(32, 1, "stride", 5, head=True),
    "transformer": transformer,
}


def ours(work: Work, engine: engines.Engine) -> Gradient:
    """`meta_backward` with one engine."""

    def gradient() -> Tensor:
        work.model.zero_grad()
        meta_backward(work.model, work.recipe, work.episode, work.loss, engine=engine)
        return _grads(work.model)

    return gradient


def learn2learn(work: Work) -> Gradient:
    """The function `fast_adapt` of learn2learn's examples."""
    import learn2learn as l2l

    model, count = work.model, work.episode.num_tasks
    learner = l2l.algorithms.MAML(model.head if work.head else model, lr=work.lr)

    def gradient() -> Tensor:
        model.zero_grad()
        for task in range(count):
            episode = work.episode[task]
            clone = learner.clone()
            support = model.body(episode.support.x) if work.head else episode.support.x
            for _ in range(work.steps):
                clone.adapt(work.loss(clone(support), episode.support.y))
            query = model.body(episode.query.x) if work.head else episode.query.x
            (work.loss(clone(query), episode.query.y) / count).backward()
        return _grads(model)

    return gradient


def higher(work: Work) -> Gradient:
    """The inner loop of higher's README, with `copy_initial_weights=False` for a meta-gradient."""
    import higher as peer

    model, count = work.model, work.episode.num_tasks

    def gradient() -> Tensor:
        model.zero_grad()
        inner = torch.optim.SGD((model.head if work.head else model).parameters(), lr=work.lr)
        for task in range(count):
            episode = work.episode[task]
            adapted = model.head if work.head else model
            with peer.innerloop_ctx(adapted, inner, copy_initial_weights=False) as (fast, steps):
                support = model.body(episode.support.x) if work.head else episode.support.x
                for _ in range(work.steps):
                    steps.step(work.loss(fast(support), episode.support.y))
                query = model.body(episode.query.x) if work.head else episode.query.x
                (work.loss(fast(query), episode.query.y) / count).backward()
        return _grads(model)

    return gradient


def plain(work: Work) -> Gradient:
    """Plain `torch.func`: `grad` in the inner loop, `vmap` over tasks."""
    model = work.model
    support, query = work.episode.support, work.episode.query
    assert support is not None

    def one_task(params: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        names = _adapted(work, params)
        for _ in range(work.steps):
            gradients = grad(
                lambda fast, params=params: work.loss(functional_call(model, {**params, **fast}, (xs,)), ys)
            )({name: params[name] for name in names})
            params = {**params, **{name: params[name] - work.lr * gradients[name] for name in names}}
        return work.loss(functional_call(model, params, (xq,)), yq)

    def gradient() -> Tensor:
        params = {name: param.detach().requires_grad_() for name, param in model.named_parameters()}
        with sdpa_kernel(SDPBackend.MATH):  # the only backend with second derivatives
            losses = vmap(one_task, in_dims=(None, 0, 0, 0, 0))(params, *support, *query)
            return _flat(torch.autograd.grad(losses.mean(), list(params.values())))

    return gradient


def unrolled(work: Work) -> Gradient:
    """Sequential tasks with `torch.autograd.grad`: the reference for all other gradients."""
    model = work.model

    def gradient() -> Tensor:
        params = {name: param.detach().requires_grad_() for name, param in model.named_parameters()}
        names = _adapted(work, params)
        total = torch.zeros(())
        for task in range(work.episode.num_tasks):
            episode, fast = work.episode[task], dict(params)
            for _ in range(work.steps):
                loss = work.loss(functional_call(model, fast, (episode.support.x,)), episode.support.y)
                grads = torch.autograd.grad(loss, [fast[name] for name in names], create_graph=True)
                fast |= {name: fast[name] - work.lr * inner for name, inner in zip(names, grads)}
            total = total + work.loss(functional_call(model, fast, (episode.query.x,)), episode.query.y)
        mean = total / work.episode.num_tasks
        return _flat(torch.autograd.grad(mean, list(params.values())))

    def with_math_kernels() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return gradient()

    return with_math_kernels


def _adapted(work: Work, params: dict[str, Tensor]) -> list[str]:
    return [name for name in params if not work.head or name.startswith("head.")]


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def _grads(model: nn.Module) -> Tensor:
    return _flat(tuple(param.grad for param in model.parameters() if param.grad is not None))


PEERS = ("learn2learn", "higher")
ENGINES: dict[str, Callable[[], engines.Engine]] = {
    "Loop": engines.Loop,
    "Vmap": engines.Vmap,
    "Compiled": engines.Compiled,
    "Compiled, one task at a time": lambda: engines.Compiled(1),
    "Auto": lambda: engines.Auto(steps=10_000),  # as in a long training
}


def with_engine(make: Callable[[], engines.Engine]) -> Callable[[Work], Gradient]:
    """Contender that runs `meta_backward` with this engine."""
    return lambda work: ours(work, make())


OTHERS: dict[str, Callable[[Work], Gradient]] = {
    "learn2learn": learn2learn,
    "higher": higher,
    "plain torch.func": plain,
}
