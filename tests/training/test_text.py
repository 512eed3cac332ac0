"""Captions without pictures: the map into the visual tokens, and training on them."""

import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streammem.errors import DatasetError
from streammem.training.captions import CaptionStage, caption_prompt, pack, packed_losses
from streammem.training.context import TrainingContext
from streammem.training.features import cache_features
from streammem.training.generated import SENTENCES, make_pictures
from streammem.training.keys import Embedded
from streammem.training.loop import Schedule, read_log, train_stage
from streammem.training.lora import add_lora
from streammem.training.recipe import LoraOptions, parse_recipe
from streammem.training.records import read_source
from streammem.training.run import _read_sentences
from streammem.training.sentences import embed_sentences, read_sentences
from streammem.training.text import PrefixStage, SentencePrefix, TextStage, caption_gap
from tests.tiny import TinySentences, TinyVision, tiny_language
from tests.training.tiny_backbones import tiny_bridge


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def sets(folder):
    """Training and validation pictures with their captions' embeddings."""
    cached = cache_features(read_source(make_pictures(folder / "s", 60)), TinyVision(), folder)
    pictures = [cached.split(split) for split in ("train", "val")]
    return [Embedded(p, [TinySentences().encode(c) for c in p.captions]) for p in pictures]


@pytest.fixture
def bridge(sets):
    return tiny_bridge(tiny_language(), sets[0].pictures, dropout=0.1)


@pytest.fixture
def prefix(bridge):
    torch.manual_seed(1)
    return SentencePrefix(4, 32)


@pytest.fixture
def stage(sets, bridge, prefix, folder):
    language = tiny_language()
    add_lora(language, LoraOptions(rank=4, alpha=8.0, dropout=0.0), seed=0)
    training, validation = sets
    photos = CaptionStage(bridge, language, training.pictures, validation.pictures)
    texts = read_sentences(folder / "s" / SENTENCES)
    others = embed_sentences(texts, TinySentences, "tiny", folder)
    return TextStage(photos, prefix, others, validation, batch=20, share=0.5)


def test_packed_pictures_lose_exactly_what_they_lose_alone():
    language, prefix, num_visual = tiny_language(), [5, 6], 3
    rows = [caption_prompt([7, 8], [[10 + i, 11, 2], [12, 2]][: 1 + i % 2]) for i in range(5)]
    visual = torch.randn(5, num_visual, language.width, generator=torch.Generator().manual_seed(0))
    together = pack(rows, prefix=prefix, num_visual=num_visual, width=26)
    alone = [
        packed_losses(language, pack([r], prefix=prefix, num_visual=num_visual), visual[i : i + 1])
        for i, r in enumerate(rows)
    ]
    assert 1 < len(together.ids) < len(rows)
    assert together.ids.shape[1] <= 26
    # float32, another order of the same sums
    assert torch.allclose(packed_losses(language, together, visual), torch.cat(alone), atol=1e-5)


def test_the_gap_is_how_far_captions_of_a_picture_lie_apart():
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randn(200, 1, 384, generator=rng)
    captions = pictures + 0.1 * torch.randn(200, 5, 384, generator=rng)
    assert caption_gap([*captions, torch.zeros(1, 384)]) == pytest.approx(0.1, rel=0.02)
    assert caption_gap([torch.zeros(1, 384)]) == 0.0


def test_the_map_starts_at_the_mean_and_learns_what_the_bridge_makes_of_the_picture(
    sets, bridge, prefix, tmp_path
):
    stage = PrefixStage(prefix, bridge, *sets, batch=16)
    before = {name: value.clone() for name, value in bridge.state_dict().items()}
    start = stage.evaluate()
    assert start["cosine"] == start["cosine_other"]
    assert start["gap"] > 0
    figures = train_stage(stage, Schedule(steps=40, lr=1e-2, warmup=2), tmp_path)
    assert figures["cosine"] > start["cosine"]
    assert figures["cosine"] > figures["cosine_other"] + 0.01
    assert all(torch.equal(value, before[n]) for n, value in bridge.state_dict().items())


def test_noise_has_the_measured_size_and_leaves_unit_rows(prefix):
    prefix.gap.fill_(0.05)
    rows = torch.nn.functional.normalize(torch.randn(500, 384), dim=-1)
    blurred = prefix.blurred(rows)
    assert torch.allclose(blurred.norm(dim=-1), torch.ones(500), atol=1e-5)
    # a unit vector and noise of norm g * sqrt(384): the cosine of the sum
    expected = 1 / np.sqrt(1 + 384 * 0.05**2)
    assert (blurred * rows).sum(1).mean().item() == pytest.approx(expected, abs=0.005)


def test_sentences_teach_the_adapter_and_nothing_else(stage, bridge, prefix, tmp_path):
    frozen = {n: v.clone() for part in (bridge, prefix) for n, v in part.state_dict().items()}
    lora = {n: v.clone() for n, v in stage.module.state_dict().items()}
    train_stage(stage, Schedule(steps=5, lr=2e-2, warmup=1), tmp_path)
    now = {n: v for part in (bridge, prefix) for n, v in part.state_dict().items()}
    assert all(torch.equal(value, frozen[n]) for n, value in now.items())
    assert all(not torch.equal(v, lora[n]) for n, v in stage.module.state_dict().items())
    losses = [entry["loss"] for entry in read_log(tmp_path / "text.jsonl")]
    assert losses[-1] < losses[0] - 0.1


def test_the_stated_share_of_captions_are_pictures_own(stage, monkeypatch):
    drawn = []
    monkeypatch.setattr(stage, "_loss", lambda rows, visual: drawn.append((rows, visual)))
    stage.loss(np.random.default_rng(0))
    ((rows, visual),) = drawn
    assert stage.photos.batch * 5 == stage.num_sentences == 10
    assert len(rows) == len(visual) == 2 + 10


def test_the_photos_are_measured_as_in_the_stages_that_see_them(stage):
    stage.module.eval()
    figures = stage.evaluate()
    assert figures["val_loss"] == stage.photos.evaluate()["val_loss"]
    assert not stage.language.model.training  # no dropout in what is measured
    assert {"sentence_loss", "cider", "val_loss_other_picture"} <= figures.keys()


def test_a_special_token_in_a_sentence_is_only_letters(stage):
    (branch,) = stage._row("A <|im_end|> dog.").branches
    assert branch[1].count(stage.language.stop_id) == 1
    assert branch[1][-1] == stage.language.stop_id


RECIPE = """
data = ["generated:30", "{folder}/more.txt", "{folder}/log.csv:narration"]
[[stages]]
kind = "words"
steps = 1
lr = 1
batch = 1
"""


def test_a_runs_sentences_are_those_of_its_files_without_captions_of_validation_pictures(
    tmp_path,
):
    out = tmp_path / "out"
    source = read_source(make_pictures(out / "generated-30", 30))
    said = next(r.captions[0] for r in source.records if r.split == "val")
    learned = next(r.captions[0] for r in source.records if r.split == "train")
    (tmp_path / "more.txt").write_text(f"{said}\na dog runs\n{learned}\n")
    (tmp_path / "log.csv").write_text("id,narration\n1,open drawer\n2,a dog runs\n")
    recipe = parse_recipe(tomllib.loads(RECIPE.format(folder=tmp_path)), "")
    learner = SimpleNamespace(backbones=SimpleNamespace(sentences=TinySentences))
    texts = _read_sentences(recipe, out)
    context = TrainingContext(recipe, out, learner, {"generated:30": source}, texts=texts)
    assert said in texts
    made = len(read_sentences(out / "generated-30" / SENTENCES))
    known = {learned} & {c for r in source.records if r.split == "val" for c in r.captions}
    expected = [t for t in ("A dog runs.", learned, "Open drawer.") if t not in known]
    assert list(context.sentences.texts[: len(expected)]) == expected
    assert context.sentences.embeddings.shape == (len(expected) + made, 384)


def test_a_run_without_sentences_names_what_is_missing(tmp_path):
    recipe = parse_recipe(tomllib.loads(RECIPE.format(folder=tmp_path)), "")
    with pytest.raises(DatasetError, match="add a text file"):
        _ = TrainingContext(recipe, tmp_path, SimpleNamespace(), {}).sentences
