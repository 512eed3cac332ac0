"""The evidence stage: the space that two judges share, and what of it a checkpoint keeps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from streammem.models.tiny.keys import PictureKey, TextKey, WordsOfCells, WordsOfSentence
from streammem.training.evidence import (
    WEIGHT,
    EvidenceData,
    EvidenceStage,
    attach_evidence,
    common_space,
    reduce_rank,
)
from streammem.training.features import cache_features
from streammem.training.generated import make_pictures
from streammem.training.keys import Embedded
from streammem.training.loop import Schedule, read_log, train_stage
from streammem.training.records import read_source
from streammem.training.sentences import Sentences
from streammem.training.words import WordSpace, plain_words
from tests.tiny import TinyVision, tiny_language

CELLS, PATCH, TEXT, WORDS, KEY = 5, 8, 6, 7, 32


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def joined():
    """Keys with evidence, of so few pictures and sentences that no dimension is left out."""
    torch.manual_seed(0)
    keys = PictureKey(PATCH, KEY, dim=16).eval(), TextKey(TEXT, KEY).eval()
    words = WordsOfCells(CELLS, WORDS, rank=4), WordsOfSentence(TEXT, WORDS).eval()
    torch.nn.init.normal_(words[0].up.weight)
    patches, sentences = rows(12, 9, PATCH), F.normalize(rows(14, TEXT, seed=1), dim=-1)
    attach_evidence(keys, words, patches.split(5), sentences.split(4))
    return keys, words, patches, sentences


@torch.no_grad()
def test_the_joined_keys_rank_as_the_sum_of_both_judges(joined):
    (picture_key, text_key), (cells, of_sentence), patches, sentences = joined
    said = cells(patches)
    absence = F.logsigmoid(-said).sum(1)
    asked = of_sentence(sentences).sigmoid()
    wanted = text_key.own(sentences) @ picture_key.own(patches).T
    wanted += WEIGHT * (asked @ said.T + absence)
    found = text_key(sentences) @ picture_key(patches).T
    for one, other in zip(wanted, found, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 1 - 1e-6
        assert ((other - other.mean()) @ (one - one.mean())) > 0


@torch.no_grad()
def test_joined_keys_are_unit_vectors_and_a_sentence_leaves_the_last_place_empty(joined):
    (picture_key, text_key), _, patches, sentences = joined
    shown, asked = picture_key(patches), text_key(sentences)
    for keys in (shown, asked):
        assert torch.allclose(keys.norm(dim=1), torch.ones(len(keys)), atol=1e-5)
    assert (asked[:, -1] == 0).all()
    assert (shown[:, -1] >= 0).all()
    assert shown[:, -1].max() > 0.01
    assert shown[:, -1].min() < 0.01  # the longest one of training has its whole length


def test_the_common_space_errs_by_the_least_that_its_dimensions_allow():
    left, right = rows(400, 6) @ rows(6, 6, seed=2), rows(500, 6, seed=3) @ rows(6, 6, seed=4)
    whitened = [torch.linalg.svd(r - r.mean(0), full_matrices=False) for r in (left, right)]
    best = torch.linalg.svdvals(
        torch.diag(whitened[0].S) @ whitened[0].Vh @ whitened[1].Vh.T @ torch.diag(whitened[1].S)
    )
    wanted = (left - left.mean(0)) @ (right - right.mean(0)).T
    for dim in (1, 3, 6):
        space = common_space(left.double(), right.double(), dim)
        found = ((left - space.left_mean) @ space.left) @ (
            (right - space.right_mean) @ space.right
        ).T
        least = best[dim:].square().sum().sqrt()
        assert torch.allclose((wanted - found).norm().float(), least, rtol=1e-3, atol=0.05)


def test_a_lower_rank_costs_more_and_the_full_one_nothing():
    weight, bias, cells = rows(WORDS, CELLS), rows(WORDS, seed=1), rows(300, CELLS, seed=2)
    full = WordsOfCells(CELLS, WORDS, CELLS)
    patches = rows(20, 9, PATCH, seed=3)
    with torch.no_grad():
        wanted = torch.logsumexp(4 * patches[..., :CELLS] @ weight.T, 1) - np.log(9) + bias
        errors = [
            (reduce_rank(weight, bias, cells, rank)(patches) - wanted).abs().mean().item()
            for rank in (1, 3, CELLS)
        ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4
    assert full.up.in_features == reduce_rank(weight, bias, cells).up.in_features


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return cache_features(read_source(make_pictures(folder / "shapes", 60)), TinyVision(), folder)


def bag(texts, words):
    """Embed a text as its words, so that what is asked can be known."""
    counts = torch.tensor([[float(w in plain_words(text)) for w in words] for text in texts])
    return F.normalize(counts + 1e-3, dim=-1)


@pytest.mark.parametrize("sentences", [False, True], ids=["photos", "and sentences"])
def test_the_stage_finds_pictures_by_words_that_its_keys_never_learned(shapes, sentences, tmp_path):
    torch.manual_seed(0)
    space = WordSpace(shapes.split("train").captions, tiny_language())
    sets = {
        split: Embedded(pictures, [bag(texts, space.words) for texts in pictures.captions])
        for split in ("train", "val")
        for pictures in [shapes.split(split)]
    }
    told = [f"a {word}" for word in space.words]
    others = Sentences(told, bag(told, space.words).half().numpy()) if sentences else None
    keys = PictureKey(8, 16, dim=16), TextKey(len(space.words), 16)
    cells = WordsOfCells(8, len(space.words), rank=8)
    cells.start(space.prior)
    data = EvidenceData(sets["train"], sets["val"], others)
    stage = EvidenceStage(keys, space, data, cells, batch=16)
    train_stage(stage, Schedule(steps=150, lr=2e-2, warmup=5), tmp_path)
    last = read_log(tmp_path / "evidence.jsonl")[-1]
    assert last["sentences"] < 2
    stage.attach(0)
    pictures, text = sets["val"]
    with torch.no_grad():
        patches = pictures.whole(range(len(pictures)))[0][:, 0]
        shown, plain = keys[0].eval()(patches), keys[0].own(patches)
        asked = torch.stack([t[0] for t in text])
        found, before = keys[1].eval()(asked) @ shown.T, keys[1].own(asked) @ plain.T

    def rank(scores):
        return (scores >= scores.diagonal()[:, None]).sum(1).float().mean()

    assert rank(found) < 0.75 * rank(before)
