"""Architectures that cannot be: what was found, why not, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from metamtl import Batch, Episode, nets
from metamtl.nets.sharing.mixture import mixed

OUT = {"a": 3, "b": 1}
X = torch.zeros(5, 4)


def body() -> nn.Module:
    return nn.Linear(4, 6)


def wide(n: int) -> nn.Module:
    return nn.Linear(4, n + 1)


ONE = body()
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "a task without a head": (
        lambda: nets.NamedHeads(body(), 6, {"a": None}),
        r"task 'a' has no head: outputs\['a'\] is None; pass its width, or a module",
    ),
    "a head of no width": (lambda: nets.NamedHeads(body(), 6, {"a": 0}), r"6 features to 0 numbers"),
    "a name with a dot": (lambda: nets.NamedHeads(body(), 6, {"a.b": 1}), r"'a\.b' cannot be a name.*a_b_"),
    "a name of torch's": (lambda: nets.NamedHeads(body(), 6, {"type": 1}), r"'type' cannot be.*type_"),
    "features of another width": (
        lambda: nets.NamedHeads(body(), 7, OUT)(X),
        r"NamedHeads: the input of the head of task 'a' has shape \[5, 6\], but the head takes 7 features",
    ),
    "features of another width, in a mixture": (
        lambda: nets.MMoE([body()], nets.Constant, 7, OUT)(X),
        r"MMoE: .*'a' has shape \[5, 6\], but the head takes 7",
    ),
    "a body that returns a tuple": (
        lambda: nets.NamedHeads(nn.LSTM(4, 6), 6, OUT)(X),
        r"'a' is a tuple, not a tensor of features; wrap the body",
    ),
    "one tower for two tasks": (
        lambda: nets.SoftSharing(lambda: ONE, 6, OUT),
        r"the towers of make\(\): the same parameters are used in two places.*copy\.deepcopy",
    ),
    "one expert twice": (
        lambda: nets.MMoE([ONE, ONE], nets.Constant, 6, OUT),
        r"experts of MMoE: the same",
    ),
    "a factory in place of a module": (
        lambda: nets.MMoE([body], nets.Constant, 6, OUT),
        r"experts of MMoE: expected modules, found a function",
    ),
    "no expert": (lambda: nets.MMoE([], nets.Constant, 6, OUT), r"at least one expert"),
    "a gate of another width": (
        lambda: nets.MMoE([body(), body()], wide, 6, OUT)(X),
        r"weights of shape \[5, 3\] for 2 experts that return \[5, 6\]; it must return \[5, 2\]",
    ),
    "experts of two shapes": (
        lambda: nets.MMoE([body(), nn.Linear(4, 5)], nets.Constant, 6, OUT)(X),
        r"experts differ in shape: \[\[5, 6\], \[5, 5\]\]",
    ),
    "a gate of another batch": (
        lambda: mixed([torch.zeros(5, 6)], torch.zeros(4, 1)),
        r"weights of shape \[4, 1\]",
    ),
    "three experts in binary": (
        lambda: nets.DSelectK([body() for _ in range(3)], 2, 6, OUT),
        r"3 is not a power of two",
    ),
    "more selectors than experts": (
        lambda: nets.DSelectK([body() for _ in range(2)], 3, 6, OUT),
        r"k=3, gamma=1\.0: k must be in 1\.\.2",
    ),
    "no layer": (lambda: nets.PLE([], 6, OUT), r"PLE: 0 layers, own=1, shared=1: each must be at least 1"),
    "no shared expert": (
        lambda: nets.PLE([(body, nets.Constant)], 6, OUT, shared=0),
        r"shared=0.*nothing in common",
    ),
    "groups without middles": (
        lambda: nets.Hierarchical(body(), {"g": ONE}, {"h": ["a", "b"]}, 6, OUT),
        r"groups are \['h'\], but there are middles for \['g'\]",
    ),
    "a task in no group": (
        lambda: nets.Hierarchical(body(), {"g": ONE}, {"g": ["a"]}, 6, OUT),
        r"tasks \['b'\] are not in exactly one group.*\{'g': \['a'\]\}, heads \['a', 'b'\]",
    ),
    "a task in two groups": (
        lambda: nets.Hierarchical(body(), {"g": ONE, "h": body()}, {"g": ["a", "b"], "h": ["a"]}, 6, OUT),
        r"tasks \['a'\] are not in exactly one group",
    ),
    "a group of an unknown task": (
        lambda: nets.Hierarchical(body(), {"g": ONE}, {"g": ["a", "b", "z"]}, 6, OUT),
        r"tasks \['z'\] are not in exactly one group, or have no head",
    ),
    "towers of two lengths": (
        lambda: nets.CrossStitch(iter([[body()], [body(), nn.Tanh()]]).__next__, 6, OUT),
        r"same number of stages, at least one, at each call; found \[1, 2\]",
    ),
    "towers of two shapes": (
        lambda: nets.CrossStitch(iter([[body()], [nn.Linear(4, 5)]]).__next__, 6, OUT)(X),
        r"after stage 0 the towers have shapes \[\[5, 6\], \[5, 5\]\]",
    ),
    "a width too few": (lambda: nets.MTAN([body()], [], OUT), r"1 stages and 0 widths"),
    "channels on another axis": (
        lambda: nets.MTAN([body()], [7], OUT)(X),
        r"stage 0 returned \[5, 6\], whose axis 1 is not the 7 channels",
    ),
    "places that cannot be averaged": (
        lambda: nets.MTAN([nn.Conv2d(1, 2, 3), nn.Flatten(2)], [2, 2], OUT)(torch.zeros(5, 1, 6, 6)),
        r"features \[5, 4, 4, 2\] \(channels last\) cannot be averaged to the size of \[5, 16, 2\]",
    ),
    "a circle": (
        lambda: nets.Cascade(body(), 6, {**OUT, "c": 1}, after={"a": ["c"], "b": ["a"], "c": ["b"]}),
        r"has a cycle, (a|b|c) -> .* -> .* -> \1; a task can only read earlier tasks",
    ),
    "a task after itself": (lambda: nets.Cascade(body(), 6, OUT, after={"a": ["a"]}), r"cycle, a -> a"),
    "after an unknown task": (
        lambda: nets.Cascade(body(), 6, OUT, after={"a": ["z"]}),
        r"after= names \['z'\], but there are heads for \['a', 'b'\]",
    ),
    "after a name without a list": (
        lambda: nets.Cascade(body(), 6, OUT, after={"a": "b"}),
        r"after\['a'\] is one name; pass a list",
    ),
    "reading a head of unknown width": (
        lambda: nets.Cascade(body(), 6, {"a": nn.Linear(6, 2), "b": 1}, after={"b": ["a"]}),
        r"other heads read the output of task 'a'.*found a Linear",
    ),
    "cooperation alone": (
        lambda: nets.Cooperative(body(), 6, {"a": 1}),
        r"at least two tasks, found \['a'\]",
    ),
    "a task named discriminator": (
        lambda: nets.SharedPrivate(body(), body, 6, {"discriminator": 2}),
        r"uses the name 'discriminator' itself",
    ),
    "layers without numbers": (
        lambda: nets.Branching([body], [1, 2], 6, OUT),
        r"1 layers and nodes=\[1, 2\]",
    ),
    "a temperature of zero": (
        lambda: nets.Branching([body], [2], 6, OUT).sample(torch.Generator(), 0.0),
        r"temperature=0\.0 must be above 0; eval mode is the limit",
    ),
    "nodes of two shapes": (
        lambda: nets.Branching([iter([body(), nn.Linear(4, 5)]).__next__], [2], 6, OUT)(X),
        r"the nodes of layer 0 return \[\[5, 6\], \[5, 5\]\]",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_in_words(case: str) -> None:
    call, words = CASES[case]
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": X}, r"there are episodes for \['a'\], heads for \['a', 'b'\].*at least two"),
        ({"a": X, "z": X + 1}, r"\['a', 'z'\], heads for \['a', 'b'\]"),
        ({"a": X, "b": X}, r"the same input.*cannot distinguish them"),
        ({"a": X, "b": torch.zeros(5, 3)}, r"shapes \[\[\[4\]\], \[\[3\]\]\] after the batch axis"),
    ],
)
def test_tasks_that_no_discriminator_can_see(inputs: dict[str, torch.Tensor], words: str) -> None:
    model = nets.SharedPrivate(body(), body, 6, OUT)
    episodes = {name: Episode(None, Batch(x, torch.zeros(5))) for name, x in inputs.items()}
    with pytest.raises(ValueError, match=words):
        model.constrained(episodes, dict.fromkeys(inputs, nn.functional.mse_loss))
