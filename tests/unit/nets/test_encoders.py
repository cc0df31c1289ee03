"""LeNet, the text encoder and the net for pictures with questions."""

from __future__ import annotations

import pytest
import torch

from metamtl import Batch, Episode, engines, meta_backward, nets, recipes


def sentences(lengths: tuple[int, ...] = (5, 3, 1)) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {
        "tokens": torch.randint(1, 30, mask.shape, generator=draw) * mask,
        "spelling": torch.randint(1, 20, (*mask.shape, 4), generator=draw) * mask[..., None],
        "mask": mask,
    }


def test_padding_changes_no_answer() -> None:
    torch.manual_seed(0)
    encoder = nets.TextEncoder(30, 20, width=8, layers=2).double()
    x = sentences()
    padded = {name: torch.cat([part, part.new_zeros(3, 4, *part.shape[2:])], 1) for name, part in x.items()}
    garbage = {**padded, "tokens": padded["tokens"].where(padded["mask"], torch.tensor(7))}
    whole = encoder(**x)
    for other in (padded, garbage):
        found = encoder(**other)
        torch.testing.assert_close(found[:, :6], whole, rtol=0, atol=1e-12)
        assert (found[:, 6:] == 0).all()
    alone = encoder(**{name: part[1:2, :3] for name, part in x.items()})
    torch.testing.assert_close(whole[1:2, :4], alone, rtol=0, atol=1e-12)


def test_the_sentence_is_the_largest_of_its_words() -> None:
    torch.manual_seed(0)
    found = nets.TextEncoder(30, 20, width=8)(**sentences())
    for row, length in enumerate((5, 3, 1)):
        assert torch.allclose(found[row, 0], found[row, 1 : 1 + length].amax(0), atol=1e-3)


def test_own_layers_go_on_where_the_encoder_ends() -> None:
    torch.manual_seed(0)
    outputs = {"topic": 4, "tags": 3}
    model = nets.text_hierarchical(30, 20, outputs, per_token=["tags"], width=8, layers=1, own=2)
    encoder = nets.TextEncoder(30, 20, width=8, layers=3)
    for task in outputs:
        encoder.load_state_dict(model.bottom.state_dict(), strict=False)
        for number, layer in enumerate(model.middles[task].layers):
            encoder.layers[number + 1].load_state_dict(layer.state_dict())
        torch.testing.assert_close(
            model(**sentences(), task=task), model.heads[task](encoder(**sentences()))
        )


def test_heads_for_sentences_and_for_words() -> None:
    torch.manual_seed(0)
    model = nets.text_heads(30, 20, {"topic": 4, "tags": 3}, per_token=["tags"], width=8)
    x = sentences()
    features = model.body(**x)
    answers = model(**x)
    assert torch.equal(
        answers["topic"], torch.nn.functional.linear(features[:, 0], *model.heads["topic"].parameters())
    )
    assert answers["tags"].shape == (3, 5, 3)
    assert torch.equal(
        answers["tags"], torch.nn.functional.linear(features[:, 1:], *model.heads["tags"].parameters())
    )
    assert torch.equal(model(**x, task="tags"), answers["tags"])
    # Every parameter of the encoder is used by both, so that a row covers it all.
    for task in answers:
        used = torch.autograd.grad(
            model(**x, task=task).sum(), list(model.body.parameters()), allow_unused=True
        )
        assert all(gradient is not None for gradient in used)


def test_text_adapts_in_second_order_alike_under_both_engines() -> None:
    torch.manual_seed(0)
    model = nets.text_classifier(30, 20, 2, width=8).double()
    x = {name: torch.stack([part, part.flip(0)]) for name, part in sentences((4, 3, 2, 4)).items()}
    batch = Batch(x, torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]))
    grads = []
    for engine in (engines.Loop(), engines.Vmap()):
        model.zero_grad()
        recipe = recipes.maml(steps=2, lr=0.1)
        meta_backward(
            model, recipe, Episode(batch, batch), torch.nn.functional.cross_entropy, engine=engine
        )
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name], rtol=1e-9, atol=1e-12)


def test_the_encoder_of_a_trained_net_serves_few_shot_tasks() -> None:
    trained = nets.text_heads(30, 20, {"topic": 4}, width=8)
    few = nets.TextClassifier(trained.body, ways=3)
    assert few.body.encoder is trained.body and few(**sentences()).shape == (3, 3)


def test_lenet_is_the_published_one() -> None:
    model = nets.lenet_heads({"left": 10, "right": 10})
    sizes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert sizes == [(10, 1, 9, 9), (20, 10, 5, 5), (50, 180), (10, 50), (10, 50)]
    decoding = nets.lenet_heads({"left": 10, "right": 784})
    assert isinstance(decoding.heads["right"], nets.Decoder)
    assert decoding(torch.zeros(2, 1, 28, 28), task="right").shape == (2, 1, 28, 28)
    large = nets.lenet_heads({"left": 10, "right": 36 * 36}, size=36)
    assert large.body[-2].weight.shape == (50, 500)  # as in Lin et al. 2019
    assert large(torch.zeros(2, 1, 36, 36), task="right").shape == (2, 1, 36, 36)
    with pytest.raises(ValueError, match="at least 20x20"):
        nets.lenet(size=19)


def test_only_the_tasks_that_ask_use_the_question() -> None:
    torch.manual_seed(0)
    model = nets.vqa(30, {"answer": 5, "shape": 3})
    x = {key: part for key, part in sentences().items() if key != "spelling"}
    x["image"] = torch.rand(3, 3, 64, 64)
    other = {**x, "tokens": x["tokens"].flip(1)}
    assert torch.equal(model(**x, task="shape"), model(**other, task="shape"))
    assert not torch.equal(model(**x, task="answer"), model(**other, task="answer"))
    asked = [*model.question.parameters(), *model.gate.parameters(), *model.fuse.parameters()]
    used = torch.autograd.grad(model(**x, task="shape").sum(), asked, allow_unused=True)
    # Exactly None, not zeros: the outer loop takes zeros for a gradient of a shared parameter.
    assert all(gradient is None for gradient in used)


def test_a_periodic_embedding_is_its_formula_and_keeps_the_input() -> None:
    torch.manual_seed(0)
    embedding = nets.PeriodicEmbedding(4, numbers=2, frequencies=3, width=5, sigma=2.0).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    found = embedding(x)
    assert torch.equal(found[:, :4], x) and found.shape == (7, embedding.features)
    for number in range(2):
        angle = 2 * torch.pi * x[:, number, None] * embedding.frequency[number]
        expected = (torch.cat([angle.sin(), angle.cos()], 1) @ embedding.weight[number]).relu()
        torch.testing.assert_close(found[:, 4 + 5 * number : 9 + 5 * number], expected)
    with pytest.raises(ValueError, match="numbers=5 must be from 1 to 4"):
        nets.PeriodicEmbedding(4, numbers=5)


def test_a_periodic_net_separates_values_that_a_line_cannot() -> None:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 64)[:, None]
    y = (x * 10).floor() % 2  # alternates twenty times
    losses = []
    for tower in (nets.periodic_tower(1, 16, numbers=1, sigma=4.0), nets.tower(1, 16)):
        model = torch.nn.Sequential(tower, torch.nn.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] < 0.2 < 0.5 < losses[1]


def test_the_place_of_a_shape_changes_no_answer() -> None:
    torch.manual_seed(0)
    model = nets.vqa(30, {"answer": 5, "shape": 3})
    x = {key: part[:2] for key, part in sentences().items() if key != "spelling"}
    image = torch.ones(2, 3, 160, 160)
    image[:, :, 64:80, 64:76] = torch.rand(2, 3, 16, 12)
    moved = {**x, "image": image.roll((16, 8), (-2, -1))}
    for task, answer in model(**x, image=image).items():
        torch.testing.assert_close(model(**moved, task=task), answer)
    other = model(**x, image=image.flip(0), task="shape")
    assert not torch.allclose(other, model(**x, image=image, task="shape"), atol=1e-4)
