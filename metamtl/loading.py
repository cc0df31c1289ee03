"""Loading the result of a finished training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from .functional.random_state import seeded
from .recipes import Recipe


class Run(NamedTuple):
    """The parts of a finished training.

    Attributes:
        model: with the trained weights.
        recipe: with the trained parameters of its adapter.
        source: of tasks; `source.split("test")` has the test tasks.
        result: the content of `result.json`.
    """

    model: nn.Module
    recipe: Recipe
    source: Any
    result: dict[str, Any]


def load(folder: str | os.PathLike[str], *, trained: bool = True) -> Run:
    """Load a training from its output folder, which has `result.json` and `model.safetensors`.

    Args:
        folder: the output folder.
        trained: False for the initial weights, before training.

    Raises:
        FileNotFoundError: the folder has no finished training.
        ValueError: `result.json` is not the result of a training, or a file is damaged.
        ImportError: hydra-core or safetensors is missing, or a class that the config names.
    """
    try:
        from hydra.utils import instantiate
        from omegaconf import OmegaConf
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"metamtl.load needs {error.name}, which is missing: pip install 'metamtl[experiments]'."
        ) from error
    folder = Path(folder)
    path = folder / "result.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no result.json; pass the output folder of a finished training."
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or altered ({error}).") from error
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise ValueError(f"{path} has no config, so it is not the result of a training.")
    if missing := [name for name in ("task", "net", "recipe", "seed") if name not in result["config"]]:
        raise ValueError(
            f"{path} has no {', '.join(missing)} in its config, so it is not that of a training."
        )
    cfg: Any = OmegaConf.create(result["config"])
    source = instantiate(cfg.task)
    train = instantiate(OmegaConf.merge(cfg.task, cfg.train_task)) if cfg.get("train_task") else source
    resolve("train", train.split("train"))
    with seeded(cfg.seed):  # the initial weights are those of the training
        model = instantiate(cfg.net)
        resolve("net", model)
        recipe = instantiate(cfg.recipe)
    if trained:
        weights, prefix = folder / "model.safetensors", "adapter."
        try:
            saved = load_file(weights)
        except Exception as error:  # safetensors raises its own errors and OSError
            raise ValueError(f"{weights} is missing, truncated or altered ({error}).") from error
        of_adapter = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
        try:
            model.load_state_dict({k: v for k, v in saved.items() if not k.startswith(prefix)})
            recipe.adapter.load_state_dict(of_adapter)
        except RuntimeError as error:
            raise ValueError(f"{weights} does not have the weights of {path}: {error}") from error
    return Run(model, recipe, source, result)


def resolve(name: str, thing: Any) -> None:
    """Let configs refer to `${name:attribute}`: a table of heads needs the ids of the training tasks.

    `${name:self}` is the object: learned rates need the model.
    """
    from omegaconf import OmegaConf

    def attribute_of(attribute: str) -> Any:
        return thing if attribute == "self" else getattr(thing, attribute)

    OmegaConf.register_new_resolver(name, attribute_of, replace=True)
