"""Extras: what one installs is all that its part of the package imports."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# TorchJD's NashMTL needs ecos; aggregators.NashMTL does not use it.
UNUSED = {"ecos"}

# Every aggregator, built and called where only the packages of argv[1:] can be imported.
CALL = """
import runpy, sys
from importlib.metadata import packages_distributions

options = runpy.run_path("tests/laws/conftest.py")["OPTIONS"]
import torch
from metamtl import aggregators

allowed = set(sys.argv[1:])
normalized = lambda name: name.lower().replace("_", "-")
owners = {module: set(map(normalized, names)) for module, names in packages_distributions().items()}

class OnlyInstalled:
    def find_spec(self, name, path=None, target=None):
        owner = owners.get(name.partition(".")[0])
        if owner is not None and not owner & allowed:
            raise ModuleNotFoundError(f"{name} belongs to {sorted(owner)}, which no requirement names")

sys.meta_path.insert(0, OnlyInstalled())
rng = torch.Generator().manual_seed(0)
losses, gradients = torch.rand(4, generator=rng) + 0.5, torch.randn(4, 9, generator=rng)
for name in aggregators.names():
    try:
        aggregator = getattr(aggregators, name)(**options.get(name, lambda tasks: {})(4))
        if name != "AutoLambda":  # called in a training step, because it needs validation tasks
            direction = aggregator(losses, gradients)
            assert direction.shape == (9,) and direction.isfinite().all(), name
    except ImportError as error:
        print(name, error)
"""


def normalized(name: str) -> str:
    return name.lower().replace("_", "-")


def closure(requirements: list[str]) -> set[str]:
    """The distributions that these requirements install, by normalized name."""
    names: set[str] = set()
    queue = [(Requirement(text), "") for text in requirements]
    while queue:
        requirement, extra = queue.pop()
        name = normalized(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name in names and not requirement.extras:
            continue
        names.add(name)
        for text in requires(name) or []:
            queue += [(Requirement(text), wanted) for wanted in ("", *requirement.extras)]
    return names


def failures(requirements: list[str]) -> dict[str, str]:
    """The error of every aggregator that needs more than these requirements, by its name."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALL, *sorted(closure(requirements))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    lines = (line.partition(" ") for line in process.stdout.splitlines())
    return {name: message for name, _, message in lines}


@pytest.mark.slow
def test_every_aggregator_works_after_the_install_of_its_extra() -> None:
    assert failures([*PROJECT["dependencies"], *EXTRAS["aggregators"]]) == {}


@pytest.mark.slow
def test_without_the_extra_the_error_names_the_package() -> None:
    errors = failures(PROJECT["dependencies"])
    assert set(errors) == {"CAGrad", "DualProj", "FairGrad", "NashMTL", "UPGrad"}
    assert all("pip install" in message for message in errors.values())


def test_the_extra_has_what_the_extras_of_torchjd_have() -> None:
    named = {normalized(Requirement(text).name) for text in EXTRAS["aggregators"]}
    core = {normalized(Requirement(text).name) for text in PROJECT["dependencies"]}
    full = [Requirement(text) for text in requires("torchjd") or [] if "full" in text]
    assert full and {normalized(each.name) for each in full} - core == named | UNUSED


def test_the_experiments_have_every_extra_that_their_configs_use() -> None:
    (package,) = [Requirement(text) for text in EXTRAS["experiments"] if text.startswith("metamtl")]
    assert package.extras == {"aggregators", "glyphs", "images", "tabular", "text"}
