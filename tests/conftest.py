"""What all the tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's cache folder for the tests alone: what lies in the real one must not change a result."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    """Every test, whether it succeeds or fails, leaves the settings of torch as it found them."""
    before = torch_settings()
    yield
    assert torch_settings() == before


def torch_settings() -> dict[str, Any]:
    """The settings that torch keeps for the whole process or thread."""
    return {
        "hooks on saved tensors": torch._C._autograd._saved_tensors_hooks_is_enabled(),
        "transforms of torch.func": torch._C._functorch.peek_interpreter_stack() is not None,
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "threads": torch.get_num_threads(),
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the letters are slow: they are drawn first."""
    for item in items:
        if "glyph_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture
def own_random_numbers() -> Iterator[None]:
    """Torch's global generator, seeded for this test and restored after it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; after the test, nothing may be beside it."""
    folder = tmp_path / "inside"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


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
def glyph_dir(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the letters of `Glyphs`, drawn once for all the tests, in whatever process."""
    from filelock import FileLock

    from metamtl.datasets.glyphs import load

    base = tmp_path_factory.getbasetemp()
    drawn = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "drawn"
    with FileLock(f"{drawn}.lock"):
        load(drawn)
    folder = own_cache / "metamtl"  # where those find them, too, that name no folder
    shutil.copytree(drawn, folder, dirs_exist_ok=True)
    return folder
