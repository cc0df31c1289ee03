"""FewShot: what images and other arrays become."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metamtl.tasks.few_shot import FewShot

from .few_shot_examples import LABELS, rng, squares


def test_bytes_become_parts_of_one() -> None:
    images = squares()
    x = FewShot(images, LABELS, ways=2, queries=5).sample(3, rng()).query.x
    assert x.shape == (3, 10, 1, 4, 4) and x.dtype == torch.get_default_dtype()
    pictures = torch.from_numpy(images).float().div(255)
    assert bool((pictures[None] == x.flatten(0, 2)[:, None]).all((-2, -1)).any(1).all())


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4)])
@pytest.mark.parametrize("kind", ["array", "list", "tensor", "big endian"])
def test_16_bit_images_become_parts_of_one(kind: str, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 2**16, (len(LABELS), *shape)).astype(np.uint16)
    images[0] = 65535
    given: Any = {
        "array": images,
        "list": list(images),
        "tensor": torch.from_numpy(images),
        "big endian": images.astype(">u2"),
    }[kind]
    x = FewShot(given, LABELS, ways=6, queries=11).sample(1, rng()).query.x
    full = shape if len(shape) == 3 else (1, *shape)
    assert x.shape == (1, 66, *full) and x.dtype == torch.float32 and 0.99 < float(x.max()) <= 1
    known = torch.from_numpy(images.astype(np.float32)).reshape(len(LABELS), *full).div(65535)
    assert bool((known[None] == x[0][:, None]).flatten(2).all(2).any(1).all())


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.int64, torch.int64),
        (np.int32, torch.int32),
        (np.int16, torch.int16),
        (np.uint8, torch.uint8),
        (np.uint16, torch.int64),
        (np.uint32, torch.int64),
    ],
)
def test_token_ids_and_counts_stay_integers(dtype: type, stored: torch.dtype) -> None:
    tokens = np.random.default_rng(0).integers(0, 200, (len(LABELS), 5)).astype(dtype)
    for given in (tokens, list(tokens), torch.from_numpy(tokens)):
        x = FewShot(given, LABELS, ways=2, queries=5).sample(3, rng()).query.x
        assert x.dtype == stored and x.shape == (3, 10, 5)
        rows = {tuple(row) for row in tokens.tolist()}
        assert all(tuple(row) in rows for row in x.flatten(0, 1).tolist())


def test_integers_of_three_axes_are_no_images() -> None:
    counts = squares(np.int64)
    x = FewShot(counts, LABELS, ways=2, queries=5).sample(3, rng()).query.x
    assert x.dtype == torch.int64 and x.shape == (3, 10, 4, 4) and int(x.max()) > 1


def test_series_get_no_channel_axis() -> None:
    series = torch.randn(len(LABELS), 9, 3)
    episode = FewShot(series, LABELS, ways=2, queries=5).sample(3, rng())
    assert episode.query.x.shape == (3, 10, 9, 3)
    out, _ = torch.nn.LSTM(3, 4, batch_first=True)(episode.query.x[0])
    assert out.shape == (10, 9, 4)


def test_booleans_and_floats_keep_their_values() -> None:
    ink = FewShot(squares() > 99, LABELS, ways=2, queries=5).sample(3, rng()).query.x
    assert ink.unique().tolist() == [0.0, 1.0]
    values = FewShot(squares(np.float64), LABELS, ways=2, queries=5).sample(3, rng()).query.x
    assert values.dtype == torch.float64 and values.max() > 1


def test_read_only_arrays_are_taken() -> None:
    images = squares(channels=(3,))
    images.flags.writeable = False
    assert FewShot(images, LABELS, ways=2, queries=5).sample(3, rng()).query.x.shape == (3, 10, 3, 4, 4)
