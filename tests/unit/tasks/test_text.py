from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metamtl import evaluate, meta_backward, nets, recipes
from metamtl.datasets import Vocabulary, sentiment, wnut17
from metamtl.datasets.files import split_file
from metamtl.datasets.vocabulary import normal, spelled, tokenize, trimmed
from metamtl.losses import MISSING
from metamtl.tasks import Clinc150, TextTrio


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_vocabulary_is_what_its_sentences_hold_often_enough() -> None:
    vocabulary = Vocabulary.of([["The", "the", "cat"], ["A", "cat", "sat"]], min_count=2, buckets=8)
    assert vocabulary.words == ["cat", "the"] and len(vocabulary) == 1 + 8 + 2
    assert (vocabulary.number("CAT"), vocabulary.number("the")) == (9, 10)
    assert 1 <= vocabulary.number("sat") <= 8 and vocabulary.number("sat") == vocabulary.number("SAT")
    assert normal("9PM") == "0pm" and spelled("iPhone12")[0] == "shape xXx0"


def test_encoded_sentences_are_padded_and_masked() -> None:
    vocabulary = Vocabulary.of([["a", "b"], ["a", "b"]], buckets=4, spellings=50)
    x = vocabulary.encode([["a"], ["b", "x", "a"]])
    assert x["tokens"].shape == (2, 3) and x["spelling"].shape == (2, 3, 9)
    assert x["mask"].tolist() == [[True, False, False], [True, True, True]]
    assert (x["tokens"][0, 1:] == 0).all() and (x["spelling"][0, 1:] == 0).all()
    assert x["spelling"][x["mask"]].min() >= 1 and x["spelling"].max() < 50
    assert trimmed({name: part[:1] for name, part in x.items()})["tokens"].shape == (1, 1)
    with pytest.raises(ValueError, match=r"sentences \[1\] have no word"):
        vocabulary.encode([["a"], []])
    with pytest.raises(ValueError, match="spellings=1 at least 2"):
        Vocabulary([], spellings=1)


def test_tokens_of_plain_text() -> None:
    assert tokenize("It's $5, isn't it?") == ["It's", "$", "5", ",", "isn't", "it", "?"]


def test_the_vocabulary_is_fitted_on_training_sentences_alone(tiny: Path, tmp_path: Path) -> None:
    import shutil

    for name in ("snips", "wnut17", sentiment.SET):
        shutil.copytree(tiny / name, tmp_path / name)
    before = TextTrio(min_count=1, data_dir=tmp_path).vocabulary.words
    for name in ("snips/validate", "wnut17/dev", "wnut17/test"):
        path = tmp_path / f"{name}.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        for entry in entries:
            entry["tokens"] = [f"unseen{i}" for i in range(len(entry["tokens"]))]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert TextTrio(min_count=1, data_dir=tmp_path).vocabulary.words == before

    # Of the sets that are split here, the held-out sentences' own words are not in it.
    trio = TextTrio(min_count=1, data_dir=tiny)
    held = {
        normal(word)
        for task in ("intent", "sentiment")
        for split in ("validation", "test")
        for sentence in trio._corpora[task][split].sentences
        for word in sentence
    }
    train = {
        normal(word)
        for corpora in trio._corpora.values()
        for sentence in corpora["train"].sentences
        for word in sentence
    }
    assert set(trio.vocabulary.words) == train and held - train


def test_splits_hold_every_sentence_once(tiny: Path) -> None:
    trio = TextTrio(data_dir=tiny)
    sizes = {
        task: [len(trio.split(name).sources[task]) for name in ("train", "validation", "test")]
        for task in trio.tasks
    }
    assert sizes == {"intent": [63, 7, 14], "entities": [20, 5, 6], "sentiment": [24, 3, 3]}
    corpora = trio._corpora["sentiment"].values()
    assert len({tuple(sentence) for corpus in corpora for sentence in corpus.sentences}) == 30


def test_batches_are_trimmed_and_tags_lie_under_their_words(tiny: Path) -> None:
    trio = TextTrio(data_dir=tiny, sizes={"intent": 4})
    train = trio.split("train")
    episodes = train.sample(8, rng())
    assert {task: len(e.query.y) for task, e in episodes.items()} == {
        "intent": 4,
        "entities": 8,
        "sentiment": 8,
    }
    x, y = episodes["entities"].query
    assert y.shape == x["tokens"].shape == x["mask"].shape and x["mask"].any(0).all()
    assert torch.equal(y != MISSING, x["mask"])
    new = trio.vocabulary.number("New")
    assert new != trio.vocabulary.number("York")
    begins = wnut17.TAGS.index("B-location")
    assert (x["tokens"][y == begins] == new).all() and (y == begins).any(1).all()
    assert train.outputs == {"intent": 7, "entities": 13, "sentiment": 2} and train.per_token == [
        "entities"
    ]
    assert not trio.split("test").sizes and len(trio.split("test").sample(100, rng())) == 3


def test_three_tasks_train_together_and_apart(tiny: Path) -> None:
    for tasks in (None, ["entities"], ["sentiment", "intent"]):
        train = TextTrio(tasks=tasks, data_dir=tiny).split("train")
        model = nets.text_heads(
            train.words, train.spellings, train.outputs, per_token=train.per_token, width=8
        )
        outcome = meta_backward(model, recipes.joint(), train.sample(8, rng()), train.loss)
        assert outcome.tasks == train.tasks and outcome.losses.isfinite().all()
    found = evaluate(model, recipes.joint(), train.sample(8, rng()), train.loss, metrics=train.metrics)
    assert set(found["intent"]) == {"accuracy"} and found["intent"]["accuracy"].n == 8


def test_one_vocabulary_whatever_tasks_are_kept(tiny: Path) -> None:
    whole = TextTrio(data_dir=tiny).vocabulary
    assert TextTrio(tasks=["sentiment"], data_dir=tiny).vocabulary.words == whole.words


def test_sampling_is_that_of_the_training_split_alone(tiny: Path) -> None:
    trio = TextTrio(data_dir=tiny, sampling="round_robin", sizes={"intent": 2})
    train, test = trio.split("train"), trio.split("test")
    assert [list(train.sample(4, rng())) for _ in range(2)] == [["intent"], ["entities"]]
    assert len(test.sample(4, rng())) == 3


def test_hidden_words_keep_their_spelling_and_labels(tiny: Path) -> None:
    plain = TextTrio(data_dir=tiny).split("train").sample(20, rng())
    hidden = TextTrio(word_dropout=0.5, data_dir=tiny).split("train").sample(20, rng())
    known = TextTrio(data_dir=tiny).vocabulary
    for task, episode in plain.items():  # the sentences are drawn before any word is hidden
        x, other = episode.query.x, hidden[task].query.x
        assert torch.equal(x["spelling"], other["spelling"]) and torch.equal(x["mask"], other["mask"])
        assert torch.equal(episode.query.y, hidden[task].query.y)
        changed = x["tokens"] != other["tokens"]
        assert not changed[~x["mask"]].any()
        assert other["tokens"][changed].min() >= 1 and other["tokens"][changed].max() <= known.buckets
        assert 0.3 < changed[x["mask"]].double().mean() < 0.7
    test = [TextTrio(word_dropout=p, data_dir=tiny).split("test").sample(5, rng()) for p in (0.0, 0.5)]
    assert all(torch.equal(a.query.x["tokens"], test[1][t].query.x["tokens"]) for t, a in test[0].items())
    with pytest.raises(ValueError, match="word_dropout=1 must be"):
        TextTrio(word_dropout=1)


def test_the_weight_of_words_outside_of_entities(tiny: Path) -> None:
    losses = [
        TextTrio(outside_weight=w, data_dir=tiny).split("train").loss["entities"] for w in (1.0, 0.25)
    ]
    scores = torch.zeros(1, 4, len(wnut17.TAGS))
    scores[0, :, 0] = 2.0  # of O
    y = torch.tensor([[0, 0, 1, MISSING]])
    each = -scores.log_softmax(-1)[0, range(3), y[0, :3]]
    for loss, weights in zip(losses, (torch.ones(3), torch.tensor([0.25, 0.25, 1.0]))):
        torch.testing.assert_close(loss(scores, y), (weights * each).sum() / weights.sum())
    with pytest.raises(ValueError, match="outside_weight=0 must be above 0"):
        TextTrio(outside_weight=0)


def test_embeddings_of_zero_are_learned_and_leave_out_what_is_unknown(tiny: Path) -> None:
    train = TextTrio(tasks=["entities"], buckets=1, spellings=64, data_dir=tiny).split("train")
    assert train.spellings == 64 and train.vocabulary.number("zyx") == 1
    model = nets.text_heads(
        train.words, 64, train.outputs, per_token=train.per_token, width=8, embedding_std=0
    )
    assert not model.body.word.weight.any() and not model.body.spelling.weight.any()
    episodes = train.sample(8, rng())
    meta_backward(model, recipes.joint(), episodes, train.loss)
    used = episodes["entities"].query.x["spelling"].unique()
    learned = model.body.spelling.weight.grad.any(1).nonzero().flatten()
    assert len(learned) and set(learned.tolist()) <= set(used.tolist())


def test_altered_tags_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wnut17"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"{name}.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["O", "B-dog"]}\n')
    with pytest.raises(ValueError, match=r"line 1: 2 tokens, 2 tags, unknown tags \['B-dog'\]"):
        wnut17.load(tmp_path)
    (folder / "train.jsonl").write_text('{"tokens": []}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 1, lacks one of \['tags', 'tokens'\]"):
        wnut17.load(tmp_path)
    (folder / "train.jsonl").write_text("{nothing\n")
    with pytest.raises(ValueError, match=r"line 1, is not JSON"):
        wnut17.load(tmp_path)
    (folder / "train.jsonl").write_text("")
    with pytest.raises(ValueError, match="is empty; prepare it again"):
        wnut17.load(tmp_path)


def test_domains_are_split_and_tasks_stay_within_one(tiny: Path) -> None:
    family = Clinc150(3, 2, 4, data_dir=tiny)
    names, split = family.intent_names, split_file("clinc150")
    assert sorted(d for domains in split.values() for d in domains) == sorted(family._domain_names)
    for part in ("train", "validation", "test"):
        tasks = family.split(part)
        episode = tasks.sample(12, rng())
        episode.check()
        assert episode.support is not None and episode.task is not None
        met = {tuple({names[i].rpartition("_")[0] for i in row}) for row in episode.task.tolist()}
        assert met == {(domain,) for domain in split[part]} or met < {(domain,) for domain in split[part]}
        assert all(len(domain) == 1 for domain in met)
        assert episode.support.x["tokens"].shape[:2] == (12, 6) and episode.query.y.shape == (12, 12)
        assert set(tasks.ids) == {i for i, n in enumerate(names) if n.rpartition("_")[0] in split[part]}


def test_a_sentence_keeps_its_label_and_is_in_one_set_of_a_task(tiny: Path) -> None:
    sentences = Clinc150(data_dir=tiny)._sentences
    every = Vocabulary.of(sentences, min_count=1)
    family = Clinc150(3, 2, 4, data_dir=tiny, domains=["travel"], vocabulary=every)
    tasks = family.split("test")
    episode = tasks.sample(3, rng())
    assert episode.support is not None and episode.task is not None
    # Each sentence begins with its intent's name, so that no two intents share one.
    texts = {tuple(row): label for row, label in zip(family._x["tokens"].tolist(), family._labels.tolist())}
    width = family._x["tokens"].shape[1]
    for task in range(3):
        rows = []
        for batch in (episode.support, episode.query):
            for tokens, y in zip(batch.x["tokens"][task].tolist(), batch.y[task].tolist()):
                whole = tuple(tokens + [0] * (width - len(tokens)))
                assert texts[whole] == int(episode.task[task, y])
                rows.append(whole)
        assert len(rows) == 18
    assert not tasks.sample(3, rng()).task.equal(tasks.sample(3, rng(1)).task)  # type: ignore[union-attr]


def test_few_shot_text_with_the_vocabulary_of_another_family(tiny: Path) -> None:
    trio = TextTrio(data_dir=tiny)
    tasks = Clinc150(3, 2, 4, vocabulary=trio.vocabulary, data_dir=tiny).split("test")
    assert (tasks.words, tasks.spellings) == (trio.split("train").words, trio.split("train").spellings)
    model = nets.text_classifier(tasks.words, tasks.spellings, 3, width=8)
    for recipe in (recipes.protonet(), recipes.maml(steps=2, lr=0.1), recipes.anil(steps=1, lr=0.1)):
        outcome = meta_backward(model, recipe, tasks.sample(4, rng()), tasks.loss)
        assert outcome.losses.shape == (4,) and outcome.losses.isfinite().all()


def test_the_own_vocabulary_is_of_the_training_domains(tiny: Path) -> None:
    family = Clinc150(3, 2, 4, data_dir=tiny)
    assert "home_a" in family.vocabulary.words and "banking_a" not in family.vocabulary.words
    with pytest.raises(ValueError, match=r"domains \['sports'\] are not in clinc150"):
        Clinc150(data_dir=tiny, domains=["sports"]).split("train")
    with pytest.raises(FileNotFoundError, match=r"clinc150 is not in .*prepare clinc150"):
        Clinc150(data_dir=tiny / "absent").split("train")


@pytest.mark.slow
def test_real_text(real_data: Callable[[str], Path]) -> None:
    (folder,) = {real_data(name) for name in ("snips", "wnut17", sentiment.SET, "clinc150")}
    trio = TextTrio(data_dir=folder)
    sizes = [
        [len(source) for source in trio.split(name).sources.values()]
        for name in ("train", "validation", "test")
    ]
    assert [row[:2] for row in sizes] == [[13084, 3394], [700, 1009], [700, 1287]]
    assert sum(row[2] for row in sizes) == 3000
    assert 5_000 < len(trio.vocabulary.words) < 12_000
    episode = Clinc150(vocabulary=trio.vocabulary, data_dir=folder).split("test").sample(2, rng())
    assert episode.support is not None and episode.support.y.shape == (2, 75)
