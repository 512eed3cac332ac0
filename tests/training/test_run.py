import json
import shutil
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from streammem.errors import CheckpointError, ConfigError, DatasetError
from streammem.models import checkpoint
from streammem.training import loop, run
from streammem.training.generated import make_pictures
from streammem.training.processes import ProcessGroup
from streammem.training.run import run_recipe
from tests.tiny import TinySentences, TinyVision, tiny_language
from tests.training.tiny_backbones import RECIPE, tiny_backbones


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    # Drawing takes longer than training; the finished run's curve is the one that is looked at.
    monkeypatch.setattr("streammem.training.run.draw_curves", lambda stages, out: None)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run: its folder and its figures."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(RECIPE)
    figures = run_recipe(folder / "tiny.toml", folder / "out", backbones=tiny_backbones())
    return folder / "out", figures


@pytest.fixture
def openable(monkeypatch):
    """Let ``load_checkpoint`` find the tiny backbones under the recipe's names."""
    monkeypatch.setattr(checkpoint, "open_vision", lambda name, changes, device="cpu": TinyVision())
    monkeypatch.setattr(checkpoint, "backbone_path", lambda name: name)
    monkeypatch.setattr(checkpoint, "SentenceEncoder", lambda path: TinySentences())
    opened = type("Opened", (), {"open": staticmethod(lambda path, **_: tiny_language())})
    monkeypatch.setattr(checkpoint, "CausalLanguageModel", opened)


def weights(out):
    return load_file(out / "checkpoint" / "model.safetensors")


def learned(out, stage):
    return torch.load(out / f"{stage}.pt", weights_only=True)["module"]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def killed_at(monkeypatch, stage, step):
    """Make a run die in one step of one stage, with everything before it saved."""
    real = loop._step
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)

    def dying(running, optimizer, schedule, number, group):
        if (running.name, number) == (stage, step):
            raise KeyboardInterrupt
        return real(running, optimizer, schedule, number, group)

    monkeypatch.setattr(loop, "_step", dying)


STAGES = ("words", "keys", "evidence", "captions", "prefix", "text", "reward", "operators")


FAST = ("words",)  # the others die in the same loop


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        pytest.param(stage, i % 2, marks=() if stage in FAST else pytest.mark.heavy)
        for i, stage in enumerate(STAGES)
    ],
)
def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    recipe, tmp_path, monkeypatch, finished, stage, step
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        killed_at(patch, stage, step)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, backbones=tiny_backbones())
    with open(out / f"{stage}.jsonl", "a") as log:  # a step that was logged but not saved
        log.write(json.dumps({"step": step + 1, "loss": 9.9}) + "\n")
    run_recipe(recipe, out, backbones=tiny_backbones())
    assert same(weights(out), weights(finished[0]))
    for name in STAGES:
        assert same(learned(out, name), learned(finished[0], name))
    steps = [entry["step"] for entry in loop.read_log(out / f"{stage}.jsonl")]
    assert steps == list(range(1, len(steps) + 1))


def test_a_finished_stage_is_not_repeated(recipe, monkeypatch, finished):
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("trained again"))
    again = run_recipe(recipe, finished[0], backbones=tiny_backbones())
    assert again == finished[1]


def test_every_stage_leaves_its_figures_its_recipe_and_its_curve(finished):
    out, figures = finished
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["pictures"] == {"train": 24, "val": 6}
    assert {"top5", "top5_prior"} <= figures["stages"]["words"].keys()
    assert {"recall@1", "median_rank"} <= figures["stages"]["keys"].keys()
    assert {"val_loss", "val_loss_other_picture"} <= figures["stages"]["captions"].keys()
    assert {"cosine", "cosine_other", "gap"} <= figures["stages"]["prefix"].keys()
    assert {"val_loss", "sentence_loss", "cider"} <= figures["stages"]["text"].keys()
    assert (out / "loss.png").stat().st_size > 1000
    interim = torch.load(out / "captions.pt", weights_only=True)
    assert interim["step"] == 3
    assert interim["recipe"] == RECIPE


def test_the_checkpoint_generates_what_the_trained_model_generates(finished, openable):
    out, _ = finished
    model = checkpoint.load_checkpoint(out / "checkpoint")
    interim = torch.load(out / "reward.pt", weights_only=True)["module"]
    prefix = "lora.base_model/model/model/layers/0/self_attn/q_proj/lora_"
    a, b = (interim[f"{prefix}{part}/default/weight"] for part in "AB")
    plain = tiny_language().model.model.layers[0].self_attn.q_proj.weight
    merged = model.language.model.model.layers[0].self_attn.q_proj.weight
    # alpha / rank is 2; float16 on disk
    assert torch.allclose(merged, plain + 2.0 * b @ a, atol=1e-4)
    assert not torch.equal(merged, plain)
    assert model.bridge.patch_mean.any()
    assert torch.equal(model.bridge.patch_std, model.picture_key.patch_std)
    assert model.background.shape == (24, 16)
    assert model.center.shape == (TinyVision.frame_dim,)
    records = (out / "generated-30" / "captions.jsonl").read_text().splitlines()
    learned = [json.loads(line) for line in records if json.loads(line)["split"] == "train"]
    known = set(model.caption_tokens.tolist())
    assert model.language.stop_ids <= known
    for caption in (text for record in learned for text in record["captions"]):
        assert set(model.language.ids(caption)) <= known


@pytest.mark.heavy
def test_a_run_may_start_from_a_checkpoint_and_then_trains_only_its_own_stages(
    recipe, tmp_path, finished, openable
):
    text, _, _ = RECIPE.partition("[[stages]]")
    stage = '[[stages]]\nkind = "operators"\nname = "later"\nsteps = 2\nlr = 4e-2\nbatch = 8\n'
    recipe.write_text(text + stage)
    out = tmp_path / "out"
    start = tmp_path / "start"
    shutil.copytree(finished[0] / "checkpoint", start)
    config = json.loads((start / "config.json").read_text())
    config["chance"] = {"location": -2.0, "growth": 0.5, "scale": 0.25}
    config["choice"] = {"weights": [1.0, 0.5], "candidates": 3, "naming": 0.2}
    (start / "config.json").write_text(json.dumps(config))
    run_recipe(recipe, out, init=start, backbones=tiny_backbones())
    written = json.loads((out / "checkpoint" / "config.json").read_text())
    assert all(written[name] == config[name] for name in ("chance", "choice", "scenes"))
    before, after = load_file(start / "model.safetensors"), weights(out)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert (out / "later.pt").exists()
    assert all(key.startswith("questions.") for key in changed)


def test_a_caption_stage_goes_on_from_the_checkpoints_lora(recipe, tmp_path, finished, openable):
    text, _, _ = RECIPE.partition("[[stages]]")
    stage = '[[stages]]\nkind = "captions"\nsteps = 1\nlr = 1e-9\nbatch = 2\n'
    recipe.write_text(text.replace("alpha = 4.0", "alpha = 8.0") + stage)
    start = finished[0] / "checkpoint"
    run_recipe(recipe, tmp_path / "out", init=start, backbones=tiny_backbones())
    before, after = load_file(start / "model.safetensors"), weights(tmp_path / "out")
    assert torch.equal(after["caption_tokens"], before["caption_tokens"])
    key = "lora.model.layers.1.mlp.down_proj"
    assert torch.equal(after[f"{key}.A"], before[f"{key}.A"])
    # alpha / rank doubled, so B counts half
    assert torch.allclose(after[f"{key}.B"], before[f"{key}.B"] / 2, atol=1e-5)


def test_an_output_folder_belongs_to_one_recipe(recipe, tmp_path, finished):
    recipe.write_text(RECIPE.replace("lr = 4e-3", "lr = 5e-3"))
    with pytest.raises(ConfigError, match="another recipe"):
        run_recipe(recipe, finished[0], backbones=tiny_backbones())


def test_another_runs_folder_is_refused_untouched_before_anything_is_opened(
    recipe, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"init": "other", "recipe": RECIPE}))
    before = (out / "run.json").read_bytes()
    monkeypatch.setattr("streammem.training.run.Learner.open", None)
    with pytest.raises(ConfigError, match="another recipe or start"):
        run_recipe(recipe, out, backbones=tiny_backbones())
    assert [*out.iterdir()] == [out / "run.json"]
    assert (out / "run.json").read_bytes() == before


def test_a_refused_start_leaves_the_folder_free_and_a_killed_run_holds_it(
    recipe, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="no such model"):
        run_recipe(recipe, out, init=tmp_path / "nowhere", backbones=tiny_backbones())
    killed_at(monkeypatch, "words", 0)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, out, backbones=tiny_backbones())
    with pytest.raises(ConfigError, match="another recipe or start"):
        run_recipe(recipe, out, init=tmp_path / "nowhere", backbones=tiny_backbones())


def test_of_several_processes_the_first_claims_the_folder_when_all_have_looked(
    recipe, tmp_path, monkeypatch
):
    out, claimed = tmp_path / "out", []

    def run_as(rank):
        waited = []

        class Group(ProcessGroup):
            def wait(self):
                waited.append((out / "run.json").exists())

        monkeypatch.setattr(
            run, "join_processes", lambda device: nullcontext((Group(rank, 2), "cpu"))
        )
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, backbones=tiny_backbones())
        claimed.append((out / "run.json").exists())
        return waited

    monkeypatch.setattr(run, "make_stage", Mock(side_effect=KeyboardInterrupt))
    assert run_as(1) == [False, False]
    assert run_as(0) == [False, False], "first the others look, then it is written"
    assert claimed == [False, True]


def test_a_start_that_does_not_choose_is_named_with_the_way_out(
    recipe, tmp_path, finished, openable
):
    text, _, _ = RECIPE.partition("[[stages]]")
    recipe.write_text(text + '[[stages]]\nkind = "self-training"\nsteps = 1\nlr = 1.0\nbatch = 2\n')
    start = finished[0] / "checkpoint"
    with pytest.raises(ConfigError, match=f"{start} does not choose .* choice --fit {start}, or"):
        run_recipe(recipe, tmp_path / "out", init=start, backbones=tiny_backbones())
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("data", ['"generated:30"', '"generated:30", "/no/such/folder"'])
@pytest.mark.parametrize("earlier", ["nothing", "a file", "generated pictures"])
def test_a_refused_run_leaves_its_folder_as_it_was(recipe, tmp_path, data, earlier):
    recipe.write_text(RECIPE.replace('"generated:30"', data))
    out = tmp_path / "out"
    if earlier == "a file":
        out.mkdir()
        (out / "notes.txt").touch()
    elif earlier == "generated pictures":
        make_pictures(out / "generated-30", 30)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ConfigError, DatasetError)):
        run_recipe(recipe, out, init=tmp_path / "nowhere", backbones=tiny_backbones())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_kill_while_the_folder_is_claimed_leaves_no_half_of_a_claim(
    recipe, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("streammem.training.features.os.replace", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, backbones=tiny_backbones())
    assert not (out / "run.json").exists()
    monkeypatch.setattr(run, "make_stage", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # it goes on
        run_recipe(recipe, out, backbones=tiny_backbones())
    assert json.loads((out / "run.json").read_text())["recipe"] == RECIPE


def test_a_start_of_other_sizes_is_refused(recipe, tmp_path, finished, openable):
    recipe.write_text(RECIPE.replace("memory_tokens = 4", "memory_tokens = 5"))
    with pytest.raises(CheckpointError, match="memory_tokens is 4, the recipe's 5"):
        run_recipe(
            recipe, tmp_path / "out", init=finished[0] / "checkpoint", backbones=tiny_backbones()
        )
