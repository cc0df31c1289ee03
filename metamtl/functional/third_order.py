"""Decompositions of layers whose third derivative torch computes wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import vmap_compatible_kernels
from .decompositions import REPLACED, DecomposeOps, moments, normalize


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.layer_norm` in elementary operations."""
    axes = tuple(range(-len(normalized_shape), 0))
    var, mean = torch.var_mean(input, axes, correction=0, keepdim=True)
    y = (input - mean) * (var + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.instance_norm` in elementary operations, without an update of the running statistics."""
    if not use_input_stats and running_mean is not None and running_var is not None:
        return normalize(input, running_mean, running_var, weight, bias, eps)
    examples, channels, *rest = input.shape
    flat = input.reshape(1, examples * channels, *rest)
    y = normalize(flat, *moments(flat), None, None, eps).reshape(input.shape)
    shape = [1, -1] + [1] * len(rest)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


TABLE: dict[Any, Callable[..., Any]] = {F.layer_norm: layer_norm, F.instance_norm: instance_norm}


@contextmanager
def differentiable_ops() -> Iterator[None]:
    """Context manager in which a model can be differentiated three times, and in forward mode.

    Second derivatives through an inner loop are third derivatives of the model. Those of `F.layer_norm` and
    `F.instance_norm` are wrong by some percent (torch 2.13, CPU), without an error. Other fused layers are
    decomposed as they are inside of transforms.
    """
    with vmap_compatible_kernels(), DecomposeOps({**REPLACED, **TABLE}):
        yield
