"""MNIST's files: 70,000 handwritten digits."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

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
    """`train_images` `[60000, 28, 28]` of bytes, `train_labels` `[60000]`, and the 10,000 of the test."""
    return read_arrays("mnist", FILE, ARRAYS, data_dir)


def prepare(source: Path, folder: Path) -> Path:
    """`mnist.npz` from the four official idx archives."""
    arrays = {name: _idx(path) for name, path in zip(ARRAYS, official(source, *OFFICIAL))}
    write_arrays(folder / FILE, arrays)
    return folder / FILE


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in idx: 0, 0, 8 (the type), number of axes, their lengths, the values."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    if data[:3] != b"\0\0\x08" or not 1 <= axes <= 3:
        raise ValueError(f"{path} is no idx file of bytes; get it anew.")
    shape = np.frombuffer(data, ">u4", axes, 4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if values.size != shape.prod():
        raise ValueError(f"{path} says shape {shape.tolist()}, but holds {values.size} bytes; get it anew.")
    return values.reshape(shape)
