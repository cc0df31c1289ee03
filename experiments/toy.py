"""Two losses of two parameters on which gradient descent on the mean fails: `python -m experiments.toy`.

The problem of CAGrad (Liu et al. 2021, https://arxiv.org/abs/2110.14048) with the five initial points of
Nash-MTL (Navon et al. 2022). For `y > 0` each loss has a steep valley, and the valleys cross; the Pareto
set is at `y < 0`. All aggregators use Adam with the same settings. Writes `toy.json` and `toy.png`.

Examples:
  metamtl toy 'aggregators=[Mean,MGDA,UPGrad]'
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor
from torchjd.linalg import QuadprogProjector

from metamtl import aggregators

from .tables.report import environment, write_json
from .utils import options
from .utils.command import command

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STARTS = torch.tensor([[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]], dtype=torch.float64)
SHIFT = 21.0  # added to both losses for aggregators that require positive losses; gradients do not change
# TorchJD regularizes with 1e-4 times the norm of the larger gradient. In a valley the smaller gradient is
# below that and would have no effect.
PROJECTOR = QuadprogProjector(norm_eps=1e-12, reg_eps=1e-12)
OPTIONS: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.5},
    "COSMOS": {"lambda_": 0.1, "weights": torch.ones(2)},
    "Constant": {"weights": torch.tensor([0.7, 0.3])},
    "DWA": {"calls_per_epoch": 100},
    "DualProj": {"projector": PROJECTOR},
    "FAMO": {"num_tasks": 2, "weight_decay": 0.0},  # as in its authors' code for this problem
    "FairGrad": {"alpha": 2.0},
    "IMTLL": {"shape": 2},
    "PBI": {"theta": 5.0, "weights": torch.ones(2)},
    "STCH": {"mu": 1.0},
    "UPGrad": {"projector": PROJECTOR},
    "UW": {"shape": 2},
}
LEFT_OUT = {
    "AutoLambda": "learns from validation data",
    "Krum": "needs three tasks or more",
    "TrimmedMean": "is the mean of what is left of two",
}


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
def pareto_set(points: int = 7_001) -> Tensor:
    """The Pareto set `[points, 2]`: at (x, y) the losses weighted by (7 + x, 7 - x) / 14 are minimal."""
    x, y = torch.linspace(-7, 7, points).double(), torch.linspace(-9, -8, 1_001).double()
    values = losses(torch.stack(torch.meshgrid(x, y, indexing="ij"), -1))
    weighted = (7 + x)[:, None] * values[..., 0] + (7 - x)[:, None] * values[..., 1]
    return torch.stack([x, y[weighted.argmin(1)]], 1)


def gap(theta: Tensor) -> Tensor:
    """Largest decrease that is possible for both losses, `[..., 2] -> [...]`; zero on the Pareto set."""
    differences = losses(theta)[..., None, :] - losses(pareto_set())
    return differences.min(-1).values.max(-1).values.clamp(min=0)


def descend(
    names: list[str], steps: int, lr: float, tolerance: float, starts: Tensor = STARTS
) -> dict[str, dict[str, Any]]:
    """Optimize from every initial point until the gap is within the tolerance or `steps` is reached.

    All runs are in one batch, with a separate aggregator for each run. Adam is elementwise, so runs do not
    affect each other.
    """
    combine = [[build(name) for _ in starts] for name in names]
    theta = starts.repeat(len(names), 1, 1).requires_grad_()
    parameters = [param for row in combine for aggregator in row for param in aggregator.parameters()]
    optimizer = torch.optim.Adam([theta, *parameters], lr)
    points, num_steps = [], torch.full(theta.shape[:2], steps)
    for step in range(steps + 1):
        if step % 50 == 0:
            points.append(theta.detach().clone())
            num_steps[(gap(theta.detach()) <= tolerance) & (num_steps > step)] = step
            active = num_steps > step
            runs = active.nonzero().tolist()
        if step == steps or not runs:
            break
        optimizer.zero_grad()
        values = losses(theta)
        grads = [torch.autograd.grad(values[..., t].sum(), theta, retain_graph=t == 0)[0] for t in (0, 1)]
        rows, values = torch.stack(grads, -2), values.detach()
        before, theta.grad = theta.detach().clone(), torch.zeros_like(theta)
        for number, start in runs:
            theta.grad[number, start] = combine[number][start](values[number, start], rows[number, start])
        optimizer.step()
        theta.data = theta.detach().where(active[..., None], before)
    ends, gaps = theta.detach(), gap(theta.detach())
    end_losses, paths = (losses(ends) - SHIFT).tolist(), torch.stack(points)
    return {
        name: {
            "reached": int((gaps[number] <= tolerance).sum()),
            "starts": [
                {"from": start, "to": end, "losses": value, "gap": distance, "steps": count}
                for start, end, value, distance, count in zip(
                    starts.tolist(),
                    ends[number].tolist(),
                    end_losses[number],
                    gaps[number].tolist(),
                    num_steps[number].tolist(),
                )
            ],
            "path": paths[:, number],
        }
        for number, name in enumerate(names)
    }


def build(name: str) -> aggregators.Aggregator:
    """Build an aggregator for two tasks."""
    return getattr(aggregators, name)(**OPTIONS.get(name, {}))


def draw(trajectories: dict[str, Tensor], path: Path) -> None:
    """Plot the paths from all initial points on the contours of the mean loss, one panel per aggregator."""
    columns = min(7, len(trajectories))
    count = -(-len(trajectories) // columns)
    figure, axes = plt.subplots(
        count, columns, figsize=(1.8 * columns, 1.9 * count), constrained_layout=True, squeeze=False
    )
    x, y = torch.linspace(-11, 11, 200).double(), torch.linspace(-11, 11, 200).double()
    mean = losses(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)).mean(-1)
    front = pareto_set()
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, trajectory) in zip(axes.flat, trajectories.items()):
        axis.set_axis_on()
        axis.contour(x, y, mean, levels=15, colors="0.8", linewidths=0.5)
        axis.plot(front[:, 0], front[:, 1], color="0.5", linewidth=4, solid_capstyle="butt")
        for number in range(trajectory.shape[1]):
            axis.plot(trajectory[:, number, 0], trajectory[:, number, 1], linewidth=0.8)
            axis.plot(*trajectory[0, number], "ko", markersize=3)
            axis.plot(*trajectory[-1, number], "k*", markersize=5)
        axis.set(xticks=[], yticks=[], xlim=(-11, 11), ylim=(-11, 11))
        axis.set_title(name, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


@command("toy")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    options.check_names("aggregators", cfg.aggregators, aggregators.names())
    names = list(cfg.aggregators) or [name for name in aggregators.names() if name not in LEFT_OUT]
    settings = {"steps": cfg.steps, "lr": cfg.lr, "optimizer": "Adam", "tolerance": cfg.tolerance}
    results = descend(names, **{key: value for key, value in settings.items() if key != "optimizer"})
    draw({name: result.pop("path") for name, result in results.items()}, folder / "toy.png")
    write_json(
        folder / "toy.json",
        {**environment("cpu"), **settings, "left_out": LEFT_OUT, "aggregators": results},
    )
    for name, result in results.items():
        stuck = [tuple(start["from"]) for start in result["starts"] if start["gap"] > cfg.tolerance]
        print(f"{name:>14}: {result['reached']} of {len(STARTS)} on the Pareto set", *stuck)
    print(folder / "toy.json")


if __name__ == "__main__":
    raise SystemExit(main())
