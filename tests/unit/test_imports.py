"""Imports go down only, and `import metamtl` is light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "metamtl"

# A file or folder directly under metamtl/, and its layer. A new one has to be put here.
LAYERS = {
    "decomposed": 0,
    "episode": 0,
    "first_look": 0,
    "functional": 0,
    "implicit": 0,
    "rules": 0,
    "split": 0,
    "targets": 0,
    "task": 0,
    "adapters": 1,
    "aggregators": 1,
    "nets": 1,
    "tasks": 1,
    "distillation": 2,
    "engines": 2,
    "objectives": 2,
    "penalties": 2,
    "self_supervision": 2,
    "analysis": 3,
    "checks": 3,
    "estimate": 3,
    "evaluation": 3,
    "interop": 3,
    "losses": 3,
    "outer": 3,
    "recipes": 3,
    "scoring": 3,
}
PEERS = {"higher", "learn2learn"}
HEAVY = {"hydra", "matplotlib", *PEERS}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Full names of what the import statements under `tree` import, lazy ones included."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when the module is imported: those outside of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        yield from at_import(node)


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


INNER = sorted(name for name in MODULES if name != "metamtl")


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down_only(module: str) -> None:
    mine = room(module)
    assert mine in LAYERS, f"metamtl/{mine} has no layer; give it one in this test"
    for target in imports(module, parse(module)):
        assert not target.startswith("experiments"), f"{module} imports {target}"
        if target.split(".")[0] != "metamtl":
            continue
        theirs = room(target)
        assert theirs in LAYERS, f"{module} imports {target}, which is above it"
        assert LAYERS[theirs] <= LAYERS[mine], f"{module} imports {target}, of a higher layer"
        if LAYERS[mine] == 1:
            assert theirs == mine or LAYERS[theirs] == 0, f"{module} imports its neighbour {target}"
        assert theirs != "interop" or mine == "interop", f"{module} imports {target}"


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    below = {
        mine: {room(t) for m in INNER if room(m) == mine for t in imports(m, parse(m)) if t in MODULES}
        for mine in LAYERS
    }
    order: list[str] = []
    while len(order) < len(below):
        free = [r for r, targets in below.items() if r not in order and targets <= {r, *order}]
        assert free, f"a circle among {sorted(set(below) - set(order))}"
        order += free


@pytest.mark.parametrize("module", [name for name in INNER if LAYERS.get(room(name)) == 0])
def test_the_lowest_layer_needs_torch_only(module: str) -> None:
    outside = {target.split(".")[0] for target in imports(module, parse(module))} - {"metamtl", "torch"}
    assert outside <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_packages_stay_outside_the_door(module: str) -> None:
    tree = parse(module)
    for statement in at_import(tree):
        assert not {target.split(".")[0] for target in imports(module, statement)} & HEAVY, module
    if room(module) != "interop":
        assert not {target.split(".")[0] for target in imports(module, tree)} & PEERS, module


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # or every import compiles every file again
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_metamtl_brings_no_heavy_package() -> None:
    found = python("import sys, metamtl, metamtl.interop; print(' '.join(sys.modules))").split()
    assert "metamtl" in found and not {"torch._dynamo", "torch._inductor"} & set(found)
    assert not {name.split(".")[0] for name in found} & {*HEAVY, "scipy", "torchjd", "torchvision"}


def test_import_metamtl_takes_less_than_a_third_of_a_second_beyond_torch() -> None:
    timed = "import time, torch; t = time.process_time(); import metamtl; print(time.process_time() - t)"
    # One of several: what else the machine does can only add. The first one may write .pyc files.
    assert any(float(python(timed)) < 0.3 for _ in range(4))
