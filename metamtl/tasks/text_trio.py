"""Three heterogeneous text tasks with separate data sets: intent, entities, sentiment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets import sentiment, snips, wnut17
from ..datasets.files import SPLITS, check_split
from ..datasets.prepared import Dir
from ..datasets.preprocess import chosen, split_groups
from ..datasets.vocabulary import Vocabulary, tokenize, trimmed
from ..episode import Batch, Episode
from ..functional.labels import MISSING
from ..losses import Loss, token_cross_entropy
from ..metrics import Metric, accuracy, entity_f1, token_accuracy
from .labeled import LabeledTasks
from .mixture import Sampling, Schedule, TaskMixture

TASKS = ("intent", "entities", "sentiment")
PER_TOKEN = ("entities",)
OUTPUTS = {"intent": len(snips.INTENTS), "entities": len(wnut17.TAGS), "sentiment": 2}


class Corpus(NamedTuple):
    """Tokenized sentences, with one label per sentence or one label per word."""

    sentences: list[list[str]]
    labels: list[Any]


class TextTrio:
    """Intent of an utterance, entities in a post, sentiment of a review: for one encoder with three heads.

    | task | data | train / validation / test | output | metrics |
    |---|---|---|---|---|
    | `intent` | SNIPS | 13,084 / 700 / 700 | one of 7 classes per sentence | accuracy |
    | `entities` | WNUT 2017 | 3,394 / 1,009 / 1,287 | one of 13 BIO tags per token | entity F1 |
    | `sentiment` | UCI reviews, 3 domains | 8 / 1 / 1 tenths of 3,000 | negative or positive | accuracy |

    SNIPS: the official validation set is the test set, and validation sentences are drawn from the
    training set, as in the literature. WNUT: official splits. Sentiment: a random split; duplicates are in
    one split.
    The input is a dict of `tokens` `[B, L]`, `spelling` `[B, L, 9]` and `mask` `[B, L]` (see `Vocabulary`),
    padded to the longest sentence of the batch.

    Validation and test samples contain every task, with `n` sentences of each, or all if there are fewer.
    Samples of the training split depend on the arguments of `TaskMixture`.

    Args:
        tasks: the tasks to keep. The vocabulary is always that of all three tasks, so that models for one
            task and for three have the same inputs.
        sampling, temperature, tasks_per_step, sizes: for the training split, as in `TaskMixture`.
        min_count: words that are less frequent in the training sentences are unknown words.
        buckets, spellings: ids of unknown words and of spelling features, as in `Vocabulary`.
        outside_weight: weight of the tag `O` in the training loss of the entities; below 1, more words are
            tagged. Most words are outside of entities, so with equal weights few entities are found.
        word_dropout: fraction of the words of training sentences that are replaced by a random bucket for
            unknown words; their spelling is kept.
        data_dir: the folder that contains `snips/`, `wnut17/` and `sentiment_sentences/`.
        device: device of the tensors and the episodes.

    Raises:
        ValueError: unknown options; damaged data, on first use.
        FileNotFoundError: on first use, if data is missing.

    >>> trio = TextTrio(sampling="proportional", temperature=2, tasks_per_step=2)
    >>> episodes = trio.split("test").sample(300, torch.Generator())  # doctest: +SKIP
    >>> list(episodes), episodes["entities"].query.x["tokens"].shape  # doctest: +SKIP
    (['intent', 'entities', 'sentiment'], torch.Size([300, 48]))
    """

    protocol: ClassVar[str] = (
        "SNIPS and WNUT 2017 with the official splits, UCI review sentences with a random split"
    )

    def __init__(
        self,
        *,
        tasks: Iterable[str] | None = None,
        sampling: Sampling | Schedule = "all",
        temperature: float = 1.0,
        tasks_per_step: int = 1,
        sizes: Mapping[str, int] | None = None,
        min_count: int = 2,
        buckets: int = 256,
        spellings: int = 4096,
        outside_weight: float = 1.0,
        word_dropout: float = 0.0,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not 0 <= word_dropout < 1:
            raise ValueError(f"word_dropout={word_dropout} must be at least 0 and below 1.")
        if not 0 < outside_weight < math.inf:
            raise ValueError(f"outside_weight={outside_weight} must be above 0 and finite.")
        self.tasks, self.word_dropout = chosen(tasks, TASKS), word_dropout
        self.buckets, self.spellings, self.outside_weight = buckets, spellings, outside_weight
        self.sampling = {"sampling": sampling, "temperature": temperature, "tasks_per_step": tasks_per_step}
        self.sizes, self.min_count = dict(sizes or {}), min_count
        self.data_dir, self.device = data_dir, device

    def split(self, name: str) -> TextMixture:
        """The sentences of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        sources = {task: self._source(task, self._corpora[task][name]) for task in self.tasks}
        sizes = {task: size for task, size in self.sizes.items() if task in sources}
        options: dict[str, Any] = {}
        if name == "train":
            options = {**self.sampling, "sizes": sizes, "word_dropout": self.word_dropout}
        return TextMixture(self.vocabulary, sources, **options)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the training sentences of the three data sets."""
        train = [sentence for corpora in self._corpora.values() for sentence in corpora["train"].sentences]
        return Vocabulary.of(
            train, min_count=self.min_count, buckets=self.buckets, spellings=self.spellings
        )

    @cached_property
    def _corpora(self) -> dict[str, dict[str, Corpus]]:
        return {
            "intent": _intent(self.data_dir),
            "entities": _entities(self.data_dir),
            "sentiment": _sentiment(self.data_dir),
        }

    def _source(self, task: str, corpus: Corpus) -> LabeledTasks:
        x = {name: part.to(self.device) for name, part in self.vocabulary.encode(corpus.sentences).items()}
        metrics: dict[str, Metric] = {"accuracy": accuracy}
        loss: Loss = F.cross_entropy
        if task in PER_TOKEN:
            metrics = {"f1": entity_f1(wnut17.TAGS), "token_accuracy": token_accuracy}
            weights = torch.ones(len(wnut17.TAGS))
            weights[wnut17.TAGS.index("O")] = self.outside_weight
            loss = partial(token_cross_entropy, weight=weights.to(self.device))

        def sentences(positions: Tensor) -> dict[str, Tensor]:
            return trimmed({name: part[positions.to(part.device)] for name, part in x.items()})

        def tags(positions: Tensor) -> Tensor:
            rows = positions.to(padded.device)
            return padded[rows, : sentences(positions)["mask"].shape[1]]

        padded = _padded(corpus.labels, x["mask"].shape[1]).to(self.device)
        return LabeledTasks(
            sentences,
            {task: tags if task in PER_TOKEN else padded.flatten()},
            loss={task: loss},
            metrics={task: metrics},
            outputs={task: OUTPUTS[task]},
            count=len(corpus.sentences),
            device=self.device,
        )


class TextMixture(TaskMixture):
    """A `TaskMixture` of text tasks, with the sizes that a model for them needs.

    Attributes:
        vocabulary: converts sentences to tensors.
        words, spellings: sizes of the two embedding tables.
        per_token: the tasks with one output per token.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        sources: Mapping[str, Any],
        *,
        word_dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(sources, **options)
        self.vocabulary, self.word_dropout = vocabulary, word_dropout
        self.words, self.spellings = len(vocabulary), vocabulary.spellings
        self.per_token = [task for task in self.tasks if task in PER_TOKEN]

    def sample(self, n: int, rng: torch.Generator, step: int | None = None) -> dict[str, Episode]:
        """Like `TaskMixture.sample`, with a fraction of the words replaced."""
        episodes = super().sample(n, rng, step)
        if not self.word_dropout:
            return episodes
        return {
            task: replace(episode, query=Batch(self._hidden(episode.query[0], rng), episode.query[1]))
            for task, episode in episodes.items()
        }

    def _hidden(self, x: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        tokens = x["tokens"]
        hide = (torch.rand(tokens.shape, generator=rng) < self.word_dropout).to(tokens.device)
        unknown = torch.randint(1, 1 + self.vocabulary.buckets, tokens.shape, generator=rng)
        return {**x, "tokens": torch.where(hide & x["mask"], unknown.to(tokens.device), tokens)}


def _intent(data_dir: Dir) -> dict[str, Corpus]:
    data = snips.load(data_dir)
    train = data["train"]
    order = np.random.default_rng(0).permutation(len(train))
    num_validation = min(len(data["validate"]), len(train) // 10)
    entries = {
        "train": [train[i] for i in np.sort(order[num_validation:])],
        "validation": [train[i] for i in np.sort(order[:num_validation])],
        "test": data["validate"],
    }
    return {
        name: Corpus(
            # Tokenized again, because splitting at white space keeps the period with the last word.
            [tokenize(" ".join(entry["tokens"])) for entry in split],
            [snips.INTENTS.index(entry["intent"]) for entry in split],
        )
        for name, split in entries.items()
    }


def _entities(data_dir: Dir) -> dict[str, Corpus]:
    number = {tag: i for i, tag in enumerate(wnut17.TAGS)}
    data = wnut17.load(data_dir)
    return {
        name: Corpus(
            [entry["tokens"] for entry in data[file]],
            [[number[tag] for tag in entry["tags"]] for entry in data[file]],
        )
        for name, file in zip(SPLITS, wnut17.FILES)
    }


def _sentiment(data_dir: Dir) -> dict[str, Corpus]:
    entries = sentiment.load(data_dir)
    texts = [entry["text"] for entry in entries]
    # Duplicate sentences must be in the same split.
    groups = np.unique(texts, return_inverse=True)[1]
    return {
        name: Corpus([tokenize(texts[i]) for i in rows], [entries[i]["label"] for i in rows])
        for name, rows in split_groups(groups, (0.8, 0.1, 0.1)).items()
    }


def _padded(labels: Sequence[Any], longest: int) -> Tensor:
    """Tags `[M, L]`, padded with `MISSING`; or labels `[M, 1]`."""
    if not isinstance(labels[0], list):
        return torch.tensor(labels)[:, None]
    return torch.tensor([row + [MISSING] * (longest - len(row)) for row in labels])
