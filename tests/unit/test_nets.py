"""The nets: shapes, counts, and normalisation against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from metamtl import nets


def count(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 5), (6, 3, 2, 2, 2)])
def test_batchnorm_is_torchs_in_training_mode(shape: tuple[int, ...]) -> None:
    x, weight, bias = _inputs(shape)
    norm = nets.BatchNorm(3, eps=1e-3).double()
    found = functional_call(norm, {"weight": weight, "bias": bias}, (x,))
    expected = F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_batchnorm_is_torchs_in_first_and_second_order() -> None:
    inputs = _inputs((6, 3, 4))
    norm = nets.BatchNorm(3).double()

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, weight, bias, training=True)

    first, second = (_derivatives(function, inputs) for function in (ours, theirs))
    for a, b in zip(first, second):
        assert bool(b.any())
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert torch.autograd.gradgradcheck(ours, inputs)


def test_batchnorm_under_vmap_is_that_of_each_task() -> None:
    norm, x = nets.BatchNorm(3).double(), _inputs((5, 6, 3, 4))[0].detach()
    torch.testing.assert_close(vmap(norm)(x), torch.stack([norm(one) for one in x]), rtol=1e-12, atol=1e-12)
    assert not dict(norm.named_buffers())


def _inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    sizes = (shape, (3,), (3,))
    x, weight, bias = (torch.randn(size, generator=rng, dtype=torch.float64) for size in sizes)
    return (2 * x + 1).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def _derivatives(function: object, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    value = function(*inputs).pow(3).sum()  # type: ignore[operator]
    first = torch.autograd.grad(value, inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return [*first, *second]


@pytest.mark.parametrize(
    ("options", "features", "parameters"),
    [
        # 3x3 convolutions with bias, scale and shift of BatchNorm, linear head
        ({"downsample": "stride"}, 64, 640 + 3 * 36_928 + 4 * 128 + 5 * 65),
        ({"downsample": "pool"}, 64, 640 + 3 * 36_928 + 4 * 128 + 5 * 65),
        (
            {"downsample": "pool", "channels": 3, "hidden": 32, "size": 84},
            800,
            896 + 3 * 9_248 + 4 * 64 + 5 * 801,
        ),
        (
            {"downsample": "stride", "channels": 3, "hidden": 32, "size": 84},
            32,
            896 + 3 * 9_248 + 4 * 64 + 165,
        ),
    ],
)
def test_conv4(options: dict[str, object], features: int, parameters: int) -> None:
    model = nets.conv4(5, **options)  # type: ignore[arg-type]
    size, channels = options.get("size", 28), options.get("channels", 1)
    x = torch.zeros(2, channels, size, size)  # type: ignore[call-overload]
    assert model.body(x).shape == (2, features) and model.features == features
    assert model(x).shape == (2, 5) and count(model) == parameters
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"body", "head"}


def test_pooling_before_the_rectifier_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    model = nets.conv4(5, hidden=8, size=32, downsample="pool").double()
    blocks = list(model.body)
    published: list[nn.Module] = []
    for conv, norm, pool, relu in zip(*(blocks[i:-1:4] for i in range(4))):
        assert isinstance(pool, nn.MaxPool2d) and isinstance(relu, nn.ReLU)
        published += [conv, norm, relu, pool]
    x = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    assert len(published) == 16
    assert torch.equal(model.body(x), nn.Sequential(*published, blocks[-1])(x))


def test_conv4_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"downsample='max'.*'stride', 'pool'"):
        nets.conv4(5, downsample="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"16x16.*size=8"):
        nets.conv4(5, size=8, downsample="pool")


def test_mlp() -> None:
    model = nets.mlp(1, 40, 40, 1)
    assert count(model) == 1761 and model.features == 40
    assert model.body(torch.zeros(7, 1)).shape == (7, 40) and model(torch.zeros(7, 1)).shape == (7, 1)
    assert count(nets.mlp(3, 2)) == 8 and nets.mlp(3, 2).features == 3
    with pytest.raises(ValueError, match=r"mlp\(3,\).*input and an output"):
        nets.mlp(3)


def test_pixels_have_no_body_to_learn() -> None:
    model = nets.pixels(12, 3)
    assert (
        model(torch.zeros(2, 3, 4)).shape == (2, 3) and [n for n, _ in model.body.named_parameters()] == []
    )


def test_named_heads_answer_by_name_from_one_pass() -> None:
    model = nets.named_heads(nets.mlp(4, 8, 1), {"case": 3, "slant": 2})
    calls: list[int] = []
    model.body.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(5, 4)
    both, few = model(x), model(x, ("slant",))
    assert {name: tuple(out.shape) for name, out in both.items()} == {"case": (5, 3), "slant": (5, 2)}
    assert list(few) == ["slant"] and len(calls) == 2
    assert torch.equal(model(x, task="slant"), both["slant"])
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"body", "heads"}
    assert "head.weight" not in dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"unknown task 'size'.*case, slant"):
        model(x, "size")
    with pytest.raises(ValueError, match="at least one task"):
        nets.NamedHeads(nn.Identity(), 4, {})


def test_where_batchnorm_takes_its_statistics_from() -> None:
    ours, theirs = nets.batchnorm_statistics(nets.conv4(5)), nn.Sequential(nn.BatchNorm1d(2))
    assert ours.startswith("transductive") and nets.batchnorm_statistics(theirs) == ours
    assert nets.batchnorm_statistics(theirs.eval()) == "stored running statistics"
    assert nets.batchnorm_statistics(nets.mlp(1, 1)) == "no BatchNorm"
    assert ";" in nets.batchnorm_statistics(nn.ModuleList([theirs, nets.BatchNorm(2)]))
