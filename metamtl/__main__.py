"""The command line: `metamtl COMMAND ...`, or `python -m metamtl COMMAND ...`."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

COMMANDS = {
    "train": "train one recipe and test it",
    "compare": "train several recipes with the same budget and compare them",
    "multitask": "multi-task methods against single-task models",
    "grid": "aggregators on meta-gradients",
    "search": "search for learning rates: grid, random, or Optuna",
    "analyse": "a report on a finished training: adaptation, relatedness, conflict, what to try next",
    "analyse group": "which tasks should share a model: trained together, apart and grouped",
    "curves": "the error after every inner step, for several methods and shots",
    "collect": "one table of the trainings of a sweep",
    "new_task": "add a task to trained text encoders",
    "toy": "all aggregators on two losses of two parameters",
    "endurance": "memory and step time over a long training",
    "cost": "time and memory of a multi-task step",
    "analysis_cost": "passes and time of the matrices of relatedness",
    "scaling": "throughput of one process and of several",
    "loading": "throughput with images from files and from memory",
    "bench": "speed and memory beside learn2learn and higher",
    "prepare": "prepare a data set from its official files",
    "list": "the experiments, recipes, tasks, nets and aggregators that there are",
    "init": "write an experiment of your own into a folder, as a start",
}
HELP = """usage: metamtl COMMAND [OPTION=VALUE ...]

commands:
{commands}

examples:
  metamtl train experiment=sinusoid recipe=maml seed=1
  metamtl compare experiment=glyphs_5way_1shot 'recipes=[mtl,anil,maml,protonet]' 'seeds=[0,1,2]'
  metamtl train experiment=omniglot_5way_1shot checkpoint.every=100 hydra.run.dir=outputs/first
  metamtl search experiment=sinusoid search.trials=20 'tune={{inner.lr:{{low:1e-3,high:1,log:true}}}}'
  metamtl train -m recipe=maml,anil seed=0,1,2 hydra.sweep.dir=outputs/sweep
  metamtl collect outputs/sweep
  metamtl analyse run=outputs/first
  metamtl analyse group experiment=tox21 models=3
  metamtl init my_experiment

`metamtl COMMAND --help` explains a command; `metamtl COMMAND --cfg job` prints its options.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<13} {text}" for name, text in COMMANDS.items()]
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    command, options = " ".join(arguments[:words]), arguments[words:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}."
        print(f"metamtl: {command!r} is not a command; {remedy}", file=sys.stderr)
        return 2
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a `_target_` may be a module of the user's folder
    try:
        module = _module(command)
    except ImportError as error:
        if error.name and not error.name.startswith(("metamtl", "experiments")):
            print(
                f"metamtl {command} needs {error.name}: pip install 'metamtl[experiments]'.",
                file=sys.stderr,
            )
            return 1
        raise
    if options in (["-h"], ["--help"]):
        print((module.__doc__ or "").strip())
        return 0
    sys.argv = [f"metamtl {command}", *options]
    return module.main() or 0


def _module(command: str) -> ModuleType:
    if command == "prepare":
        return importlib.import_module("metamtl.datasets.prepare")
    names = {
        "list": "utils.listing",
        "init": "utils.initialize",
        "collect": "utils.collect",
        "analyse group": "group",
    }
    name = names.get(command, command)
    try:
        return importlib.import_module(f"metamtl.experiments.{name}")
    except ModuleNotFoundError as error:
        # In a checkout the folder is beside the package.
        root = Path(__file__).resolve().parents[1]
        if error.name != "metamtl.experiments" or not (root / "experiments" / "train.py").is_file():
            raise
        sys.path.append(str(root))
        return importlib.import_module(f"experiments.{name}")


if __name__ == "__main__":
    sys.exit(main())
