"""Paths of files: the user's data folder, and the files that the project ships in `data/`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "METAMTL_DATA"
SPLITS = ("train", "validation", "test")


def data_folder(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a data set, `<data_dir>/<name>`; it is not created.

    `data_dir` is the argument, or else the environment variable `METAMTL_DATA`, or else the user's cache
    folder for `metamtl`.

    Raises:
        ImportError: neither is set, and `platformdirs`, which locates the cache folder, is missing.

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
            f"no data folder is set, and platformdirs, which locates the user's cache, is missing: pass"
            f" data_dir=..., set {VARIABLE}, or pip install 'metamtl[glyphs]'."
        ) from error
    return platformdirs.user_cache_path("metamtl") / name


def project_file(relative: str | os.PathLike[str]) -> Path:
    """Path of a file in the project's `data/`: class splits, sources.

    A wheel contains `data/` as `metamtl/data`; in a source checkout, including one installed with
    `pip install -e`, it is next to `metamtl/`.

    Raises:
        FileNotFoundError: the file is in neither folder.

    >>> project_file("sources.yaml").name
    'sources.yaml'
    """
    package = Path(__file__).resolve().parents[1]
    # The path of the wheel comes first: next to an installed package, `data` may be an unrelated folder.
    paths = [package / "data" / relative, package.parent / "data" / relative]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"metamtl has no data file {os.fspath(relative)!r}; looked at {paths[0]} and {paths[1]}."
    )


def check_split(name: str) -> None:
    """Raise a ValueError if the name is not one of `SPLITS`."""
    if name not in SPLITS:
        raise ValueError(f"split {name!r} is not one of {', '.join(map(repr, SPLITS))}.")


def split_file(name: str) -> dict[str, list[str]]:
    """Load the class split `data/splits/<name>.json`: split name -> class names.

    >>> {split: len(names) for split, names in split_file("omniglot_maml").items()}
    {'train': 1100, 'validation': 100, 'test': 423}
    """
    path = project_file(f"splits/{name}.json")
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(split[part], list) for part in SPLITS):
            raise ValueError("expected lists of class names")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is truncated or altered ({error!r}); install metamtl again.") from error
    return split


def sources() -> dict[str, dict[str, Any]]:
    """Load `data/sources.yaml`: URL, checksums, license and citation of each data set.

    Raises:
        ImportError: `pyyaml` is missing.
        ValueError: the file is damaged.

    >>> sources()["omniglot"]["licence"]
    'MIT'
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "reading data/sources.yaml requires pyyaml: pip install 'metamtl[images]'."
        ) from error
    path = project_file("sources.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not all({"licence", "citation"} <= set(facts) for facts in content.values()):
            raise ValueError("a data set has no licence or citation")
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is truncated or altered ({error}); install metamtl again.") from error
    return content


def source(name: str) -> dict[str, Any]:
    """The entry of a data set in `data/sources.yaml`.

    Raises:
        ImportError, ValueError: as in `sources`; the file has no such set, or nothing on its archives.
    """
    facts = sources().get(name, {})
    archives = facts.get("archives")
    if not isinstance(archives, dict) or not all(isinstance(entry, dict) for entry in archives.values()):
        raise ValueError(
            f"{project_file('sources.yaml')} is truncated or altered: it has no archives of {name}; install"
            " metamtl again."
        )
    return facts
