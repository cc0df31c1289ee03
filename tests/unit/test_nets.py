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


def test_a_context_is_appended_to_every_example() -> None:
    model, x = nets.context_mlp(2, 6, 1, context=3), torch.randn(4, 2)
    context = torch.tensor([1.0, 2.0, 3.0])
    found = functional_call(model, {"context.context": context}, (x,))
    assert torch.equal(found, model.head(model.body(torch.cat([x, context.expand(4, 3)], 1))))
    assert count(model) == 3 + 6 * 5 + 6 + 7 and not model.context.context.any()
    with pytest.raises(ValueError, match="at least an input and an output width"):
        nets.context_mlp(2, context=3)


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
    model = nets.flatten_linear(12, 3)
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
    assert nets.batchnorm_statistics(theirs.eval()) == "frozen: stored running statistics"
    assert nets.batchnorm_statistics(nets.mlp(1, 1)) == "no BatchNorm"
    assert ";" in nets.batchnorm_statistics(nn.ModuleList([theirs, nets.BatchNorm(2)]))


SHAPES = {nn.BatchNorm1d: (6, 3, 4), nn.BatchNorm2d: (6, 3, 4, 2), nn.BatchNorm3d: (6, 3, 2, 2, 2)}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_converted_copy_keeps_weights_and_answers(kind: type[nn.Module]) -> None:
    x = _inputs(SHAPES[kind])[0].detach()
    norm = kind(3, eps=1e-3).double()
    nn.init.normal_(norm.weight)
    norm.bias.requires_grad_(False)
    model = nn.Sequential(nn.Identity(), norm)
    model(x)  # moves the running statistics
    copies = {p: nets.with_batchnorm(model, p, steps=2) for p in ("transductive", "support", "per_step")}
    frozen = nets.with_batchnorm(model, "frozen")
    torch.testing.assert_close(frozen(x), model.eval()(x), rtol=1e-12, atol=1e-12)
    assert frozen.training and not nets.with_batchnorm(model, "frozen").training
    for copy in copies.values():
        torch.testing.assert_close(copy(x), model.train()(x), rtol=1e-12, atol=1e-12)
        assert copy[1].weight.requires_grad and not copy[1].bias.requires_grad
        assert copy[1].weight.dtype == torch.float64 and copy[1].training
        assert copy[1].weight.data_ptr() != norm.weight.data_ptr()
    assert model[1] is norm and type(norm) is kind


def test_conversion_reaches_every_place() -> None:
    shared = nn.BatchNorm1d(3, affine=False)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.Linear(3, 3)), "b": nn.Sequential(shared)})
    copy = nets.with_batchnorm(model, "support")
    assert copy["a"][0] is copy["b"][0] and copy["a"][0].weight is None
    assert isinstance(nets.with_batchnorm(nn.BatchNorm1d(3), "support"), nets.SupportBatchNorm)
    ours = nets.with_batchnorm(nets.conv4(5, hidden=4), "per_step", steps=1)
    assert dict(ours.named_parameters())["body.1.weight"].shape == (2, 4)


def test_conversions_that_cannot_be() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"batchnorm='running' is not one of 'transductive'.*'per_step'"):
        nets.with_batchnorm(model, "running")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"steps=K; found None"):
        nets.conv4(5, batchnorm="per_step")
    with pytest.raises(ValueError, match=r"'0' has no stored statistics to freeze"):
        nets.with_batchnorm(model, "frozen")
    with pytest.raises(ValueError, match=r"affine=False"):
        nets.with_batchnorm(nn.Sequential(nn.BatchNorm1d(3, affine=False)), "per_step", steps=1)
    with pytest.raises(ValueError, match=r"'0' has a scale and shift for each step"):
        nets.with_batchnorm(nets.with_batchnorm(model, "per_step", steps=1), "support")


def test_resnet12() -> None:
    model = nets.resnet12(5, channels=1, widths=(4, 6, 8))
    x = torch.randn(2, 1, 16, 16)
    assert model.features == 8 and model.body(x).shape == (2, 8) and model(x).shape == (2, 5)
    block = model.body[0]
    convolutions = 9 * 4 * (1 + 4 + 4) + 4  # three of 3x3 and one of 1x1 beside them, without bias
    assert count(block) == convolutions + 4 * 8
    out = F.max_pool2d(F.leaky_relu(block.main(x) + block.side(x), 0.1), 2)
    torch.testing.assert_close(block(x), out)
    assert count(nets.resnet12(5, channels=3).body) == 12_424_320
    with pytest.raises(ValueError, match=r"widths=\(\)"):
        nets.resnet12(5, widths=())


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_vit(pool: str) -> None:
    torch.manual_seed(0)
    model = nets.vit(5, channels=2, size=8, patch=4, width=6, depth=2, heads=2, pool=pool)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 8, 8)
    assert model.features == 6 and model.body(x).shape == (3, 6) and model(x).shape == (3, 5)
    positions = 4 + (pool == "token")
    block = 4 * (6 * 6 + 6) + 2 * 6 * 24 + 24 + 6 + 4 * 6  # attention, perceptron, two LayerNorms
    patches = 6 * (2 * 16 + 1) + 6 * positions + 6 * (pool == "token")
    assert count(model) == patches + 2 * block + 2 * 6 + 5 * 7
    swapped = torch.cat([x[..., 4:], x[..., :4]], -1)
    assert not torch.allclose(model(swapped), model(x))  # positions count
    with torch.no_grad():
        model.body[0].positions.zero_()
        assert torch.allclose(model(swapped), model(x), atol=1e-6)  # and nothing else tells patches apart


def test_vit_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"10x10 do not divide into patches of 4x4"):
        nets.vit(5, size=10)
    with pytest.raises(ValueError, match=r"pool='max'.*'token', 'mean'"):
        nets.vit(5, pool="max")  # type: ignore[arg-type]
