"""Calling modules with substituted parameters, differentiation, and the K-step loop."""

from .attention import plain_kernels
from .buffers import (
    has_adapter_buffers,
    with_support_statistics,
    without_support_statistics,
)
from .call import forward, is_name, substituted
from .differentiate import gradient, in_transform
from .scan import scan
from .select import (
    Params,
    canonical_names,
    named_by,
    of_module,
    trainable,
    trainable_and_frozen,
    under,
)
from .structure import INNER_STEP, SUPPORT_MEAN, SUPPORT_VAR, Structure, structure_of

__all__ = [
    "INNER_STEP",
    "SUPPORT_MEAN",
    "SUPPORT_VAR",
    "Params",
    "Structure",
    "canonical_names",
    "forward",
    "gradient",
    "in_transform",
    "is_name",
    "named_by",
    "of_module",
    "plain_kernels",
    "scan",
    "structure_of",
    "substituted",
    "has_adapter_buffers",
    "trainable",
    "trainable_and_frozen",
    "under",
    "with_support_statistics",
    "without_support_statistics",
]
