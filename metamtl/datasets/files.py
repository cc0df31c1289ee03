"""Where files lie: the user's data folder, and what the project itself ships in `data/`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "METAMTL_DATA"
SPLITS = ("train", "validation", "test")


def data_folder(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the set `name`: `<data_dir>/<name>`. It is not created.

    `data_dir` is, in this order: the argument, the environment variable `METAMTL_DATA`, the user's
    cache folder for `metamtl`.

    Raises:
        ImportError: neither is given and `platformdirs`, which knows the cache folder, is missing.

    >>> data_folder("omniglot", "datasets").as_posix()
    'datasets/omniglot'
    """
    base = data_dir if data_dir is not None else os.environ.get(VARIABLE)
    if base:
        return Path(base).expanduser() / name
    try:
        import platformdirs
    except ImportError as error:
        raise ImportError(
            f"no data folder is named, and platformdirs, which finds the user's cache, is missing: give"
            f" data_dir=..., set {VARIABLE}, or pip install 'metamtl[glyphs]'."
        ) from error
    return platformdirs.user_cache_path("metamtl") / name


def project_file(relative: str | os.PathLike[str]) -> Path:
    """A file of the project's `data/`: class splits, sources.

    A wheel carries `data/` as `metamtl/data`; a source checkout, also one installed with
    `pip install -e`, has it beside `metamtl/`.

    Raises:
        FileNotFoundError: neither place has the file.

    >>> project_file("sources.yaml").name
    'sources.yaml'
    """
    package = Path(__file__).resolve().parents[1]
    # The wheel's place first: beside an installed package, `data` may be a stranger's folder.
    places = [package / "data" / relative, package.parent / "data" / relative]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"metamtl has no data file {os.fspath(relative)!r}; looked at {places[0]} and {places[1]}."
    )


def check_split(name: str) -> None:
    """Refuse a name that is none of `SPLITS`."""
    if name not in SPLITS:
        raise ValueError(f"split {name!r} is not one of {', '.join(map(repr, SPLITS))}.")


def split_file(name: str) -> dict[str, list[str]]:
    """The class split `data/splits/<name>.json`: split name -> class names.

    >>> {split: len(names) for split, names in split_file("omniglot_maml").items()}
    {'train': 1100, 'validation': 100, 'test': 423}
    """
    return json.loads(project_file(f"splits/{name}.json").read_text(encoding="utf-8"))


def sources() -> dict[str, dict[str, Any]]:
    """`data/sources.yaml`: address, checksums, licence and citation of each set.

    Raises:
        ImportError: `pyyaml` is missing.

    >>> sources()["omniglot"]["licence"]
    'MIT'
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "data/sources.yaml is read with pyyaml: pip install 'metamtl[omniglot]'."
        ) from error
    return yaml.safe_load(project_file("sources.yaml").read_text(encoding="utf-8"))


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to in place of `path`; the file gets its name only when complete.

    The folder is created. Where the block fails, what it wrote is removed and an older file under the
    name stays as it was, so no later run finds half a file.

    >>> with atomic_write("numbers.txt") as partial:  # doctest: +SKIP
    ...     partial.write_text("1 2 3")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, and the suffix kept: numpy.savez adds `.npz` to a name without it.
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    partial = folder / target.name
    try:
        yield partial
        os.replace(partial, target)
    finally:
        # Also on KeyboardInterrupt. The block may have left other files here (savez of a crash).
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()
