"""Train one recipe and test it: `python -m experiments.train experiment=glyphs_5way_1shot seed=0`.

The output folder receives `result.json`, `model.safetensors`, a TensorBoard log and, with
`checkpoint.every=N`, checkpoints. Rerun with the same folder to resume.

Examples:
  metamtl train experiment=sinusoid recipe=maml seed=1
  metamtl train experiment=omniglot_5way_1shot checkpoint.every=100 hydra.run.dir=outputs/first
  metamtl train optimizer._target_=torch.optim.SGD optimizer.momentum=0.9 optimizer.lr=0.01
  metamtl train -m hydra/launcher=processes recipe=maml,anil seed=0,1,2 hydra.sweep.dir=outputs/sweep
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from metamtl import Estimate, Recipe, meta_backward
from metamtl.functional.atomic_write import atomic_write
from metamtl.losses import WithTeachers
from metamtl.nets import batchnorm_statistics

from .tables.report import environment, write_json
from .utils import options, parts
from .utils.checkpoints import Interruption, RunFolder, exit_after
from .utils.command import command
from .utils.configs import CONF as CONF
from .utils.measure import as_dicts, choose, higher, measure
from .utils.processes import by_first, from_first, is_first, largest, num_processes, own_part, process_group
from .utils.progress import Clock, Progress
from .utils.state import TrainingState

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
    """Train and test one recipe; write into `folder` and return the content of `result.json`.

    If the folder has the result of the same config, it is returned. If it has checkpoints, training
    continues from the newest one.

    Raises:
        ValueError: options that cannot work, or the folder belongs to another config.
        FileExistsError: the folder has a training, and `cfg.resume` is False.
        FloatingPointError: a loss or a gradient is not finite.
        SystemExit: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    if cfg.device == "auto":
        cfg.device = device()
    options.check(cfg, "train")
    config: Any = OmegaConf.to_container(cfg, resolve=False)
    run_folder = by_first(lambda: RunFolder(folder, config, resume=cfg.resume, keep=cfg.checkpoint.keep))
    result = by_first(run_folder.result)
    if result is not None:
        return result
    built = parts.build(cfg, sources)
    with run_folder.locked() if is_first() else nullcontext():
        from_first(None)  # the others begin once the first process has the folder
        state = TrainingState(built, cfg.average)
        saved = by_first(run_folder.newest)
        if saved is not None:
            state.load_state_dict(saved)
        train(cfg, built, state, run_folder)
        result = {"config": config, **test(cfg, built, state, folder)}
        tensors = built.model.state_dict()
        tensors |= {f"adapter.{name}": tensor for name, tensor in built.recipe.adapter.state_dict().items()}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if is_first():
            with atomic_write(folder / "model.safetensors") as partial:
                save_file(contiguous, partial)
            write_json(folder / "result.json", result)
    return from_first(result)  # seconds differ between processes


def train(cfg: DictConfig, built: parts.Parts, state: TrainingState, run_folder: RunFolder) -> None:
    """The steps that remain, with validations and checkpoints."""
    model, recipe, optimizer = built.model, built.recipe, built.optimizer
    clock = Clock(built.engine, built.evaluator, before=state.compile_seconds)
    validation_tasks = own_part(built.validation.sample(cfg.validate.tasks, stream(cfg.seed, VALIDATION)))
    larger_is_better = higher(built.validation, cfg.metric)
    with (
        Progress(cfg, clock, state) as progress,
        SummaryWriter(str(run_folder.path), purge_step=state.step or None)
        if is_first()
        else nullcontext() as log,
        Interruption() as interruption,
    ):
        began, stored = clock(), state.step
        while True:
            # Clocks and signals differ between processes, so the first one decides.
            done, due, state.validated = from_first(progress.decide())
            signal = largest(interruption.signal or 0)
            if state.losses and (done or due):
                train_loss = float(torch.stack(state.losses).mean())  # waits for the device
                state.losses.clear()
                state.seconds += clock() - began  # only training, without validation and compiling
                choice = choose(
                    state.average.module,
                    built.strategies,
                    built.validation,
                    validation_tasks,
                    cfg.metric,
                    cfg.reference,
                    built.evaluator,
                )
                entry = {
                    "step": state.step,
                    "seconds": state.seconds,
                    "gradient_evaluations": state.evaluations,
                    "train_loss": train_loss,
                    "validation": choice.estimate.mean,
                    "ci95": choice.estimate.ci95,
                }
                state.history.append(entry)
                if log is not None:
                    log.add_scalar("loss/train", train_loss, state.step)
                    log.add_scalar(f"{cfg.metric}/validation", choice.estimate.mean, state.step)
                gain = choice.estimate.mean - (0.0 if state.best is None else state.best)
                if state.best is None or (gain > 0 if larger_is_better else gain < 0):
                    state.keep_weights(choice.estimate.mean)
                began = clock()
            every = cfg.checkpoint.every
            store = every and (state.step % every == 0 or done) and state.step != stored
            if signal or store:
                state.seconds += clock() - began
                state.compile_seconds, state.elapsed = clock.compile_seconds, progress.elapsed
                if is_first():
                    run_folder.save(state.step, state.state_dict())
                began, stored = clock(), state.step
            if signal:
                exit_after(signal, state.step, run_folder.path)
            if done:
                state.compile_seconds = clock.compile_seconds
                return
            optimizer.zero_grad()
            generator = stream(cfg.seed, TRAIN, state.step)
            episodes = own_part(sample(built.train, cfg.meta_batch, generator, state.step))
            try:
                outcome = meta_backward(model, recipe, episodes, built.train.loss, engine=built.engine)
            except FloatingPointError as error:
                raise FloatingPointError(f"step {state.step}: {error}") from error
            optimizer.step()
            built.schedule.step()
            state.average.update_parameters(model)
            state.losses.append(outcome.losses.mean())
            state.step += 1
            state.evaluations += outcome.gradient_evaluations
            progress.show()


def sample(source: Any, num_tasks: int, generator: torch.Generator, step: int) -> Any:
    """The episodes of a training step. A source that has a schedule is told the step."""
    inner = source.tasks if isinstance(source, WithTeachers) else source
    scheduled = "step" in inspect.signature(inner.sample).parameters
    return source.sample(num_tasks, generator, **({"step": step} if scheduled else {}))


def test_as_trained(cfg: DictConfig, built: parts.Parts, episodes: Any) -> dict[str, Estimate] | None:
    """Every metric with the adapter of the training, learned parameters included.

    None for named tasks, which adapt to nothing, and for an adapter that knows only the training tasks,
    such as a table of heads.
    """
    if isinstance(episodes, Mapping):
        return None
    try:
        built.recipe.adapter.check(built.model, episodes.task)
    except ValueError:
        return None
    recipe = Recipe(built.recipe.adapter)
    return measure(built.model, recipe, -1, built.test, episodes, cfg.reference, built.evaluator)[0]


def test(cfg: DictConfig, built: parts.Parts, state: TrainingState, folder: Path) -> dict[str, Any]:
    """Load the best weights, select the adaptation strategy on validation tasks, and test once."""
    model, strategies, evaluator = built.model, built.strategies, built.evaluator
    state.restore_best_weights()
    more = own_part(built.validation.sample(cfg.select.tasks, stream(cfg.seed, SELECT)))
    choice = choose(model, strategies, built.validation, more, cfg.metric, cfg.reference, evaluator)
    strategy, stage = strategies[choice.way], choice.stage
    seen = own_part(built.source.split("train").sample(cfg.test.tasks, stream(cfg.seed, SEEN)))
    new = own_part(built.test.sample(cfg.test.tasks, stream(cfg.seed, TEST)))
    on_new, curve = measure(model, strategy, stage, built.test, new, cfg.reference, evaluator)
    on_seen, _ = measure(model, strategy, stage, built.test, seen, cfg.reference, evaluator)
    as_trained = test_as_trained(cfg, built, new)
    if is_first():
        values = {"test": on_new, "test_as_trained": as_trained or {}}
        lists = {
            split: {name: estimate.values.tolist() for name, estimate in estimates.items()}
            for split, estimates in values.items()
        }
        write_json(folder / "tasks.json", lists)
    return {
        **environment(cfg.device),
        "processes": num_processes(),
        "seeds": [cfg.seed],
        "steps": state.step,
        "seconds": state.seconds,
        "compile_seconds": state.compile_seconds,
        "gradient_evaluations": state.evaluations,
        "batchnorm": batchnorm_statistics(model),
        "interval": "95 %, Student t over test tasks (over examples, for named tasks)",
        "parameters": sum(param.numel() for param in model.parameters()),
        "adaptation": {"way": choice.way, "steps": stage, "chosen_by": f"validation {cfg.metric}"},
        "validation": as_dicts(choice.found),
        "seen": as_dicts(on_seen),
        "test": as_dicts(on_new),
        "test_as_trained": None if as_trained is None else as_dicts(as_trained),
        "curve": [as_dicts(entry) for entry in curve],
        "history": state.history,
    }


@command("train")
def main(cfg: DictConfig) -> None:
    with process_group():
        folder = from_first(Path(HydraConfig.get().runtime.output_dir))
        result = run(cfg, folder)
        if is_first():
            report(result, folder)


def report(result: dict[str, Any], folder: Path) -> None:
    """Print the metrics of a training."""
    for split in ("seen", "test"):
        for name, found in result[split].items():
            print(f"{split:>5} {name}: {found['mean']:.4f} ± {found['ci95']:.4f} (n={found['n']})")
    print(f"{result['steps']} steps, {result['seconds']:.1f} s; {folder / 'result.json'}")


if __name__ == "__main__":
    main()
