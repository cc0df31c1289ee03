"""Nets with a `.body` that makes features and a `.head` that answers from them."""

from .conv4 import Conv4, conv4
from .mlp import MLP, mlp
from .named_heads import NamedHeads, named_heads
from .norm import BatchNorm, batchnorm_statistics
from .pixels import Pixels, pixels

__all__ = [
    "MLP",
    "BatchNorm",
    "Conv4",
    "NamedHeads",
    "Pixels",
    "batchnorm_statistics",
    "conv4",
    "mlp",
    "named_heads",
    "pixels",
]
