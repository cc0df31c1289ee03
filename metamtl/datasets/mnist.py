"""MNIST: 70,000 handwritten digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .archives import gunzip
from .prepared import Arrays, Dir, official, read_arrays, write_arrays

FILE = "mnist.npz"
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
OFFICIAL = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def load(data_dir: Dir = None) -> Arrays:
    """Load `train_images` `[60000, 28, 28]`, `uint8`, `train_labels` `[60000]`, and the test arrays."""
    return read_arrays("mnist", FILE, ARRAYS, data_dir)


def prepare(source: Path, folder: Path) -> Path:
    """Prepare `mnist.npz` from the four official idx archives."""
    arrays = {name: _idx(path) for name, path in zip(ARRAYS, official(source, *OFFICIAL))}
    write_arrays(folder / FILE, arrays)
    return folder / FILE


def _idx(path: Path) -> np.ndarray:
    """Read an idx array of bytes: 0, 0, 8 (the dtype), number of axes, their lengths, the values."""
    data = gunzip(path)
    axes = data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or not 1 <= axes <= 3 or len(data) < 4 + 4 * axes:
        raise ValueError(f"{path} is not an idx file of bytes; download it again.")
    shape = np.frombuffer(data, ">u4", axes, 4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if values.size != shape.prod():
        raise ValueError(
            f"{path} declares shape {shape.tolist()}, but has {values.size} bytes; download it again."
        )
    return values.reshape(shape)
