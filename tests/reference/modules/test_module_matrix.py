"""Every module of this folder's rows, in every order and engine, against a plain unroll; and the peers.

The table in `docs/modules.md` is what is found here; `UPDATE_DOCS=1` in the environment writes it anew.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from metamtl import Batch, Episode, engines, meta_backward, recipes

DOCS = Path(__file__).resolve().parents[3] / "docs" / "modules.md"
ENGINES = {"Loop": engines.Loop(), "Vmap": engines.Vmap()}
ALL_ENGINES = {**ENGINES, "Compiled": engines.Compiled()}
ORDERS = ("exact", "checkpointed", "first_order")
K, LR, CLASSES = 2, 0.1, 3
LARGE = {"ResNet-12", "ViT"}  # not compiled here: their layers are those of smaller rows


class Encoding(Mapping[str, Any]):
    """As a tokenizer's result: a mapping that is no dict."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


@dataclass
class Case:
    """A row's module, in float64, with an episode for it."""

    row: Any
    model: nn.Module
    episode: Episode
    buffers: dict[str, Tensor]

    @staticmethod
    def of(row: Any) -> Case:
        rng = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        model = row.make().double().train(row.training)
        size = (row.tasks, 9)
        if isinstance(row.shape, tuple):
            x: Any = torch.randn(*size, *row.shape, generator=rng, dtype=torch.float64)
        else:
            x = torch.randint(1, 7, (*size, 4), generator=rng)
        if row.shape in ("keywords", "mapping"):
            lengths = torch.randint(1, 5, (*size, 1), generator=rng)
            x = {"input_ids": x, "attention_mask": torch.arange(4) < lengths}
        y = torch.arange(CLASSES).repeat(3).expand(size)
        if row.shape == "graph":
            x = torch.randn(*size, 4, generator=rng, dtype=torch.float64)
        support, query = (tree_map(lambda t, i=i: t[:, i], [x, y]) for i in (slice(6), slice(6, 9)))
        if row.shape == "graph":  # edges have no axis of examples
            for part, edges in ((support, 10), (query, 4)):
                nodes = part[0].shape[1]
                part[0] = (part[0], torch.randint(nodes, (row.tasks, 2, edges), generator=rng))
        if row.shape == "mapping":
            for part in (support, query):
                part[0] = Encoding(part[0])
        episode = Episode(Batch(*support), Batch(*query))
        return Case(row, model, episode, {name: b.clone() for name, b in model.named_buffers()})

    def trainable(self) -> dict[str, Tensor]:
        return {name: param for name, param in self.model.named_parameters() if param.requires_grad}

    def gradient(self) -> Tensor:
        """What lies in `.grad`."""
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trainable().values()]
        return torch.cat([g.flatten() for g in found])

    def wrote(self) -> bool:
        """Whether the module's own buffers have changed."""
        return any(not torch.equal(b, self.buffers[name]) for name, b in self.model.named_buffers())


def loss(output: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(output if isinstance(output, Tensor) else output.logits, y)


def error(found: Tensor, expected: Tensor) -> float:
    assert expected.norm() > 1e-3
    return float((found - expected).norm() / expected.norm())


class Matrix:
    """What is found for every row, once."""

    def __init__(self, rows: Mapping[str, Any]) -> None:
        self.rows = rows
        self.reference, self.cell = cache(self._reference), cache(self._cell)

    def _reference(self, name: str, first: bool) -> Tensor:
        """The meta-gradient by plain autograd, unrolled."""
        case = Case.of(self.rows[name])
        model, num_tasks, forward = case.model, case.row.tasks, case.row.forward
        start = {n: p.detach().clone().requires_grad_() for n, p in case.trainable().items()}
        zeros = {"allow_unused": True, "materialize_grads": True}
        total = torch.zeros((), dtype=torch.float64)
        torch.manual_seed(1)
        with sdpa_kernel(SDPBackend.MATH):
            for task in range(num_tasks):
                (xs, ys), (xq, yq) = case.episode[task].support, case.episode[task].query
                params = start
                for k in range(K):
                    value = loss(forward(model, params, xs, k, None), ys)
                    slopes = torch.autograd.grad(value, [*params.values()], create_graph=not first, **zeros)
                    params = {n: p - LR * g for (n, p), g in zip(params.items(), slopes)}
                total = total + loss(forward(model, params, xq, K, xs), yq) / num_tasks
            found = torch.autograd.grad(total, [*start.values()], **zeros)
        return torch.cat([g.flatten() for g in found])

    def _cell(self, name: str, order: str, engine: str) -> str:
        """`ok`, or why metamtl refuses the row."""
        case = Case.of(self.rows[name])
        refusal = case.row.refusal
        # Compiled falls back to Vmap for what it cannot compile, so the refusals of Vmap are its own, too.
        refusing = {order, "Vmap" if engine == "Compiled" else engine}
        refused = refusal is not None and not refusing.isdisjoint(refusal.where)
        recipe = recipes.maml(K, LR, differentiation=order)
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Of does not use spare.weight, spare.bias")
            warnings.filterwarnings("ignore", message="this workload is not compiled")
            with pytest.raises(refusal.error, match=refusal.words) if refused else nullcontext():
                meta_backward(case.model, recipe, case.episode, loss, engine=ALL_ENGINES[engine])
        assert not case.wrote()
        if refused:
            assert all(param.grad is None for param in case.model.parameters())
            return refusal.why
        assert error(case.gradient(), self.reference(name, order == "first_order")) <= 1e-10
        return "ok"

    def peer(self, run: Callable[[Any, Case], None], library: Any, name: str) -> str:
        """What another library does with the row, in second order."""
        case = Case.of(self.rows[name])
        if not case.row.peers:
            return "no such policy"
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run(library, case)
            except Exception as failure:
                return f"`{type(failure).__name__}`"
        same = error(case.gradient(), self.reference(name, False)) <= 1e-8
        return ("ok" if same else "wrong gradient") + (", writes buffers" if case.wrote() else "")


@pytest.fixture(scope="session")
def matrix(rows: Mapping[str, Any]) -> Matrix:
    return Matrix(rows)


def by_learn2learn(l2l: ModuleType, case: Case) -> None:
    learner = l2l.algorithms.MAML(case.model, lr=LR)
    total = torch.zeros((), dtype=torch.float64)
    for task in range(case.row.tasks):
        support, query = case.episode[task].support, case.episode[task].query
        clone = learner.clone()
        for _ in range(K):
            clone.adapt(loss(called(clone, support.x), support.y))
        total = total + loss(called(clone, query.x), query.y) / case.row.tasks
    total.backward()


def by_higher(higher: ModuleType, case: Case) -> None:
    sgd = torch.optim.SGD([p for p in case.model.parameters() if p.requires_grad], lr=LR)
    total = torch.zeros((), dtype=torch.float64)
    for task in range(case.row.tasks):
        support, query = case.episode[task].support, case.episode[task].query
        with higher.innerloop_ctx(case.model, sgd, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(K):
                diffopt.step(loss(called(fmodel, support.x), support.y))
            total = total + loss(called(fmodel, query.x), query.y) / case.row.tasks
    total.backward()


def called(module: nn.Module, x: Any) -> Any:
    return module(**x) if isinstance(x, dict) else module(*x) if isinstance(x, tuple) else module(x)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_gradient_is_that_of_a_plain_unroll(matrix: Matrix, name: str, order: str, engine: str) -> None:
    matrix.cell(name, order, engine)


def test_compiled_code_computes_the_same(
    matrix: Matrix, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in LARGE:
        return
    monkeypatch.setattr("metamtl.engines.kinds.BACKEND", "eager")  # traced, without generated code
    matrix.cell(name, "exact", "Compiled")


def test_the_table_in_the_docs(matrix: Matrix, l2l: ModuleType, higher: ModuleType) -> None:
    lines, notes = [], dict[str, int]()
    for name in matrix.rows:
        ours = [matrix.cell(name, order, engine) for order in ORDERS for engine in ENGINES]
        marks = [
            why if why == "ok" else f"refused ({notes.setdefault(why, len(notes) + 1)})" for why in ours
        ]
        peers = [matrix.peer(by_learn2learn, l2l, name), matrix.peer(by_higher, higher, name)]
        lines.append(f"| {' | '.join([name, *marks, *peers])} |")
    heads = ["module", *(f"{o}, {e}" for o in ORDERS for e in ENGINES), "learn2learn", "higher"]
    reasons = [f"{number}. {why}" for why, number in notes.items()]
    table = "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines, "", *reasons])
    before, rest = DOCS.read_text(encoding="utf-8").split("<!-- matrix:begin -->")
    found, after = rest.split("<!-- matrix:end -->")
    if os.environ.get("UPDATE_DOCS"):
        marked = f"<!-- matrix:begin -->\n{table}\n<!-- matrix:end -->"
        DOCS.write_text(before + marked + after, encoding="utf-8")
    else:
        assert found.strip() == table, "UPDATE_DOCS=1 writes the table anew; look at what has changed"
