"""CLINC150: few-shot intent classification within one of 10 domains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..datasets import clinc150
from ..datasets.files import check_split, split_file
from ..datasets.prepared import Dir
from ..datasets.vocabulary import Vocabulary, tokenize
from ..episode import Batch, Episode
from ..losses import Loss
from ..metrics import Metric
from .few_shot import FewShot


class Clinc150:
    """Few-shot classification of the 15 intents of one domain, from K sentences per intent.

    Larson et al. 2019, https://arxiv.org/abs/1909.02027. Train: 6 domains; validation: 2; test: 2, as
    listed in `data/splits/clinc150.json`; out-of-scope sentences are not used. Each task draws a domain,
    `ways` of its intents, and sentences as in `FewShot`; each intent has 150 sentences.

    The input is a dict of `tokens`, `spelling` and `mask`, as returned by `Vocabulary.encode`.

    Args:
        ways: intents per task, at most 15.
        shots, queries: support and query sentences per intent.
        vocabulary: the vocabulary of a pretrained model, such as `TextTrio().vocabulary`; if None, one
            fitted on the sentences of the training domains.
        domains: use only these domains, in every split; pass one domain to learn a single task.
        data_dir: the folder that contains `clinc150/`.
        device: device of the tensors and the episodes.

    Raises:
        ValueError: an unknown domain; damaged data, on first use; invalid options of `FewShot`.
        FileNotFoundError: on first use, if data is missing.

    >>> banking = Clinc150(shots=5, queries=20, domains=["banking"])
    >>> episode = banking.split("test").sample(2, torch.Generator())  # doctest: +SKIP
    >>> episode.support.x["tokens"].shape[:2], episode.query.y.shape  # doctest: +SKIP
    (torch.Size([2, 75]), torch.Size([2, 300]))
    """

    loss: Loss = staticmethod(FewShot.loss)
    metrics: ClassVar[Mapping[str, Metric]] = FewShot.metrics

    def __init__(
        self,
        ways: int = 15,
        shots: int = 5,
        queries: int = 10,
        *,
        vocabulary: Vocabulary | None = None,
        domains: Iterable[str] | None = None,
        data_dir: Dir = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.ways, self.shots, self.queries = ways, shots, queries
        self.domains = None if domains is None else tuple(domains)
        self.data_dir, self.device = data_dir, device
        self._given = vocabulary

    def split(self, name: str) -> Domains:
        """The tasks of `"train"`, `"validation"` or `"test"`."""
        check_split(name)
        intents = self._intents
        domains = split_file("clinc150")[name] if self.domains is None else self.domains
        if unknown := [domain for domain in domains if domain not in intents]:
            raise ValueError(f"domains {unknown} are not in clinc150; it has {', '.join(intents)}.")
        options = {"ways": self.ways, "shots": self.shots, "queries": self.queries}
        return Domains(self.vocabulary, self._x, self._labels, [intents[d] for d in domains], options)

    @property
    def intent_names(self) -> list[str]:
        """Names of the intents, indexed by the ids in `Episode.task`."""
        return [name for names in self._domain_names.values() for name in names]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary passed to the constructor, or one fitted on the training domains."""
        if self._given is not None:
            return self._given
        train = {i for domain in split_file("clinc150")["train"] for i in self._intents.get(domain, ())}
        pairs = zip(self._sentences, self._labels.tolist())
        return Vocabulary.of([sentence for sentence, label in pairs if label in train])

    @cached_property
    def _domain_names(self) -> dict[str, list[str]]:
        return clinc150.load_domains(self.data_dir)

    @cached_property
    def _intents(self) -> dict[str, list[int]]:
        number = {name: i for i, name in enumerate(self.intent_names)}
        return {domain: [number[name] for name in names] for domain, names in self._domain_names.items()}

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        return clinc150.load(self.data_dir)

    @cached_property
    def _sentences(self) -> list[list[str]]:
        return [tokenize(entry["text"]) for entry in self._entries]

    @cached_property
    def _labels(self) -> Tensor:
        number = {name: i for i, name in enumerate(self.intent_names)}
        return torch.tensor([number[entry["intent"]] for entry in self._entries])

    @cached_property
    def _x(self) -> dict[str, Tensor]:
        return {
            name: part.to(self.device) for name, part in self.vocabulary.encode(self._sentences).items()
        }


class Domains:
    """Few-shot tasks within one domain each; returned by `Clinc150.split`."""

    loss: Loss = staticmethod(FewShot.loss)
    metrics: ClassVar[Mapping[str, Metric]] = FewShot.metrics

    def __init__(
        self,
        vocabulary: Vocabulary,
        x: dict[str, Tensor],
        labels: Tensor,
        domains: list[list[int]],
        options: Mapping[str, Any],
    ) -> None:
        self.vocabulary, self.words, self.spellings = vocabulary, len(vocabulary), vocabulary.spellings
        self.ids = sorted(intent for intents in domains for intent in intents)
        self._x = x
        # FewShot draws row indices (integers stay unchanged); `sample` replaces them by the sentences.
        rows = torch.arange(len(labels), device="cpu")[:, None]
        self._draws = [FewShot(rows, labels, classes=intents, **options) for intents in domains]

    def sample(self, num_tasks: int, rng: torch.Generator) -> Episode:
        """Draw `num_tasks` tasks using `rng` (a generator on the CPU).

        Returns:
            An `Episode` whose `support.x` is a dict of `[T, N*K, L, ...]`, with labels, and the ids of the
            intents `[T, N]` as `task`.
        """
        domains = torch.randint(len(self._draws), (num_tasks,), generator=rng).tolist()
        draws = [self._draws[domain].sample(1, rng) for domain in domains]
        support, query = _joined([draw.support for draw in draws]), _joined([draw.query for draw in draws])
        assert query is not None
        tasks = torch.cat([episode.task for episode in draws])  # type: ignore[misc]
        rows = torch.cat([part.x[..., 0] for part in (support, query) if part is not None], 1)
        longest = int(self._x["mask"][rows].sum(-1).max())
        device = self._x["mask"].device
        return Episode(
            None if support is None else Batch(self._at(support.x, longest), support.y.to(device)),
            query=Batch(self._at(query.x, longest), query.y.to(device)),
            task=tasks.to(device),
            ways=draws[0].ways,
        )

    def _at(self, rows: Tensor, longest: int) -> dict[str, Tensor]:
        """Encoded sentences at `rows` `[T, n, 1]`."""
        indices = rows[..., 0]
        return {name: part[indices.to(part.device)][:, :, :longest] for name, part in self._x.items()}


def _joined(parts: list[Batch | None]) -> Batch | None:
    """The tasks of several episodes in one batch; None for shots=0."""
    batches = [part for part in parts if part is not None]
    if not batches:
        return None
    return Batch(torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]))
