"""The folder of a training: its checkpoints, its result, and one process at a time in it."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig

from metamtl import checkpoint

from ..tables.report import read_json
from .processes import is_first

log = logging.getLogger(__name__)
NAME = re.compile(r"step-\d{9}\.safetensors")
# Options that do not change what a training computes up to where it ends.
NEUTRAL = ("analyse", "checkpoint", "resume", "max_minutes", "on_nonfinite")


class RunFolder:
    """The folder of one training.

    Args:
        path: of the folder.
        config: of the training.
        resume: whether to continue, or to return, what is in the folder.
        keep: how many checkpoints are kept.

    Raises:
        FileExistsError: the folder has checkpoints or a result, and `resume` is False.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, resume: bool, keep: int) -> None:
        self.path, self.config, self.keep = path, config, keep
        self.result_path = path / "result.json"
        if not resume and (self.result_path.is_file() or self.checkpoints()):
            raise FileExistsError(
                f"{path} has a training already; use resume=true to continue it, or another folder,"
                " hydra.run.dir=..."
            )

    def result(self) -> dict[str, Any] | None:
        """The result of the finished training; None if there is none, or if its time limit has been raised.

        Raises:
            ValueError: the result is of another config.
            FloatingPointError: the training had a loss that was not finite.
        """
        if not self.result_path.is_file():
            return None
        result = read_json(self.result_path, "config")
        self._check(result["config"], self.result_path)
        if "diverged" in result:
            raise FloatingPointError(result["diverged"])
        if result.get("stopped_by") == "max_minutes":
            before, now = result["config"]["max_minutes"], self.config["max_minutes"]
            if now is None or now > before:
                return None
        log.info("%s is the result of this training; it is not run again", self.result_path)
        return result

    def checkpoints(self) -> list[Path]:
        """The checkpoints, newest first."""
        folder = self.path / "checkpoints"
        files = folder.glob("step-*.safetensors") if folder.is_dir() else ()
        return sorted((path for path in files if NAME.fullmatch(path.name)), reverse=True)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, then delete the oldest ones."""
        path = self.path / "checkpoints" / f"step-{step:09d}.safetensors"
        checkpoint.save(path, {"config": _plain(self.config), "state": state})
        for old in self.checkpoints()[self.keep :]:
            old.unlink(missing_ok=True)

    def last(self) -> str:
        """Where the newest checkpoint is, for messages."""
        paths = self.checkpoints()
        if paths:
            return f"The last checkpoint is {paths[0]}."
        return "There is no checkpoint; checkpoint.every=N writes some."

    def newest(self) -> dict[str, Any] | None:
        """The state of the newest intact checkpoint; damaged ones are reported and skipped.

        Raises:
            ValueError: the checkpoint is of another config.
        """
        for path in self.checkpoints():
            try:
                content = checkpoint.load(path)
            except ValueError as error:
                log.warning("%s The checkpoint before it is used.", error)
                continue
            self._check(content["config"], path)
            log.info("resuming from %s", path)
            state: dict[str, Any] = content["state"]
            return state
        return None

    def _check(self, config: Mapping[str, Any], path: Path) -> None:
        if not isinstance(config, Mapping):
            raise ValueError(f"{path} has no config; it is truncated or altered. Delete it.")
        before, now = _flat(_plain(config)), _flat(_plain(self.config))
        different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if different:
            key = different[0]
            raise ValueError(
                f"{path} is of another config: {', '.join(different[:5])} differ ({key} was"
                f" {before.get(key)!r}, is {now.get(key)!r}). Use another folder, hydra.run.dir=..., or"
                " delete this one."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within this context no other process trains in the folder.

        Raises:
            RuntimeError: another process does already.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RuntimeError(
                f"another process is training in {self.path}; wait for it, or use another folder,"
                " hydra.run.dir=..."
            ) from error
        with lock:
            lock.release()
            yield


class Interruption:
    """Within this context SIGINT and SIGTERM set `signal`; a second one has its usual effect."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: Any) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()


def exit_after(number: int, step: int, folder: Path) -> None:
    """End the process after a signal, and say how to resume."""
    if is_first():
        # The command may have begun several trainings, each with a folder within its own.
        output = HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else folder
        print(
            f"interrupted after step {step}; a checkpoint is in {folder / 'checkpoints'}. Run the same"
            f" command with hydra.run.dir={output} to resume.",
            file=sys.stderr,
        )
    raise SystemExit(128 + number)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as JSON has it, without the options that do not change the training."""
    kept = {name: value for name, value in config.items() if name not in NEUTRAL}
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optimizer.lr": 0.001, ...}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
