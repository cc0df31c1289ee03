"""Restriction of the kernels of attention layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def vmap_compatible_kernels() -> Iterator[None]:
    """Context manager in which attention uses operations that support vmap and second derivatives.

    The fused kernels are faster but lack one or the other, so use this only if vmap or second derivatives
    need it.
    """
    original = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(original)


def attention_kernels() -> tuple[bool, tuple[SDPBackend, ...]]:
    """Whether the fast path of attention layers is enabled, and the enabled attention kernels."""
    enabled = tuple(backend for backend, is_enabled in _KERNELS.items() if is_enabled())
    return torch.backends.mha.get_fastpath_enabled(), enabled


_KERNELS = {
    SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled,
    SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled,
    SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled,
}


@contextmanager
def allowed_kernels(fastpath: bool, kernels: tuple[SDPBackend, ...]) -> Iterator[None]:
    """Context manager with the settings returned by `attention_kernels`."""
    original = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fastpath)
    try:
        with sdpa_kernel(list(kernels)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(original)
