"""Device, dtype and memory layout are the data's; nothing waits for the device that need not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    Recipe,
    adapters,
    engines,
    evaluate,
    meta_backward,
    nets,
    recipes,
    rules,
    tasks,
)
from metamtl.functional import trainable
from metamtl.objectives import query_loss

# torch.compile warns of its own use of deprecated functions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
ENGINES = [engines.Loop(), engines.Vmap(), engines.Vmap(chunk_size=2)]
RATES = (0.1, 0.2, 0.3)  # each step its own, so that the step is looked up
ADAPTERS = {
    "exact": lambda: adapters.Gradient(3, RATES),
    "checkpointed": lambda: adapters.Gradient(3, RATES, differentiation="checkpointed"),
    "first_order": lambda: adapters.Gradient(3, RATES, differentiation="first_order"),
    "truncated": lambda: adapters.Gradient(3, RATES, differentiation="truncated"),
    "implicit": lambda: adapters.Gradient(3, 0.1, differentiation="implicit"),
    "head": lambda: adapters.Gradient(3, RATES, "head", differentiation=adapters.Checkpointed(2)),
    "momentum": lambda: adapters.Gradient(3, 0.1, rule=rules.SGD(momentum=0.9)),
    "adam": lambda: adapters.Gradient(3, 0.1, rule=rules.Adam(eps=0.1)),
    "prototypes": lambda: adapters.Chain(adapters.Prototype(), adapters.Gradient(1, 0.1)),
    "shared": adapters.Shared,
}


def images(device: torch.device) -> tasks.FewShot:
    values = torch.randint(256, (60, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(60) // 10
    return tasks.FewShot(values, labels, ways=3, shots=1, queries=2, rotations="episode", device=device)


def conv(device: torch.device, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Two blocks of Conv-4, as layers cost the same time on the meta device as anywhere."""
    torch.manual_seed(0)
    blocks = [
        layer
        for channels in (1, 4)
        for layer in (nn.Conv2d(channels, 4, 3, padding=1), nets.BatchNorm(4), nn.ReLU(), nn.MaxPool2d(2))
    ]
    model = nn.Sequential()
    model.body, model.head = nn.Sequential(*blocks, nn.Flatten()), nn.Linear(64, 3)
    return model.to(device, dtype)


def unlooked(output: Tensor, y: Tensor) -> Tensor:
    """A loss whose labels nobody checks beforehand."""
    return F.cross_entropy(output, y)


def double(episode: Episode) -> Episode:
    return episode.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)


def gradient(model: nn.Module, adapter: adapters.Adapter, episode: Episode, engine: Any) -> Tensor:
    model.zero_grad()
    meta_backward(model, Recipe(adapter), episode, F.cross_entropy, engine=engine)
    return torch.cat([param.grad.flatten() for param in model.parameters()])


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On a GPU, what makes the host wait raises."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # torch calls the mode a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("name", ADAPTERS)
def test_engines_agree_on_a_device(name: str, device: torch.device) -> None:
    model, episode = conv(device), double(images(device).sample(3, torch.Generator().manual_seed(0)))
    found = [gradient(model, ADAPTERS[name](), episode, engine) for engine in [*ENGINES, None]]
    assert found[0].device.type == device.type and found[0].any()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-10)
    recipe = Recipe(ADAPTERS[name]())
    estimates = [evaluate(model, recipe, episode, F.cross_entropy, engine=e).mean for e in [*ENGINES, None]]
    assert estimates == pytest.approx([estimates[0]] * 4, rel=1e-10)


def leaves(episode: Episode) -> list[Tensor]:
    found: list[Tensor] = []
    episode.map(lambda leaf: found.append(leaf) or leaf)
    return found


def families(device: torch.device) -> list[Any]:
    return [
        tasks.Sinusoid(shots=4, queries=4, noise=0.1, device=device),
        tasks.Sinusoid(shots=4, queries=4, tasks=5, device=device),
        images(device),
    ]


def test_families_draw_the_same_tasks_for_every_device_and_wait_for_none(device: torch.device) -> None:
    for there, here in zip(families(device), families(torch.device("cpu"))):
        rng = torch.Generator().manual_seed(0)
        with no_waiting(device):
            found = there.sample(3, rng)
        expected = here.sample(3, torch.Generator().manual_seed(0))
        for one, other in zip(leaves(found), leaves(expected), strict=True):
            assert one.device.type == device.type
            torch.testing.assert_close(one.cpu(), other)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("name", ADAPTERS)
def test_rows_are_computed_without_waiting(name: str, engine: Any, device: torch.device) -> None:
    """On the meta device, where there is no value to look at and no other device fits; and on this one."""
    for place in (device, torch.device("meta")):
        model = conv(device, torch.float32).to(place)
        episode = images(device).sample(3, torch.Generator().manual_seed(0)).to(place)
        problem = engines.TaskProblem.of(model, ADAPTERS[name](), query_loss, unlooked, episode)
        data = (episode.support, episode.query, episode.task)
        with no_waiting(place):
            found = engine.gradients(problem, trainable(model), {}, data)
        assert {rows.device.type for rows in found.shared.values()} == {place.type}
        assert found.losses.shape == (3,) and found.losses.device.type == place.type


@pytest.mark.slow
def test_the_default_device_is_never_asked(device: torch.device) -> None:
    """With one where no number is kept: what a call left to it would be lost."""

    model, all_families = conv(device), families(device)

    def everything() -> list[Tensor]:
        found = []
        for family in all_families:
            episode = double(family.sample(3, torch.Generator().manual_seed(0)))
            found.extend(leaves(episode))
        for engine in ENGINES:
            for make in ADAPTERS.values():
                model.zero_grad()
                recipe = Recipe(make())
                outcome = meta_backward(model, recipe, episode, F.cross_entropy, engine=engine)
                evaluate(model, recipe, episode, F.cross_entropy, engine=engine)
                found.extend([outcome.losses, *(p.grad.clone() for p in model.parameters())])
        return found

    expected = everything()
    with torch.device("meta"):
        found = everything()
    tolerance = 1e-10 if device.type == "cuda" else 0  # a GPU adds in another order every time
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["exact", "checkpointed", "first_order"])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_channels_last_is_a_layout_and_no_more(downsample: Any, order: Any, device: torch.device) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 12, 2, 16, 16, generator=rng, dtype=torch.float64).to(device)
    y = torch.arange(3).repeat(4).expand(3, -1).to(device)
    last = x.flatten(0, 1).to(memory_format=torch.channels_last).view_as(x)
    adapter = adapters.Gradient(2, 0.1, differentiation=order)
    torch.manual_seed(0)
    model = nets.conv4(3, channels=2, hidden=4, size=16, downsample=downsample).to(device).double()
    plain_episode = Episode(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))
    expected = gradient(model, adapter, plain_episode, engines.Loop())
    plain = evaluate(model, Recipe(adapter), plain_episode, F.cross_entropy)
    for net in (model, model.to(memory_format=torch.channels_last)):
        for inputs in (x, last):
            episode = Episode(Batch(inputs[:, :6], y[:, :6]), Batch(inputs[:, 6:], y[:, 6:]))
            for engine in [*ENGINES, engines.Auto()]:
                found = gradient(net, adapter, episode, engine)
                torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
                value = evaluate(net, Recipe(adapter), episode, F.cross_entropy, engine=engine).mean
                assert value == pytest.approx(plain.mean, rel=1e-10)


def test_a_layout_asked_for_in_the_forward_pass_needs_a_loop(device: torch.device) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv(device)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.to(memory_format=torch.channels_last))

    model, episode = Last(), double(images(device).sample(3, torch.Generator().manual_seed(0)))
    found = gradient(model, adapters.Gradient(2, 0.1), episode, engines.Loop())
    expected = gradient(model.net, adapters.Gradient(2, 0.1), episode, engines.Loop())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    with pytest.raises(
        RuntimeError, match=r"Last converts a tensor to the channels-last format.*engine=Loop\(\)"
    ):
        gradient(model, adapters.Gradient(2, 0.1), episode, engines.Vmap())


@pytest.mark.slow
def test_compiled_code_takes_any_layout(device: torch.device) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 2, 8, 8, generator=rng, dtype=torch.float64).to(device)
    y = torch.arange(3).repeat(2).expand(2, -1).to(device)
    last = x.flatten(0, 1).to(memory_format=torch.channels_last).view_as(x)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
    model = model.to(device).double()
    adapter = adapters.Gradient(1, 0.1, differentiation="first_order")
    layouts = ((x, torch.contiguous_format), (last, torch.channels_last))

    def found(engine: Any, inputs: Tensor, memory_format: torch.memory_format) -> Tensor:
        episode = Episode(Batch(inputs[:, :3], y[:, :3]), Batch(inputs[:, 3:], y[:, 3:]))
        return gradient(model.to(memory_format=memory_format), adapter, episode, engine)

    expected = found(engines.Loop(), x, torch.contiguous_format)
    engine = engines.Compiled()
    each = [found(engine, inputs, layout) for inputs, layout in layouts]
    assert engine.compilations == 1
    for one in each:
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", [None, *ENGINES, engines.Compiled()], ids=repr)
def test_a_batch_that_no_memory_holds_is_told_in_torchs_words(engine: Any, device: torch.device) -> None:
    class Vast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).unsqueeze(-1).repeat(1, 1, 1 << 50).sum(-1)

    model = Vast().to(device)
    episode = tasks.Sinusoid(shots=3, queries=3, device=device).sample(2, torch.Generator().manual_seed(0))
    with pytest.raises((RuntimeError, MemoryError), match=r"(?i)allocate"):
        meta_backward(model, recipes.maml(), episode, F.mse_loss, engine=engine)
    assert all(param.grad is None for param in model.parameters())
