"""The state of a training; a checkpoint holds all of it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from metamtl import checkpoint

from .checkpoints import RunFolder
from .parts import Parts

log = logging.getLogger(__name__)
MOST_SKIPPED = 20  # steps in a row
Weights = dict[str, dict[str, Any]]  # the state dicts of a model and of an adapter


class TrainingState:
    """Weights, optimizer and counters of a training.

    Attributes:
        average: the model with averaged weights, which is evaluated.
        step, evaluations: outer steps and gradient evaluations so far; skipped steps count.
        skipped, skipped_in_a_row: steps without an update, because a loss or a gradient was not finite.
        seconds, compile_seconds: of training so far, without validation and compiling; of compiling.
        elapsed: seconds of the whole run so far, for `max_minutes`.
        losses: the mean loss of every step since the last validation.
        history: one entry for every validation.
        validated: how many of the `validate.times` parts of the run have been validated.
        logged: how many of the `POINTS` parts of the run have been logged for TensorBoard.
        best: the best validation result so far.
        validations_since_best: validations without an improvement since then.
        best_weights: the weights that reached it.
    """

    def __init__(self, parts: Parts, decay: float) -> None:
        self.model, self.recipe = parts.model, parts.recipe
        self.optimizer, self.schedule = parts.optimizer, parts.schedule
        self.average = AveragedModel(parts.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.step, self.evaluations, self.validated, self.logged = 0, 0, 0, 0
        self.skipped, self.skipped_in_a_row, self.validations_since_best = 0, 0, 0
        self.seconds, self.compile_seconds, self.elapsed = 0.0, 0.0, 0.0
        self.losses: list[Tensor] = []
        self.history: list[dict[str, float]] = []
        self.best: float | None = None
        self.best_weights: Weights | None = None

    def keep_weights(self, result: float) -> None:
        """Store the averaged weights as the best ones."""
        self.best, self.validations_since_best = result, 0
        self.best_weights = {
            name: {key: _copy(value) for key, value in module.state_dict().items()}
            for name, module in (("model", self.average.module), ("adapter", self.recipe.adapter))
        }

    def restore_best_weights(self) -> None:
        """Load the best weights into the model and the adapter."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights["model"])
            self.recipe.adapter.load_state_dict(self.best_weights["adapter"])

    def skip_or_raise(self, error: FloatingPointError, on_nonfinite: str, folder: RunFolder) -> None:
        """Count a step whose loss or gradient is not finite, or raise the error with the step.

        Raises:
            FloatingPointError: `on_nonfinite` is "raise", the weights are not finite, or `MOST_SKIPPED`
                steps were skipped in a row.
        """
        if on_nonfinite == "raise":
            raise FloatingPointError(f"step {self.step}: {error} {folder.last()}") from error
        self.check_weights(folder)
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped_in_a_row > MOST_SKIPPED:
            raise FloatingPointError(
                f"step {self.step}: {MOST_SKIPPED} steps in a row were skipped; the training has diverged."
                f" The last one: {error} {folder.last()}"
            ) from error
        log.warning("step %d is skipped: %s", self.step, error)
        self.step += 1

    def check_weights(self, folder: RunFolder) -> None:
        """Raise a FloatingPointError if a weight of the model or of the recipe is not finite."""
        named = (*self.model.named_parameters(), *self.recipe.named_parameters())
        bad = [name for name, param in named if not bool(torch.isfinite(param).all())]
        if bad:
            raise FloatingPointError(
                f"step {self.step}: the weights {', '.join(bad[:5])} are not finite after the step of the"
                f" optimizer; lower its learning rate. {folder.last()}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything, random numbers included."""
        modules = {name: module.state_dict() for name, module in self._modules().items()}
        values = {name: getattr(self, name) for name in _VALUES}
        return {**modules, **values, "random": checkpoint.random_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        for name in _VALUES:
            setattr(self, name, state[name])
        device = next(self.model.parameters()).device
        self.losses = [loss.to(device) for loss in self.losses]
        checkpoint.set_random_state(state["random"])

    def _modules(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "recipe": self.recipe,
            "average": self.average,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }


_VALUES = (
    *("step", "evaluations", "skipped", "skipped_in_a_row", "validated", "logged"),
    *("seconds", "compile_seconds", "elapsed", "losses", "history"),
    *("best", "best_weights", "validations_since_best"),
)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
