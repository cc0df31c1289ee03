"""Two losses of two parameters, on which descending the mean gets stuck: `python -m experiments.toy`.

The problem of CAGrad (Liu et al. 2021, https://arxiv.org/abs/2110.14048) from the five starts of Nash-MTL
(Navon et al. 2022). Where `y > 0` each loss has a steep valley, and the valleys cross; the Pareto set lies
at `y < 0`. Every aggregator's direction goes through the same Adam. Writes `toy.json` and `toy.png`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import hydra
import matplotlib
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from metamtl import aggregators

from .report import environment, write_json
from .train import CONF

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STARTS = torch.tensor([[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]], dtype=torch.float64)
SHIFT = 21.0  # added to both losses, for aggregators that need positive ones; it changes no gradient
OPTIONS: dict[str, dict[str, Any]] = {
    "AutoLambda": {"rate": 1e-4},
    "CAGrad": {"c": 0.5},
    "COSMOS": {"lambda_": 0.1, "weights": torch.ones(2)},
    "Constant": {"weights": torch.tensor([0.7, 0.3])},
    "DWA": {"calls_per_epoch": 100},
    "FAMO": {"num_tasks": 2},
    "FairGrad": {"alpha": 2.0},
    "IMTLL": {"shape": 2},
    "PBI": {"theta": 5.0, "weights": torch.ones(2)},
    "STCH": {"mu": 1.0},
    "UW": {"shape": 2},
}
NOT_FOR_TWO = {"Krum": "needs three tasks or more", "TrimmedMean": "is the mean of what is left of two"}


def losses(theta: Tensor) -> Tensor:
    """The two losses, `[..., 2] -> [..., 2]`."""
    x, y = theta[..., 0], theta[..., 1]
    valleys = (
        (0.5 * (-x - 7) - torch.tanh(-y)).abs().clamp(min=5e-6).log() + 6,
        (0.5 * (-x + 3) + torch.tanh(-y) + 2).abs().clamp(min=5e-6).log() + 6,
    )
    bowls = [((x - centre) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20 for centre in (7.0, -7.0)]
    above, below = torch.tanh(0.5 * y).clamp(min=0), torch.tanh(-0.5 * y).clamp(min=0)
    return torch.stack([above * v + below * b for v, b in zip(valleys, bowls)], -1) + SHIFT


@cache
def pareto_set(points: int = 1_401) -> Tensor:
    """The Pareto set, `[points, 2]`: weights (7 + x, 7 - x) / 14 have their minimum at x, and here at y."""
    x, y = torch.linspace(-7, 7, points).double(), torch.linspace(-9, -8, 4_001).double()
    values = losses(torch.stack(torch.meshgrid(x, y, indexing="ij"), -1))
    weighted = (7 + x)[:, None] * values[..., 0] + (7 - x)[:, None] * values[..., 1]
    return torch.stack([x, y[weighted.argmin(1)]], 1)


def gap(theta: Tensor) -> Tensor:
    """How far both losses could still fall at once, `[S, 2] -> [S]`; zero on the Pareto set."""
    differences = losses(theta)[:, None] - losses(pareto_set())
    return differences.min(-1).values.max(1).values.clamp(min=0)


def descend(name: str, steps: int, lr: float, tolerance: float, starts: Tensor = STARTS) -> dict[str, Any]:
    """Descend from every start, until the gap is within the tolerance or the steps are used up."""
    combine = [getattr(aggregators, name)(**OPTIONS.get(name, {})) for _ in starts]
    theta = starts.clone().requires_grad_()
    learned = [param for aggregator in combine for param in aggregator.parameters()]
    optimizer = torch.optim.Adam([theta, *learned], lr)
    way, taken = [theta.detach().clone()], [steps] * len(starts)
    for step in range(steps + 1):
        if step % 50 == 0:
            way.append(theta.detach().clone())
            for start in (gap(theta.detach()) <= tolerance).nonzero().flatten().tolist():
                taken[start] = min(taken[start], step)
        walking = [start for start in range(len(starts)) if taken[start] > step]
        if step == steps or not walking:
            break
        optimizer.zero_grad()
        values = losses(theta)
        rows = torch.stack(
            [
                torch.autograd.grad(values[:, task].sum(), theta, retain_graph=task == 0)[0]
                for task in (0, 1)
            ],
            1,
        )
        before = theta.detach().clone()
        theta.grad = torch.zeros_like(theta)
        for start in walking:
            if name == "AutoLambda" and step:  # there is no validation set: the next gradients serve
                combine[start].learn(rows[start].mean(0))
            theta.grad[start] = combine[start](values[start].detach(), rows[start])
        optimizer.step()
        arrived = [start for start in range(len(starts)) if start not in walking]
        theta.data[arrived] = before[arrived]
    ends, left = theta.detach(), gap(theta.detach())
    return {
        "reached": sum(bool(one <= tolerance) for one in left),
        "starts": [
            {"from": start, "to": end, "losses": value, "gap": one, "steps": count}
            for start, end, value, one, count in zip(
                starts.tolist(), ends.tolist(), (losses(ends) - SHIFT).tolist(), left.tolist(), taken
            )
        ],
        "way": torch.stack(way),
    }


def draw(ways: dict[str, Tensor], path: Path) -> None:
    """The ways from all starts over the contours of the mean loss, one panel for each aggregator."""
    columns = min(6, len(ways))
    count = -(-len(ways) // columns)
    figure, axes = plt.subplots(
        count, columns, figsize=(2.4 * columns, 2.4 * count), constrained_layout=True, squeeze=False
    )
    x, y = torch.linspace(-11, 11, 200).double(), torch.linspace(-11, 11, 200).double()
    mean = losses(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)).mean(-1)
    front = pareto_set()
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, way) in zip(axes.flat, ways.items()):
        axis.set_axis_on()
        axis.contour(x, y, mean, levels=15, colors="0.8", linewidths=0.5)
        axis.plot(front[:, 0], front[:, 1], color="0.5", linewidth=4, solid_capstyle="butt")
        for number in range(way.shape[1]):
            axis.plot(way[:, number, 0], way[:, number, 1], linewidth=0.8)
            axis.plot(*way[0, number], "ko", markersize=3)
            axis.plot(*way[-1, number], "k*", markersize=5)
        axis.set(title=name, xticks=[], yticks=[], xlim=(-11, 11), ylim=(-11, 11))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@hydra.main(version_base=None, config_path=CONF, config_name="toy")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    names = list(cfg.aggregators) or [name for name in aggregators.names() if name not in NOT_FOR_TWO]
    settings = {"steps": cfg.steps, "lr": cfg.lr, "optimizer": "Adam", "tolerance": cfg.tolerance}
    result: dict[str, Any] = {**environment("cpu"), **settings, "left_out": NOT_FOR_TWO, "aggregators": {}}
    ways = {}
    for name in names:
        found = descend(name, cfg.steps, cfg.lr, cfg.tolerance)
        ways[name] = found.pop("way")
        result["aggregators"][name] = found
        stuck = [tuple(one["from"]) for one in found["starts"] if one["gap"] > cfg.tolerance]
        print(f"{name:>14}: {found['reached']} of {len(STARTS)} on the Pareto set", *stuck, flush=True)
        write_json(folder / "toy.json", result)
        draw(ways, folder / "toy.png")
    print(folder / "toy.json")


if __name__ == "__main__":
    main()
