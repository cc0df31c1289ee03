"""The documentation builds as a site, without a warning and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import metamtl

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDERS = [name for name in metamtl.__all__ if (ROOT / "metamtl" / name).is_dir()]


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Unknown references, broken links to pages and headings, and pages in no toctree are warnings."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "--no-color",
            str(DOCS),
            str(tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "reference" / "core.html").read_text(encoding="utf-8")
    assert 'id="metamtl.meta_backward"' in page and "metamtl.Episode" in page
    table = (tmp_path / "reference" / "aggregators.html").read_text(encoding="utf-8")
    assert "UPGrad(pref_vector=None" in table and "generated:" not in table
    assert "multimnist" in (tmp_path / "explanation" / "when_it_helps.html").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([\w/]+\.html)\)", (tmp_path / "llms.txt").read_text(encoding="utf-8")):
        assert (tmp_path / link).is_file(), link


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_a_page_of_reference(folder: str) -> None:
    if folder == "datasets":  # its one public name is described with the tasks
        return
    text = (DOCS / "reference" / f"{folder}.md").read_text(encoding="utf-8")
    assert f"automodule:: metamtl.{folder}\n" in text


def test_every_name_of_the_package_is_in_the_reference() -> None:
    core = (DOCS / "reference" / "core.md").read_text(encoding="utf-8")
    names = [name for name in metamtl.__all__ if not hasattr(getattr(metamtl, name), "__path__")]
    assert [name for name in names if f"metamtl.{name}" not in core and name != "checkpoint"] == []


@pytest.mark.parametrize("page", sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))
def test_lines_of_code_fit(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [line for code in blocks for line in code.splitlines() if len(line) > 108] == []
