"""Memory and step time over a long training on sinusoids: `python -m experiments.endurance`.

The training is that of `experiments.train`, with its validations, checkpoints and log, in a new process for
each engine. The medians of the first and of the last tenth of the steps are compared. Writes
`endurance.json`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from . import train
from .tables.report import environment, write_json
from .utils.command import command
from .utils.recorded import Sources

# Validated early, so that what the first validation allocates is there in the first tenth.
OPTIONS = ("experiment=sinusoid", "recipe=maml", "device=cpu", "validate.times=100", "validate.tasks=10")


def measure(engine: str, steps: int, folder: Path) -> dict[str, list[float]]:
    """Train in this process; return the seconds and the memory of a step, in each tenth of the steps."""
    sources = Sources()
    options = [*OPTIONS, f"steps={steps}", f"checkpoint.every={max(1, steps // 20)}"]
    if engine != "Auto":
        options.append(f"engine={{_target_: metamtl.engines.{engine}}}")
    with initialize_config_dir(version_base=None, config_dir=train.CONF):
        train.run(compose("train", options), folder, sources)
    (recorded,) = sources.built.values()
    times = recorded.seconds[: steps + 1]
    seconds = [after - before for before, after in pairwise(times)]
    tenth = max(1, steps // 10)
    return {
        name: [statistics.median(values[first : first + tenth]) for first in range(0, 10 * tenth, tenth)]
        for name, values in (("seconds", seconds), ("memory_mib", recorded.memory[:steps]))
    }


def fresh(engine: str, steps: int) -> dict[str, Any]:
    """`measure` in a new process, and the changes from the first to the last tenth."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import json, pathlib; from experiments import endurance;"
            f" print(json.dumps(endurance.measure({engine!r}, {steps}, pathlib.Path({folder!r}))))"
        ).replace("experiments import", f"{__package__} import")
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the training with {engine} failed: {done.stderr}")
    tenths: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    changes = {
        "time_change": tenths["seconds"][-1] / tenths["seconds"][0] - 1,
        "memory_growth": tenths["memory_mib"][-1] / tenths["memory_mib"][0] - 1,
    }
    return {**tenths, **changes}


@command("endurance")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    rows = {engine: fresh(engine, cfg.steps) for engine in cfg.engines}
    write_json(folder / "endurance.json", {**environment("cpu"), "steps": cfg.steps, "engines": rows})
    for engine, row in rows.items():
        print(
            f"{engine:>9}: step {row['seconds'][0] * 1e3:.2f} ms, then {row['seconds'][-1] * 1e3:.2f} ms"
            f" ({row['time_change']:+.1%}); memory {row['memory_mib'][0]:.1f} MiB, then"
            f" {row['memory_mib'][-1]:.1f} MiB ({row['memory_growth']:+.2%})"
        )
    print(f"{folder / 'endurance.json'}")


if __name__ == "__main__":
    raise SystemExit(main())
