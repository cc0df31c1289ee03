"""Attention that supports vmap and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
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


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """`F.scaled_dot_product_attention` in float32, as autocast computes it without a transform."""
    device = query.device.type
    if not torch.is_autocast_enabled(device) or query.dtype == torch.float64:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    dtype = torch.get_autocast_dtype(device)
    query, key, value = (x.to(dtype).float() for x in (query, key, value))
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(dtype).float()
    with torch.autocast(device, enabled=False):
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
    return output.to(dtype)


def _multi_head_attention(*args: Any, need_weights: bool = True, **kwargs: Any) -> Any:
    """`F.multi_head_attention_forward` with a softmax that autocast knows, and not that of the kernel."""
    output, weights = F.multi_head_attention_forward(*args, **{**kwargs, "need_weights": True})
    return output, weights if need_weights else None


# Inside a transform, autocast reaches the operations within attention. On a GPU it then casts the result of
# the softmax, but not its input, and the derivative raises an error.
AUTOCAST: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
}


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
