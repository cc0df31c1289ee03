"""Checks of the options that end a training before its last step."""

from __future__ import annotations

from omegaconf import DictConfig


def check(cfg: DictConfig) -> None:
    """Check the options of the run loop.

    Raises:
        ValueError: `patience` is not a positive integer or null, or more than `validate.times`;
            `on_nonfinite` is unknown.
    """
    patience, times = cfg.patience, cfg.validate.times
    if patience is not None:
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise ValueError(f"patience={patience}: expected a positive number of validations, or null.")
        if patience >= times:
            raise ValueError(
                f"patience={patience} cannot end a training with validate.times={times} validations; raise"
                " validate.times, or lower patience."
            )
    if cfg.on_nonfinite not in ("raise", "skip"):
        raise ValueError(f"on_nonfinite={cfg.on_nonfinite}: expected raise or skip.")
