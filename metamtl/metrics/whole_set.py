"""Measures of a whole set, computed by standard libraries: ROC-AUC and entity F1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional.labels import MISSING, aligned, check_range, check_scores, check_tensors, is_labeled
from . import Metric


def _roc_auc(output: Tensor, y: Tensor) -> Tensor:
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise ImportError(
            "ROC-AUC needs scikit-learn, which is missing: pip install 'metamtl[tabular]'."
        ) from error
    check_tensors(output, y)
    mask = is_labeled(y)
    scores, truth = aligned(output, y)[mask], y[mask]
    if truth.unique().numel() < 2:
        values = truth.unique().tolist()
        raise ValueError(
            f"ROC-AUC compares two classes, but the {len(truth)} labels hold only {values}; measure on"
            " more examples."
        )
    area = roc_auc_score(truth.cpu().numpy(), scores.double().cpu().numpy())
    return torch.tensor(area, dtype=torch.float64)


roc_auc = Metric(_roc_auc, higher_is_better=True)
"""Area under the ROC curve (scikit-learn) for scores `[Q]` or `[Q, 1]`, labels 0 and 1; NaN is excluded."""


def entity_f1(tags: Sequence[str]) -> Metric:
    """Micro-averaged F1 of entities (seqeval). An entity is correct if all its tokens and its type are.

    Scores are `[B, L, N]`, tags `[B, L]` are indices into `tags` (BIO), with `MISSING` at padding. seqeval
    counts like the CoNLL script: an entity may begin with an I- tag.

    Raises:
        ImportError: `seqeval` is not installed.
        ValueError: the set contains no entity, or the scores do not match the tags.
    """
    names = list(tags)

    def f1(output: Tensor, y: Tensor) -> Tensor:
        try:
            from seqeval.metrics import f1_score
        except ImportError as error:
            raise ImportError(
                "entity F1 needs seqeval, which is missing: pip install 'metamtl[text]'."
            ) from error
        check_scores(output, y)
        if output.shape[-1] != len(names):
            raise ValueError(
                f"the output has scores for {output.shape[-1]} tags, but there are {len(names)}; the head"
                " needs one score per tag."
            )
        check_range(y, len(names) - 1, f"there are {len(names)} tags")
        guesses, truths = [], []
        for guess, truth in zip(output.argmax(-1).tolist(), y.tolist()):
            real = [i for i, tag in enumerate(truth) if tag != MISSING]
            guesses.append([names[guess[i]] for i in real])
            truths.append([names[truth[i]] for i in real])
        if all(tag == "O" for sentence in truths for tag in sentence):
            raise ValueError(f"the {len(truths)} sentences hold no entity; measure on more of them.")
        return torch.tensor(f1_score(truths, guesses, zero_division=0), dtype=torch.float64)

    return Metric(f1, higher_is_better=True)
