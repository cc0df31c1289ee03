"""Functional calls of modules with substituted parameters, differentiation, and the K-step loop."""

from .attention import vmap_compatible_kernels
from .buffers import (
    has_adapter_buffers,
    with_support_statistics,
    without_support_statistics,
)
from .call import forward, is_name
from .differentiate import gradient, in_transform
from .scan import scan
from .select import (
    Params,
    canonical_names,
    of_module,
    select_parameters,
    trainable,
    trainable_and_frozen,
    with_prefix,
)
from .structure import INNER_STEP, SUPPORT_MEAN, SUPPORT_VAR, Structure, structure_of
from .substitution import substituted

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
    "select_parameters",
    "of_module",
    "vmap_compatible_kernels",
    "scan",
    "structure_of",
    "substituted",
    "has_adapter_buffers",
    "trainable",
    "trainable_and_frozen",
    "with_prefix",
    "with_support_statistics",
    "without_support_statistics",
]
