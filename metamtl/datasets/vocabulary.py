"""Words as numbers: known words by themselves, rare and new ones by their spelling."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

_TOKEN = re.compile(r"\w+(?:['\u00b4`]\w+)?|[^\w\s]")
_RUN = re.compile(r"(.)\1+")
PADDING = 0


def tokenize(text: str) -> list[str]:
    """Words and single punctuation marks.

    >>> tokenize("Don't stop, it's 9:30!")
    ["Don't", 'stop', ',', "it's", '9', ':', '30', '!']
    """
    return _TOKEN.findall(text)


class Vocabulary:
    """Sentences, as lists of words, to the tensors that a text encoder takes.

    A word is looked up in lower case with every digit as 0. One that is not known, because it is new or
    was rare when the vocabulary was made, falls into one of `buckets` by a hash; as rare training words
    do so too, the buckets are trained. Beside it every word has four spellings, hashed into a table of
    their own: its shape (`Xx` for London, `X` for ESB, `x.` for etc.), its first three letters, its last
    three and its last two.

    Args:
        words: the known words, as `normal` writes them.
        buckets: numbers for unknown words.
        spellings: numbers for spellings, padding included.

    >>> vocabulary = Vocabulary.of([["a", "red", "shape"], ["a", "red", "circle"]], buckets=4)
    >>> vocabulary.words, len(vocabulary)
    (['a', 'red'], 7)
    >>> found = vocabulary.encode([["A", "red", "cube"], ["red"]])
    >>> found["tokens"].tolist()[1], found["mask"].tolist(), tuple(found["spelling"].shape)
    ([6, 0, 0], [[True, True, True], [True, False, False]], (2, 3, 4))
    """

    def __init__(self, words: Iterable[str], *, buckets: int = 256, spellings: int = 4096) -> None:
        if buckets < 1 or spellings < 2:
            raise ValueError(f"buckets={buckets} must be at least 1, spellings={spellings} at least 2.")
        self.words = list(words)
        self.buckets, self.spellings = buckets, spellings
        self._number = {word: number for number, word in enumerate(self.words, 1 + buckets)}

    @classmethod
    def of(
        cls,
        sentences: Iterable[Sequence[str]],
        *,
        min_count: int = 2,
        buckets: int = 256,
        spellings: int = 4096,
    ) -> Vocabulary:
        """The words that occur at least `min_count` times in these sentences, the training ones."""
        counts = Counter(normal(word) for sentence in sentences for word in sentence)
        kept = sorted((word for word, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
        return cls(kept, buckets=buckets, spellings=spellings)

    def __len__(self) -> int:
        """Rows that an embedding of `tokens` needs: padding, buckets, known words."""
        return 1 + self.buckets + len(self.words)

    def number(self, word: str) -> int:
        """The row of one word."""
        key = normal(word)
        return self._number.get(key, 1 + _hash(key) % self.buckets)

    def encode(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """`tokens` `[B, L]`, `spelling` `[B, L, 4]`, `mask` `[B, L]`, True where there is a word.

        Raises:
            ValueError: a sentence without a word, or no sentence.
        """
        if not sentences:
            raise ValueError("there is no sentence to encode.")
        if empty := [row for row, sentence in enumerate(sentences) if not sentence]:
            raise ValueError(f"sentences {empty[:5]} have no word; leave them out.")
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        known: dict[str, tuple[int, ...]] = {}
        for word in chain.from_iterable(sentences):
            if word not in known:
                codes = (1 + _hash(part) % (self.spellings - 1) for part in spelled(word))
                known[word] = (self.number(word), *codes)
        # Row by row, so that all words in one line fall into the places of the mask in order.
        numbers = torch.tensor([known[word] for word in chain.from_iterable(sentences)])
        both = torch.full((*mask.shape, numbers.shape[1]), PADDING)
        both[mask] = numbers
        return {"tokens": both[..., 0], "spelling": both[..., 1:], "mask": mask}


def normal(word: str) -> str:
    """Lower case, digits as 0: `9PM` becomes `0pm`."""
    return re.sub(r"\d", "0", word.lower())


def spelled(word: str) -> tuple[str, str, str, str]:
    """Shape, beginning, and two endings.

    >>> spelled("Waltengoo")
    ('shape Xx', 'begins wal', 'ends goo', 'ends oo')
    """
    kinds = ("X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in word)
    shape, low = _RUN.sub(r"\1", "".join(kinds)), normal(word)
    return f"shape {shape}", f"begins {low[:3]}", f"ends {low[-3:]}", f"ends {low[-2:]}"


def trimmed(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encoded sentences without the padding that none of them needs."""
    longest = int(x["mask"].any(0).nonzero().max()) + 1
    return {name: tensor[:, :longest] for name, tensor in x.items()}


def _hash(text: str) -> int:
    # Python's own hash differs from process to process.
    return zlib.crc32(text.encode())
