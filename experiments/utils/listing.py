"""List what there is, a line each: `metamtl list`, or `metamtl list recipes`."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from hydra.utils import get_object
from omegaconf import OmegaConf

from metamtl import aggregators

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = {"experiments": "experiment", "recipes": "recipe", "tasks": "task", "nets": "net"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="metamtl list", description=__doc__)
    kinds = [*GROUPS, "aggregators"]
    parser.add_argument("kind", nargs="?", choices=kinds, help="only these")
    kind = parser.parse_args(arguments).kind
    for name in kinds if kind is None else [kind]:
        entries = _aggregators() if name == "aggregators" else _configs(GROUPS[name])
        width = max(map(len, entries))
        print(f"{name}:")
        print("\n".join(f"  {entry:<{width}}  {text}" for entry, text in entries.items()))
        print()
    return 0


def _configs(group: str) -> dict[str, str]:
    """The configs of a group, and the first line of the documentation of what each builds."""
    entries = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        cfg = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert isinstance(cfg, dict)
        entries[path.stem] = _first_line(get_object(cfg["_target_"])) if "_target_" in cfg else _parts(cfg)
    return entries


def _parts(cfg: dict[object, object]) -> str:
    """The task and the net of an experiment, or the config that it changes."""
    parts = []
    for default in cfg.get("defaults", []):  # type: ignore[attr-defined]
        if isinstance(default, dict):
            parts += [f"{str(group).split('/')[-1]}={value}" for group, value in default.items()]
        elif default != "_self_":
            parts.append(f"changes {default}")
    return ", ".join(parts)


def _aggregators() -> dict[str, str]:
    entries = {}
    for name in aggregators.names():
        text = inspect.getdoc(getattr(aggregators, name)) or ""
        paragraphs = [part for part in text.split("\n\n") if not part.startswith("TorchJD's `")]
        entries[name] = " ".join(paragraphs[0].split())[:100]
    return entries


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
