"""Sentences from reviews of products, movies and restaurants, with their sentiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .prepared import Dir, official, read_lines, text, write_lines

SET = "sentiment_sentences"
DOMAINS = {"amazon": "amazon_cells_labelled.txt", "imdb": "imdb_labelled.txt", "yelp": "yelp_labelled.txt"}


def load(data_dir: Dir = None) -> list[dict[str, Any]]:
    """Load sentences with `domain`, `text` and `label`; 1 is positive."""
    return read_lines(SET, "all.jsonl", ("domain", "text", "label"), data_dir)


def prepare(source: Path, folder: Path) -> Path:
    """Prepare `all.jsonl` from the three official files: sentence, tab, 0 or 1."""
    entries = []
    for domain, path in zip(DOMAINS, official(source, *DOMAINS.values())):
        for line in text(path).split("\n"):  # not splitlines: a sentence may contain other line breaks
            if line.strip():
                sentence, label = line.rstrip("\r").rsplit("\t", 1)
                entries.append({"domain": domain, "text": sentence.strip(), "label": int(label)})
    write_lines(folder / "all.jsonl", entries)
    return folder / "all.jsonl"
