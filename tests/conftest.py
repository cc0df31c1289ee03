"""What all the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """`real_data("omniglot")`: the data folder, where that set lies in it.

    Without the set a test skips and says which set it needs; where `CI` is set it fails, so that a
    misnamed folder can not turn the tests off unseen.
    """

    def find(name: str) -> Path:
        base = os.environ.get("METAMTL_DATA")
        if base and (Path(base) / name).is_dir():
            return Path(base)
        reason = f"needs the set {name!r}: " + (
            f"METAMTL_DATA={base} does not hold it" if base else "METAMTL_DATA is not set"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    return find


@pytest.fixture(scope="session")
def glyph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the letters of `Glyphs`, drawn once for all the tests."""
    from metamtl.tasks.glyphs import load

    folder = tmp_path_factory.mktemp("data")
    load(folder)
    return folder
