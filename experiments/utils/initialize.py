"""Write an experiment of your own into a folder: `metamtl init my_experiment`.

The folder has a Python file with data, a net and a method, and a config. The experiment runs without
changes, on a small example.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parents[1] / "template"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="metamtl init", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    folder = parser.parse_args(arguments).folder
    if folder.exists():
        print(f"{folder} exists already; nothing was written. Name a new folder.", file=sys.stderr)
        return 1
    ignore = shutil.ignore_patterns("__init__.py", "__pycache__")
    shutil.copytree(TEMPLATE, folder, ignore=ignore)
    print(f"wrote {folder}. Next:\n\n  cd {folder}\n  metamtl compare --config-dir=conf experiment=mine")
    return 0
