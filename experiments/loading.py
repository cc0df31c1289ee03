"""Training with images that are read when they are drawn, beside the same images in memory.

`python -m experiments.loading` writes a folder of random JPEG images and trains ProtoNet with Conv-4 on the
same episodes from `ImageFolder`, read ahead by worker processes, and from `FewShot`, in turn. Reported is
the ratio of the throughputs, files to memory. Writes `loading.json`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn

from metamtl import Episode, engines, meta_backward, nets, recipes, tasks
from metamtl.datasets.image_files import read_image
from metamtl.tasks import EpisodeLoader, FewShot

from .tables.report import environment, write_json
from .utils.command import command

SIZE, PER_CLASS = 84, 20
NAMES = [f"class{number:02}" for number in range(12)]
WAYS, SHOTS, QUERIES = 5, 1, 15
STARTUP, AHEAD = 3, 2  # steps before the clock starts; episodes that each worker draws ahead


def write_images(folder: Path) -> None:
    """Noise of low frequency, so that the files are about as large as photographs."""
    from PIL import Image

    rng = torch.Generator().manual_seed(0)
    for name in NAMES:
        (folder / name).mkdir()
        images = torch.rand(PER_CLASS, 3, SIZE // 4, SIZE // 4, generator=rng)
        fine = nn.functional.interpolate(images, size=SIZE, mode="bicubic").clamp(0, 1)
        for number, image in enumerate((fine * 255).byte().movedim(1, -1)):
            Image.fromarray(image.numpy()).save(folder / name / f"{number:02}.jpg", quality=95)


def sources(folder: Path) -> dict[str, Any]:
    """Tasks from the files, and from a tensor with all images."""
    counts = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES}
    splits = {"train": NAMES[:-2], "validation": NAMES[-2:-1], "test": NAMES[-1:]}
    files = tasks.ImageFolder(folder, size=SIZE, splits=splits, **counts).split("train")
    paths = sorted(folder.glob("*/*.jpg"))
    images = torch.stack([read_image(path, SIZE) for path in paths])
    labels = [path.parent.name for path in paths]
    return {"files": files, "memory": FewShot(images, labels, classes=splits["train"], **counts)}


def trainer() -> Callable[[Episode], Tensor]:
    """A function that takes one training step, and returns the losses."""
    torch.manual_seed(0)
    model = nets.conv4(WAYS, channels=3, size=SIZE, downsample="pool")
    optimizer, recipe, engine = torch.optim.Adam(model.parameters()), recipes.protonet(), engines.Loop()

    def step(episode: Episode) -> Tensor:
        optimizer.zero_grad()
        losses = meta_backward(model, recipe, episode, FewShot.loss, engine=engine).losses
        optimizer.step()
        return losses

    return step


def timed(source: Any, workers: int, steps: int) -> tuple[float, Tensor]:
    """Seconds of a step, with the drawing of its episode, and the losses of the last one."""

    def draw(number: int) -> Episode:
        episode: Episode = source.sample(1, torch.Generator().manual_seed(number))
        return episode

    # Workers that have drawn ahead when the clock starts have done so when it stops, too.
    numbers = range(STARTUP + steps + AHEAD * max(workers, 1))
    episodes: Iterator[Episode] = iter(EpisodeLoader(draw, numbers, workers=workers, prefetch=AHEAD))
    step = trainer()
    for episode in islice(episodes, STARTUP):
        step(episode)
    start = time.perf_counter()
    for episode in islice(episodes, steps):
        losses = step(episode)
    return (time.perf_counter() - start) / steps, losses


def measured(folder: Path, workers: int, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of a step from files and from memory, in turn, and the ratio of their throughputs."""
    write_images(folder)
    both = sources(folder)
    seconds: dict[str, list[float]] = {name: [] for name in both}
    losses = {}
    for _ in range(rounds):
        for name, source in both.items():
            value, losses[name] = timed(source, workers if name == "files" else 0, steps)
            seconds[name].append(value)
    if not torch.equal(losses["files"], losses["memory"]):
        raise RuntimeError(f"the losses differ, so the trainings are different: {losses}.")
    files, memory = (statistics.median(seconds[name]) for name in ("files", "memory"))
    return {"seconds": seconds, "files": files, "memory": memory, "throughput": memory / files}


@command("loading")
def main(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with tempfile.TemporaryDirectory() as images:
        row = measured(Path(images), cfg.workers, cfg.rounds, cfg.steps)
    counts = {"workers": cfg.workers, "rounds": cfg.rounds, "steps": cfg.steps, "size": SIZE}
    write_json(folder / "loading.json", {**environment("cpu"), **counts, **row})
    print(
        f"memory {row['memory'] * 1e3:.1f} ms, files ({cfg.workers} workers) {row['files'] * 1e3:.1f} ms"
        f" per step: {row['throughput']:.2f} of the throughput"
    )
    print(folder / "loading.json")


if __name__ == "__main__":
    raise SystemExit(main())
