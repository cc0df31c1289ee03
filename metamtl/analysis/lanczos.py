"""Lanczos iteration for the eigenvalues of a symmetric operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..functional import Params


def symmetric_operator(
    product: Callable[[Params], Params], params: Params
) -> tuple[Callable[[Tensor], Tensor], int]:
    """`product` as a function of vectors `[n]` in double precision on the CPU, and n."""
    sizes = [param.numel() for param in params.values()]

    def operator(vector: Tensor) -> Tensor:
        parts = zip(params.items(), vector.split(sizes))
        result = product({name: part.view(param.shape).to(param) for (name, param), part in parts})
        return torch.cat([result[name].flatten() for name in params]).double().cpu()

    return operator, sum(sizes)


def lanczos(
    operator: Callable[[Tensor], Tensor], size: int, iterations: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Eigenvalues and eigenvectors of a symmetric operator in the Krylov space of a random vector.

    Every new vector is orthogonalized against all previous ones, twice. When the space is exhausted (a
    multiple eigenvalue, a singular operator), the iteration continues with a new random vector.

    Returns:
        values: `[m]`, ascending, with m the number of iterations.
        residuals: `|A v - value v|`, `[m]`.
        vectors: `[n, m]`, orthonormal.
        the number of products.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.zeros(size, iterations, dtype=torch.float64)
    images = torch.zeros(size, iterations, dtype=torch.float64)
    vector = torch.randn(size, generator=generator, dtype=torch.float64)
    scale = 0.0
    for k in range(iterations):
        norm = float(vector.norm())
        if norm <= 1e-10 * scale:
            vector = torch.randn(size, generator=generator, dtype=torch.float64)
            vector = _orthogonal(vector, basis[:, :k])
            norm = float(vector.norm())
        basis[:, k] = vector / norm
        images[:, k] = operator(basis[:, k])
        scale = max(scale, float(images[:, k].norm()))
        vector = _orthogonal(images[:, k], basis[:, : k + 1])
    projected = basis.T @ images
    values, coefficients = torch.linalg.eigh((projected + projected.T) / 2)
    vectors = basis @ coefficients
    residuals = (images @ coefficients - vectors * values).norm(dim=0)
    return values, residuals, vectors, iterations


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        vector = vector - basis @ (basis.T @ vector)
    return vector
