"""Train one recipe and test it: `python -m experiments.train experiment=glyphs_5way_1shot seed=0`.

Reads top to bottom: data, model, recipe; steps of `meta_backward`; on validation tasks the choice of the
way to adapt; one test. Everything it found stands in `result.json`, the model in `model.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from metamtl import Recipe, meta_backward
from metamtl.nets import batchnorm_statistics

from .tables.report import environment, write_json
from .utils import parts
from .utils.measure import Choice, choose, measure
from .utils.progress import Clock, Progress

CONF = str(Path(__file__).parent / "conf")
TRAIN, VALIDATION, SELECT, SEEN, TEST = range(5)  # streams of random numbers


def stream(seed: int, kind: int, step: int = 0) -> torch.Generator:
    """The generator of one step: every recipe with this seed sees the same episodes in the same order."""
    # Hashed to 32 bits, because the CPU's generator drops what a seed has above them.
    mixed = np.random.SeedSequence((seed, kind, step)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def device() -> str:
    """The device of `device=auto`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(cfg: DictConfig, folder: Path, sources: parts.Sources | None = None) -> dict[str, Any]:
    """One training and its test; writes into `folder` and returns what `result.json` holds."""
    if cfg.device == "auto":
        cfg.device = device()
    config = OmegaConf.to_container(cfg, resolve=False)
    built = parts.build(cfg, sources)
    train, validation, test = built.train, built.validation, built.test
    model, recipe, optimizer, ways = built.model, built.recipe, built.optimizer, built.strategies
    tested = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.average))
    clock = Clock(built.engine, built.evaluator)

    validation_tasks = validation.sample(cfg.validate.tasks, stream(cfg.seed, VALIDATION))
    history: list[dict[str, float]] = []
    best, best_state = None, None
    step, evaluations, seconds = 0, 0, 0.0
    losses: list[torch.Tensor] = []
    with Progress(cfg, clock) as progress, SummaryWriter(str(folder)) as log:
        began = clock()
        while True:
            done = progress.done(step, evaluations)
            if losses and (done or progress.validation_due(step, evaluations)):
                train_loss = float(torch.stack(losses).mean())  # waits for the device
                losses.clear()
                seconds += clock() - began  # training alone, without validation and compiling
                choice = choose(
                    tested.module,
                    ways,
                    validation,
                    validation_tasks,
                    cfg.metric,
                    cfg.reference,
                    built.evaluator,
                )
                history.append(
                    {
                        "step": step,
                        "seconds": seconds,
                        "gradient_evaluations": evaluations,
                        "train_loss": train_loss,
                        "validation": choice.estimate.mean,
                        "ci95": choice.estimate.ci95,
                    }
                )
                log.add_scalar("loss/train", train_loss, step)
                log.add_scalar(f"{cfg.metric}/validation", choice.estimate.mean, step)
                if best is None or choice.better_than(best):
                    best, best_state = choice, _copy(tested.module, recipe)
                began = clock()
            if done:
                break
            optimizer.zero_grad()
            episodes = train.sample(cfg.meta_batch, stream(cfg.seed, TRAIN, step))
            try:
                outcome = meta_backward(model, recipe, episodes, train.loss, engine=built.engine)
            except FloatingPointError as error:
                raise FloatingPointError(f"step {step}: {error}") from error
            optimizer.step()
            built.schedule.step()
            tested.update_parameters(model)
            losses.append(outcome.losses.mean())
            step += 1
            evaluations += outcome.gradient_evaluations
            progress.show(step, evaluations, losses, best and best.estimate.mean)

    # The best weights of the validations, then the way to adapt, on more tasks; then one test.
    if best_state is not None:
        model.load_state_dict(best_state[0])
        recipe.adapter.load_state_dict(best_state[1])
    more = validation.sample(cfg.select.tasks, stream(cfg.seed, SELECT))
    chosen: Choice = choose(model, ways, validation, more, cfg.metric, cfg.reference, built.evaluator)
    seen = built.source.split("train").sample(cfg.test.tasks, stream(cfg.seed, SEEN))
    new = test.sample(cfg.test.tasks, stream(cfg.seed, TEST))
    way, stage = ways[chosen.way], chosen.stage
    found, curve = measure(model, way, stage, test, new, cfg.reference, built.evaluator)
    result = {
        "config": config,
        **environment(cfg.device),
        "seeds": [cfg.seed],
        "steps": step,
        "seconds": seconds,
        "compile_seconds": clock.compile_seconds,
        "gradient_evaluations": evaluations,
        "batchnorm": batchnorm_statistics(model),
        "interval": "95 %, Student t over test tasks (over examples, for named tasks)",
        "parameters": sum(param.numel() for param in model.parameters()),
        "adaptation": {"way": chosen.way, "steps": stage, "chosen_by": f"validation {cfg.metric}"},
        "validation": {name: found.as_dict() for name, found in chosen.found.items()},
        "seen": measure(model, way, stage, test, seen, cfg.reference, built.evaluator)[0],
        "test": found,
        "curve": curve,
        "history": history,
    }
    folder.mkdir(parents=True, exist_ok=True)
    state = {**model.state_dict(), **{f"adapter.{k}": v for k, v in recipe.adapter.state_dict().items()}}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    write_json(folder / "result.json", result)
    return result


def _copy(model: torch.nn.Module, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    return tuple(  # type: ignore[return-value]
        {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        for module in (model, recipe.adapter)
    )


@hydra.main(version_base=None, config_path=CONF, config_name="train")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    result = run(cfg, folder)
    for split in ("seen", "test"):
        for name, found in result[split].items():
            print(f"{split:>5} {name}: {found['mean']:.4f} ± {found['ci95']:.4f} (n={found['n']})")
    print(f"{result['steps']} steps, {result['seconds']:.1f} s; {folder / 'result.json'}")


if __name__ == "__main__":
    main()
