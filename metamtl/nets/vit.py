"""A small vision transformer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Pool = Literal["token", "mean"]


class Patches(nn.Module):
    """Embed square patches of an image, with learned positions: `[B, C, H, W] -> [B, L, width]`.

    With `token=True` the sequence begins with a learned class token.
    """

    def __init__(self, channels: int, size: int, patch: int, width: int, token: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if token else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + token, width))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.project(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            patches = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1)
        return patches + self.positions


class Pooled(nn.Module):
    """The first vector of a sequence or the mean of all: `[B, L, width] -> [B, width]`."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.pool == "token" else x.mean(1)


class ViT(nn.Module):
    """A `body` of patches, transformer blocks and a LayerNorm, and a linear `head`."""

    def __init__(
        self, ways: int, patches: Patches, blocks: list[nn.Module], width: int, pool: Pool
    ) -> None:
        super().__init__()
        self.features = width
        self.body = nn.Sequential(patches, *blocks, nn.LayerNorm(width), Pooled(pool))
        self.head = nn.Linear(width, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def vit(
    ways: int = 5,
    *,
    channels: int = 3,
    size: int = 32,
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.0,
    pool: Pool = "token",
) -> ViT:
    """ViT of Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929: `[B, C, size, size] -> [B, ways]`.

    Blocks are `nn.TransformerEncoderLayer` with LayerNorm first, as in the paper.

    Args:
        ways: number of classes N.
        channels: channels of an image.
        size: height and width of an image, a multiple of `patch`.
        patch: height and width of a patch.
        width: width of the vectors of the sequence, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: hidden units of the MLP of each block; if None, `4 * width`.
        dropout: dropout rate in the blocks.
        pool: features are those of a class token (`"token"`) or the mean over patches (`"mean"`).

    Raises:
        ValueError: `size` is not a multiple of `patch`, or `pool` is unknown.

    >>> vit(5, width=16, heads=2, depth=1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """
    if size % patch:
        raise ValueError(f"images of {size}x{size} do not divide into patches of {patch}x{patch}.")
    if pool not in ("token", "mean"):
        raise ValueError(f"pool={pool!r} is not one of 'token', 'mean'.")
    blocks: list[nn.Module] = [
        nn.TransformerEncoderLayer(
            width, heads, hidden or 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        for _ in range(depth)
    ]
    return ViT(ways, Patches(channels, size, patch, width, pool == "token"), blocks, width, pool)
