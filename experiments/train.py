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

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metamtl import Estimate, Recipe, meta_backward
from metamtl.checkpoint import save_file
from metamtl.functional.atomic_write import atomic_write
from metamtl.nets import batchnorm_statistics
from metamtl.tasks import EpisodeLoader

from .tables.report import environment, write_json
from .utils import options, parts
from .utils.checkpoints import Interruption, RunFolder, exit_after
from .utils.command import command
from .utils.configs import CONF as CONF
from .utils.measure import Choice, as_dicts, choose, higher, measure, measure_batchnorm
from .utils.observation import TensorBoard, observed
from .utils.processes import by_first, from_first, is_first, largest, num_processes, own_part, process_group
from .utils.progress import Clock, Progress
from .utils.state import TrainingState
from .utils.streams import SEEN, SELECT, TEST, VALIDATION, sample, stream

WEIGHTS = "model.safetensors"


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
        FloatingPointError: a loss or a gradient is not finite, and `cfg.on_nonfinite` is "raise"; the
            weights are not finite; or a metric of the test is not, after the weights were written.
        OSError: a file cannot be written; those that were written before are unchanged.
        RuntimeError: another process trains in the folder.
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
        with TensorBoard(folder, state.step) as board:
            stop = train(cfg, built, state, run_folder, board)
            state.restore_best_weights()
            if is_first():
                save_weights(built, folder)  # before the test, which may fail
            try:
                result = {"config": config, "stopped_by": stop, **test(cfg, built, state, folder, board)}
            except FloatingPointError as error:
                raise FloatingPointError(f"the test of {folder / WEIGHTS}: {error}") from error
        if is_first():
            write_json(folder / "result.json", result)
    return from_first(result)  # seconds differ between processes


def save_weights(built: parts.Parts, folder: Path) -> None:
    """Write the state of the model and of the adapter."""
    tensors = built.model.state_dict()
    tensors |= {f"adapter.{name}": tensor for name, tensor in built.recipe.adapter.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as partial:
        save_file(partial, {name: tensor.contiguous() for name, tensor in tensors.items()})


def train(
    cfg: DictConfig, built: parts.Parts, state: TrainingState, run_folder: RunFolder, board: TensorBoard
) -> str:
    """The steps that remain, with validations and checkpoints; return what ended the training."""
    model, recipe, optimizer = built.model, built.recipe, built.optimizer
    clock = Clock(built.engine, built.evaluator, before=state.compile_seconds)
    validation_tasks = own_part(built.validation.sample(cfg.validate.tasks, stream(cfg.seed, VALIDATION)))
    draw = partial(sample, built.train, cfg.meta_batch, cfg.seed)
    every, relate_every = cfg.checkpoint.every, cfg.analyse.every
    training = iter(EpisodeLoader(draw, count(state.step), workers=cfg.workers, device=cfg.device))
    with Progress(cfg, clock, state) as progress, Interruption() as interruption:
        began, stored = clock(), state.step
        while True:
            # Clocks and signals differ between processes, so the first one decides.
            now = from_first(progress.decide())
            stop, state.validated = now.stop, now.validated
            signal = largest(interruption.signal or 0)
            if state.losses and (stop or now.validate):
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
                record(state, train_loss, choice, higher_is_better=higher(built.validation, cfg.metric))
                board.estimates("validation", state.step, choice.metrics)
                stop = stop or progress.out_of_patience()
                began = clock()
            due = (every and (state.step % every == 0 or stop)) or stop == "max_minutes"
            if signal or (due and state.step != stored):
                state.seconds += clock() - began
                state.compile_seconds, state.elapsed = clock.compile_seconds, progress.elapsed
                state.check_weights(run_folder)
                if is_first():
                    run_folder.save(state.step, state.state_dict())
                began, stored = clock(), state.step
            if signal:
                exit_after(signal, state.step, run_folder.path)
            if stop:
                state.compile_seconds = clock.compile_seconds
                return stop
            optimizer.zero_grad()
            episodes = next(training)
            state.evaluations += built.cost(episodes)
            episodes = own_part(episodes)
            relate = relate_every is not None and state.step % relate_every == 0
            used, observer = observed(recipe) if now.log or relate else (recipe, None)
            try:
                outcome = meta_backward(
                    model, used.at(state.step), episodes, built.train.loss, engine=built.engine
                )
            except FloatingPointError as error:
                state.skip_or_raise(error, cfg.on_nonfinite, run_folder)
                continue
            if observer is not None:
                board.step(state.step, outcome, observer, optimizer)
                if relate:
                    board.relatedness(state.step, outcome, observer)
                state.logged = now.logged
            optimizer.step()
            built.schedule.step()
            state.average.update_parameters(model)
            state.losses.append(outcome.losses.mean())
            state.step += 1
            state.skipped_in_a_row = 0
            progress.show()


def record(state: TrainingState, train_loss: float, choice: Choice, *, higher_is_better: bool) -> None:
    """Add a validation to the history; keep the weights if they are the best so far."""
    estimate = choice.estimate
    state.history.append(
        {
            "step": state.step,
            "seconds": state.seconds,
            "gradient_evaluations": state.evaluations,
            "train_loss": train_loss,
            "validation": estimate.mean,
            "ci95": estimate.ci95,
        }
    )
    gain = estimate.mean - (0.0 if state.best is None else state.best)
    state.validations_since_best += 1
    if state.best is None or (gain > 0 if higher_is_better else gain < 0):
        state.keep_weights(estimate.mean)


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


def test(
    cfg: DictConfig, built: parts.Parts, state: TrainingState, folder: Path, board: TensorBoard
) -> dict[str, Any]:
    """Select the adaptation strategy on validation tasks, and test once."""
    model, strategies, evaluator = built.model, built.strategies, built.evaluator
    select_tasks = own_part(built.validation.sample(cfg.select.tasks, stream(cfg.seed, SELECT)))
    choice = choose(model, strategies, built.validation, select_tasks, cfg.metric, cfg.reference, evaluator)
    strategy, stage = strategies[choice.strategy], choice.stage
    seen_tasks = own_part(built.source.split("train").sample(cfg.test.tasks, stream(cfg.seed, SEEN)))
    new_tasks = own_part(built.test.sample(cfg.test.tasks, stream(cfg.seed, TEST)))
    on_new, curve = measure(model, strategy, stage, built.test, new_tasks, cfg.reference, evaluator)
    on_seen, _ = measure(model, strategy, stage, built.test, seen_tasks, cfg.reference, evaluator)
    as_trained = test_as_trained(cfg, built, new_tasks)
    arguments = (strategy, stage, built.test, new_tasks, cfg.reference, evaluator)
    by_batchnorm = {} if isinstance(new_tasks, Mapping) else measure_batchnorm(model, on_new, *arguments)
    board.estimates("test", state.step, on_new)
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
        "skipped_steps": state.skipped,
        "seconds": state.seconds,
        "compile_seconds": state.compile_seconds,
        "gradient_evaluations": state.evaluations,
        "batchnorm": batchnorm_statistics(model),
        "interval": "95 %, Student t over test tasks (over examples, for named tasks)",
        "parameters": sum(param.numel() for param in model.parameters()),
        "adaptation": {
            "strategy": choice.strategy,
            "steps": stage,
            "chosen_by": f"validation {cfg.metric}",
        },
        "transductive": {
            "test": strategy.adapter.transductive,
            "as_trained": built.recipe.adapter.transductive,
        },
        "validation": as_dicts(choice.metrics),
        "seen": as_dicts(on_seen),
        "test": as_dicts(on_new),
        "test_by_batchnorm": {
            kind: None if found is None else as_dicts(found) for kind, found in by_batchnorm.items()
        },
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
    """Print the metrics of a training, and how it ended."""
    for split in ("seen", "test"):
        for name, found in result[split].items():
            print(f"{split:>5} {name}: {found['mean']:.4f} ± {found['ci95']:.4f} (n={found['n']})")
    if result["skipped_steps"]:
        print(f"{result['skipped_steps']} steps were skipped, because a loss or a gradient was not finite")
    if result["stopped_by"] == "patience":
        print("stopped early: validation did not improve (patience)")
    if result["stopped_by"] == "max_minutes":
        print(
            f"stopped by max_minutes={result['config']['max_minutes']}; run again with"
            f" hydra.run.dir={folder} and a larger max_minutes to go on"
        )
    print(
        f"{result['steps']} steps, {result['seconds']:.1f} s without compiling"
        f" ({result['compile_seconds']:.1f} s) and validation; {folder / 'result.json'}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
