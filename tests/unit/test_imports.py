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

# The files and folders of metamtl/, from the lowest layer to the highest. A module imports from its own
# layer or from a lower one.
LAYERS = (
    {"functional"},
    {"checkpoint", "episode", "estimate", "meta_batch", "metrics", "rules"},
    {"datasets", "losses"},
    {"adapters", "aggregators", "nets", "tasks"},
    {"engines", "objectives", "recipes", "validation"},
    {"__main__", "analysis", "backward", "evaluation", "interop", "loading", "passes", "unrolled_model"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
INDEPENDENT = LAYERS[2] | LAYERS[3]  # these do not import others of their layer
PEERS = {"higher", "learn2learn"}
HEAVY = {"hydra", "matplotlib", "scipy", "sklearn", "tensorboard", *PEERS}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def part_of(module: str) -> str:
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
    source = part_of(module)
    assert source in LAYER_OF, f"metamtl/{source} has no layer; give it one in this test"
    for name in imports(module, parse(module)):
        assert not name.startswith("experiments"), f"{module} imports {name}"
        if name.split(".")[0] != "metamtl":
            continue
        target = part_of(name)
        assert target in LAYER_OF, f"{module} imports {name}, which is above it"
        assert LAYER_OF[target] <= LAYER_OF[source], f"{module} imports {name}, of a higher layer"
        if source in INDEPENDENT:
            assert target == source or LAYER_OF[target] < LAYER_OF[source], (
                f"{module} imports its sibling {name}"
            )
        assert target != "interop" or source == "interop", f"{module} imports {name}"
        assert target != "analysis" or source == "analysis", f"{module} imports {name}: analysis is on top"


def test_there_is_no_circle_among_folders() -> None:
    below = {
        part: {
            part_of(t) for m in INNER if part_of(m) == part for t in imports(m, parse(m)) if t in MODULES
        }
        for part in LAYER_OF
    }
    order: list[str] = []
    while len(order) < len(below):
        free = [part for part, targets in below.items() if part not in order and targets <= {part, *order}]
        assert free, f"a circle among {sorted(set(below) - set(order))}"
        order += free


@pytest.mark.parametrize("module", [name for name in INNER if part_of(name) in LAYERS[0]])
def test_functional_needs_only_torch(module: str) -> None:
    outside = {target.split(".")[0] for target in imports(module, parse(module))} - {"metamtl", "torch"}
    assert outside <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_packages_are_not_imported(module: str) -> None:
    tree = parse(module)
    for statement in at_import(tree):
        assert not {target.split(".")[0] for target in imports(module, statement)} & HEAVY, module
    if part_of(module) != "interop":
        assert not {target.split(".")[0] for target in imports(module, tree)} & PEERS, module


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # or every import compiles every file again
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_metamtl_brings_no_heavy_package() -> None:
    found = python("import sys, metamtl, metamtl.interop; print(' '.join(sys.modules))").split()
    assert "metamtl" in found and not {"torch._dynamo", "torch._inductor"} & set(found)
    assert not {name.split(".")[0] for name in found} & {*HEAVY, "scipy", "torchjd", "torchvision"}
