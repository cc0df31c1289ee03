"""The wheel holds all that it needs: it is built, installed by itself and run from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("metamtl", "data", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(*command: str, cwd: Path, **variables: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**env, **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the tree, and no older one is used."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "raw", "*.pyc")
    for part in PARTS:
        path = ROOT / part
        shutil.copytree(path, source / part, ignore=ignore) if path.is_dir() else shutil.copy(path, source)
    # What is not the project's to give away must stay out even where it lies in the tree.
    (source / "data" / "raw").mkdir()
    (source / "data" / "raw" / "downloaded.json").write_text("{}")
    run(
        *("-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--no-build-isolation", "--wheel-dir", "dist", "."),
        cwd=source,
    )
    (built,) = (source / "dist").glob("metamtl-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else; for its dependencies, the running Python's."""
    target = tmp_path_factory.mktemp("site")
    run(
        *("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"),
        *("--target", str(target), str(wheel)),
        cwd=target,
    )
    return target


def tree(folder: str, pattern: str) -> set[str]:
    found = (path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern))
    return {name for name in found if "/raw/" not in name and "__pycache__" not in name}


@pytest.mark.slow
def test_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    code = tree("metamtl", "*.py") | {f"metamtl/{name}" for name in tree("experiments", "*.py")}
    kept = {"metamtl/py.typed", "metamtl/data/sources.yaml"}
    kept |= {f"metamtl/{name}" for name in tree("data", "*.json") | tree("experiments", "*.yaml")}
    assert code | kept <= names
    assert len([name for name in names if name.startswith("metamtl/data/splits/")]) >= 3
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [
        name for name in names if "raw/" in name or name.startswith(("tests/", "data/", "experiments/"))
    ]


@pytest.mark.slow
def test_data_files_are_found(site: Path, tmp_path: Path) -> None:
    code = (
        "import metamtl; from metamtl.datasets.files import sources, split_file;"
        "assert sources() and split_file('omniglot_maml'); print(metamtl.__file__)"
    )
    where = run("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).strip()
    assert Path(where).resolve().is_relative_to(site.resolve())


@pytest.mark.slow
def test_an_experiment_runs_from_an_empty_folder(site: Path, tmp_path: Path, glyph_dir: Path) -> None:
    few = ("steps=2", "validate.tasks=4", "select.tasks=4", "test.tasks=4")
    command = ("-m", "metamtl.experiments.train", "experiment=glyphs_5way_1shot", *few)
    # One thread: two steps of a small net gain nothing from more, and lose much on a busy machine.
    run(*command, cwd=tmp_path, PYTHONPATH=str(site), METAMTL_DATA=str(glyph_dir), OMP_NUM_THREADS="1")
    assert list(tmp_path.rglob("result.json"))
