from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from metamtl.datasets import files
from metamtl.functional.atomic_write import atomic_write


def test_data_folder_prefers_the_argument_then_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAMTL_DATA", str(tmp_path / "variable"))
    assert files.data_folder("set", tmp_path / "argument") == tmp_path / "argument" / "set"
    assert files.data_folder("set") == tmp_path / "variable" / "set"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, ""])
def test_data_folder_falls_back_on_the_cache(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    platformdirs = pytest.importorskip("platformdirs")
    if value is None:
        monkeypatch.delenv("METAMTL_DATA", raising=False)
    else:
        monkeypatch.setenv("METAMTL_DATA", value)
    assert files.data_folder("set") == platformdirs.user_cache_path("metamtl") / "set"


def test_missing_platformdirs_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAMTL_DATA", raising=False)
    _hide(monkeypatch, "platformdirs")
    with pytest.raises(ImportError, match=r"METAMTL_DATA.*metamtl\[glyphs\]"):
        files.data_folder("set")
    assert files.data_folder("set", "here") == Path("here/set")


def test_missing_pyyaml_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "yaml")
    with pytest.raises(ImportError, match=r"metamtl\[images\]"):
        files.sources()


def test_project_file_in_a_wheel_wins_over_a_folder_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, beside = tmp_path / "metamtl" / "data", tmp_path / "data"
    for folder in (inside, beside):
        folder.mkdir(parents=True)
    (beside / "sources.yaml").write_text("beside")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "metamtl" / "tasks" / "files.py"))
    assert files.project_file("sources.yaml") == beside / "sources.yaml"
    (inside / "sources.yaml").write_text("inside")
    assert files.project_file("sources.yaml") == inside / "sources.yaml"


def test_unknown_project_file_says_where_it_looked() -> None:
    with pytest.raises(FileNotFoundError, match=r"no data file 'splits/nothing\.json'; looked at .* and "):
        files.split_file("nothing")


def test_every_source_says_licence_and_citation() -> None:
    pytest.importorskip("yaml")
    found = files.sources()
    assert {"omniglot", "glyphs"} <= set(found)
    for entry in found.values():
        assert {"title", "page", "licence", "citation"} <= set(entry)
    for archive in found["omniglot"]["archives"].values():
        assert len(archive["sha256"]) == 64 and len(archive["md5"]) == 32


def test_atomic_write_replaces_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with atomic_write(path) as partial:
            partial.write_text(text)
            assert partial.suffix == ".txt" and partial != path
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_leaves_nothing_when_interrupted(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("older")
    with pytest.raises(error), atomic_write(path) as partial:
        partial.write_text("half")
        (partial.parent / "another").write_text("half")
        raise error
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def test_atomic_write_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file.txt"):
        pass
    assert not list(tmp_path.iterdir())


def _hide(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    """Make `import hidden` fail."""
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == hidden:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
