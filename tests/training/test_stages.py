"""What each stage learns, on pictures of coloured shapes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from streammem.errors import DatasetError, StreammemError
from streammem.models.backbones.language import GenerationConfig
from streammem.training import captions, reward
from streammem.training.captions import CaptionStage
from streammem.training.features import cache_features
from streammem.training.generated import make_pictures
from streammem.training.loop import Schedule, read_log, train_stage
from streammem.training.lora import add_lora, lora_tensors
from streammem.training.questions import QuestionRecord
from streammem.training.recipe import LoraOptions
from streammem.training.records import read_source
from streammem.training.reward import RewardStage
from streammem.training.words import WordHead, WordSpace, WordStage, word_loss
from tests.tiny import TinyVision, tiny_language
from tests.training.tiny_backbones import tiny_bridge


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    source = read_source(make_pictures(folder / "shapes", 60))
    return cache_features(source, TinyVision(), folder)


@pytest.fixture
def bridge(shapes):
    return tiny_bridge(tiny_language(), shapes.split("train"))


@pytest.fixture
def space(shapes):
    return WordSpace(shapes.split("train").captions, tiny_language())


def losses(path):
    return [entry["loss"] for entry in read_log(path)]


def test_the_word_stage_names_what_is_there_better_than_the_prior(shapes, bridge, space, tmp_path):
    stage = WordStage(bridge, space, shapes.split("train"), shapes.split("val"), batch=16)
    before = stage.evaluate()
    figures = train_stage(stage, Schedule(steps=60, lr=1e-2, warmup=2), tmp_path)
    assert figures["top5"] > figures["top5_prior"] + 0.1
    assert figures["top5"] > before["top5"]
    falling = losses(tmp_path / "words.jsonl")
    assert np.mean(falling[-5:]) < 0.8 * np.mean(falling[:5])


def test_a_loss_that_is_no_number_stops_the_run(shapes, bridge, space, tmp_path):
    stage = WordStage(bridge, space, shapes.split("train"), shapes.split("val"), batch=4)
    with torch.no_grad():
        stage.head.bias.fill_(float("nan"))
    with pytest.raises(StreammemError, match=r"words: the loss is nan at step 0"):
        train_stage(stage, Schedule(steps=2, lr=1e-2), tmp_path)


def test_words_that_are_too_rare_are_no_words():
    with pytest.raises(DatasetError, match="no word"):
        WordSpace([("A dog.",)], tiny_language())


def test_a_word_head_starts_at_the_prior():
    prior = torch.tensor([0.5, 0.1, 0.001])
    ranked = WordHead(prior)(torch.zeros(1, 4, 3))[0]
    assert ranked.argsort(descending=True).tolist() == [0, 1, 2]
    assert word_loss(ranked[None], prior[None]).isfinite()


def test_captions_learn_through_the_bridge_and_the_lora(shapes, bridge, tmp_path):
    language = tiny_language()
    add_lora(language, LoraOptions(rank=4), seed=0)
    before = {name: value.clone() for name, value in lora_tensors(language).items()}
    stage = CaptionStage(bridge, language, shapes.split("train"), shapes.split("val"), batch=4)
    figures = train_stage(stage, Schedule(steps=5, lr=2e-2, warmup=2), tmp_path)
    falling = losses(tmp_path / "captions.jsonl")
    # Frozen, tied random embeddings of norm 0.1 leave little to win.
    assert np.mean(falling[-2:]) < falling[0] - 0.1
    assert figures["val_loss"] > 0
    assert len(before) == 2 * 4 * 2  # A and B, four targets, two layers
    assert set(before) >= {"model.layers.0.self_attn.q_proj.A", "model.layers.1.mlp.down_proj.B"}
    after = lora_tensors(language)
    assert all(not torch.equal(after[name], before[name]) for name in before)


def test_a_picture_without_captions_is_only_asked_about(shapes, bridge):
    language = tiny_language()
    add_lora(language, LoraOptions(rank=1), seed=0)
    pictures = shapes.split("train")
    questions = [[QuestionRecord("What?", "That.")]] * len(pictures)
    uncaptioned = replace(pictures, captions=[()] * len(pictures), questions=questions)
    stage = CaptionStage(bridge, language, uncaptioned, pictures, batch=2)
    rows = [stage._row(i, np.random.default_rng(i)) for i in range(20)]
    asked = language.ids("What?" + language.chat_suffix)
    assert all(row.branches == [(asked, [*language.ids("That."), 2])] for row in rows)
    assert stage.loss(np.random.default_rng(0)).isfinite()


@pytest.fixture
def rewarded(shapes, bridge):
    language = tiny_language()
    add_lora(language, LoraOptions(rank=4), seed=0)
    return RewardStage(bridge, language, shapes.split("train"), shapes.split("val"), batch=4)


def test_rewarded_captions_are_those_that_the_model_generates(shapes, rewarded, monkeypatch):
    monkeypatch.setattr(captions, "has_bfloat16", lambda device: False)
    language = rewarded.language
    rewarded.bridge.eval()
    with torch.no_grad():
        visual = rewarded._visual(*shapes.split("train").whole([0, 1, 2]), None)
    drawn = rewarded._sample(visual, 2, temperature=0.0)
    prompts = [language.chat([tokens, reward.CAPTION_INSTRUCTION]) for tokens in visual]
    said = language.generate(prompts, GenerationConfig(max_new_tokens=reward.MAX_TOKENS))
    for pair, text in zip(drawn, said, strict=True):
        assert pair[0] == pair[1]
        assert language._text(pair[0]).strip() == text


def test_what_is_rewarded_becomes_likelier(rewarded, tmp_path, monkeypatch):
    ids = rewarded.language.ids
    liked, other = [[*ids(text), 2] for text in ("A red circle.", "A blue square.")]
    monkeypatch.setattr(reward, "HUMAN_WEIGHT", 0.0)
    monkeypatch.setattr(reward, "SAMPLES", 2)
    monkeypatch.setattr(
        rewarded, "_sample", lambda visual, *_, **__: [[liked, other]] * len(visual)
    )
    monkeypatch.setattr(rewarded, "_reward", lambda said, picture: float(said == liked))

    @torch.no_grad()
    def preference():
        visual = rewarded._visual(*rewarded.pictures.whole([0]), None)
        rows = [reward.caption_prompt(rewarded._instruction, [liked, other])]
        losses = rewarded._losses(rows, visual)
        return (losses[len(liked) :].mean() - losses[: len(liked)].mean()).item()

    before = preference()
    monkeypatch.setattr(rewarded, "evaluate", dict)
    train_stage(rewarded, Schedule(steps=6, lr=3e-2, warmup=1), tmp_path)
    assert preference() > before + 0.05


def test_sentences_made_from_a_list_are_read_and_not_rewarded(rewarded, monkeypatch):
    pictures = rewarded.pictures
    rewarded.pictures = replace(pictures, made=[i % 2 == 0 for i in range(len(pictures))])
    sampled = []

    def sample(visual, count, **_):
        sampled.append(len(visual))
        return [[[*rewarded.language.ids("A circle."), 2]] * count] * len(visual)

    monkeypatch.setattr(rewarded, "_sample", sample)
    monkeypatch.setattr(rewarded, "_reward", lambda ids, picture: 1 / (picture % 2))
    rng = np.random.default_rng(3)
    drawn = rewarded.pictures.draw(np.random.default_rng(3), 4)
    assert rewarded.loss(rng).isfinite()  # a reward of a made one would divide by zero
    assert sampled == [sum(i % 2 for i in drawn)]


def test_a_caption_that_breaks_off_is_worth_less(rewarded):
    whole = [*rewarded.language.ids(rewarded.pictures.captions[0][0]), rewarded.language.stop_id]
    assert rewarded._reward(whole, 0) > rewarded._reward(whole[:-1], 0)
    assert rewarded._reward(whole, 0) > rewarded._reward(whole[:2], 0)


def test_a_log_cut_off_by_a_kill_is_read_up_to_there(tmp_path):
    (tmp_path / "words.jsonl").write_text(
        json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo'
    )
    assert read_log(tmp_path / "words.jsonl") == [{"step": 1, "loss": 2.0}]
