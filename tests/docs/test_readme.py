"""What the documents show runs: Python blocks, commands, docstring examples, links."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import metamtl
from experiments import train
from experiments.tables import __main__ as tables

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
BLOCK = re.compile(r"(?:^<!-- needs: (\w+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULES = sorted(module.name for module in pkgutil.walk_packages(metamtl.__path__, "metamtl."))


def blocks(document: str, language: str) -> list[tuple[str, str]]:
    """The blocks of one language, each with the package that it needs beyond metamtl's own, or ''."""
    found = BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
    return [(needs, code) for needs, kind, code in found if kind == language]


def commands() -> Iterator[str]:
    for document in DOCUMENTS:
        for _, code in blocks(document, "bash"):
            lines = code.replace("\\\n", " ").splitlines()
            yield from (line.partition("  #")[0].strip() for line in lines if line.strip())


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


PYTHON = [
    pytest.param(*block, id=f"{document}:{number}")
    for document in DOCUMENTS
    for number, block in enumerate(blocks(document, "python"))
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Failed to load image Python extension")
@pytest.mark.parametrize(("needs", "code"), PYTHON)
def test_python_blocks_run(needs: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if needs:
        pytest.importorskip(needs, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "document", "exec"), {"__name__": "readme"})


def test_every_use_has_a_python_block() -> None:
    assert len(blocks("README.md", "python")) == 3


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


def experiment_commands() -> Iterator[str]:
    """Commands with options of Hydra; those with a `--config-dir` are walked in test_walkthroughs.py."""
    for command in commands():
        if re.match(r"metamtl \w+ ", command) and "--config-dir" not in command:
            command = command.replace("metamtl analyse group ", "metamtl group ", 1)
            command = command.replace("metamtl ", "python -m experiments.", 1)
        if command.startswith("python -m ") and re.search(r"experiments\.(?!init |collect )", command):
            yield command


@pytest.mark.parametrize("command", [*experiment_commands()])
def test_commands_compose(command: str) -> None:
    module, *overrides = shlex.split(command)[2:]
    if overrides[:1] == ["-m"]:  # the first training of a sweep
        overrides = [text.partition(",")[0] for text in overrides[1:]]
    name = module.rpartition(".")[2]
    assert module.removeprefix("metamtl.") == f"experiments.{name}"
    assert (ROOT / "experiments" / f"{name}.py").is_file()
    if (Path(train.CONF) / f"{name}.yaml").is_file():
        with initialize_config_dir(version_base=None, config_dir=train.CONF):
            compose(name, overrides, return_hydra_config=True)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_has_the_targets(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{shlex.split(command)[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = BLOCK.sub("", (ROOT / document).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / document).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("module", ["metamtl", *MODULES])
def test_docstring_examples(module: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(module), optionflags=flags).failed == 0


def test_the_results_are_those_of_the_files() -> None:
    assert tables.main(["--check"]) == 0
