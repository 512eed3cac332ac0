"""The stage that names what pictures show, on pictures of coloured shapes."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from streammem.errors import DatasetError
from streammem.models.tiny.words import WordsOfTokens
from streammem.training.features import cache_features
from streammem.training.generated import make_pictures
from streammem.training.loop import Schedule, train_steps
from streammem.training.records import HELD_OUT_PERSONS, read_source, thing_name
from streammem.training.run import run_recipe
from streammem.training.things import (
    FOREIGN,
    LISTED,
    MIN_LISTED,
    OF_SOURCE,
    ThingStage,
    cross_fitted,
    targets_of,
    tokens_of,
    vocabulary,
)
from tests.tiny import TinyVision, tiny_language
from tests.training.tiny_backbones import RECIPE, tiny_backbones, tiny_bridge


def listed(pictures):
    """List the shape of every picture."""
    names = [captions[0].split()[2] for captions in pictures.captions]
    return replace(pictures, things=[((name, 1.0),) for name in names])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    source = read_source(make_pictures(folder / "shapes", 60))
    cached = cache_features(source, TinyVision(), folder, crops=0)
    return [listed(cached.split(split)) for split in ("train", "val")]


def test_names_are_listed_often_enough_or_asked_for_and_never_say_who_people_are(shapes):
    training, _ = shapes
    names = vocabulary(training)
    assert {"circle", "square", "triangle", "dog", "person"} <= {*names}
    assert not {"man", "woman", "boy", "girl"} & {*names}
    once = replace(training, things=[((f"thing {i}", 1.0),) for i in range(len(training))])
    with pytest.raises(DatasetError, match="no data list"):
        vocabulary(once)


def test_what_a_list_leaves_out_counts_less_than_what_it_names(shapes):
    training, _ = shapes
    captions = [("A puppy.", "A dog.", "Grass."), *[()] * (len(training) - 1)]
    pictures = replace(training, captions=captions)
    names = ["circle", "dog", "knife", "person", "square"]
    targets, weights = targets_of(pictures, names)
    assert targets[0, names.index("dog")] == 1, "two of three people are as good as all"
    shape = pictures.things[1][0][0]
    if shape in names:
        assert (targets[1, names.index(shape)], weights[1, names.index(shape)]) == (1, LISTED)
    assert weights[1, names.index("dog")] == OF_SOURCE
    assert weights[1, names.index("knife")] == np.float16(FOREIGN)


def test_the_head_learns_what_is_there_and_leaves_the_bridge_as_it_is(shapes):
    bridge = tiny_bridge(tiny_language(), shapes[0])
    before = {name: value.clone() for name, value in bridge.state_dict().items()}
    torch.manual_seed(0)
    stage = ThingStage(bridge, *shapes, batch=24)
    first = stage.loss(np.random.default_rng(0)).item()
    train_steps(stage, Schedule(steps=60, lr=3e-3, warmup=2))
    assert stage.loss(np.random.default_rng(0)).item() < 0.5 * first
    figures = stage.evaluate()
    assert figures["in_five"] > 0.9, "three shapes are among five names"
    named = stage.words.likely(torch.from_numpy(stage.tokens[0, 0]), 5, 0.25)
    assert named
    assert all(torch.equal(before[n], value) for n, value in bridge.state_dict().items())


def test_names_of_a_training_picture_come_from_a_head_that_has_not_learned_from_it(
    shapes, monkeypatch
):
    bridge = tiny_bridge(tiny_language(), shapes[0])
    seen: list[np.ndarray] = []
    select = ThingStage.select
    monkeypatch.setattr(
        ThingStage, "select", lambda stage, chosen: seen.append(chosen) or select(stage, chosen)
    )
    drawn = []
    loss = ThingStage.loss

    def watched(stage, rng):
        drawn.append({int(i) for i in np.flatnonzero(stage._chances)})
        return loss(stage, rng)

    monkeypatch.setattr(ThingStage, "loss", watched)
    all_tokens, named_by = tokens_of(bridge, shapes[0]), {}
    likely = WordsOfTokens.likely

    def naming(words, tokens, *more):
        (number,) = [i for i, own in enumerate(all_tokens[:, 0]) if (own == tokens.numpy()).all()]
        named_by[number] = {*seen[-1]}
        return likely(words, tokens, *more)

    monkeypatch.setattr(WordsOfTokens, "likely", naming)
    named = cross_fitted(bridge, shapes[0], steps=1)
    assert len(named) == len(shapes[0])
    assert [{*chosen} for chosen in seen] == drawn
    assert named_by.keys() == set(range(len(named)))
    assert all(number not in learned for number, learned in named_by.items())
    left_out = [set(range(len(named))) - {*chosen} for chosen in seen]
    assert set.union(*left_out) == set(range(len(named)))
    assert sum(map(len, left_out)) == len(named), "each is left out once"
    files = [name.removeprefix("shapes/") for name in shapes[0].names]
    folds = [{i for i, f in enumerate(files) if zlib.crc32(f"fold {f}".encode()) % 3 == number}
             for number in range(3)]  # fmt: skip
    assert left_out == folds, "by the file's name, wherever its folder lies"


def test_where_nothing_can_be_learned_of_things_nothing_is_named(shapes):
    bridge, count = tiny_bridge(tiny_language(), shapes[0]), len(shapes[0])
    unlisted = replace(shapes[0], things=[()] * count)
    assert cross_fitted(bridge, unlisted, steps=1) == [[]] * count
    one = shapes[0].select([0] * MIN_LISTED)  # of one file, and so of one fold
    assert cross_fitted(bridge, one, steps=1) == [[]] * MIN_LISTED


def test_a_folder_of_labels_lists_things_and_splits_frames_by_person(tmp_path):
    folder = tmp_path / "frames"
    (folder / "images").mkdir(parents=True)
    persons, box = [HELD_OUT_PERSONS[0], "rahul", "carlos"], [0, 0, 1, 1]
    rows = [
        {"image": f"{p}{i}.jpg", "source": f"{p}_pizza/{i}.jpg", "objects": [["Cups", box]]}
        for p in persons
        for i in range(3)
    ]
    detected = [["dining table", 0.9, box], ["cat", 0.3, box]]
    rows.append({"image": "d.jpg", "qa": [["how many cups ?", "2"]], "detected": detected})
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = read_source(folder).records
    for record in records[:9]:
        held = record.name.startswith(HELD_OUT_PERSONS)
        assert record.split == ("val" if held else "train")
        assert record.things == (("cup", 1.0),)
    assert [name for name, _ in records[9].things] == ["table", "cat"]
    assert records[9].things[0][1] > 0.7 > 0.2 > records[9].things[1][1]
    assert records[9].questions == (("How many cups?", "Two."),)
    (folder / "labels.jsonl").write_text('{"image": "a.jpg", "detected": [["cat"]]}')
    with pytest.raises(DatasetError, match="line 1: malformed"):
        read_source(folder)


def test_a_name_is_one_of_it_in_small_letters():
    names = ("Wine_Glass", "chairs", "skis", "bus", "glass", "TV", "dining table")
    expected = ["wine glass", "chair", "skis", "bus", "glass", "television", "table"]
    assert [thing_name(name) for name in names] == expected


def test_a_recipe_adds_names_and_answers_to_a_model_and_leaves_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("streammem.training.run.draw_curves", lambda stages, out: None)
    monkeypatch.setattr("streammem.training.run.THING_STEPS", 1)
    place = make_pictures(tmp_path / "shapes", 30)
    table = place / "captions.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for row in rows:
        shape = row["captions"][0].split()[2]
        row["detected"] = [[shape, 0.9, [0, 0, 1, 1]]]
        row["qa"] = [["what is it ?", shape]]
    table.write_text("\n".join(map(json.dumps, rows)))
    text, _, _ = RECIPE.partition("[[stages]]")
    text = text.replace("generated:30", str(place))
    stage = '[[stages]]\nkind = "{}"\nsteps = 2\nlr = 4e-3\nbatch = 4\n'
    (tmp_path / "first.toml").write_text(text + stage.format("captions"))
    saved = {}
    monkeypatch.setattr(
        "streammem.training.run.save", lambda model, folder, **more: saved.update(more, model=model)
    )
    run_recipe(tmp_path / "first.toml", tmp_path / "one", backbones=tiny_backbones())
    assert saved["answers"] == {}
    assert saved["model"].words is None
    captions = {key: value.clone() for key, value in saved["lora"].items()}
    stages = [stage.format(kind) for kind in ("captions", "things", "answers")]
    (tmp_path / "second.toml").write_text(text + "".join(stages))
    figures = run_recipe(tmp_path / "second.toml", tmp_path / "two", backbones=tiny_backbones())
    assert all(torch.equal(value, saved["lora"][key]) for key, value in captions.items())
    assert saved["answers"].keys() == captions.keys()
    assert any(not torch.equal(value, saved["answers"][key]) for key, value in captions.items())
    assert "circle" in saved["model"].words.names
    assert "in_five" in figures["stages"]["things"]
    assert "val_loss" in figures["stages"]["answers"]
