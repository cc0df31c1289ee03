"""Outputs, inputs and bodies for the tests of sharing architectures."""

from __future__ import annotations

import torch
from torch import nn

OUTPUTS = {"a": 3, "b": 1}


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def body() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh())


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())
