"""WNUT 2017: new and rare entities in user text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .prepared import Dir, official, read_lines, text, write_lines

FILES = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
KINDS = ("corporation", "creative-work", "group", "location", "person", "product")
TAGS = ("O", *(f"{place}-{kind}" for kind in KINDS for place in "BI"))


def load(data_dir: Dir = None) -> dict[str, list[dict[str, Any]]]:
    """`train`, `dev` and `test`: sentences with `tokens` and `tags` (BIO, out of `TAGS`)."""
    found = {name: read_lines("wnut17", f"{name}.jsonl", ("tokens", "tags"), data_dir) for name in FILES}
    for name, sentences in found.items():
        for number, sentence in enumerate(sentences, 1):
            unknown = sorted(set(sentence["tags"]) - set(TAGS))
            if unknown or len(sentence["tags"]) != len(sentence["tokens"]):
                raise ValueError(
                    f"wnut17/{name}.jsonl, line {number}: {len(sentence['tokens'])} tokens,"
                    f" {len(sentence['tags'])} tags, unknown tags {unknown}; the file was altered."
                )
    return found


def prepare(source: Path, folder: Path) -> Path:
    """Three files of JSON lines from the official CoNLL files: token, tab, tag; an empty line between."""
    for name, path in zip(FILES, official(source, *FILES.values())):
        write_lines(folder / f"{name}.jsonl", _sentences(text(path)))
    return folder


def _sentences(content: str) -> list[dict[str, list[str]]]:
    found: list[dict[str, list[str]]] = []
    inside = False
    for line in content.split("\n"):
        if not line.strip():
            inside = False
            continue
        if not inside:
            found.append({"tokens": [], "tags": []})
            inside = True
        token, tag = line.split("\t")[:2]
        found[-1]["tokens"].append(token.strip())
        found[-1]["tags"].append(tag.strip())
    return found
