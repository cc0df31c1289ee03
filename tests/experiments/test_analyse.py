"""The report on a finished training: complete, self-contained, and true to its numbers."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import analyse, train
from experiments.tables.html_report import Picture, Section, Statement, figure_style, page
from experiments.utils import options
from experiments.utils.analyses import Context
from experiments.utils.batches import corrected, over_batches
from experiments.utils.configs import compose
from experiments.utils.sections import sections
from metamtl.analysis import Relatedness
from metamtl.analysis.result import bars

from .results import VMAP, no_constant
from .test_cli import metamtl
from .test_run_log import scalars

Compose = Callable[..., DictConfig]
VOID = {"meta", "link"}
TITLES = [
    "What was trained",
    "How it adapts",
    "Who helps whom",
    "Where it conflicts",
    "Does a step do what its gradient promises",
    "Does it generalize",
    "Which precision is enough",
    "What to try next",
]


class Page(HTMLParser):
    """A page whose elements are all closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def check_page(text: str) -> Page:
    """No script, no network, no id twice, no reference to nothing; readable on a phone."""
    parsed = Page(text)
    assert "://" not in text and "javascript:" not in text and "@import" not in text
    names = {tag for tag, _ in parsed.elements}
    assert not names & {"script", "iframe", "object", "embed", "form", "audio", "video", "base"}
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs in parsed.elements:
        assert not [name for name in attrs if name.startswith("on")]
        assert not {"src", "srcset", "action"} & attrs.keys()
        for name in ("href", "xlink:href"):
            target = attrs.get(name) or "data:"
            assert target.startswith("data:") or target.removeprefix("#") in ids, target
        for target in re.findall(r"url\((.*?)\)", " ".join(filter(None, attrs.values()))):
            assert target.removeprefix("#") in ids, target
    metas = {
        attrs.get("name") or attrs.get("http-equiv"): attrs
        for tag, attrs in parsed.elements
        if tag == "meta"
    }
    assert metas["viewport"]["content"] == "width=device-width, initial-scale=1"
    assert (metas["Content-Security-Policy"]["content"] or "").startswith("default-src 'none'")
    (style,) = [text for text in parsed.texts["style"] if "prefers-color-scheme: dark" in text]
    assert "max-width: 46rem" in style and "width: 100%" in style
    assert parsed.count("svg") == parsed.count("figure") == parsed.count("figcaption")
    for tag, attrs in parsed.elements:
        if tag == "svg":
            assert "viewbox" in attrs and attrs["aria-label"] and not {"width", "height"} & attrs.keys()
    return parsed


def analyzed(
    composed: Compose, folder: Path, *overrides: str, tasks: int = 2
) -> tuple[dict[str, Any], Page]:
    """Train for two steps and analyze the result."""
    train.run(composed("steps=2", "validate.times=1", *overrides), folder / "run")
    cfg = compose("analyse", [f"run={folder / 'run'}", "batches=3", f"tasks={tasks}"])
    content = analyse.run(cfg, folder)
    written = json.loads((folder / "analysis.json").read_text(encoding="utf-8"), parse_constant=no_constant)
    assert [part["title"] for part in written["sections"]] == TITLES
    parsed = check_page((folder / "report.html").read_text(encoding="utf-8"))
    assert parsed.texts["h2"] == TITLES
    for part in written["sections"]:
        for statement in part["statements"]:
            assert any(statement["text"] in item for item in parsed.texts["li"])
    for part in written["sections"][1:-1]:
        for statement in part["statements"]:  # each with its interval over batches
            assert math.isfinite(statement["mean"]) and statement["ci95"] >= 0 and statement["n"] == 3
    for name, reason in written["omitted"].items():
        assert any(f"Left out, {name}: {reason}" in note for note in parsed.texts["p"])
    return content, parsed


def statement(content: dict[str, Any], text: str) -> dict[str, Any]:
    (found,) = [s for part in content["sections"] for s in part["statements"] if s["text"] == text]
    return found


def test_a_few_shot_training(composed: Compose, tmp_path: Path) -> None:
    content, parsed = analyzed(composed, tmp_path, "experiment=sinusoid", VMAP, tasks=2)
    assert content["omitted"] == {} and content["split"] == "validation" and content["lr"] == 1e-3
    # validations; stages, movement, line; cosine, look-ahead; layers; step; losses; precisions
    assert parsed.count("figure") == 10
    # Every number again, from the results of the batches.
    means = []
    for result in content["results"]["cosine"]:
        matrix = torch.tensor(result["matrix"])
        means.append(float((matrix.sum() - matrix.trace()) / 2))
    found = statement(content, "cosine of the gradients of two tasks, mean over pairs")
    t = stats.t.interval(0.95, 2, scale=stats.sem(means))[1]
    assert found["mean"] == pytest.approx(sum(means) / 3, rel=1e-5)
    assert found["ci95"] == pytest.approx(t, rel=1e-5)
    before, after = (statement(content, f"query loss {when} adaptation") for when in ("before", "after"))
    gain = statement(content, "decrease of the query loss by adaptation")
    assert gain["mean"] == pytest.approx(before["mean"] - after["mean"])
    # The batches are new tasks each time, and the same ones for the same seed.
    losses = [result["query"] for result in content["results"]["adaptation"]]
    assert losses[0] != losses[1] != losses[2]
    cfg = compose("analyse", [f"run={tmp_path / 'run'}", "batches=3", "tasks=2"])
    assert analyse.run(cfg, tmp_path / "again")["results"] == content["results"]
    assert (tmp_path / "again" / "report.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_named_tasks(composed: Compose, tmp_path: Path) -> None:
    content, parsed = analyzed(composed, tmp_path, "experiment=adult", "meta_batch=64", tasks=64)
    assert content["tasks"] == ["income", "never_married"]
    assert set(content["omitted"]) == {"adaptation", "line"}  # there are no support sets
    assert parsed.count("figure") == 8
    effect = statement(content, "effect of a step on income on the loss of never_married")
    values = [result["matrix"][0][1] for result in content["results"]["look_ahead"]]
    # Two pairs: 97.5 % for each.
    t = stats.t.interval(0.975, 2, scale=stats.sem(values))[1]
    assert effect["mean"] == pytest.approx(sum(values) / 3) and effect["ci95"] == pytest.approx(t, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "split", "omitted"),
    [
        ("fomaml", "validation", {"descent", "generalization"}),
        ("protonet", "validation", set()),
        ("mtl", "train", {"generalization"}),
    ],
)
def test_what_does_not_apply_is_left_out(
    recipe: str, split: str, omitted: set[str], composed: Compose, tmp_path: Path
) -> None:
    cfg = ("experiment=glyphs_5way_1shot", f"recipe={recipe}", "meta_batch=2", VMAP, "net.hidden=8")
    content, _ = analyzed(composed, tmp_path, *cfg)
    assert content["split"] == split and set(content["omitted"]) == omitted
    # Class means, and heads in a table, replace the head of the model, which then has no gradient.
    notes = " ".join(content["sections"][TITLES.index("Where it conflicts")]["notes"])
    assert ("no gradient there: head." in notes) == (recipe != "fomaml")


def test_texts_are_escaped() -> None:
    evil = "<script>alert(1)</script> & \"quoted\" 'x' $a$ --> http"
    with figure_style():
        figure = bars(None, (evil, "b"), (1.0, 2.0), evil)
        section = Section(evil, [Statement(evil)], [Picture(evil, figure)], [evil], [evil])
        parsed = check_page(page(evil, evil, [section, section], evil))
    for tag in ("title", "h1", "h2", "figcaption", "a", "footer"):
        assert all(evil in text for text in parsed.texts[tag]), tag
    assert evil in parsed.texts["text"]  # the label of an axis


CONTEXT = Context(named=True, lr=0.1, plain=True, inner=False, layers=())


def test_advice_is_beyond_the_noise() -> None:
    def advice(values: list[float]) -> str:
        matrices = [
            Relatedness(
                torch.tensor([[0.1, v, 0.1], [0.1, 0.1, 0.2], [0.1, 0.2, 0.1]]), ("a", "b", "c"), "affinity"
            )
            for v in values
        ]
        with figure_style():
            parts = sections({"look_ahead": matrices}, {}, CONTEXT)
        return " ".join(map(str, parts[-1].statements))

    harm = advice([-0.30, -0.31, -0.29])
    assert "A step on a increases the loss of b (-0.3 ± " in harm and "(a) and (b, c)" in harm
    assert "A step" not in advice([-0.3, -0.6, 0.1])
    # The interval of one pair excludes zero; those of six pairs together do not.
    close = [-0.30, -0.40, -0.20]
    alone = over_batches(close)
    assert alone.mean + alone.ci95 < 0
    assert "A step" not in advice(close)


@pytest.mark.parametrize("choices", [1, 2, 30])
def test_corrected_intervals(choices: int) -> None:
    values = [1.0, 2.0, 4.0, 3.0]
    expected = stats.t.interval(1 - 0.05 / choices, 3, scale=stats.sem(values))[1]
    assert corrected(over_batches(values), choices).ci95 == pytest.approx(expected, rel=1e-6)


def test_options_that_do_not_fit(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(options.OptionError, match=r"has no result\.json; pass the output folder"):
        analyse.run(compose("analyse", [f"run={tmp_path}"]), tmp_path)
    with pytest.raises(options.OptionError, match="batches=2: expected an integer of at least 3"):
        analyse.run(compose("analyse", [f"run={tmp_path}", "batches=2"]), tmp_path)
    train.run(composed("experiment=adult", "steps=1", "meta_batch=8", "validate.times=1"), tmp_path / "run")
    few = [f"run={tmp_path / 'run'}", "tasks=10000000"]
    with pytest.raises(options.OptionError, match=r"tasks=10000000: .* pass a smaller n"):
        analyse.run(compose("analyse", few), tmp_path)
    assert not (tmp_path / "report.html").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'metamtl\[analysis\]'"):
        analyse.run(compose("analyse", few), tmp_path)


@pytest.mark.slow
def test_the_command(composed: Compose, tmp_path: Path) -> None:
    train.run(composed("experiment=sinusoid", "steps=2", "validate.times=1", VMAP), tmp_path / "run")
    done = metamtl("analyse", "run=run", "batches=3", "tasks=2", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(Path("out") / "report.html") in done.stdout
    check_page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    nothing = metamtl("analyse", "run=nowhere", cwd=tmp_path)
    assert nothing.returncode == 2 and "run=nowhere: nowhere has no result.json" in nothing.stderr


@pytest.mark.parametrize("experiment", ["sinusoid", "adult"])
def test_relatedness_is_logged_during_a_training(
    experiment: str, composed: Compose, tmp_path: Path
) -> None:
    given = (f"experiment={experiment}", "steps=150", "meta_batch=4", "validate.times=1", "test.tasks=200")
    engine = [VMAP] if experiment == "sinusoid" else []
    for name, every in (("on", "40"), ("off", "null")):
        train.run(composed(*given, *engine, f"analyse.every={every}"), tmp_path / name)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("on", "off")]
    assert weights[0] == weights[1]  # looking changes nothing
    events = EventAccumulator(str(tmp_path / "on"), size_guidance={"images": 0})
    events.Reload()
    steps = [event.step for event in events.Images("relatedness")]
    assert steps == list(range(0, 150, 40))
    logged, without = scalars(tmp_path / "on"), scalars(tmp_path / "off")
    assert set(steps) <= set(logged["cosine/mean"]) and not set(steps) <= set(without["cosine/mean"])
    if experiment == "adult":
        pair = logged["cosine/income, never_married"]
        assert pair == {step: pytest.approx(logged["cosine/mean"][step]) for step in steps}
    assert {tag for tag in without} == {tag for tag in logged if "," not in tag}
    off = EventAccumulator(str(tmp_path / "off"))
    off.Reload()
    assert off.Tags()["images"] == []
