"""Encoding of words as integers; rare and unknown words are represented by their spelling."""

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
AFFIXES = (1, 2, 3, 4)  # lengths of the prefixes and suffixes


def tokenize(text: str) -> list[str]:
    """Split text into words and single punctuation marks.

    >>> tokenize("Don't stop, it's 9:30!")
    ["Don't", 'stop', ',', "it's", '9', ':', '30', '!']
    """
    return _TOKEN.findall(text)


class Vocabulary:
    """Converts sentences, as lists of words, to the input tensors of a text encoder.

    Words are looked up in lower case with every digit replaced by 0. Words that are not in the vocabulary
    are hashed into one of `buckets`; the buckets are trained, because rare training words use them too.
    Every word also has nine spelling features, hashed into a separate table: its shape (`Xx` for London,
    `X` for ESB, `x.` for etc.), and its first and last one, two, three and four letters.

    Args:
        words: the known words, normalized with `normal`.
        buckets: number of ids for unknown words.
        spellings: number of ids for spelling features, including padding.

    >>> vocabulary = Vocabulary.of([["a", "red", "shape"], ["a", "red", "circle"]], buckets=4)
    >>> vocabulary.words, len(vocabulary)
    (['a', 'red'], 7)
    >>> x = vocabulary.encode([["A", "red", "cube"], ["red"]])
    >>> x["tokens"].tolist()[1], x["mask"].tolist(), tuple(x["spelling"].shape)
    ([6, 0, 0], [[True, True, True], [True, False, False]], (2, 3, 9))
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
        """Vocabulary of the words that occur at least `min_count` times in the training sentences."""
        counts = Counter(normal(word) for sentence in sentences for word in sentence)
        words = sorted(
            (word for word, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w)
        )
        return cls(words, buckets=buckets, spellings=spellings)

    def __len__(self) -> int:
        """Number of token ids, the size of an embedding table: padding, buckets and known words."""
        return 1 + self.buckets + len(self.words)

    def number(self, word: str) -> int:
        """The id of a word."""
        key = normal(word)
        return self._number.get(key, 1 + _hash(key) % self.buckets)

    def encode(self, sentences: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Encode sentences as `tokens` `[B, L]`, `spelling` `[B, L, 9]` and `mask` `[B, L]` (True: a word).

        Raises:
            ValueError: a sentence without a word, or no sentence.
        """
        if not sentences:
            raise ValueError("sentences is empty; pass at least one sentence.")
        if empty := [row for row, sentence in enumerate(sentences) if not sentence]:
            raise ValueError(f"sentences {empty[:5]} have no word; remove them.")
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids: dict[str, tuple[int, ...]] = {}
        for word in chain.from_iterable(sentences):
            if word not in ids:
                codes = (1 + _hash(part) % (self.spellings - 1) for part in spelled(word))
                ids[word] = (self.number(word), *codes)
        # In row order, which is the order of the True entries of the mask.
        numbers = torch.tensor([ids[word] for word in chain.from_iterable(sentences)])
        padded = torch.full((*mask.shape, numbers.shape[1]), PADDING)
        padded[mask] = numbers
        return {"tokens": padded[..., 0], "spelling": padded[..., 1:], "mask": mask}


def normal(word: str) -> str:
    """Convert to lower case and digits to 0: `9PM` becomes `0pm`."""
    return re.sub(r"\d", "0", word.lower())


def spelled(word: str) -> list[str]:
    """Spelling features of a word: shape, prefixes and suffixes.

    >>> spelled("Walt")[:5]
    ['shape Xx', 'begins w', 'begins wa', 'begins wal', 'begins walt']
    """
    kinds = ("X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in word)
    shape, low = _RUN.sub(r"\1", "".join(kinds)), normal(word)
    prefixes = [f"begins {low[:n]}" for n in AFFIXES]
    suffixes = [f"ends {low[-n:]}" for n in AFFIXES]
    return [f"shape {shape}", *prefixes, *suffixes]


def trimmed(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Trim encoded sentences to the length of the longest."""
    longest = int(x["mask"].any(0).nonzero().max()) + 1
    return {name: tensor[:, :longest] for name, tensor in x.items()}


def _hash(text: str) -> int:
    # Python's built-in hash differs between processes.
    return zlib.crc32(text.encode())
