"""Which stage a recipe of a published model names, and what two processes learn by it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.errors import ConfigError
from streammem.models import checkpoint
from streammem.models.published import FAMILIES, find, open_published
from streammem.training import loop
from streammem.training.processes import ProcessGroup
from streammem.training.published import (
    read_items,
    read_parent_recipe,
    run_parent_recipe,
    stage_class,
    write_torch,
)
from tests.command_line import record
from tests.models.minigpt4_video import published as minigpt4_files
from tests.models.video_llama import published as video_llama_files
from tests.tiny import tiny_model
from tests.training.test_processes import launch

RECIPES = sorted((checkpoint.CONFIGS / "train").glob("*.toml"))


def test_every_family_trains_and_is_found(tmp_path):
    for family in FAMILIES:
        (tmp_path / "r.toml").write_text(f'stage = "{family}"\n')
        assert stage_class(tmp_path / "r.toml").RECIPE().stage == family


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_trains_a_model_of_its_family(path):
    if stage_class(path) is None:
        with pytest.raises(ConfigError, match="give one of videollamb"):
            read_parent_recipe(path)
        return
    recipe = read_parent_recipe(path)
    if recipe.model.startswith("run-"):  # what an earlier recipe leaves
        return
    assert find(recipe.model, checkpoint.CONFIGS).family == recipe.stage


def test_what_a_model_began_with_is_written_beside_what_was_trained(tmp_path):
    said = find("goldfish-7b", checkpoint.CONFIGS)
    said = dataclasses.replace(said, session=dataclasses.replace(said.session, passages=9))
    path = write_torch(said, "checkpoint", {"weight": torch.ones(2)}, tmp_path)
    again = find(str(path), checkpoint.CONFIGS)
    assert again.session == said.session != type(said.session)()
    assert again.options == said.options


# -- several processes --

STEPS, SEED = 3, 5
OPTIONS = {
    "video-llama": 'branch = "pictures"\ntext = "conversations"\n',  # dropout of 0.1
    "minigpt4-video": "dropout = 0.3\n",
}
# Sums in float32 in another order; measured 3e-7 after three steps of at most 1e-2.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Items of films and stills, and a recipe a family, of a model without training."""
    folder = tmp_path_factory.mktemp("processes")
    rows = []
    for number, colour in enumerate(("red", "blue")):
        record(folder / f"{number}.mp4", ((colour, 1), ("green", 1)))
        Image.fromarray(np.full((40, 60, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": f"A {colour} one."}]
        rows += [{"video": f"{number}.mp4", "conversations": turns}]
        rows += [{"image": f"{number}.png", "conversations": turns}]
    (folder / "items.json").write_text(json.dumps(rows))
    models = {
        "minigpt4-video": minigpt4_files.write(folder / "minigpt4", options="lora_rank = 3\n"),
        "video-llama": video_llama_files.toml(video_llama_files.write(folder / "video_llama")),
    }
    fresh = models["minigpt4-video"].read_text()
    models["minigpt4-video"].write_text(
        fresh.replace(f"{folder}/minigpt4/video_checkpoint_last.pth", "fresh")
    )
    for family, model in models.items():
        (folder / f"{family}.toml").write_text(
            f'stage = "{family}"\nmodel = "{model}"\ndata = ["{folder / "items.json"}"]\n'
            f"steps = {STEPS}\naccumulate = 2\nrate = 1e-2\nleast_rate = 1e-3\n"
            f"warmup_steps = 1\nseed = {SEED}\n{OPTIONS[family]}"
        )
    return folder


class BothRanks:
    """Draws what two processes draw in a step, data and dropout, one after the other."""

    def __init__(self, seed, step, rank=0, *, plain=loop._step_generator):
        self.draws = []
        for place in (0, 1):
            rng = plain(seed, step, place)
            self.draws.append([rng, torch.get_rng_state()])

    def loss(self, plain):
        total = 0.0
        for draw in self.draws:
            torch.set_rng_state(draw[1])
            total = total + plain(draw[0])
            draw[1] = torch.get_rng_state()
        return total / 2


def worst(one, other):
    """The greatest difference of two sets of weights.

    A key's bias adds the same to all scores of a query, so its gradient is rounding, of which AdamW
    makes whole steps: it is left out.
    """
    assert one.keys() == other.keys()
    names = [name for name in one if not name.endswith("key.bias")]
    return max(float((one[name] - other[name]).abs().max()) for name in names)


def run_alone(recipe, out):
    figures = run_parent_recipe(recipe, out)
    return figures, torch.load(out / "checkpoint.pth", weights_only=True)["model"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": tiny_model())
    monkeypatch.setattr("streammem.training.published.draw_curves", lambda stages, out: None)


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["video-llama", "minigpt4-video"])
def test_two_processes_learn_what_one_learns_of_the_batches_of_both(
    place, quick, monkeypatch, family
):
    recipe = place / f"{family}.toml"
    said = launch("published", recipe)
    assert [text for text, _ in said] == ["True", "False"]  # one writes
    two = torch.load(place / "out" / "checkpoint.pth", weights_only=True)["model"]
    (place / "out").rename(place / f"{family}.two")
    _, alone = run_alone(recipe, place / f"{family}.alone")  # of the first one's batches
    kind = stage_class(recipe)
    plain = kind.loss
    monkeypatch.setattr(loop, "_step_generator", BothRanks)
    monkeypatch.setattr(kind, "loss", lambda self, both: both.loss(lambda rng: plain(self, rng)))
    _, one = run_alone(recipe, place / f"{family}.one")
    assert worst(one, two) <= TOLERANCE
    assert worst(alone, two) > 1000 * TOLERANCE


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    "family", ["minigpt4-video", pytest.param("video-llama", marks=pytest.mark.heavy)]
)
def test_two_ranks_end_a_step_with_the_weights_of_one_that_has_both_batches(
    place, quick, monkeypatch, family
):
    """Without processes: what they exchange is handed over in turn."""
    recipe = read_parent_recipe(place / f"{family}.toml")
    kind, said = stage_class(place / f"{family}.toml"), find(recipe.model, checkpoint.CONFIGS)
    items = read_items(place / "items.json")
    opened = dataclasses.replace(said, options=kind.options(said, recipe))
    stages = [
        kind.open(open_published("x", opened, tiny_model()), said, recipe, (items, []), "cpu")
        for _ in range(3)
    ]
    schedule = loop.Schedule(steps=4, lr=1e-2, seed=SEED, accumulate=2, warmup=1)
    given = {}

    def stepped(stage, rank, others):
        def exchanged(flat):
            if flat.ndim == 0:  # a loss, which is reported alone
                return
            given[rank] = flat.clone()
            if others not in given:
                raise StopError
            flat += given[others]

        monkeypatch.setattr(torch.distributed, "all_reduce", exchanged)
        stage.module.train()
        loop._step(stage, loop._optimizer(stage, schedule), schedule, 1, ProcessGroup(rank, 2))

    with pytest.raises(StopError):
        stepped(stages[0], 0, 1)
    for rank in (1, 0):
        stepped(stages[rank], rank, 1 - rank)
    plain = kind.loss
    monkeypatch.setattr(loop, "_step_generator", BothRanks)
    monkeypatch.setattr(kind, "loss", lambda self, both: both.loss(lambda rng: plain(self, rng)))
    stages[2].module.train()
    loop._step(stages[2], loop._optimizer(stages[2], schedule), schedule, 1)
    first, second, both = (dict(stage.module.named_parameters()) for stage in stages)
    with torch.no_grad():
        # Sums in another order, which processors round differently.
        assert worst(first, second) == 0.0 and worst(first, both) <= 10 * TOLERANCE
