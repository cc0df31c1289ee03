"""A command: Hydra's command line around a function, with errors that say what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from .configs import CONF, explain, fit, given
from .options import OptionError, check

# Something is missing: an option, an extra, a data set, the network.
EXPECTED = (OptionError, ImportError, FileNotFoundError, ConnectionError)


def command(
    name: str, words: str | None = None
) -> Callable[[Callable[[DictConfig], None]], Callable[[], int]]:
    """Make a function of a config the command `name`, whose config is `conf/<name>.yaml`.

    `words` are those of the command line, if they differ from the name.

    All options are checked before the function is called. The command prints what is wrong with an option,
    and what is missing, to standard error and returns 2; any other error has its traceback, and all have
    with HYDRA_FULL_ERROR=1.
    """

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], int]:
        running = False  # what fails before is the composition of the config

        @hydra.main(version_base=None, config_path=CONF, config_name=name)
        @wraps(function)
        def job(cfg: DictConfig) -> None:
            nonlocal running
            running = True
            fit(cfg, name, given(HydraConfig.get().overrides.task))
            check(cfg, name)
            function(cfg)

        @wraps(function)
        def main() -> int:
            # Hydra's own handler would print a traceback for every error of a job.
            nonlocal running
            running = False
            traceback = os.environ.setdefault("HYDRA_FULL_ERROR", "0") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                job()
            except Exception as error:
                if traceback or (running and not isinstance(error, EXPECTED)):
                    raise
                print(f"metamtl {words or name}: {error if running else explain(error)}", file=sys.stderr)
                return 2
            return 0

        return main

    return decorate
