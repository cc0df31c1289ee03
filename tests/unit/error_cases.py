"""Models and episodes for the tests of errors, and the check of an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamtl import (
    Batch,
    Episode,
    evaluate,
    meta_backward,
    nets,
)

T = 4


Refused = Callable[..., Any]


def model(outputs: int = 3) -> nn.Module:
    return nets.mlp(2, 5, outputs)


def episode(labels: Tensor | None = None, **more: Any) -> Episode:
    x = torch.randn(T, 6, 2, generator=torch.Generator().manual_seed(0))
    y = torch.arange(3).repeat(2).expand(T, -1) if labels is None else labels
    return Episode(Batch(x, y), Batch(x, y), **more)


@contextmanager
def refused(net: nn.Module, *words: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """The error has all the words, and neither `.grad` nor parameters nor buffers have changed."""
    for param in net.parameters():
        param.grad = torch.full_like(param, 7.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    for word in words:
        assert re.search(word, message), f"{word!r} is not in {message!r}"
    assert all(torch.equal(param.grad, torch.full_like(param, 7.0)) for param in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


CALLS = [meta_backward, evaluate]


def named() -> tuple[nn.Module, dict[str, Episode], dict[str, Any]]:
    net, x = nets.named_heads(model(), {"case": 3, "slant": 1}), torch.randn(6, 2)
    data = {
        "case": Episode(None, Batch(x, torch.arange(6) % 3)),
        "slant": Episode(None, Batch(x, x[:, :1].clone())),
    }
    return net, data, {"case": F.cross_entropy, "slant": F.mse_loss}
