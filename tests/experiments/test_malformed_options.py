"""Options that cannot work are named, with what is allowed, before anything is built."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from experiments.utils import configs, options
from experiments.utils.search import Search

BASES: dict[str, DictConfig] = {}


@pytest.fixture(autouse=True)
def hydra_configs() -> Iterator[None]:
    with initialize_config_dir(version_base=None, config_dir=configs.CONF):
        yield


def composed(command: str, *overrides: str) -> DictConfig:
    """As `configs.compose`, for overrides of values: the files are read once for all tests."""
    if command not in BASES:
        BASES[command] = configs.compose(command)
    cfg = deepcopy(BASES[command])
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        ConfigLoaderImpl._apply_overrides_to_config(parsed, cfg)
    except HydraException as error:
        raise configs.explain(error) from error
    configs.fit(cfg, command, configs.given(overrides))
    return cfg


def checked(command: str, *overrides: str) -> DictConfig:
    cfg = composed(command, *overrides)
    options.check(cfg, command)
    if "search" in cfg:
        Search(cfg)
    return cfg


COUNTS = [
    *("meta_batch", "tasks_per_step", "validate.times", "validate.tasks", "select.tasks", "test.tasks"),
    "checkpoint.keep",
]
WRONG: list[tuple[str, str, str]] = [
    *(("train", f"{name}={value}", f"{name}=.*a positive integer") for name in COUNTS
      for value in ("0", "-1", "1.5", "many", "true", "[1]")),
    *(("train", f"{name}={value}", f"{name}=.*a positive .*or null for no limit")
      for name in ("steps", "gradient_evaluations", "max_minutes") for value in ("0", "-5", "abc", "nan")),
    ("train", "steps=1.5", "steps=1.5: expected a positive integer"),
    ("train", "steps=null", "training would never end"),
    ("train", "seed=-1", "seed=-1: expected a non-negative integer"),
    ("train", "seed=0.5", "seed=0.5: expected a non-negative integer"),
    ("train", "seed=[0]", "seed=.*a non-negative integer"),
    ("train", "average=1", "average=1: expected a decay"),
    ("train", "average=-0.1", "average=-0.1: expected a decay"),
    ("train", "inner.lr=abc", "inner.lr=abc: expected a number"),
    ("train", "inner.lr=null", "inner.lr=None: expected a number"),
    ("train", "inner.lr=[0.1,a]", "inner.lr=.*or a list of numbers"),
    ("train", "inner.steps=-1", "inner.steps=-1: expected a non-negative integer"),
    ("train", "inner=3", "inner=3: expected a mapping; its options are inner.steps, inner.lr"),
    ("train", "checkpoint.every=0", "checkpoint.every=0: expected a positive integer, or null"),
    ("train", "resume=maybe", "resume=maybe: expected true or false"),
    ("train", "resume=1", "resume=1: expected true or false"),
    ("train", "device=gpu", "device=gpu: expected auto"),
    ("train", "device=cuda:99", "device=cuda:99: expected auto"),
    ("train", "device=0", "device=0: expected auto"),
    ("train", "device=null", "device=None: expected auto"),
    ("train", "metric=3", "metric=3: expected a name"),
    ("train", "metric=null", "metric=None: expected a name"),
    ("train", "data_dir=3", "data_dir=3: expected a folder, or null"),
    ("train", "reference={mse:a}", "reference=.*a mapping from names to numbers"),
    ("train", "teachers=folder", "teachers=folder: expected a mapping from tasks to folders"),
    ("train", "distillation.weight=2", "distillation.weight=2: expected a number from 0 to 1"),
    ("train", "engine=Vmap", "engine=Vmap: expected a mapping with _target_"),
    ("train", "engine={steps:3}", "engine=.*expected a mapping with _target_"),
    ("train", "engine._target_=metamtl.engines.Vmap", "engine._target_ is not an option"),
    ("train", "train_task=3", "train_task=3: expected a mapping"),
    ("train", "optimizer.lr=abc", "optimizer.lr=abc: torch.optim.Adam expects float"),
    ("train", "optimizer.lr=nan", "optimizer.lr=nan: torch.optim.Adam expects float"),
    ("train", "optimizer.betas=3", "optimizer.betas=3: torch.optim.Adam expects tuple"),
    ("train", "optimizer.amsgrad=abc", "optimizer.amsgrad=abc: torch.optim.Adam expects bool"),
    ("train", "task.shots=many", "task.shots=many: metamtl.tasks.Sinusoid expects int"),
    ("train", "task.shots=1.5", "task.shots=1.5: metamtl.tasks.Sinusoid expects int"),
    ("train", "task.shots=null", "task.shots=None: metamtl.tasks.Sinusoid expects int"),
    ("train", "adapt.all.steps=x", "adapt.all.steps=x: metamtl.adapters.Gradient expects int"),
    # unknown names, with the nearest
    ("train", "stepz=3", "stepz is not an option; did you mean 'steps'"),
    ("train", "+stepz=3", "stepz is not an option; did you mean 'steps'"),
    ("train", "++stepz=3", "stepz is not an option; did you mean 'steps'"),
    ("train", "validate.taks=3", "validate.taks is not an option; did you mean 'tasks'"),
    ("train", "+validate.taks=3", "validate.taks is not an option; did you mean 'tasks'"),
    ("train", "checkpoint.evry=3", "checkpoint.evry is not an option; did you mean 'every'"),
    ("train", "inner.rate=3", "inner.rate is not an option"),
    ("train", "recipee=maml", "recipee is not an option; did you mean 'recipe'"),
    ("train", "seeds=[0]", "seeds is not an option; did you mean 'seed'"),
    ("train", "+seeds=[0]", "seeds is not an option; compare, .* has it"),
    ("train", "steps.x=3", "steps.x is not an option"),
    ("train", "optimizer.weigth_decay=1", "Adam has no option 'weigth_decay'; did you mean 'weight_decay'"),
    ("train", "optimizer.momentum=0.9", "optimizer.momentum: torch.optim.Adam has no option 'momentum'"),
    ("train", "task.shot=1", "Sinusoid has no option 'shot'; did you mean 'shots'"),
    ("train", "train_task.shot=1", "train_task.shot: .*did you mean 'shots'"),
    ("train", "net.hiden=1", "net.hiden: metamtl.nets.mlp has no option 'hiden'"),
    ("train", "recipe.step=1", "maml has no option 'step'; did you mean 'steps'"),
    ("train", "adapt.all.adapt=1", "Gradient has no option 'adapt'; did you mean 'adapts'"),
    ("train", "schedule.factr=1", "ConstantLR has no option 'factr'; did you mean 'factor'"),
    ("train", "adapt.mine={steps:1}", "adapt=.*mappings with _target_"),
    # targets
    ("train", "net._target_=metamtl.nets.conv5", "metamtl.nets has no 'conv5'; did you mean 'conv4'"),
    ("train", "optimizer._target_=torch.optim.Adan", "torch.optim has no 'Adan'; did you mean 'Adam'"),
    ("train", "optimizer._target_=SGD", "optimizer._target_=SGD: expected the dotted path"),
    ("train", "optimizer._target_=torch..SGD", "expected the dotted path"),
    ("train", "optimizer._target_=torch.optim.SGD.step.x", "it has no 'x'"),
    ("train", "task._target_=os.path.sep", "os.path.sep is a str; it cannot be called"),
    ("train", "task._target_=3", "task=.*expected a mapping with _target_"),
    ("train", "recipe._target_=metamtl.recipes.mtl", "metamtl.recipes.mtl requires ids, features"),
    # deleted
    ("train", "~steps", "steps is missing"),
    ("train", "~inner", "inner.steps is missing"),
    ("train", "~validate.tasks", "validate.tasks is missing"),
    # commands with lists
    *((command, f"seeds={value}", "seeds=.*a list of different seeds")
      for command in ("compare", "multitask", "grid", "search")
      for value in ("3", "[]", "[1,1]", "[one]", "[-1]", "null")),
    ("compare", "seeds=3", r"For a single one: seeds=\[3\]"),
    ("compare", "recipes=maml", r"recipes=maml: expected a list.*For a single one: recipes=\[maml\]"),
    ("compare", "recipes=[]", "with at least one entry"),
    ("compare", "recipes=[maml,maml]", "maml is in the list twice"),
    ("compare", "recipes=[3]", "recipes=.*a list of different names"),
    ("compare", "recipe_s=[3]", "recipe_s is not an option; did you mean 'recipes'"),
    ("multitask", "run=equal", r"run=equal: expected a list.*run=\[equal\]"),
    ("multitask", "run=[equal,equal]", "equal is in the list twice"),
    ("multitask", "tune_seeds=100", "tune_seeds=100: expected a list"),
    ("multitask", "methods.mine=3", "methods=.*a mapping from names to changes"),
    ("multitask", "methods.mine={recipe:{aggregator:{_target_:metamtl.aggregators.PCGrat}}}", "'PCGrad'"),
    ("grid", "adapts=head", r"adapts=head: expected a list.*adapts=\[head\]"),
    ("grid", "inner_steps=3", r"inner_steps=3: expected a list.*inner_steps=\[3\]"),
    ("grid", "inner_steps=[-1]", "inner_steps=.*numbers of inner steps"),
    ("grid", "measures=mse", r"measures=mse: expected a list"),
    ("grid", "gain.mean=a", "gain.mean=a: expected a number"),
    ("grid", "gain.worst=1", "gain.worst is not an option; did you mean 'worst_tenth'"),
    ("grid", "aggregators.CAGrad.d=1", "CAGrad has no option 'd'"),
    ("grid", "against=3", "against=3: expected a name"),
    # searches
    ("search", "search.method=bayes", "search.method=bayes: expected grid, random or optuna"),
    ("search", "search.trials=0", "search.trials=0: expected a positive integer"),
    ("search", "search.trials=null", "search.method=random needs a number of trials"),
    ("search", "search.method=grid", "search.trials=20 has no effect on search.method=grid"),
    ("search", "search.seed=-1", "search.seed=-1: expected a non-negative integer"),
    ("search", "tune=3", "tune=3: expected a mapping from options"),
    ("search", "tune={optimizer.lr:1e-3}", "optimizer.lr=0.001: expected a list of values to try"),
    ("search", "tune={optimizer.lr:[]}", "expected a list of values to try"),
    ("search", "tune={optimzer.lr:[1]}", "optimzer.lr is not an option; did you mean 'optimizer'"),
    *(("search", f"tune={{optimizer.lr:{interval}}}", "expected an interval {low, high, log}")
      for interval in ("{low:1}", "{low:2,high:1}", "{low:a,high:1}", "{low:0,high:1,log:true}",
                       "{low:1,high:2,log:yess}", "{low:1,high:2,step:1}")),
    ("search", "tune={}", "tune is empty"),
    # other commands
    ("toy", "steps=0", "steps=0: expected a positive integer"),
    ("toy", "aggregators=Mean", r"aggregators=Mean: expected a list.*aggregators=\[Mean\]"),
    ("toy", "stesp=1", "did you mean 'steps'"),
    ("cost", "rounds=a", "rounds=a: expected a positive integer"),
    ("bench", "auto.steps=-1", "auto.steps=-1: expected a positive integer"),
    ("bench", "memory_steps=[0]", "memory_steps=.*a list of different numbers of steps"),
    ("new_task", "rows=equal", r"rows=equal: expected a list"),
    ("new_task", "ways=0", "ways=0: expected a positive integer"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "override", "message"), WRONG)
def test_a_wrong_option_is_named(command: str, override: str, message: str) -> None:
    more = {"new_task": ["multitask=folder"], "analyse": ["run=folder"]}.get(command, [])
    with pytest.raises(options.OptionError, match=message):
        checked(command, *more, override)


def test_there_are_many() -> None:
    assert len(WRONG) >= 120


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe=mamll", "recipe=mamll: there is no such config; did you mean 'maml'"),
        ("experiment=sinusoit", "experiment=sinusoit: there is no such config; did you mean 'sinusoid'"),
        ("adapt=3", "must be a string or a list"),
        ("steps=[1", "no viable alternative"),
        ("steps", "steps"),
        ("inner=[1]", "inner"),
        ("hydra/launcher=slurmm", r"pip install 'metamtl\[sweeps\]'"),
    ],
)
def test_what_hydra_rejects_is_explained(override: str, message: str) -> None:
    with pytest.raises(options.OptionError, match=message):
        configs.compose("train", [override])


def test_a_missing_module_is_an_import_error() -> None:
    with pytest.raises(
        ImportError, match=r"net._target_=no.such cannot be imported: .*No module named 'no'"
    ):
        checked("train", "net._target_=no.such")


@pytest.mark.parametrize("command", sorted(options.TABLES))
def test_the_tables_have_the_options_of_the_configs(command: str) -> None:
    cfg = OmegaConf.to_container(configs.compose(command), resolve=False)

    def exists(name: str) -> bool:
        node: Any = cfg
        for part in name.split("."):
            if part not in node:
                return False
            node = node[part]
        return True

    assert [name for name in options.TABLES[command] if not exists(name)] == []
    more = {"new_task": ["multitask=folder"], "analyse": ["run=folder"]}.get(command, [])
    overrides = ["search.trials=2", "tune={inner.lr:[1]}"] if command == "search" else []
    checked(command, *more, *overrides)


STEP = "schedule._target_=torch.optim.lr_scheduler.StepLR"


def test_leftovers_of_a_replaced_target_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = checked("train", STEP, "schedule.step_size=10")
    assert dict(cfg.schedule) == {"_target_": STEP.partition("=")[2], "_partial_": True, "step_size": 10}
    with pytest.raises(options.OptionError, match="StepLR has no option 'factor'"):
        checked("train", STEP, "schedule.step_size=10", "schedule.factor=0.3")
    cfg = checked("train", "optimizer._target_=torch.optim.SGD", "optimizer.momentum=0.9")
    assert cfg.optimizer.lr == 1e-3 and cfg.optimizer.momentum == 0.9
    assert checked("train", "optimizer.weight_decay=1e-4").optimizer.weight_decay == 1e-4
    cfg = checked("train", "net={_target_: metamtl.nets.conv4, ways: 5}")
    assert dict(cfg.net) == {"_target_": "metamtl.nets.conv4", "ways": 5}  # no positional arguments of mlp
    (tmp_path / "mydata.py").write_text(
        "class Folder:\n    def __init__(self, root, shots=1, device='cpu'): ...\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = checked("train", "task._target_=mydata.Folder", "task.root=pictures", "task.shots=3")
    assert set(cfg.task) == {"_target_", "root", "shots", "device"} and cfg.task.shots == 3
    with pytest.raises(options.OptionError, match=r"task: mydata.Folder requires root; set task.root="):
        checked("train", "task._target_=mydata.Folder")
    with pytest.raises(
        options.OptionError, match=r"mydata.Folder has no option 'rot'; did you mean 'root'"
    ):
        checked("train", "task._target_=mydata.Folder", "task.root=a", "task.rot=b")
    del sys.modules["mydata"]


def test_an_experiment_may_have_options_of_other_commands() -> None:
    cfg = configs.compose("train", ["experiment=glyphs_5way_1shot"])
    assert "recipes" not in cfg
    assert configs.compose("compare", ["experiment=glyphs_5way_1shot"]).recipes[0] == "mtl"
    options.check(cfg, "train")
    cfg = configs.compose("train", ["experiment=glyphs_5way_1shot", "recipes=[maml]"])
    with pytest.raises(options.OptionError, match="recipes is not an option; compare has it"):
        options.check(cfg, "train")
