"""Checkpoint files: tensors in safetensors format, everything else as JSON in the header of the file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .functional.atomic_write import atomic_write

FORMAT = "metamtl checkpoint 1"


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Write `state` to a file atomically: after a crash the file is either complete or absent.

    Args:
        path: path of the file; its folder is created.
        state: tensors, numbers, strings, booleans and None in nested dicts, lists and tuples, such as the
            `state_dict()` of a module or an optimizer. Keys of dicts are strings or integers.

    Raises:
        TypeError: a value has another type; the message names its position in `state`.
        OSError: the file cannot be written, for example because the disk is full.
        ImportError: `safetensors` is not installed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
    >>> save(path, {"step": 3, "weights": [torch.ones(2)]})
    >>> load(path)
    {'step': 3, 'weights': [tensor([1., 1.])]}
    """
    tensors: dict[str, Tensor] = {}
    content = json.dumps(_encode(state, "state", tensors))
    metadata = {"format": FORMAT, "state": content, "sha256": _checksum(content, tensors)}
    with atomic_write(path) as partial:
        save_file(partial, tensors, metadata)


def save_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a file in safetensors format.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
        ImportError: `safetensors` is not installed.
    """
    safetensors = _safetensors()
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata=metadata)
    except safetensors.SafetensorError as error:  # the library's own error, with the number in its text
        number = re.search(r"(?:os error|code:) (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load(path: str | os.PathLike[str]) -> Any:
    """Read the state that `save` wrote. Tensors are on the CPU. Nothing in the file is executed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is incomplete, was modified, or is not a checkpoint.
        ImportError: `safetensors` is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with _safetensors().safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own errors and OSError
        raise ValueError(f"{path} is incomplete or was changed ({error}).") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of metamtl ({FORMAT!r}).")
    content = metadata.get("state", "")
    if metadata.get("sha256") != _checksum(content, tensors):
        raise ValueError(f"{path} was changed: its checksum differs.")
    try:
        return _decode(json.loads(content), tensors)
    except (AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of metamtl: {error!r}.") from error


def random_state() -> dict[str, Any]:
    """The state of the random number generators of torch, Python and, if imported, NumPy."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if numpy := _numpy():
        kind, keys, *rest = numpy.random.get_state()
        state["numpy"] = [kind, keys.tolist(), *rest]
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore the result of `random_state`."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state and (numpy := _numpy()):
        kind, keys, *rest = state["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


def _numpy() -> Any:
    import sys

    return sys.modules.get("numpy")


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors are added to `tensors`."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)} {place}"
        # safetensors does not support shared memory, so views are copied.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else {"int": str(value)}
    if isinstance(value, float):
        return {"float": value.hex()}  # exact, including infinities and NaN
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str | int) or isinstance(key, bool)]:
            raise TypeError(f"{place} has the key {bad[0]!r}; keys must be strings or integers.")
        return {"dict": [[key, _encode(item, f"{place}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        items = [_encode(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise TypeError(
        f"{place} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, booleans and"
        " None, in dicts, lists and tuples."
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "int":
        return int(content)
    if kind == "float":
        return float.fromhex(content)
    if kind == "dtype":
        if not isinstance(dtype := getattr(torch, content), torch.dtype):
            raise TypeError(f"torch.{content} is not a dtype")
        return dtype
    if kind == "device":
        return torch.device(content)
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return {key: _decode(item, tensors) for key, item in content}


def _checksum(content: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "checkpoints are safetensors files: pip install 'metamtl[experiments]', or pip install"
            " safetensors."
        ) from error
    return safetensors
