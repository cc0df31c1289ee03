"""Functional calls of modules with substituted parameters, differentiation, and the K-step loop."""

from .attention import vmap_compatible_kernels
from .buffers import (
    has_adapter_buffers,
    with_support_statistics,
    without_support_statistics,
)
from .call import forward, is_name
from .differentiate import gradient, in_transform
from .features import Features, check_features, features_of
from .scan import scan
from .select import (
    ADAPTER_VALUE,
    Params,
    canonical_names,
    longest_prefix,
    of_module,
    select_parameters,
    trainable,
    trainable_and_frozen,
    with_prefix,
)
from .structure import INNER_STEP, SUPPORT_MEAN, SUPPORT_VAR, Structure, structure_of
from .substitution import substituted

__all__ = [
    "ADAPTER_VALUE",
    "INNER_STEP",
    "SUPPORT_MEAN",
    "SUPPORT_VAR",
    "Features",
    "Params",
    "Structure",
    "canonical_names",
    "check_features",
    "features_of",
    "forward",
    "gradient",
    "has_adapter_buffers",
    "in_transform",
    "is_name",
    "longest_prefix",
    "of_module",
    "scan",
    "select_parameters",
    "structure_of",
    "substituted",
    "trainable",
    "trainable_and_frozen",
    "vmap_compatible_kernels",
    "with_prefix",
    "with_support_statistics",
    "without_support_statistics",
]
