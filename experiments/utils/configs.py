"""Compose configs; explain what Hydra rejects; fit the options of a default to a replaced `_target_`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from .nearest import hint
from .options import TABLES
from .targets import OptionError, accepts, import_target, targets

log = logging.getLogger(__name__)
CONF = str(Path(__file__).resolve().parents[1] / "conf")

GROUPS = ("net", "recipe", "optimizer")  # config groups: a method may select one config of each
# Sections that take keys which their defaults do not have, without `+`: optimizer.weight_decay=1e-4. The
# signatures of their targets say which keys they have.
OPEN = {
    "training": ("task", "net", "recipe", "optimizer", "schedule", "adapt", "trivial", "train_task"),
    "multitask": ("methods", "tune"),
    "grid": ("aggregators", "tune"),
    "search": ("tune",),
    "curves": ("methods", "tune"),
}


def _store_open_sections() -> None:
    """Let the configs name `open_sections/<command>` in their defaults; YAML has no flags of its own."""
    for name, sections in OPEN.items():
        node = OmegaConf.create({section: {} for section in sections})
        for section in sections:
            node[section]._set_flag("struct", False)
        ConfigStore.instance().store(name, node, group="open_sections", package="_global_")


_store_open_sections()


def compose(name: str, overrides: Iterable[str] = ()) -> DictConfig:
    """Compose a config as the command line does.

    Raises:
        OptionError: an override that Hydra rejects; the message names the nearest known option or config.
    """
    overrides = list(overrides)
    try:
        cfg = hydra.compose(name, overrides)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise explain(error) from error
    fit(cfg, name, given(overrides))
    return cfg


def with_changes(overrides: Iterable[str], changes: DictConfig, seed: int) -> DictConfig:
    """The config of a training with the changes of a method: values, or the name of a config of a group."""
    overrides = list(overrides)
    groups = {group: changes[group] for group in GROUPS if isinstance(changes.get(group), str)}
    selection = [f"{group}={choice}" for group, choice in groups.items()]
    config = compose("train", [*overrides, *selection, f"seed={seed}"])
    OmegaConf.set_struct(config, False)  # methods may add options
    config.merge_with({key: value for key, value in changes.items_ex(resolve=False) if key not in groups})
    in_method: Any = OmegaConf.to_container(changes, resolve=False)
    drop_leftovers(config, {*given(overrides), *dotted(in_method)})
    return config


def explain(error: Exception) -> OptionError:
    """The error of an override that Hydra rejects, in the words of this project."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group in ("hydra/launcher", "hydra/sweeper"):
            install = "The launchers need packages: pip install 'metamtl[sweeps]'."
            return OptionError(f"{group}={choice}: there is no such config. {install}")
        return OptionError(f"{group}={choice}: there is no such config; {hint(choice, error.options)}")
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(
        cause.parent_node, DictConfig
    ):
        full_key = cause.full_key or str(cause.key)
        section = full_key.rpartition(".")[0]
        known = [] if cause.parent_node._is_none() else [str(key) for key in cause.parent_node]
        if not known:
            return OptionError(f"{full_key} is not an option: {section} has no parts; set {section}=...")
        known = [key for key in known if key != "hydra"]
        return OptionError(f"{full_key} is not an option; {hint(str(cause.key), known)}")
    lines = f"{error}\n{cause or ''}".splitlines()
    return OptionError(" ".join(line.strip() for line in lines if line.strip()))


def fit(cfg: DictConfig, command: str, changed: Collection[str]) -> None:
    """Drop what config files have for other commands, and what `drop_leftovers` drops.

    An experiment may say which `recipes` a comparison has; a training has no such option. It is an error if
    the command line sets it.
    """
    foreign = {name.partition(".")[0] for table in TABLES.values() for name in table}
    own = {name.partition(".")[0] for name in TABLES[command]}
    OmegaConf.set_struct(cfg, False)
    for key in [str(key) for key in cfg]:
        if key in foreign - own and key not in {name.partition(".")[0] for name in changed}:
            del cfg[key]
    OmegaConf.set_struct(cfg, True)
    drop_leftovers(cfg, changed)


def drop_leftovers(cfg: DictConfig, changed: Collection[str]) -> None:
    """Drop options of a default that do not belong to the target which was put in its place.

    After `schedule._target_=torch.optim.lr_scheduler.StepLR`, the options of the default schedule remain in
    the config. Those that the new target accepts stay; the others, and positional arguments, are dropped,
    unless they are among the `changed` options.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=False)
    for place, options, target in targets(config):
        owner = "task" if place == "train_task" else place
        if f"{owner}._target_" not in changed:
            continue
        try:
            function = import_target(owner, target)
        except (ImportError, OptionError):
            continue  # reported with all other options
        for key in options:
            if not accepts(function, key) and f"{place}.{key}" not in changed:
                del OmegaConf.select(cfg, place)[key]
                log.info("%s.%s of the default is dropped: %s does not have it", place, key, target)


def given(overrides: Iterable[str]) -> set[str]:
    """The dotted names of all values that the overrides set."""
    names: set[str] = set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_delete() and not override.is_sweep_override():
            names |= {override.key_or_group, *dotted(override.value(), f"{override.key_or_group}.")}
    return names


def dotted(value: Any, prefix: str = "") -> Iterator[str]:
    """The names in nested mappings: `{"optimizer": {"lr": 1}}` has `optimizer` and `optimizer.lr`."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield f"{prefix}{key}"
        yield from dotted(inner, f"{prefix}{key}.")
