"""Self-supervised auxiliary tasks, as episodes of a named task.

    episodes["rotation"] = rotated(images, generator);   loss["rotation"] = F.cross_entropy
    episodes["missing"] = masked_numbers(x, generator);  loss["missing"] = mean_over_labeled(F.mse_loss)
    episodes["words"] = masked_tokens(ids, generator, mask=103);  loss["words"] = token_cross_entropy

The model needs a head of the same name, with 4 classes; as many outputs as the input has features; or one
class per vocabulary entry, for each token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..episode import Batch, Episode
from ..functional.labels import MISSING


def rotated(images: Tensor, generator: torch.Generator) -> Episode:
    """Rotate each image by 0, 90, 180 or 270 degrees; the label is the number of quarter turns, 0 to 3.

    Gidaris, Singh, Komodakis 2018, https://arxiv.org/abs/1803.07728. Differs from the paper in: 1. each
    call draws one rotation per image instead of using all four.

    Args:
        images: `[B, ..., H, H]`.
        generator: random numbers for the rotations.

    Raises:
        ValueError: images that are not square.

    >>> batch = rotated(torch.zeros(5, 1, 8, 8), torch.Generator().manual_seed(0)).query
    >>> batch.x.shape, batch.y.shape
    (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """
    if images.dim() < 3 or images.shape[-1] != images.shape[-2]:
        raise ValueError(
            f"images of shape {list(images.shape)} are not square in their last two axes, so rotation"
            " would change their shape; crop or pad them."
        )
    turns = torch.randint(4, (len(images),), generator=generator, device=generator.device).to(images.device)
    rotations = torch.stack([images.rot90(k, (-2, -1)) for k in range(4)])
    return Episode(None, Batch(rotations[turns, torch.arange(len(images), device=images.device)], turns))


def masked_numbers(
    x: Tensor, generator: torch.Generator, fraction: float = 0.15, *, fill: float = 0.0
) -> Episode:
    """Mask a fraction of each example's features; targets are their values, NaN where not masked.

    Args:
        x: `[B, ...]`, standardized, so that `fill` is the mean.
        generator: random numbers for the mask.
        fraction: fraction of features to mask, at least one per example.
        fill: value of masked features.

    >>> batch = masked_numbers(torch.ones(2, 4), torch.Generator().manual_seed(0), 0.5).query
    >>> batch.x.sum(1), batch.y.nansum(1)
    (tensor([2., 2.]), tensor([2., 2.]))
    """
    if not x.is_floating_point():
        raise ValueError(f"x holds {x.dtype}, which cannot represent missing values (NaN); pass floats.")
    hidden = _hidden(torch.ones_like(x, dtype=torch.bool).flatten(1), generator, fraction).view(x.shape)
    return Episode(None, Batch(x.masked_fill(hidden, fill), x.masked_fill(~hidden, torch.nan)))


def masked_tokens(
    ids: Tensor,
    generator: torch.Generator,
    mask: int,
    fraction: float = 0.15,
    *,
    padding: int | None = None,
) -> Episode:
    """Mask a fraction of each text's tokens; targets are the masked tokens, `MISSING` elsewhere.

    Devlin et al. 2019, https://arxiv.org/abs/1810.04805. Differs from BERT in: 1. every masked token
    becomes `mask`, none is kept or replaced by a random token; 2. the same fraction of every text is
    masked, at least one token.

    Args:
        ids: `[B, L]`.
        generator: random numbers for the mask.
        mask: id of the mask token.
        fraction: fraction of tokens to mask, padding not counted.
        padding: id of the padding, which is never masked.

    Raises:
        ValueError: a text that contains only padding.

    >>> batch = masked_tokens(torch.tensor([[5, 6, 7, 0]]), torch.Generator(), mask=1, padding=0).query
    >>> int((batch.x == 1).sum()), int(batch.x[0, 3]), int((batch.y != MISSING).sum())
    (1, 0, 1)
    """
    real = torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding
    hidden = _hidden(real, generator, fraction)
    return Episode(None, Batch(ids.masked_fill(hidden, mask), ids.masked_fill(~hidden, MISSING)))


def _hidden(may: Tensor, generator: torch.Generator, fraction: float) -> Tensor:
    """Random mask of a fraction of the positions in `may`, at least one per row."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must be above 0 and at most 1.")
    if not bool(may.any(1).all()):
        row = int((~may.any(1)).nonzero()[0])
        raise ValueError(f"example {row} has nothing to mask; remove it from the batch.")
    order = torch.rand(may.shape, generator=generator, device=generator.device).to(may.device)
    rank = order.masked_fill(~may, 2).argsort(1).argsort(1)
    return rank < (may.sum(1, keepdim=True) * fraction).round().clamp(min=1)
