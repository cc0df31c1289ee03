"""Learners of learn2learn as adapters, and its task sets as episodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.base import Adapter, require_support
from ..episode import Batch, Episode
from ..functional import Params, is_name
from ..losses import Loss
from ._plain import begin, peer, refuse_transforms


class Learn2Learn(Adapter):
    """Parameters of the clone of a learn2learn learner after K calls of `adapt`.

    For `l2l.algorithms.MAML`, `MetaSGD`, `GBML` and any learner with `module`, `clone()` and
    `adapt(loss)`; https://github.com/learnables/learn2learn, https://arxiv.org/abs/2008.12284.
    Other parameters of the learner (the step sizes of Meta-SGD) are parameters of this adapter.

    Differs from learn2learn in: 1. a clone starts from `params`; 2. a clone has its own buffers, whereas
    learn2learn shares those of BatchNorm with the base model; 3. under `torch.no_grad()` it adapts without
    keeping a graph.

    Args:
        learner: a learner of the model, or of one with the same parameters.
        steps: number of calls of `adapt`, K.

    Raises:
        TypeError: `learner` lacks `module`, `clone` or `adapt`.
        ImportError: if called without learn2learn installed.
        ValueError: if called inside `vmap` (use `engine=engines.Loop()`), or with a model whose parameters
            differ from those of the learner.

    ```python
    learner = learn2learn.algorithms.MAML(model, lr=0.01)
    meta_backward(model, Recipe(Learn2Learn(learner, steps=5)), episode, loss, engine=engines.Loop())
    ```
    """

    def __init__(self, learner: Any, steps: int = 1) -> None:
        super().__init__()
        missing = [name for name in ("module", "clone", "adapt") if not hasattr(learner, name)]
        if missing:
            raise TypeError(
                f"{type(learner).__name__} has no {', '.join(missing)}; pass a learner such as"
                " learn2learn.algorithms.MAML(model, lr=0.01)."
            )
        self.steps = steps
        # In a tuple, because the model of the learner must not be a submodule of the adapter.
        self._learner = (learner,)
        for name, child in learner.named_children():
            if name != "module":
                self.add_module(name, child)
        for name, param in learner.named_parameters(recurse=False):
            self.register_parameter(name, param)

    def extra_repr(self) -> str:
        return f"{type(self._learner[0]).__name__}, steps={self.steps}"

    def check(self, model: nn.Module, task: Tensor | str | None) -> None:
        actual, expected = (
            [(name, tuple(p.shape)) for name, p in module.named_parameters()]
            for module in (model, self._learner[0].module)
        )
        if actual != expected:
            raise ValueError(
                f"the learner wraps a {type(self._learner[0].module).__name__} with parameters"
                f" {expected}, but the model, a {type(model).__name__}, has {actual}; create the learner"
                " with this model."
            )

    def forward(
        self,
        model: nn.Module,
        support: Batch | None,
        loss: Loss,
        *,
        params: Params | None = None,
        task: Any = None,
    ) -> Params:
        batch = require_support(support, self)
        refuse_transforms(self, params, batch)
        self.check(model, None)
        clone_module = peer("learn2learn").clone_module
        track = torch.is_grad_enabled()
        first = begin(model, params)
        named = {"task": task} if is_name(task) else {}
        with torch.enable_grad():
            fast = self._learner[0].clone()
            # Cloned again, because learners set attributes on the tensors they adapt (`.grad`, `.update`).
            fast.module = _placed(clone_module(model), {n: p.clone() for n, p in first.items()})
            for _ in range(self.steps):
                value = loss(_call(fast, batch.x, named), batch.y)
                fast.adapt(value) if track else fast.adapt(value, first_order=True)
        adapted = dict(fast.module.named_parameters())
        return adapted if track else {name: tensor.detach() for name, tensor in adapted.items()}


def _call(module: nn.Module, x: Any, named: dict[str, Any]) -> Any:
    if isinstance(x, dict):
        return module(**x, **named)
    return module(*x, **named) if isinstance(x, tuple) else module(x, **named)


def _placed(shell: nn.Module, params: Params) -> nn.Module:
    """Replace the parameters of `shell`, a temporary clone, by `params`, and its buffers by copies."""
    names = {id(tensor): name for name, tensor in shell.named_parameters()}
    for module in shell.modules():
        for key, tensor in module._parameters.items():
            if tensor is not None:
                # By identity, so that a tied parameter stays one tensor.
                module._parameters[key] = params[names[id(tensor)]]  # type: ignore[assignment]
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.clone()
        if isinstance(module, nn.RNNBase):  # it has a separate list of weights
            module._flat_weights = [getattr(module, key) for key in module._flat_weights_names]
    return shell


def episodes(taskset: Any, num_tasks: int, *, ways: int, shots: int) -> Episode:
    """Draw tasks of a learn2learn task set as one `Episode`.

    `taskset.sample()` draws each task, using the global random number generators of Python and numpy.
    Examples are sorted by label; the first `shots` of each class are the support set, the others the query
    set, and labels become `0 .. N-1`.

    Args:
        taskset: a `learn2learn.data.Taskset` (or `TaskDataset`, its older name) with `NWays(n=ways)` and
            `KShots(k=shots + queries)`, whose task is a pair `(data, labels)` of tensors.
        num_tasks: number of tasks, T.
        ways: classes per task, N.
        shots: support examples per class, K.

    Returns:
        An `Episode` with `support.x` `[T, N*K, ...]` and `query.x` `[T, N*Q, ...]`, ordered by class.
        `task` has the labels of the task set, `[T, N]`; None if the task set renumbers them (`RemapLabels`,
        `ConsecutiveLabels`), because they no longer identify the classes.

    Raises:
        ValueError: a task does not have `ways` classes with the same number of examples, above `shots`.

    ```python
    dataset = l2l.data.MetaDataset(images_and_labels)
    transforms = [NWays(dataset, n=5), KShots(dataset, k=1 + 15), LoadData(dataset)]
    taskset = l2l.data.Taskset(dataset, transforms, num_tasks=20_000)
    episode = episodes(taskset, 32, ways=5, shots=1)
    ```
    """
    data, ids = [], []
    for _ in range(num_tasks):
        x, labels = taskset.sample()
        classes, counts = labels.unique(return_counts=True)
        if len(classes) != ways or len(counts.unique()) != 1 or int(counts[0]) <= shots:
            raise ValueError(
                f"a task has {counts.tolist()} examples of the labels {classes.tolist()}, but ways={ways},"
                f" shots={shots} need {ways} classes with the same number of examples, more than {shots};"
                " set NWays(n=ways) and KShots(k=shots + queries) accordingly."
            )
        data.append(x[labels.argsort(stable=True)].unflatten(0, (ways, -1)))
        ids.append(classes)
    x, task = torch.stack(data), torch.stack(ids)
    y = torch.arange(ways, device=x.device)[:, None].expand(num_tasks, ways, x.shape[2])
    is_renumbered = bool((task.cpu() == torch.arange(ways)).all())
    return Episode(
        support=Batch(x[:, :, :shots].flatten(1, 2), y[:, :, :shots].flatten(1, 2)),
        query=Batch(x[:, :, shots:].flatten(1, 2), y[:, :, shots:].flatten(1, 2)),
        task=None if is_renumbered else task,
        ways=ways,
    )
