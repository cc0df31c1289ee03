"""Second derivatives: mixed ones between tasks, and the spectrum of the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..engines import Engine
from ..functional import Params
from ..recipes import Recipe
from .arguments import Episodes, Losses, check_analysis
from .derivatives import hessian_product, mean_hessian_product
from .directions import inner
from .functions import TaskFunctions
from .gradients import Gradients, gradients
from .lanczos import lanczos, symmetric_operator
from .look_ahead import task_directions
from .relatedness import Relatedness
from .result import Result, bars


def mixed_second_derivatives(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    *,
    of: str | None = None,
    grads: Gradients | None = None,
    engine: Engine | None = None,
) -> Relatedness:
    """The mixed second derivatives `g_i^T H g_j = d^2 L(theta - a g_i - b g_j) / da db` at `a = b = 0`.

    Above 0, steps on i and j together gain less than the sum of the two. `L` is the mean objective of all
    tasks, or that of the task `of`, through the adaptation. Every task costs one backward pass and one
    Hessian-vector product of `L`. The gradients are those with respect to the shared parameters.

    Args:
        model, recipe, episodes, loss, engine: as in `gradients`. The inner loop must be differentiated
            exactly.
        of: the name of the task whose Hessian is used; if None, that of the mean objective.
        grads: exact gradients of the same call, if they are known.

    Raises:
        TypeError, ValueError: as `gradients`; there is no task `of`; the gradient of the recipe is first
            order, truncated or implicit.

    >>> from metamtl import nets, recipes, tasks
    >>> family, model = tasks.Sinusoid(), nets.mlp(1, 8, 1)
    >>> episodes = family.sample(3, torch.Generator().manual_seed(0))
    >>> second = mixed_second_derivatives(model, recipes.maml(), episodes, family.loss)
    >>> bool(torch.allclose(second.matrix, second.matrix.T, rtol=1e-3))
    True
    """
    episodes = check_analysis(model, recipe, episodes, loss, engine, least=2)
    tasks = TaskFunctions.of(model, recipe, episodes, loss, order=2)
    target = None if of is None else tasks.index(of)
    grads = gradients(model, recipe, episodes, loss, engine=engine) if grads is None else grads
    rows = task_directions(grads, tasks)
    names = tuple(grads.rows)
    if target is None:
        products = mean_hessian_product(tasks, names)(rows)
    else:
        product = hessian_product(tasks, target, names)
        products = [product(row) for row in rows]
    matrix = torch.tensor([[inner(row, p) for p in products] for row in rows], dtype=torch.float64)
    return Relatedness(matrix, tasks.names, "mixed second derivatives")


@dataclass(frozen=True)
class Spectrum(Result):
    """The eigenvalues of largest magnitude of a Hessian.

    Attributes:
        values: from the largest to the smallest, `[k]`, in double precision on the CPU.
        residuals: `|H v - value v|` for each of them: the distance to an eigenvalue is not larger.
        vectors: the eigenvectors, `[n, k]`.
        products: the number of Hessian-vector products.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor = field(repr=False)
    products: int

    def as_dict(self) -> dict[str, Any]:
        """Everything except the eigenvectors."""
        parts = {"values": self.values.tolist(), "residuals": self.residuals.tolist()}
        return {"kind": "Spectrum", **parts, "products": self.products}

    def scalars(self) -> dict[str, float]:
        return {"largest": float(self.values[0]), "smallest": float(self.values[-1])}

    def plot(self, ax: Any = None) -> Any:
        names = tuple(str(i + 1) for i in range(len(self.values)))
        return bars(ax, names, self.values.tolist(), "eigenvalues", self.residuals.tolist())


def spectrum(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    k: int = 5,
    *,
    of: str | None = None,
    iterations: int = 30,
    seed: int = 0,
) -> Spectrum:
    """The k eigenvalues of largest magnitude of the Hessian of the mean objective, by Lanczos iteration.

    With all vectors orthogonalized again in every iteration, so that no eigenvalue occurs twice. If there
    are not more trainable parameters than iterations, the result is exact.

    Args:
        model, recipe, episodes, loss: as in `mixed_second_derivatives`; at least one task.
        k: number of eigenvalues.
        of: the name of the task whose Hessian is used; if None, that of the mean objective.
        iterations: number of Hessian-vector products, at least k.
        seed: of the first vector.

    Raises:
        TypeError, ValueError: as `mixed_second_derivatives`; `k` or `iterations` is out of range.
    """
    episodes = check_analysis(model, recipe, episodes, loss)
    tasks = TaskFunctions.of(model, recipe, episodes, loss, order=2)
    return top(tasks, _product(tasks, of), k, iterations, seed)


def curvature_overlap(
    model: nn.Module,
    recipe: Recipe,
    episodes: Episodes,
    loss: Losses,
    k: int = 5,
    *,
    iterations: int = 30,
    seed: int = 0,
) -> Relatedness:
    """The overlap of the tasks' dominant curvature subspaces, `|V_i^T V_j|^2 / k` (Frobenius norm).

    `V_i` are the k eigenvectors of largest magnitude of the Hessian of task i's objective. 1: the subspaces
    are equal; 0: they are orthogonal; k / n is expected of random ones. Gur-Ari, Roberts, Dyer 2018,
    https://arxiv.org/abs/1812.04754. `error` is the largest residual of an eigenvector relative to the
    magnitude of its eigenvalue.

    Raises:
        TypeError, ValueError: as `spectrum`; there is only one task; a Hessian has fewer than k eigenvalues
            that are not zero.
    """
    episodes = check_analysis(model, recipe, episodes, loss, least=2)
    tasks = TaskFunctions.of(model, recipe, episodes, loss, order=2)
    spectra = [top(tasks, _product(tasks, name), k, iterations, seed) for name in tasks.names]
    for name, result in zip(tasks.names, spectra):
        if float(result.values.abs().min()) <= 1e-10 * float(result.values.abs().max()):
            raise ValueError(
                f"the Hessian of task {name!r} has fewer than k={k} eigenvalues that are not zero, so its"
                " dominant subspace is not defined; pass a smaller k."
            )
    error = max(float((s.residuals / s.values.abs()).max()) for s in spectra)
    overlaps = [[float((a.vectors.T @ b.vectors).square().sum()) / k for b in spectra] for a in spectra]
    return Relatedness(torch.tensor(overlaps, dtype=torch.float64), tasks.names, "curvature overlap", error)


def _product(tasks: TaskFunctions, of: str | None) -> Callable[[Params], Params]:
    names = tuple(tasks.params)
    if of is not None:
        return hessian_product(tasks, tasks.index(of), names)
    mean = mean_hessian_product(tasks, names)
    return lambda direction: mean([direction])[0]


def top(
    tasks: TaskFunctions, product: Callable[[Params], Params], k: int, iterations: int, seed: int
) -> Spectrum:
    """The k eigenvalues of largest magnitude of a Hessian over all trainable parameters."""
    operator, size = symmetric_operator(product, tasks.params)
    if not 1 <= k <= min(iterations, size):
        raise ValueError(
            f"k={k}, iterations={iterations}, and the model has {size} trainable parameters; k must be at"
            " least 1 and at most the smaller of the two."
        )
    values, residuals, vectors, count = lanczos(operator, size, min(iterations, size), seed)
    chosen = values.abs().argsort(descending=True)[:k]
    chosen = chosen[values[chosen].argsort(descending=True)]
    return Spectrum(values[chosen], residuals[chosen], vectors[:, chosen], count)
