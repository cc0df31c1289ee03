"""Nets with a `.body` (features) and a `.head` (outputs), and architectures for parameter sharing."""

from .context import Context, context_mlp
from .conv4 import Conv4, conv4
from .fine_tune import fine_tune
from .flatten_linear import FlattenLinear, flatten_linear
from .lenet import Decoder, LeNet, lenet, lenet_heads
from .mlp import MLP, mlp, tower
from .norm import (
    BatchNorm,
    FrozenBatchNorm,
    PerStepBatchNorm,
    SupportBatchNorm,
    batchnorm,
    batchnorm_statistics,
    with_batchnorm,
)
from .periodic import PeriodicEmbedding, periodic_tower
from .resnet12 import ResNet12, resnet12
from .sharing import (
    MTAN,
    PLE,
    Branching,
    Cascade,
    Constant,
    Cooperative,
    CrossStitch,
    DSelectK,
    Hierarchical,
    MMoE,
    NamedHeads,
    NamedTasks,
    SharedBottom,
    SharedPrivate,
    SoftSharing,
    named_heads,
    reverse_gradient,
    smooth_step,
)
from .text import TextClassifier, TextEncoder, TextLayers, text_classifier, text_heads, text_hierarchical
from .vit import ViT, vit
from .vqa import VQA, vqa

__all__ = [
    "MLP",
    "MTAN",
    "PLE",
    "VQA",
    "BatchNorm",
    "Branching",
    "Cascade",
    "Constant",
    "Context",
    "Conv4",
    "Cooperative",
    "CrossStitch",
    "DSelectK",
    "Decoder",
    "FlattenLinear",
    "FrozenBatchNorm",
    "Hierarchical",
    "LeNet",
    "MMoE",
    "NamedHeads",
    "NamedTasks",
    "PerStepBatchNorm",
    "PeriodicEmbedding",
    "ResNet12",
    "SharedBottom",
    "SharedPrivate",
    "SoftSharing",
    "SupportBatchNorm",
    "TextClassifier",
    "TextEncoder",
    "TextLayers",
    "ViT",
    "batchnorm",
    "batchnorm_statistics",
    "context_mlp",
    "conv4",
    "fine_tune",
    "flatten_linear",
    "lenet",
    "lenet_heads",
    "mlp",
    "named_heads",
    "periodic_tower",
    "resnet12",
    "reverse_gradient",
    "smooth_step",
    "text_classifier",
    "text_heads",
    "text_hierarchical",
    "tower",
    "vit",
    "vqa",
    "with_batchnorm",
]
