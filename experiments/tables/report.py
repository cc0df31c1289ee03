"""Environment of a measurement, atomic writes of files, and formatting of numbers."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metamtl.functional.atomic_write import atomic_write

from ..utils.targets import OptionError

_AGAIN = "Delete it and run the command that wrote it again."
PACKAGES = ("metamtl", "torch", "numpy", "torchjd", "hydra-core")


def environment(device: str) -> dict[str, Any]:
    """Versions of the packages, and the hardware."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            versions[name] = "not installed"
    hardware = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    return {"versions": versions, "hardware": hardware}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; NaN and infinity become null, because JSON has neither."""
    write_text(path, json.dumps(_finite(content), indent=2) + "\n")


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """Read an object that `write_json` wrote.

    Raises:
        OptionError: the file is not there, is damaged, or lacks one of the `needed` entries.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OptionError(f"{path} does not exist.") from error
    except (ValueError, RecursionError, OSError) as error:
        raise OptionError(f"{path} is truncated or altered ({error}). {_AGAIN}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path} has a {type(content).__name__} instead of an object. {_AGAIN}")
    if missing := [name for name in needed if name not in content]:
        raise OptionError(f"{path} has no {', '.join(missing)}. {_AGAIN}")
    return content


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def signed(found: Mapping[str, float | None], *, digits: int = 2, plus: bool = True) -> str:
    """Format `{mean, ci95}` as `+1.20 ± 0.30`; without the interval if it is not finite."""
    sign = "+" if plus else ""
    mean = f"{found['mean']:{sign}.{digits}f}"
    ci95 = found["ci95"]
    return f"{mean} ± {ci95:.{digits}f}" if ci95 is not None and math.isfinite(ci95) else mean


def sign(found: Mapping[str, float | None]) -> str:
    """`+` or `-` if the interval excludes zero, else `=` (within the noise, or no interval)."""
    mean, ci95 = found["mean"], found["ci95"]
    if mean is None or ci95 is None or not abs(mean) > ci95:
        return "="
    return "+" if mean > 0 else "-"
