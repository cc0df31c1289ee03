"""Jupyter notebooks from the tutorials in Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALL = """\
# The folder of the checkout. In Colab: upload a zip file of it, and write "metamtl.zip" here.
SOURCE = "../.."
%pip install --quiet "{SOURCE}[experiments]\""""


def notebook(page: str) -> str:
    """The notebook of a page such as `tutorials/quickstart.md`, as JSON.

    A Python block becomes one cell for each comment that stands alone at the start of a line after an empty
    line; the text between blocks becomes Markdown cells. Paragraphs that link to notebooks are left out.
    """
    parts = BLOCK.split((DOCS / page).read_text(encoding="utf-8"))
    title, _, start = parts[0].partition("\n\n")
    sources = [("markdown", title), ("code", INSTALL), ("markdown", start)]
    for number, part in enumerate(parts[1:], 1):
        if number % 2:
            sources += [("code", piece) for piece in re.split(r"\n\n+(?=# )", part)]
        else:
            sources.append(("markdown", part))
    folder = page.rpartition("/")[0]
    texts = [(kind, _links(text, folder) if kind == "markdown" else text) for kind, text in sources]
    cells = [_cell(kind, text.strip(), number) for number, (kind, text) in enumerate(texts) if text.strip()]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _links(text: str, folder: str) -> str:
    """`text` without the paragraphs that link to notebooks; links lead from docs/notebooks/."""
    paragraphs = [part for part in text.split("\n\n") if "(../notebooks/" not in part]
    return re.sub(r"\]\((?=[\w/]+\.md)", f"](../{folder}/", "\n\n".join(paragraphs))


def _cell(kind: str, text: str, number: int) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": text.splitlines(keepends=True)}


def notebooks() -> dict[Path, str]:
    """The text of every notebook by its path."""
    pages = sorted((DOCS / "tutorials").glob("*.md"))
    return {DOCS / "notebooks" / f"{page.stem}.ipynb": notebook(f"tutorials/{page.name}") for page in pages}
