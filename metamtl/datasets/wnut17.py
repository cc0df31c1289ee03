"""WNUT 2017: emerging and rare entities in user-generated text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .prepared import Dir, official, read_lines, text, write_lines

FILES = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
KINDS = ("corporation", "creative-work", "group", "location", "person", "product")
TAGS = ("O", *(f"{place}-{kind}" for kind in KINDS for place in "BI"))


def load(data_dir: Dir = None) -> dict[str, list[dict[str, Any]]]:
    """Load `train`, `dev` and `test`: sentences with `tokens` and `tags` (BIO tags in `TAGS`)."""
    data = {name: read_lines("wnut17", f"{name}.jsonl", ("tokens", "tags"), data_dir) for name in FILES}
    for name, sentences in data.items():
        for number, sentence in enumerate(sentences, 1):
            unknown = sorted(set(sentence["tags"]) - set(TAGS))
            if unknown or len(sentence["tags"]) != len(sentence["tokens"]):
                raise ValueError(
                    f"wnut17/{name}.jsonl, line {number}: {len(sentence['tokens'])} tokens,"
                    f" {len(sentence['tags'])} tags, unknown tags {unknown}; the file was"
                    " altered, prepare it again."
                )
    return data


def prepare(source: Path, folder: Path) -> Path:
    """Prepare three JSON Lines files from the CoNLL files (token, tab, tag; empty lines between)."""
    for name, path in zip(FILES, official(source, *FILES.values())):
        write_lines(folder / f"{name}.jsonl", _sentences(text(path)))
    return folder


def _sentences(content: str) -> list[dict[str, list[str]]]:
    sentences: list[dict[str, list[str]]] = []
    is_open = False
    for line in content.split("\n"):
        if not line.strip():
            is_open = False
            continue
        if not is_open:
            sentences.append({"tokens": [], "tags": []})
            is_open = True
        token, tag = line.split("\t")[:2]
        sentences[-1]["tokens"].append(token.strip())
        sentences[-1]["tags"].append(tag.strip())
    return sentences
