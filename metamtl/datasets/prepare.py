"""Convert official files to arrays: `python -m metamtl.datasets.prepare SET --from A --to B`."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from . import adult, clinc150, easy_vqa, mnist, parkinsons, sentiment, snips, tox21, wnut17
from .archives import unzip
from .files import source as facts_of

SETS: dict[str, Callable[[Path, Path], Path]] = {
    "adult": adult.prepare,
    "clinc150": clinc150.prepare,
    "easy_vqa": easy_vqa.prepare,
    "mnist": mnist.prepare,
    "parkinsons": parkinsons.prepare,
    sentiment.SET: sentiment.prepare,
    "snips": snips.prepare,
    "tox21": tox21.prepare,
    "wnut17": wnut17.prepare,
}


def prepare(name: str, source: Path, data_dir: Path) -> Path:
    """Prepare `<data_dir>/<name>/...` from the official files in `source` or its subfolders.

    The files may be unpacked, or in the archives listed in `data/sources.yaml`.

    Raises:
        FileNotFoundError: an official file is missing.
        ValueError: the checksum of a file differs from `data/sources.yaml`, or a file is damaged.
    """
    archives = []
    for file, facts in facts_of(name)["archives"].items():
        for path in source.rglob(file):
            _check(path, facts)
            if path.suffix in (".zip", ".whl"):
                archives.append(path)
    try:
        return _converted(name, source, data_dir)
    except FileNotFoundError:
        if not archives:
            raise
    with tempfile.TemporaryDirectory() as scratch:
        for path in archives:
            unzip(path, Path(scratch))
        return _converted(name, Path(scratch), data_dir)


def _converted(name: str, source: Path, data_dir: Path) -> Path:
    try:
        return SETS[name](source, data_dir / name)
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # a damaged file may cause almost any error in the readers of its format
        raise ValueError(
            f"{name}: the official files in {source} are truncated or altered ({type(error).__name__}:"
            f" {error}); download them again."
        ) from error


def _check(path: Path, facts: dict[str, str]) -> None:
    if "sha256" not in facts:
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != facts["sha256"]:
        raise ValueError(
            f"{path} is truncated or altered: sha256 {digest}, expected {facts['sha256']}; download it"
            f" again from {facts['url']}."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m metamtl.datasets.prepare", description=__doc__)
    parser.add_argument("set", choices=sorted(SETS), help="the data set; data/README.md lists the sources")
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, help="folder of the official files"
    )
    parser.add_argument("--to", dest="data_dir", type=Path, required=True, help="data folder to write to")
    args = parser.parse_args(arguments)
    try:
        path = prepare(args.set, args.source, args.data_dir)
    except (FileNotFoundError, ValueError, ImportError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
