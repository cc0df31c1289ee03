"""Tables of contents of long pages, for readers of the files; the site shows its own at the side."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 100  # lines, about three screens
BEGIN, END = "<!-- contents:begin -->", "<!-- contents:end -->"
BLOCK = re.compile(rf"{BEGIN}\n.*?{END}\n\n", re.DOTALL)
TOCTREE = re.compile(r"^```\{toctree\}\n.*?^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def with_contents(text: str) -> str:
    """A page with links to its sections before the first one, if it is long."""
    text = BLOCK.sub("", text)
    if len(TOCTREE.sub("", text).splitlines()) <= LENGTH:
        return text
    start = re.search(r"^## ", text, re.MULTILINE)
    sections = _headings(text, "##")
    if start is None or len(sections) < 2:
        sections = _headings(text, "###?")
    if start is None or len(sections) < 2:
        raise ValueError(f"a page of more than {LENGTH} lines needs sections: {text.splitlines()[0]}")
    lines = [f"- [{title}](#{_anchor(title)})" for title in sections]
    block = "\n".join([BEGIN, *lines, END, "", ""])
    return text[: start.start()] + block + text[start.start() :]


def without_contents(text: str) -> str:
    return BLOCK.sub("", text)


def _headings(text: str, level: str) -> list[str]:
    titles = re.findall(rf"^{level} (.+)$", FENCE.sub("", text), re.MULTILINE)
    if len({*map(_anchor, titles)}) < len(titles):  # Added, Changed, ... of every version
        return re.findall(r"^## (.+)$", FENCE.sub("", text), re.MULTILINE)
    return titles


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def pages() -> dict[Path, str]:
    """The text of every page, with its table of contents, by its path."""
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")]
    paths += sorted((ROOT / "docs").rglob("*.md"))
    return {path: with_contents(path.read_text(encoding="utf-8")) for path in paths}


def llms_txt() -> str:
    """docs/llms.txt: its introduction, then all pages in the order of the toctrees of docs/index.md."""
    docs = ROOT / "docs"
    introduction = (docs / "llms.txt").read_text(encoding="utf-8").partition("\n## ")[0]
    lines = [introduction.rstrip("\n"), "", "## Start", "- [Home](index.html)"]
    index = (docs / "index.md").read_text(encoding="utf-8")
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL):
        (caption,) = re.findall(r"^:caption: (.+)$", tree, re.MULTILINE)
        lines += ["", f"## {caption}"]
        entries = re.findall(r"^[^:\n].*$", tree, re.MULTILINE)
        for path in dict.fromkeys(path for entry in entries for path in sorted(docs.glob(f"{entry}.md"))):
            page = path.relative_to(docs).with_suffix(".html").as_posix()
            lines.append(f"- [{_title(path)}]({page})")
    return "\n".join(lines) + "\n"


def _title(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if included := re.match(r"```\{include\} (.+)", text):
        return _title(path.parent / included.group(1))
    return text.splitlines()[0].removeprefix("# ")
