"""CLINC150: sentences with 150 intents in 10 domains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import data_folder
from .prepared import Dir, official, read_lines, text, write_lines

FILES = ("train", "val", "test", "oos_train", "oos_val", "oos_test")
IN_SCOPE = FILES[:3]


def load(data_dir: Dir = None) -> list[dict[str, Any]]:
    """Load `text` and `intent` of the 22,500 in-scope sentences."""
    files = (read_lines("clinc150", f"{name}.jsonl", ("text", "intent"), data_dir) for name in IN_SCOPE)
    return [entry for entries in files for entry in entries]


def load_domains(data_dir: Dir = None) -> dict[str, list[str]]:
    """Load the 15 intents of each domain."""
    read_lines("clinc150", "train.jsonl", (), data_dir)  # raises if the data is missing
    path = data_folder("clinc150", data_dir) / "domains.json"
    try:
        domains: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(intents, list) for intents in domains.values()):
            raise ValueError("expected lists of intents by domain")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is truncated or altered ({error}); prepare the set again.") from error
    return domains


def prepare(source: Path, folder: Path) -> Path:
    """Prepare six JSON Lines files and `domains.json` from `data_full.json` and `domains.json`."""
    full, domains = official(source, "data_full.json", "domains.json")
    content = json.loads(text(full))
    for name in FILES:
        write_lines(
            folder / f"{name}.jsonl",
            ({"text": sentence, "intent": intent} for sentence, intent in content[name]),
        )
    (folder / "domains.json").write_text(
        json.dumps(json.loads(text(domains)), indent=1) + "\n", encoding="utf-8"
    )
    return folder
