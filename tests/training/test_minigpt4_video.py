"""MiniGPT4-Video's training: what learns, by which loss and schedule, and what it leaves."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.errors import BackboneError, ConfigError
from streammem.models import checkpoint
from streammem.models.minigpt4_video.published import open_model
from streammem.models.published import find
from streammem.training.minigpt4_video import MiniGPT4Recipe, MiniGPT4Stage
from streammem.training.published import (
    Dialogue,
    read_parent_recipe,
    run_parent_recipe,
    stage_class,
)
from tests.audio.subtitled import srt
from tests.command_line import record
from tests.models.minigpt4_video import published
from tests.tiny import tiny_model

RECIPE = """
stage = "minigpt4-video"
model = "{model}"
data = ["{items}"]
validation = ["{items}"]
steps = 6
accumulate = 2
rate = 2e-2
least_rate = 1e-2
warmup_steps = 2
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model without training, a film with subtitles, a still, items and a recipe."""
    folder = tmp_path_factory.mktemp("run")
    path = published.write(folder / "files", options="lora_rank = 3\n")
    text = path.read_text().replace(f"{folder}/files/video_checkpoint_last.pth", "fresh")
    path.write_text(text)
    record(folder / "v.mp4", (("red", 1), ("blue", 1)))
    (folder / "v.srt").write_text(srt(((0.5, 1.0, "ab"),)))
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "p.png")
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}]
    rows = [
        {"video": "v.mp4", "conversations": turns},
        {"image": "p.png", "conversations": turns},
    ]
    (folder / "items.json").write_text(json.dumps(rows))
    (folder / "r.toml").write_text(RECIPE.format(model=path, items=folder / "items.json"))
    return folder


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """The model that lends its keys is the tiny one; nothing is drawn."""
    monkeypatch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": tiny_model())
    monkeypatch.setattr("streammem.training.published.draw_curves", lambda stages, out: None)


def opened(place, **options):
    said = find(place / "files" / "minigpt.toml", place)
    own = dataclasses.replace(said.options, lora="attached", **options)
    return open_model("tiny", dataclasses.replace(said, options=own), tiny_model())


VIDEO = ("v.mp4", True, (("What?", "Red."),))


def test_the_loss_is_of_the_answer_and_its_end_after_frames_and_subtitles(place):
    """By hand: -log p of each token, one at a time, after the prompt of use."""
    model = opened(place)
    stage = MiniGPT4Stage(model, MiniGPT4Recipe(dropout=0.0), [])
    stage.module.eval()
    item = Dialogue(place / VIDEO[0], *VIDEO[1:])
    with torch.no_grad():
        loss = stage.loss_of(item, 0)
        pixels, captions = stage._read(item)
        assert len(pixels) == 16 and captions == [*[""] * 4, "ab ", *[""] * 11]
        language, total = model.language, 0.0
        x = language.embed(model.prompt(model.encoder(pixels), captions, "What?"))
        answer = [*language.ids("Red."), 2]
        for token in answer:
            logits = language.model(inputs_embeds=x[None]).logits[0, -1]
            total -= float(logits.log_softmax(-1)[token])
            x = torch.cat([x, language.model.get_input_embeddings()(torch.tensor([token]))])
    assert abs(float(loss) - total / len(answer)) < 1e-4


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("caption", ("<Img>", "</Img> [caption] Say.")),
        ("align", ("[INST] <Img>", "</Img> Say. [/INST] ")),
    ],
)
def test_a_still_is_asked_about_by_the_parents_templates(place, monkeypatch, template, text):
    model, prompts = opened(place), []
    stage = MiniGPT4Stage(model, MiniGPT4Recipe(template=template), [])
    plain = model.language.embed
    monkeypatch.setattr(model.language, "embed", lambda p: prompts.append(p) or plain(p))
    stage.loss_of(Dialogue(place / "p.png", False, (("Say.", "Grey."),)), 0)
    begin, before, frame, behind = prompts[0]
    assert (before, behind) == text and frame.shape == (4, published.L) and len(begin) == 1


def test_the_projection_and_every_adapter_learn_and_nothing_else(place):
    model = opened(place)
    stage = MiniGPT4Stage(model, MiniGPT4Recipe(), [Dialogue(place / VIDEO[0], *VIDEO[1:])])
    assert all(adapter.dropout.p == 0.05 for adapter in stage.module._adapters)
    frozen = {id(p) for p in stage.module.parameters()}
    for optimised in range(2):  # B is zero at first, so A learns from the second step on
        stage.loss(np.random.default_rng(0)).backward()
        for parameter in stage.module.parameters():
            if optimised or parameter.ndim == 1 or parameter.grad.any():
                assert parameter.grad.abs().max() > 0
                parameter.data -= parameter.grad
            parameter.grad = None
    everything = [*model.language.model.named_parameters(), *model.encoder.named_parameters()]
    assert {id(p) for _, p in everything if p.requires_grad} == frozen
    stage.module.eval()
    assert not any(adapter.dropout.training for adapter in stage.module._adapters)
    stage.module.train()
    assert all(adapter.dropout.training for adapter in stage.module._adapters)


@pytest.fixture(scope="module")
def finished(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": tiny_model())
        patch.setattr("streammem.training.published.draw_curves", lambda stages, out: None)
        return run_parent_recipe(place / "r.toml", place / "out")


def trained(place, out):
    return torch.load(place / out / "checkpoint.pth", weights_only=True)["model"]


def test_a_run_learns_and_the_next_stage_opens_what_it_leaves(place, finished):
    lines = (place / "out" / "minigpt4-video.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert finished["val_loss"] < 0.9 * log[0]["loss"] and len(log) == 6
    tensors = trained(place, "out")
    assert tensors.keys() == published.own().keys()
    model = checkpoint.load_checkpoint(place / "out" / "checkpoint.toml")
    assert torch.equal(model.encoder.llama_proj.weight, tensors["llama_proj.weight"])
    assert all(value.any() for value in model.lora.values())
    assert model.language.generate([model.prompt(None, [], "Hello.")], model.decoding)


def test_a_run_that_is_refused_leaves_its_folder_and_no_other_takes_one(
    place, finished, monkeypatch
):
    def missing(*arguments, **more):
        raise BackboneError("no such weights")

    monkeypatch.setattr("streammem.training.published.open_published", missing)
    with pytest.raises(BackboneError):
        run_parent_recipe(place / "r.toml", place / "refused")
    assert not (place / "refused").exists()
    (place / "r3.toml").write_text((place / "r.toml").read_text() + "seed = 3\n")
    with pytest.raises(ConfigError, match="holds a run of another recipe"):
        run_parent_recipe(place / "r3.toml", place / "out")
    assert (place / "out" / "recipe.toml").read_text() == (place / "r.toml").read_text()


def test_a_kill_while_the_folder_is_claimed_leaves_no_half_of_a_claim(place, monkeypatch):
    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": tiny_model())
    monkeypatch.setattr("streammem.training.features.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run_parent_recipe(place / "r.toml", place / "claimed")
    assert [path.name for path in (place / "claimed").iterdir()] == ["recipe.toml.part"]


@pytest.mark.heavy
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(place, finished, monkeypatch):
    real, count = MiniGPT4Stage.loss, []

    def killed(self, rng):
        count.append(1)
        if len(count) == 7:
            raise KeyboardInterrupt
        return real(self, rng)

    text = (place / "r.toml").read_text() + "save_every_s = 0.0\n"
    (place / "r2.toml").write_text(text)
    monkeypatch.setattr(MiniGPT4Stage, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run_parent_recipe(place / "r2.toml", place / "again")
    monkeypatch.setattr(MiniGPT4Stage, "loss", real)
    run_parent_recipe(place / "r2.toml", place / "again")
    once, twice = trained(place, "out"), trained(place, "again")
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_the_pace_is_linear_at_first_then_a_cosine_that_began_at_zero():
    recipe = MiniGPT4Recipe()
    assert recipe.pace(0) == pytest.approx(1e-2)
    assert recipe.pace(500) == pytest.approx((1e-6 + 0.5 * (1e-4 - 1e-6)) / 1e-4)
    for step in (1000, 20_000, 49_999):
        cosine = 0.5 * (1 + math.cos(math.pi * step / 50_000))
        assert recipe.pace(step) * 1e-4 == pytest.approx(8e-5 + 2e-5 * cosine)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"rate": 1e-5}, {"dropout": 1.0}, {"template": "x"}, {"accumulate": 0}],
)
def test_a_recipe_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ConfigError):
        MiniGPT4Recipe(**wrong)


def test_the_shipped_recipes_are_the_parents_schedules():
    folder = checkpoint.CONFIGS / "train"
    first, second, third = (
        read_parent_recipe(folder / f"minigpt4-video-{name}.toml")
        for name in ("1-images", "2-captions", "3-instructions")
    )
    assert (first.steps, first.accumulate, first.warmup_steps) == (4 * 5000, 64, 5000)
    assert (first.template, first.max_answer, first.max_tokens) == ("caption", 160, 512)
    for recipe in (second, third):
        assert (recipe.steps, recipe.accumulate) == (50 * 1000, 4)
        assert (recipe.rate, recipe.least_rate, recipe.first_rate) == (1e-4, 8e-5, 1e-6)
        assert (recipe.warmup_steps, recipe.weight_decay, recipe.dropout) == (1000, 0.05, 0.05)
    assert stage_class(folder / "videollamb.toml") is not MiniGPT4Stage
    assert find(first.model, checkpoint.CONFIGS).checkpoint == "fresh"
