"""Official archives: found in the data folder or downloaded, and verified by their checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import VARIABLE


def official_archive(
    path: Path, official: Mapping[str, Any], title: str, *, prepared: str, download: bool
) -> Path:
    """Return `path` if it is the official archive; if it is missing and `download` is set, download it.

    Args:
        path: path of the archive in the data folder.
        official: the entry of the archive in `data/sources.yaml`, with `url` and `sha256` or `md5`.
        title: name of the data set, for error messages.
        prepared: what the folder may contain instead of the archive, for error messages.
        download: download a missing archive.

    Raises:
        FileNotFoundError: the archive is missing and `download` is False.
        ValueError: the checksum of the archive differs.
        ConnectionError: the download failed; no file is left.
        ImportError: a download needs pooch, which is missing.
    """
    algorithm = "sha256" if "sha256" in official else "md5"
    expected = official[algorithm]
    if not path.is_file():
        if not download:
            raise FileNotFoundError(
                f"{title} is not in {path.parent}: found neither {prepared} nor {path.name}. Pass"
                f" download=True, or download the archive from {official['url']}, or set the folder that"
                f" contains {path.parent.name}/ with data_dir=... or {VARIABLE}."
            )
        _download(path, official["url"], f"{algorithm}:{expected}", title)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, algorithm).hexdigest()
    if digest != expected:
        size = f"{official['bytes']:,} bytes with " if "bytes" in official else ""
        raise ValueError(
            f"{path} is truncated or altered: {path.stat().st_size:,} bytes with {algorithm} {digest},"
            f" expected {size}{algorithm} {expected}; delete it, then pass download=True or download it"
            f" again from {official['url']}."
        )
    return path


def _download(path: Path, url: str, checksum: str, title: str) -> None:
    try:
        import pooch
    except ImportError as error:
        raise ImportError(f"Downloading {title} requires pooch: pip install 'metamtl[images]'.") from error
    try:
        # pooch uses a temporary name until the checksum is verified.
        pooch.retrieve(url, checksum, fname=path.name, path=path.parent)
    except (OSError, ValueError) as error:  # OSError: from requests; ValueError: wrong checksum
        raise ConnectionError(
            f"{path.name} could not be downloaded from {url}: {error}. No file was saved;"
            f" try again, or put the archive into {path.parent} by hand."
        ) from error
