"""The relatedness matrix of named tasks, averaged over the steps of a training; one file per seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from metamtl import analysis, meta_backward
from metamtl.analysis import Relatedness

from ..tables.report import read_json, write_json
from . import options, parts
from .rows import Rows
from .streams import sample

Measure = Callable[..., Relatedness]
WITH_LR: dict[str, Measure] = {  # measures of a step with a learning rate
    "look_ahead": analysis.look_ahead,
    "linearized": analysis.linearized,
    "transfer": lambda *call, lr: analysis.transfer(analysis.gradients(*call), lr),
}
OF_GRADIENTS: dict[str, Measure] = {
    "gramian": lambda *call: analysis.gramian(analysis.gradients(*call)),
    "cosine": lambda *call: analysis.cosine(analysis.gradients(*call)),
}


class Affinity:
    """The mean matrix of a training of all tasks: `affinity(config of the training) -> Relatedness`.

    The matrices are those of training batches, every `cfg.affinity.every` steps. A matrix that is in the
    folder is read instead.
    """

    def __init__(self, cfg: DictConfig, rows: Rows, folder: Path) -> None:
        self.cfg, self.rows, self.folder = cfg, rows, folder / cfg.measure

    def __call__(self, config: DictConfig) -> Relatedness:
        """The mean matrix of the training with this config.

        Raises:
            OptionError: the file of this seed is of another config; batches have no label of some tasks.
        """
        path = self.folder / f"seed{config.seed}.json"
        made_by: Any = {
            "affinity": OmegaConf.to_container(self.cfg.affinity),
            "config": OmegaConf.to_container(config, resolve=False),
        }
        if path.is_file():
            content = read_json(path, "made_by", "tasks", "matrix", "measure")
            if content["made_by"] != made_by:
                raise options.OptionError(
                    f"{path} is of other options; use another folder, hydra.run.dir=..., or delete it."
                )
            matrix = torch.tensor(content["matrix"], dtype=torch.float64)
            return Relatedness(matrix, content["tasks"], content["measure"])
        mean = self._mean(config)
        write_json(path, {"made_by": made_by, **mean.as_dict()})
        return mean

    def _mean(self, config: DictConfig) -> Relatedness:
        built = parts.build(config, self.rows.sources)
        model, recipe, loss, optimizer = built.model, built.recipe, built.train.loss, built.optimizer
        every, results = self.cfg.affinity.every, []
        for step in range(self.cfg.affinity.steps or config.steps):
            episodes = sample(built.train, config.meta_batch, config.seed, step)
            if (step + 1) % every == 0:
                if len(episodes) < len(loss):
                    raise options.OptionError(
                        f"meta_batch={config.meta_batch}: a batch has no label of some tasks"
                        f" ({', '.join(loss.keys() - episodes.keys())}), or not every task; raise it, or"
                        " sample all tasks in each step."
                    )
                call, lr = (model, recipe.at(step), episodes, loss), self.cfg.affinity.lr
                if self.cfg.measure in WITH_LR:
                    lr = optimizer.param_groups[0]["lr"] if lr is None else lr
                    results.append(WITH_LR[self.cfg.measure](*call, lr=lr))
                else:
                    results.append(OF_GRADIENTS[self.cfg.measure](*call))
            optimizer.zero_grad()
            meta_backward(model, recipe.at(step), episodes, loss, engine=built.engine)
            optimizer.step()
            built.schedule.step()
        return Relatedness.mean(results)
