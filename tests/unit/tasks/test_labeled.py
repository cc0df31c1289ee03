from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metamtl import evaluate, meta_backward, nets, recipes
from metamtl.datasets.preprocess import chosen, classes, split_groups, standardized, targets
from metamtl.functional.labels import MISSING, aligned, has_label
from metamtl.losses import image_mse, mean_over_labeled, token_cross_entropy
from metamtl.metrics import absolute_error, accuracy, binary_accuracy, mse, token_accuracy
from metamtl.tasks import LabeledTasks

NAN = float("nan")


def family(x: Any, kind: torch.Tensor, size: torch.Tensor, **options: Any) -> LabeledTasks:
    return LabeledTasks(
        x,
        {"kind": kind, "size": size},
        loss={"kind": F.cross_entropy, "size": mean_over_labeled(F.mse_loss)},
        metrics={"kind": {"accuracy": accuracy}, "size": {"mse": mse}},
        outputs={"kind": 3, "size": 1},
        **options,
    )


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tasks_share_one_input_and_rows_stay_together() -> None:
    x = torch.arange(30.0)[:, None].double()
    own = family(x, torch.arange(30) % 3, 2 * x)
    episodes = own.sample(12, rng())
    kind, size = episodes["kind"].query, episodes["size"].query
    assert kind.x is size.x and len(kind.x.unique()) == 12
    assert torch.equal(kind.y, kind.x[:, 0].long() % 3) and torch.equal(size.y, 2 * kind.x)
    assert episodes["kind"].ways == 3 and episodes["size"].ways is None
    assert torch.equal(own.sample(12, rng())["size"].query.y, size.y)
    assert not torch.equal(own.sample(12, rng(1))["size"].query.y, size.y)
    assert len(own) == 30 and own.inputs == 1 and own.outputs == {"kind": 3, "size": 1}


def test_inputs_may_be_a_dict_or_made_on_demand() -> None:
    x = torch.arange(10.0)[:, None]
    by_key = family({"a": x, "b": -x}, torch.arange(10) % 3, x).sample(4, rng())["size"].query
    assert torch.equal(by_key.x["a"], -by_key.x["b"]) and torch.equal(by_key.x["a"], by_key.y)
    made = family(lambda at: 3 * x[at], torch.arange(10) % 3, x).sample(4, rng())["size"].query
    assert torch.equal(made.x, 3 * made.y)


def test_a_task_without_a_label_in_the_batch_is_left_out_of_it() -> None:
    x = torch.randn(6, 4, generator=rng())
    kind, size = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([NAN, NAN, NAN, 1.0, NAN, 2.0])[:, None]
    own = family(x, kind, size)
    assert list(own.at(torch.tensor([0, 1, 2]))) == ["kind"]
    both = own.at(torch.tensor([2, 3]))
    assert list(both) == ["kind", "size"]

    model = nets.named_heads(nets.mlp(4, 8, 1), own.outputs)
    outcome = meta_backward(model, recipes.joint(), own.at(torch.tensor([0, 1])), own.loss)
    assert outcome.tasks == ("kind",) and model.heads["size"].weight.grad is None
    model.zero_grad()
    assert meta_backward(model, recipes.joint(), both, own.loss).tasks == ("kind", "size")
    assert model.heads["size"].weight.grad is not None

    none = family(x, torch.full((6,), MISSING), torch.full((6, 1), NAN))
    with pytest.raises(ValueError, match="none of the 3 drawn examples has a label"):
        none.sample(3, rng())


def test_a_batch_whose_labels_are_all_missing_is_refused_by_name() -> None:
    own = family(torch.randn(4, 4), torch.zeros(4).long(), torch.zeros(4, 1))
    episodes = own.sample(4, rng())
    episodes["size"].query.y.fill_(NAN)
    model = nets.named_heads(nets.mlp(4, 8, 1), own.outputs)
    with pytest.raises(FloatingPointError, match=r"loss of tasks \['size'\] of 2 is not finite"):
        meta_backward(model, recipes.joint(), episodes, own.loss)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="no query example of task 'size' has a label"):
        evaluate(model, recipes.joint(), episodes, own.loss, metrics=own.metrics)


def test_masked_is_the_mean_over_what_is_there_and_so_is_its_gradient() -> None:
    output = torch.randn(5, 1, dtype=torch.float64, generator=rng(), requires_grad=True)
    y = torch.tensor([[1.0], [NAN], [0.0], [NAN], [1.0]], dtype=torch.float64)
    there = torch.tensor([0, 2, 4])
    for function in (F.mse_loss, F.binary_cross_entropy_with_logits):
        (found,) = torch.autograd.grad(mean_over_labeled(function)(output, y), output)
        (alone,) = torch.autograd.grad(function(output[there], y[there]), output)
        torch.testing.assert_close(found, alone, rtol=1e-14, atol=0)
        torch.testing.assert_close(
            mean_over_labeled(function)(output, y), function(output[there], y[there])
        )
    with pytest.raises(ValueError, match=r"output has shape \[5, 1\], the targets \[4\]"):
        mean_over_labeled(F.mse_loss)(output, y[:4, 0])
    assert aligned(output, y[:, 0]).shape == (5,)


def test_masked_works_under_vmap() -> None:
    y = torch.tensor([[1.0, NAN], [3.0, 5.0]])
    found = torch.func.vmap(mean_over_labeled(F.mse_loss))(torch.zeros(2, 2), y)
    assert found.tolist() == [1.0, 17.0]


def test_measures() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    y = torch.tensor([0, 0, MISSING])
    assert accuracy(scores, y).tolist() == [1.0, 0.0]
    assert binary_accuracy(
        torch.tensor([[1.0], [-2.0], [3.0]]), torch.tensor([[1.0], [1.0], [0.0]])
    ).flatten().tolist() == [1.0, 0.0, 0.0]
    assert absolute_error(10.0)(torch.tensor([[1.5]]), torch.tensor([[1.0]])).tolist() == [5.0]
    assert not absolute_error().higher_is_better and binary_accuracy.higher_is_better
    tags = torch.tensor([[1, 0, MISSING], [1, MISSING, MISSING]])
    of_words = torch.eye(2)[torch.tensor([[1, 1, 0], [0, 0, 0]])]
    assert token_accuracy(of_words, tags).tolist() == [1.0, 0.0, 0.0]
    real = F.cross_entropy(of_words[tags != MISSING], tags[tags != MISSING])
    assert torch.equal(token_cross_entropy(of_words, tags), real)
    assert token_cross_entropy(of_words, torch.full_like(tags, MISSING)).isnan()
    picture = torch.rand(2, 1, 4, 4)
    assert torch.equal(image_mse(picture.flatten(1), picture * 0), picture.square().mean())
    assert has_label(torch.tensor([[[NAN, 1.0]], [[NAN, NAN]]])).tolist() == [True, False]


def test_parted_keeps_groups_together_and_the_same() -> None:
    groups = np.repeat(np.arange(50), 3)
    parts = split_groups(groups, (0.8, 0.1, 0.1))
    assert [len(at) for at in parts.values()] == [120, 15, 15]
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(150))
    held = [set(groups[at]) for at in parts.values()]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    assert all(
        np.array_equal(parts[name], at) for name, at in split_groups(groups, (0.8, 0.1, 0.1)).items()
    )
    assert not np.array_equal(parts["test"], split_groups(groups, (0.8, 0.1, 0.1), seed=1)["test"])
    with pytest.raises(ValueError, match="3 groups are too few"):
        split_groups(np.arange(3), (0.8, 0.1, 0.1))


def test_standardised_looks_at_training_rows_alone() -> None:
    values = np.random.default_rng(0).normal(3, 2, (20, 2))
    values[:, 1] = 7
    train = np.arange(10)
    found, mean, deviation = standardized(values, train)
    assert np.allclose(found[train, 0].mean(), 0) and np.allclose(found[train, 0].std(), 1)
    assert np.array_equal(found[:, 1], np.zeros(20))
    values[15:] = 1e6
    again, *fitted = standardized(values, train)
    assert np.array_equal(found[:15], again[:15])
    assert np.array_equal(mean, fitted[0]) and np.array_equal(deviation, fitted[1])


def test_targets_and_classes() -> None:
    y = targets(np.array([1, -1, 0], np.int8), missing=-1)
    assert y.shape == (3, 1) and y.isnan().flatten().tolist() == [False, True, False]
    assert classes(np.array([2, -1])).tolist() == [2, MISSING]
    assert chosen(None, ("a", "b")) == ("a", "b") and chosen(["b"], ("a", "b")) == ("b",)


@pytest.mark.parametrize("tasks", [[], ["a", "a"], ["c"]])
def test_bad_choices_of_tasks(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="different names out of a, b"):
        chosen(tasks, ("a", "b"))


def test_bad_sources() -> None:
    x, kind = torch.zeros(4, 2), torch.zeros(4).long()
    with pytest.raises(ValueError, match=r"number of examples is not known: found .*'kind': 4.*'size': 3"):
        family(x, kind, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="number of examples is not known"):
        family({"a": x, "b": x[:2]}, kind, torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"metrics has no entry for tasks \['kind'\]; it has other"):
        LabeledTasks(
            x, {"kind": kind}, loss={"kind": F.cross_entropy}, metrics={"other": {}}, outputs={"kind": 1}
        )
    with pytest.raises(ValueError, match="labels is empty"):
        LabeledTasks(x, {}, loss={}, metrics={}, outputs={})
    with pytest.raises(ValueError, match="inputs are not one tensor"):
        _ = family({"a": x}, kind, torch.zeros(4, 1)).inputs
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"n={n} examples requested, but this split has 4"):
            family(x, kind, torch.zeros(4, 1)).sample(n, rng())


@pytest.mark.parametrize(
    "convert", [np.asarray, lambda values: np.asarray(values).tolist(), torch.as_tensor]
)
def test_arrays_and_lists_are_taken(convert: Any) -> None:
    x = torch.randn(10, 3, generator=rng())
    kind, size = torch.arange(10).to(torch.int32) % 3, x[:, :1].clone()
    size[4] = NAN
    expected = family(x, kind, size).at(torch.arange(10))
    for inputs in (convert(x), {"a": convert(x)}, (convert(x), x.numpy())):
        own = family(inputs, convert(kind), convert(size))
        found = own.at(torch.arange(10))
        assert found["kind"].query.y.dtype == torch.int64
        for task in ("kind", "size"):
            assert torch.equal(found[task].query.y.nan_to_num(), expected[task].query.y.nan_to_num())
        part = found["size"].query.x
        part = part["a"] if isinstance(part, dict) else part[0] if isinstance(part, tuple) else part
        assert torch.equal(part.float(), x) and len(own) == 10
    assert own.at([4, 5]).keys() == {"kind", "size"} and own.at([4]).keys() == {"kind"}


def test_integer_inputs_stay_integers_and_bytes_are_labels() -> None:
    x = np.arange(20).reshape(10, 2).astype(np.uint16)
    y = np.full(10, 156, np.uint8)  # -100 modulo 256
    own = LabeledTasks(x, {"k": y}, loss={"k": F.cross_entropy}, metrics={"k": {}}, outputs={"k": 200})
    query = own.sample(4, rng())["k"].query
    assert query.x.dtype == query.y.dtype == torch.int64 and query.y.tolist() == [156] * 4


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((2, 3)), ["cat", "dog"], "the labels of task 'kind' holds .* return_inverse"),
        (["a text", "another"], [0, 1], "inputs holds .* encode them as numbers"),
    ],
)
def test_strings_have_to_be_encoded(x: Any, y: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        LabeledTasks(
            x, {"kind": y}, loss={"kind": F.cross_entropy}, metrics={"kind": {}}, outputs={"kind": 2}
        )
