"""The Gramian in chunks."""

from __future__ import annotations

import torch

from metamtl.functional.gramian import CHUNK, gramian


def test_the_gramian_of_more_columns_than_a_chunk() -> None:
    rows = torch.randn(3, 2 * CHUNK + 5, generator=torch.Generator().manual_seed(0))
    result = gramian(rows)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, rows.double() @ rows.double().T, rtol=1e-12, atol=1e-9)
    assert gramian(rows[:, :0]).tolist() == [[0.0] * 3] * 3
