"""SNIPS: utterances to a voice assistant, with intents and slots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .prepared import Dir, official, read_lines, text, write_lines

INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)
FILES = {"train": "train_{}_full.json", "validate": "validate_{}.json"}


def load(data_dir: Dir = None) -> dict[str, list[dict[str, Any]]]:
    """Load `train` and `validate`: utterances with `intent`, `tokens`, `tags` (BIO slots)."""
    return {
        name: read_lines("snips", f"{name}.jsonl", ("intent", "tokens", "tags"), data_dir) for name in FILES
    }


def prepare(source: Path, folder: Path) -> Path:
    """Prepare `train.jsonl` and `validate.jsonl` from `2017-06-custom-intent-engines/<intent>/*.json`.

    Tokens are the parts of each annotated span, split at white space.
    """
    for name, pattern in FILES.items():
        paths = official(source, *(pattern.format(intent) for intent in INTENTS))
        entries = [
            {"intent": intent, **_utterance(entry["data"])}
            for intent, path in zip(INTENTS, paths)
            for entry in json.loads(text(path))[intent]
        ]
        write_lines(folder / f"{name}.jsonl", entries)
    return folder


def _utterance(stretches: list[dict[str, str]]) -> dict[str, list[str]]:
    tokens, tags = [], []
    for stretch in stretches:
        pieces, slot = stretch["text"].split(), stretch.get("entity")
        tokens += pieces
        tags += ["O" if slot is None else f"{'I' if i else 'B'}-{slot}" for i in range(len(pieces))]
    return {"tokens": tokens, "tags": tags}
