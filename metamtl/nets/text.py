"""A small convolutional encoder of sentences, with heads for the sentence or for each word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .sharing.hierarchical import Hierarchical
from .sharing.named_heads import NamedHeads


class TextLayers(nn.Module):
    """Further layers on the output of an encoder: `[B, 1 + L, F] -> [B, 1 + L, F]`.

    `layers` residual convolutions over three words; the sentence vector is computed again from the words.

    >>> features = TextEncoder(100, width=8, layers=1)(torch.tensor([[7, 9, 2]]), torch.ones(1, 3).bool())
    >>> TextLayers(8)(features).shape
    torch.Size([1, 4, 8])
    """

    def __init__(self, width: int, layers: int = 1) -> None:
        super().__init__()
        self.layers = convolutions(width, layers)

    def forward(self, features: Tensor) -> Tensor:
        words = features[:, 1:]
        # The output of an encoder is exactly zero at padding.
        return convolved(self.layers, words, (words != 0).any(-1, keepdim=True).to(words.dtype))


def convolved(layers: nn.ModuleList, x: Tensor, inside: Tensor) -> Tensor:
    """Apply `layers` to words `[B, L, F]`; `inside` `[B, L, 1]` is 1 for real words. `[B, 1 + L, F]`."""
    for layer in layers:
        x = x + layer(x.movedim(-1, -2)).movedim(-1, -2).relu() * inside
    # Padding gets a large negative value, so it is never the maximum.
    sentence = (x - 1e4 * (1 - inside)).amax(-2, keepdim=True)
    return torch.cat([sentence, x], -2)


def convolutions(width: int, layers: int) -> nn.ModuleList:
    """Convolutions over a word and its two neighbors."""
    return nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(layers))


class TextEncoder(nn.Module):
    """Map words to features: one vector for the sentence, then one for each word.

    The word embedding, plus the spelling embeddings if `spelling` is passed, is followed by `layers`
    residual convolutions over three words. The sentence vector is the maximum of each feature over the
    words. `tokens`, `mask` `[B, L]`, `spelling` `[B, L, S]` -> `[B, 1 + L, width]`; position 0 is the
    sentence. Padding has no effect. There is no recurrence and no dropout, so every engine can run it.

    Args:
        words, spellings: rows of the two embeddings; if `spellings` is 0, there is no second embedding.
        width: width of embeddings and features.
        layers: number of convolutions, and of neighbors on each side that affect the features of a word.
        embedding_std: standard deviation of the initial embeddings; if None, `width**-0.5`. With 0, what
            does not occur in training contributes nothing, which helps where most words are rare; in
            few-shot tasks, random embeddings let the support set tell unknown words apart.
    """

    def __init__(
        self,
        words: int,
        spellings: int = 0,
        width: int = 128,
        layers: int = 2,
        embedding_std: float | None = None,
    ) -> None:
        super().__init__()
        self.features = width
        self.word = nn.Embedding(words, width)
        self.spelling = nn.Embedding(spellings, width) if spellings else None
        self.layers = convolutions(width, layers)
        for table in (self.word, self.spelling):
            if table is not None:
                nn.init.normal_(table.weight, std=width**-0.5 if embedding_std is None else embedding_std)

    def forward(self, tokens: Tensor, mask: Tensor, spelling: Tensor | None = None) -> Tensor:
        x = self.word(tokens)
        if self.spelling is not None and spelling is not None:
            x = x + self.spelling(spelling).sum(-2)
        inside = mask[..., None].to(x.dtype)
        return convolved(self.layers, x * inside, inside)


class ForSentence(nn.Linear):
    """A linear head on the sentence vector: `[B, 1 + L, F] -> [B, N]`."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features[:, 0])


class ForWords(nn.Linear):
    """A linear head on every word vector: `[B, 1 + L, F] -> [B, L, N]`."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features[:, 1:])


class TextClassifier(nn.Module):
    """A sentence classifier: a `body` that returns the sentence vector, and a linear `head`.

    With the encoder of a trained net it is a model for few-shot tasks.
    """

    def __init__(self, encoder: TextEncoder, ways: int) -> None:
        super().__init__()
        self.features = encoder.features
        self.body = Sentence(encoder)
        self.head = nn.Linear(encoder.features, ways)

    def forward(self, tokens: Tensor, mask: Tensor, spelling: Tensor | None = None) -> Tensor:
        return self.head(self.body(tokens, mask, spelling))


class Sentence(nn.Module):
    """The sentence vector of an encoder: words `[B, L]` -> `[B, F]`."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, mask: Tensor, spelling: Tensor | None = None) -> Tensor:
        return self.encoder(tokens, mask, spelling)[:, 0]


def text_heads(
    words: int,
    spellings: int,
    outputs: Mapping[str, int],
    *,
    per_token: Iterable[str] = (),
    width: int = 128,
    layers: int = 2,
    embedding_std: float | None = None,
) -> NamedHeads:
    """A `TextEncoder` with one head for each task, on the sentence or on each of its words.

    >>> model = text_heads(100, 50, {"topic": 5, "tags": 3}, per_token=["tags"], width=8)
    >>> x = {"tokens": torch.tensor([[7, 9, 2]]), "mask": torch.tensor([[True, True, True]])}
    >>> {task: tuple(out.shape) for task, out in model(**x).items()}
    {'topic': (1, 5), 'tags': (1, 3, 3)}
    """
    encoder = TextEncoder(words, spellings, width, layers, embedding_std)
    return NamedHeads(encoder, width, _heads(outputs, per_token, width))


def text_hierarchical(
    words: int,
    spellings: int,
    outputs: Mapping[str, int],
    *,
    per_token: Iterable[str] = (),
    width: int = 128,
    layers: int = 1,
    own: int = 1,
    embedding_std: float | None = None,
) -> Hierarchical:
    """As `text_heads`, with `own` task-specific layers between the encoder and each head.

    >>> model = text_hierarchical(100, 50, {"topic": 5, "tags": 3}, per_token=["tags"], width=8)
    >>> x = {"tokens": torch.tensor([[7, 9, 2]]), "mask": torch.tensor([[True, True, True]])}
    >>> model(**x, task="tags").shape
    torch.Size([1, 3, 3])
    """
    middles = {task: TextLayers(width, own) for task in outputs}
    encoder = TextEncoder(words, spellings, width, layers, embedding_std)
    groups = {task: [task] for task in outputs}
    return Hierarchical(encoder, middles, groups, width, _heads(outputs, per_token, width))


def _heads(outputs: Mapping[str, int], per_token: Iterable[str], width: int) -> dict[str, nn.Module]:
    word_tasks = set(per_token)
    return {
        task: (ForWords if task in word_tasks else ForSentence)(width, size)
        for task, size in outputs.items()
    }


def text_classifier(
    words: int, spellings: int, ways: int, *, width: int = 128, layers: int = 2
) -> TextClassifier:
    """A `TextEncoder` with one head for `ways` classes.

    >>> sorted({name.split(".")[0] for name, _ in text_classifier(100, 50, 3, width=8).named_parameters()})
    ['body', 'head']
    """
    return TextClassifier(TextEncoder(words, spellings, width, layers), ways)
