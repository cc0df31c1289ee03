"""Closed forms of aggregators for two tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mean(rows: Tensor) -> Tensor:
    """`(g_1 + g_2) / 2`."""
    return rows.mean(0)


def sum_(rows: Tensor) -> Tensor:
    """`g_1 + g_2`."""
    return rows.sum(0)


def mgda(rows: Tensor) -> Tensor:
    """The shortest vector of the segment between the two."""
    g = rows @ rows.T
    weight = ((g[1, 1] - g[0, 1]) / (g[0, 0] + g[1, 1] - 2 * g[0, 1])).clamp(0, 1)
    return weight * rows[0] + (1 - weight) * rows[1]


def pcgrad(rows: Tensor) -> Tensor:
    """The sum of each gradient without its component against the other."""
    g = rows @ rows.T
    cross = g[0, 1].clamp(max=0)
    return (1 - cross / g[0, 0]) * rows[0] + (1 - cross / g[1, 1]) * rows[1]


def upgrad(rows: Tensor) -> Tensor:
    """The mean of the projections onto the dual cone: for two tasks half of PCGrad."""
    return pcgrad(rows) / 2


def dual_proj(rows: Tensor) -> Tensor:
    """The projection of the mean onto the dual cone; at most one of two gradients opposes the mean."""
    direction = rows.mean(0)
    for row in rows:
        direction = direction - (direction @ row).clamp(max=0) / (row @ row) * row
    return direction


def imtl_g(rows: Tensor) -> Tensor:
    """Equal projections onto both unit gradients; the weights sum to 1."""
    first, second = rows.norm(dim=1)
    return (second * rows[0] + first * rows[1]) / (first + second)


def nash_mtl(rows: Tensor) -> Tensor:
    """The weights `G a = 1 / a`."""
    units = rows / rows.norm(dim=1, keepdim=True)
    return units.sum(0) / (1 + units[0] @ units[1]).sqrt()


def config(rows: Tensor) -> Tensor:
    """The bisector, as long as the sum of the projections of both gradients onto it."""
    units = rows / rows.norm(dim=1, keepdim=True)
    direction = units.sum(0) / units.sum(0).norm()
    return (rows @ direction).sum() * direction


def aligned_mtl(rows: Tensor) -> Tensor:
    """The mean after all singular values are set to the smallest one."""
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    balance = vectors @ torch.diag((values[0] / values).sqrt()) @ vectors.T
    return balance.mean(0) @ rows


CLOSED_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "Mean": mean,
    "Sum": sum_,
    "MGDA": mgda,
    "PCGrad": pcgrad,
    "UPGrad": upgrad,
    "DualProj": dual_proj,
    "IMTLG": imtl_g,
    "NashMTL": nash_mtl,
    "ConFIG": config,
    "AlignedMTL": aligned_mtl,
}
