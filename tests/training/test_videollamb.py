import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from streammem.errors import ConfigError, DatasetError
from streammem.models import checkpoint
from streammem.models.published import find
from streammem.models.videollamb.bridge import ParentBridgeConfig, fresh
from streammem.training import loop
from streammem.training.loop import Schedule, read_log
from streammem.training.published import (
    Dialogue,
    read_items,
    read_parent_recipe,
    run_parent_recipe,
    stage_class,
)
from streammem.training.videollamb import Example, ParentRecipe, VideoLLaMBStage, loss
from tests.command_line import record
from tests.models.videollamb import published
from tests.models.videollamb.published import MLP, D, L, M
from tests.tiny import tiny_model
from tests.training.processes_worker import ToyStage
from tests.training.test_processes import launch

SIZES = ParentBridgeConfig(D, L, M, mlp=MLP, dropout=0.0, attention_dropout=0.0)


@pytest.fixture
def language():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=L,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def bridge():
    torch.manual_seed(0)
    return fresh(SIZES).eval()


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    segments = [torch.randn(n, D, generator=generator) for n in (9, 18, 9)]
    return Example(segments, before=[1, 5], after=[6, 7], answer=[10 + seed, 11, 2])


def by_hand(bridge, language, one, shown):
    """The mean of -log p of the answer's tokens, one token at a time."""
    total = 0.0
    for i, token in enumerate(one.answer):
        embed = language.get_input_embeddings()
        ids = torch.tensor([*one.after, *one.answer[:i]])
        x = torch.cat([embed(torch.tensor(one.before)), shown, embed(ids)])
        total -= language(inputs_embeds=x[None]).logits[0, -1].log_softmax(-1)[token]
    return total / len(one.answer)


@torch.no_grad()
def test_the_loss_is_of_the_answer_alone_after_the_last_segment_or_every_one(bridge, language):
    one, memory, cache, shown = example(), bridge.initial_memory(), [], []
    for segment in one.segments:
        read = bridge.read(segment[None], memory)
        cache.append(read.memory)
        memory = bridge.recall(read.memory, torch.cat(cache, 1))
        shown.append(bridge.to_language(read.hidden[0]))
    each = [by_hand(bridge, language, one, tokens) for tokens in shown]
    last = loss(bridge, language, one, ParentRecipe())
    every = loss(bridge, language, one, ParentRecipe(loss_on="every"))
    torch.testing.assert_close(last, each[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(every, sum(each) / 3, atol=1e-5, rtol=0)


@pytest.mark.parametrize("on", ["last", "every"])
@pytest.mark.parametrize("cache", ["memory", "hidden"])
def test_a_few_steps_lower_the_loss(bridge, language, on, cache):
    recipe = ParentRecipe(loss_on=on, cache=cache)
    parameters = [*bridge.parameters(), *language.parameters()]
    optimizer, losses = torch.optim.AdamW(parameters, lr=3e-3), []
    for step in range(12):
        value = loss(bridge, language, example(step % 2), recipe)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert max(losses[-2:]) < 0.7 * min(losses[:2])


def test_the_loss_reaches_the_first_segment_and_the_first_memory(bridge, language):
    one = example()
    one.segments[0].requires_grad_(True)
    loss(bridge, language, one, ParentRecipe()).backward()
    assert one.segments[0].grad.abs().max() > 0
    assert bridge.projector.read_memory_emb.grad.abs().max() > 0
    # A softmax does not see what all keys share, so the bias of the keys learns nothing.
    learning = [p for name, p in bridge.named_parameters() if not name.endswith("k_proj.bias")]
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in learning)


def test_a_detached_cache_changes_the_gradient_and_not_the_loss(bridge, language):
    values, gradients = [], []
    for detach in (False, True):
        bridge.zero_grad()
        value = loss(bridge, language, example(), ParentRecipe(detach_cache=detach))
        value.backward()
        values.append(value.item())
        gradients.append(bridge.projector.read_memory_emb.grad.clone())
    assert values[0] == values[1]
    assert not torch.allclose(gradients[0], gradients[1])


def test_gradients_end_at_the_window_and_the_loss_does_not_change(bridge, language):
    reached, values = [], []
    for window in (0, 3, 2, 1):
        one = example()
        for segment in one.segments:
            segment.requires_grad_(True)
        value = loss(bridge, language, one, ParentRecipe(window=window))
        value.backward()
        values.append(value.item())
        parts = [bridge.projector.read_memory_emb, *one.segments]
        reached.append([part.grad is not None and bool(part.grad.any()) for part in parts])
        bridge.zero_grad()
    assert len(set(values)) == 1
    whole, last = [True] * 4, [False, False, False, True]
    assert reached == [whole, whole, last, last]


def test_the_pace_starts_linearly_and_falls_as_a_cosine():
    recipe = ParentRecipe(steps=100, warmup=0.1)
    paces = [recipe.pace(step) for step in range(101)]
    assert paces[0] == 0 and paces[5] == 0.5 and paces[10] == 1
    assert abs(paces[55] - 0.5) < 1e-9 and paces[100] < 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"loss_on": "all"},
        {"cache": ""},
        {"rate": 0.0},
        {"window": -1},
        {"accumulate": 0},
        {"learns": "towers"},
        {"save_every_s": -1.0},
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ConfigError):
        ParentRecipe(**wrong)


# -- a run --

RECIPE = """
stage = "videollamb"
model = "{model}"
data = ["{items}"]
validation = ["{items}"]
steps = 6
accumulate = 2
rate = 3e-3
warmup = 0.2
"""
TURNS = (("What is it?", "A red square."), ("And then?", "Blue."))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, a TOML file of it, two items and a recipe."""
    folder = tmp_path_factory.mktemp("run")
    published.write(folder / "weights")
    options = "pool = 3\ncuts = 'top3'\nframes = 8\ngroups = 'stream'\nprompt = 'llava_v1'\n"
    (folder / "m.toml").write_text(f"weights = '{folder}/weights'\n[options]\n{options}")
    record(folder / "v.mp4", (("red", 1), ("blue", 1)))
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "p.png")
    said = [
        {"from": speaker, "value": text}
        for question, answer in TURNS
        for speaker, text in (("human", question), ("gpt", answer))
    ]
    said[0]["value"] = "<video>\n" + said[0]["value"]
    rows = [
        {"video": "v.mp4", "conversations": said},
        {"image": "p.png", "conversations": said[2:]},
    ]
    (folder / "items.json").write_text(json.dumps(rows))
    (folder / "r.toml").write_text(
        RECIPE.format(model=folder / "m.toml", items=folder / "items.json")
    )
    return folder


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """The model that lends its keys is the tiny one; nothing is drawn."""
    monkeypatch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": tiny_model())
    monkeypatch.setattr("streammem.training.published.draw_curves", lambda stages, out: None)


@pytest.fixture(scope="module")
def finished(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": tiny_model())
        patch.setattr("streammem.training.published.draw_curves", lambda stages, out: None)
        return place / "out", run_parent_recipe(place / "r.toml", place / "out")


def tensors_of(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_a_run_learns_and_writes_a_checkpoint_in_the_published_layout(place, finished):
    out, figures = finished
    assert figures["val_loss"] < 0.9 * read_log(out / "videollamb.jsonl")[0]["loss"]
    assert [entry["step"] for entry in read_log(out / "videollamb.jsonl")] == [1, 2, 3, 4, 5, 6]
    before, after = tensors_of(place / "weights"), tensors_of(out / "checkpoint")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.mm_projector.projector.proj.0.weight" in moved and "lm_head.weight" in moved
    assert not any("tower" in name or name == "memory" for name in moved)
    model = checkpoint.load_checkpoint(_toml(out / "checkpoint"))
    learned = model.bridge.projector.read_memory_emb
    assert torch.equal(learned, after["model.mm_projector.projector.read_memory_emb"])
    assert model.language.generate([["Hello"]], model.decoding)


def _toml(weights):
    path = weights.parent / "trained.toml"
    path.write_text(f"weights = '{weights}'\n[options]\npool = 3\n")
    return path


def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    place, finished, tmp_path, monkeypatch
):
    (tmp_path / "r.toml").write_text((place / "r.toml").read_text() + "save_every_s = 0.0\n")
    real = loop._step

    def dying(stage, optimizer, schedule, step, group):
        if step == 3:
            raise KeyboardInterrupt
        return real(stage, optimizer, schedule, step, group)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run_parent_recipe(tmp_path / "r.toml", tmp_path / "out")
    assert (tmp_path / "out" / "videollamb.pt").is_file()
    run_parent_recipe(tmp_path / "r.toml", tmp_path / "out")
    whole, resumed = (tensors_of(o / "checkpoint") for o in (finished[0], tmp_path / "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_recipe_does_not_take_the_folder_of_a_run(place, finished, tmp_path):
    (tmp_path / "r.toml").write_text((place / "r.toml").read_text() + "seed = 1\n")
    with pytest.raises(ConfigError, match="another recipe"):
        run_parent_recipe(tmp_path / "r.toml", finished[0])


@pytest.mark.heavy
def test_two_processes_train_and_one_writes(place, tmp_path):
    (tmp_path / "r.toml").write_text(
        (place / "r.toml").read_text().replace("steps = 6", "steps = 2")
    )
    said = launch("published", tmp_path / "r.toml")
    assert [text for text, _ in said] == ["True", "False"]
    steps = [entry["step"] for entry in read_log(tmp_path / "out" / "videollamb.jsonl")]
    assert steps == [1, 2] and tensors_of(tmp_path / "out" / "checkpoint")


def test_the_command_trains(place, tmp_path, capsys):
    from streammem.cli import main

    text = (place / "r.toml").read_text().replace("steps = 6", "steps = 1")
    (tmp_path / "r.toml").write_text(text + 'learns = "bridge"\n')
    assert stage_class(tmp_path / "r.toml") is VideoLLaMBStage
    assert main(["train", str(tmp_path / "r.toml"), "-o", str(tmp_path / "out")]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    before, after = (tensors_of(p) for p in (place / "weights", tmp_path / "out" / "checkpoint"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert figures["steps"] == 1 and figures["parameters"] < 20_000
    assert all(name.startswith("model.mm_projector.") for name in moved)


def test_the_shipped_recipe_is_the_parents_script():
    path = checkpoint.CONFIGS / "train" / "videollamb.toml"
    recipe = read_parent_recipe(path)
    assert stage_class(path) is VideoLLaMBStage and find(recipe.model, checkpoint.CONFIGS)
    assert (recipe.rate, recipe.warmup, recipe.loss_on, recipe.window) == (2e-5, 0.03, "last", 0)
    assert 4 * recipe.accumulate == 32


def test_a_step_takes_the_mean_gradient_of_what_it_accumulates():
    stages = [ToyStage(0) for _ in range(2)]
    schedules = [Schedule(steps=5, lr=0.1, warmup=1, accumulate=n) for n in (1, 2)]
    drawn = []

    class Twice(ToyStage):
        def loss(self, rng):
            return (super().loss(rng) + super().loss(rng)) / 2

    stages[0] = Twice(0)
    for stage, schedule in zip(stages, schedules, strict=True):
        optimizer = loop._optimizer(stage, schedule)
        drawn.append([loop._step(stage, optimizer, schedule, step) for step in range(5)])
    np.testing.assert_allclose(*drawn, rtol=1e-5)
    torch.testing.assert_close(stages[0].module["used"], stages[1].module["used"])


def test_every_turn_is_learned_after_those_before_it(place, finished):
    model = checkpoint.load_checkpoint(place / "m.toml")
    stage = VideoLLaMBStage(model, ParentRecipe(), read_items(place / "items.json"))
    item = Dialogue(place / "v.mp4", True, TURNS)
    tokenizer = model.language.tokenizer
    first, second = (stage.example(item, turn) for turn in (0, 1))
    assert "curious human" in tokenizer.decode(first.before) and first.before[0] == 1
    assert tokenizer.decode(first.after).strip() == "What is it? ASSISTANT:"
    assert tokenizer.decode(first.answer) == "A red square.</s>"
    told = tokenizer.decode(second.after)
    assert told.index("A red square.") < told.index("USER: And then? ASSISTANT:")
    assert tokenizer.decode(second.answer) == "Blue.</s>"
    assert len(first.segments) == 4 and {s.shape[1] for s in first.segments} == {D}
    (still,) = stage.example(Dialogue(place / "p.png", False, TURNS)).segments
    assert still.shape == (9, D)


def test_what_learns_is_float32_and_what_does_not_stays_as_it_is(place, tmp_path):
    path = tmp_path / "half.toml"
    path.write_text((place / "m.toml").read_text() + 'dtype = "bfloat16"\n')
    model = checkpoint.load_checkpoint(path)
    recipe = ParentRecipe(learns="bridge")
    stage = VideoLLaMBStage(model, recipe, read_items(place / "items.json"))
    assert {p.dtype for p in stage.module.parameters()} == {torch.float32}
    assert {p.dtype for p in model.language.model.parameters()} == {torch.bfloat16}
    stage.loss(np.random.default_rng(0)).backward()
    assert model.bridge.projector.read_memory_emb.grad.isfinite().all()
    assert all(p.grad is None for p in model.language.model.parameters())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("nonsense", "not a file of items"),
        ([], "holds no items"),
        ([{"video": "v.mp4"}], "item 1: has no 'conversations'"),
        ([{"conversations": []}], "item 1: has no 'image'"),
        ([{"video": "v.mp4", "conversations": []}], "item 1: give human and gpt"),
        (
            [{"video": "no.mp4", "conversations": [
                {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
            "no.mp4 is missing",
        ),
    ],
)  # fmt: skip
def test_malformed_items_are_named(tmp_path, rows, message):
    path = tmp_path / "items.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    with pytest.raises(DatasetError, match=message):
        read_items(path)
