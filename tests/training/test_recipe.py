import tomllib
from pathlib import Path

import pytest

from streammem.errors import ConfigError
from streammem.training.recipe import (
    StageOptions,
    parse_recipe,
    read_recipe,
    resolve_data,
    text_file,
)
from tests.training.tiny_backbones import RECIPE

RECIPES = Path(__file__).parents[2] / "configs" / "train"
# These start from a model.
CONTINUED = {"answers": ["things", "answers"], "self-training": ["self-training"]}
# Those of the parents have one stage of their own kind; their modules' tests read them.
PARENTS = ("videollamb", "video-llama", "minigpt4-video")
SHIPPED = sorted(
    path
    for path in RECIPES.glob("*.toml")
    if path.stem not in CONTINUED and not path.stem.startswith(PARENTS)
)


def parsed(text):
    return parse_recipe(tomllib.loads(text), "r.toml: ")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_trains_all_that_a_model_needs(path):
    kinds = {stage.kind for stage in read_recipe(path).stages}
    assert {"words", "captions", "operators"} <= kinds
    assert kinds & {"keys", "vision"}  # each trains the key heads


@pytest.mark.parametrize("name", CONTINUED)
def test_a_recipe_that_goes_on_fits_the_model_that_it_starts_from(name):
    recipe = read_recipe(RECIPES / f"{name}.toml")
    whole = read_recipe(RECIPES / "streammem-tiny.toml")
    assert [stage.kind for stage in recipe.stages] == CONTINUED[name]
    for part in ("lora", "bridge", "backbones", "key_dim"):
        assert getattr(recipe, part) == getattr(whole, part)


def test_what_others_learn_on_is_trained_first():
    stages = [
        f'[[stages]]\nkind = "{kind}"\nsteps = 1\nlr = 1\nbatch = 1\n'
        for kind in ("words", "vision")
    ]
    with pytest.raises(ConfigError, match="vision must come first"):
        parsed('data = ["a"]\n' + "".join(stages))


def test_a_recipe_states_only_what_differs_from_the_defaults():
    recipe = parsed('data = ["a", "b"]\n[[stages]]\nkind = "words"\nsteps = 3\nlr = 1\nbatch = 2\n')
    assert recipe.data == ("a", "b")
    assert recipe.stages == (StageOptions("words", 3, 1.0, 2),)
    assert recipe.lora.scale == 2.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'kind = "words"',
            'kind = "wrods"',
            r"r.toml: stages\[0\]\..*'wrods'.*known: vision, words",
        ),
        ("steps = 4", "", r"stages\[0\]\.steps: missing"),
        ("lr = 4e-3", "lr = 0.0", "lr above 0"),
        ("lr = 4e-3", 'lr = "fast"', r"stages\[0\]\.lr: 'fast' is not of type float"),
        ("batch = 8", "batch = 8\nbatches = 9", r"stages\[0\]\.batches: no such option"),
        ('kind = "keys"', 'kind = "words"', "two are called words"),
        ('kind = "keys"', 'kind = "keys"\nname = "../keys"', "it names files"),
        ("heads = 2", "heads = 3", "dim 16 is not a multiple of heads 3"),
        ("rank = 2", "rank = 0", "lora: needs rank >= 1"),
        ("rank = 2", "rank = 2\ndropout = 1.0", r"dropout must be in \[0, 1\)"),
        ("crops = 1", 'crops = 1\nvalidation = ["other"]', "other: not listed under data"),
        ('data = ["generated:30"]', "", "data: missing"),
        ('data = ["generated:30"]', 'data = ["a/x", "b/x"]', "two are called x"),
        ('data = ["generated:30"]', "data = [1]", "as strings"),
        ('data = ["generated:30"]', 'data = ["a.txt"]', "sentences only"),
        ('data = ["generated:30"]', 'data = ["a", "b.csv"]', "b.csv: name the column"),
        ("crops = 1", 'crops = 1\nvalidation = ["b.txt"]', "b.txt: not listed under data"),
        ('kind = "prefix"', 'kind = "words"\nname = "w2"', "put prefix before it"),
        (
            'kind = "operators"',
            'kind = "self-training"',
            "before it come things and operators only",
        ),
        ("lr = 4e-3", "lr = 4e-3\nphotos = 1.0", r"photos=1.0: give a share in \(0, 1\)"),
        ("lr = 4e-3", "lr = 4e-3\nanswers = 2", "words: answers=2: for self-training only"),
    ],
)
def test_an_invalid_recipe_is_refused_with_place_and_reason(old, new, message):
    with pytest.raises(ConfigError, match=message) as raised:
        parsed(RECIPE.replace(old, new, 1))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("r.toml: ")


def test_stages_added_at_the_end_continue_a_recipe_and_other_changes_do_not():
    recipe = parsed(RECIPE)
    more = parsed(
        RECIPE + '[[stages]]\nkind = "words"\nname = "w2"\nsteps = 1\nlr = 1\nbatch = 1\n'
    )
    assert more.continues(recipe)
    assert not recipe.continues(more)
    assert parsed(RECIPE.replace('"tiny"', '"other"')).continues(recipe)
    assert not parsed(RECIPE.replace("steps = 4", "steps = 5", 1)).continues(recipe)
    assert not parsed(RECIPE.replace("crops = 1", "crops = 2")).continues(recipe)


def test_self_training_follows_what_leaves_captions_as_they_are_only():
    one = '[[stages]]\nkind = "{}"\nname = "{}"\nsteps = 1\nlr = 1\nbatch = 1\n'
    kinds = ("things", "operators", "self-training", "answers")
    stages = "".join(one.format(kind, kind) for kind in kinds)
    assert [stage.kind for stage in parsed(f'data = ["a"]\n{stages}').stages] == [*kinds]
    with pytest.raises(ConfigError, match="--init run/checkpoint"):
        parsed(f'data = ["a"]\n{stages}' + one.format("self-training", "second"))


def test_entries_of_data_are_pictures_or_sentences():
    recipe = parsed(RECIPE.replace('["generated:30"]', '["a", "b/c.txt", "d.csv:what is said"]'))
    assert recipe.pictures == ("a",)
    assert [text_file(entry) for entry in recipe.data] == [
        None,
        ("b/c.txt", ""),
        ("d.csv", "what is said"),
    ]


def test_data_are_found_through_the_environment(monkeypatch):
    monkeypatch.setenv("STREAMMEM_DATA", "/somewhere")
    assert resolve_data("flickr") == Path("/somewhere/flickr")
    assert resolve_data("/else/flickr") == Path("/else/flickr")
    monkeypatch.delenv("STREAMMEM_DATA")
    with pytest.raises(ConfigError, match=r"flickr.*STREAMMEM_DATA"):
        resolve_data("flickr")
