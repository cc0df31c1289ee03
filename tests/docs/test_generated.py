"""Generated documents are up to date; notebooks have the code of their pages, and it runs cell by cell."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metamtl import aggregators
from metamtl.aggregators import formulas, scalarized, torchjd

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in (DOCS / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"^( *for (?:step|_) in range)\(.*\):$", re.MULTILINE)


@pytest.fixture(scope="module")
def generate() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import generate

        yield generate
    for name in ("generate", "page_contents", "to_notebook"):
        del sys.modules[name]


def cells(page: str, kind: str) -> list[str]:
    """The sources of the cells of one type."""
    content = json.loads((DOCS / "notebooks" / f"{page}.ipynb").read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def test_generated_files_are_up_to_date(generate: Any) -> None:
    """`python docs/generate.py` writes them."""
    files = generate.files()
    assert [path.name for path, text in files.items() if path.read_text(encoding="utf-8") != text] == []
    assert {path for path in files if path.suffix == ".ipynb"} == {*(DOCS / "notebooks").iterdir()}


def test_llms_txt_lists_every_page() -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    links = re.findall(r"\]\((.+?)\)", (DOCS / "llms.txt").read_text(encoding="utf-8"))
    assert sorted(links) == sorted(pages)


def test_long_pages_link_to_their_sections(generate: Any) -> None:
    long = "\n".join(
        ["# Title", *["text"] * 100, "## One: `a_b`, two", "```", "## no heading", "```", "## Two"]
    )
    with_links = generate.with_contents(long)
    assert "- [One: `a_b`, two](#one-a_b-two)\n- [Two](#two)\n" in with_links
    assert generate.with_contents(with_links) == with_links  # not twice
    assert generate.with_contents("# Title\n## One\n## Two\n") == "# Title\n## One\n## Two\n"
    with pytest.raises(ValueError, match="needs sections: # Title"):
        generate.with_contents("# Title\n" * 101)


def test_every_method_has_one_formula(generate: Any) -> None:
    computed_by_torchjd = {*torchjd.names(), *scalarized.names()} - {"Constant"}
    assert set(formulas.FORMULAS) == computed_by_torchjd
    for name in aggregators.names():
        assert "`" in generate.formula(name), name


@pytest.mark.parametrize("page", PAGES)
def test_notebooks_have_the_code_of_their_page(page: str) -> None:
    install, *code = cells(page, "code")
    text = (DOCS / "tutorials" / f"{page}.md").read_text(encoding="utf-8")
    assert "\n".join(code).split() == "\n".join(BLOCK.findall(text)).split()
    assert install.splitlines()[-1].startswith("%pip install") and "[experiments]" in install
    assert f"(../notebooks/{page}.ipynb)" in text and len(code) >= 2


@pytest.mark.parametrize("page", PAGES)
def test_links_of_notebooks_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", "\n".join(cells(page, "markdown")))
    assert links and [link for link in links if not (DOCS / "notebooks" / link).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_cells_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace, as in Jupyter, with two steps of every training and few batches in a report."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    loops = 0
    with torch.random.fork_rng():
        for cell in cells(page, "code")[1:]:
            code, count = LOOP.subn(r"\1(2):", cell)
            code, more = re.subn(r'"steps=\d+"', '"steps=2"', code)
            code = code.replace('"analyse", ', '"analyse", "batches=3", ')
            loops += count + more
            exec(compile(code, page, "exec"), names)
    assert loops >= 1
