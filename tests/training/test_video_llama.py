import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.errors import CheckpointError, ConfigError
from streammem.models import checkpoint
from streammem.models.published import find
from streammem.models.video_llama.published import open_model, open_picture_branch
from streammem.training.published import Dialogue, read_items, stage_class
from streammem.training.run import run_recipe
from streammem.training.video_llama import VideoLlamaRecipe, VideoLlamaStage, cleaned, crop_of
from tests.models.backbones.test_imagebind import vision
from tests.models.heard import noise, write_film
from tests.models.video_llama import published
from tests.models.video_llama.published import EAR_LAYERS, EARS, OUT, W
from tests.models.videollamb.published import L
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("video_llama") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A still, and a film with sound, each with a conversation."""
    place = tmp_path_factory.mktemp("data")
    noisy = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(noisy).save(place / "a.png")
    write_film(place / "b.mkv", sound=noise(4.0))

    def turns(*texts):
        return [
            {"from": who, "value": text}
            for who, text in zip(["human", "gpt"] * len(texts), texts, strict=False)
        ]

    rows = [
        {"image": "a.png", "conversations": turns("What?", "A Red dog (really).", "Why?", "So.")},
        {"video": "b.mkv", "conversations": turns("Which?", "Blue!")},
    ]
    (place / "items.json").write_text(json.dumps(rows))
    return place / "items.json"


def opened(folder, tmp_path, **changes):
    path = published.toml(folder, tmp_path / "model.toml", **changes)
    return find(path, checkpoint.CONFIGS)


@pytest.fixture
def stage_of(folder, data, tmp_path):
    """Make a stage of an opened model."""

    def make(chat="vicuna", **recipe):
        said = opened(folder, tmp_path, chat=chat)
        model = open_model("x", said, tiny_model())
        recipe = VideoLlamaRecipe(model="x", data=("y",), **recipe)
        eyes = (
            open_picture_branch(said)
            if (recipe.branch, recipe.hears) == ("sound", "pictures")
            else None
        )
        return VideoLlamaStage(model, recipe, read_items(data), eyes=eyes)

    return make


def words(stage, target):
    tokenizer = stage._model.language.tokenizer
    learned = [i for i, yes in zip(target.after, target.learned, strict=True) if yes]
    return tokenizer.decode(target.after), tokenizer.decode(learned)


def test_of_a_caption_every_token_is_learned_and_cleaned_where_asked(stage_of):
    still = Dialogue("a.png", False, (("What?", "A Red dog (really)."),))
    for clean, text in ((False, "A Red dog (really).\n"), (True, "a red dog really\n")):
        stage = stage_of(clean=clean)
        target = stage.target(still, [0.0])
        assert target.before == [1] and words(stage, target) == (text, text)
    assert cleaned("One; two~ *" + "word " * 60).split() == ["one", "two", *["word"] * 48]


def test_of_a_conversation_the_answers_are_learned_and_nothing_else(stage_of):
    film = Dialogue("b.mkv", True, (("Q one", "A one"), ("Q two", "A two")))
    vicuna = stage_of(text="conversations")
    target = vicuna.target(film, [0.0, 1.5])
    line = "The video contains 2 frames sampled at 0.0, 1.5 seconds. "
    whole = f"</Video> {line} Q one\n###Assistant: A one\n###Human: Q two\n###Assistant: A two\n###"
    assert words(vicuna, target) == (whole, "A one\n### A two\n###")
    assert vicuna._model.language.tokenizer.decode(target.before) == "<s> \n\n###Human: <Video>"
    llama = stage_of(chat="llama2", text="conversations")
    text, learned = words(llama, llama.target(film, [0.0, 1.5]))
    assert text.replace(" ", "").endswith("[/INST]Aone</s><s>[INST]Qtwo[/INST]Atwo</s>")
    assert learned.replace(" ", "") == "Aone</s>Atwo</s>"
    with pytest.raises(ConfigError, match='mask = "published": x has no chat="vicuna"'):
        VideoLlamaStage(llama._model, replace(llama._recipe, mask="published"), [])


@pytest.mark.parametrize("branch", ["pictures", pytest.param("sound", marks=pytest.mark.heavy)])
def test_the_published_mask_slides_right_and_leaves_two_tokens_of_a_question(stage_of, branch):
    """By the parent's own counting, over the whole conversation with its placeholders."""
    turns = (("Q one?", "A one"), ("Q two", "A two, longer"), ("Q 3", "A 3"))
    film = Dialogue("b.mkv", True, turns)
    stage = stage_of(text="conversations", branch=branch, mask="published", max_text=500)
    target, tokenizer = stage.target(film, [0.0, 1.5]), stage._model.language.tokenizer
    queries = published.Q if branch == "pictures" else published.SOUND_Q

    def ids(text):  # with a beginning-of-sequence
        return [1, *tokenizer(text, add_special_tokens=False).input_ids]

    line = "The video contains 2 frames sampled at 0.0, 1.5 seconds. "
    opened = (ids("###Human: <Video>"), ids(f"</Video> {line} Q one?\n")[1:])
    sizes = [len(opened[0]) + queries + len(opened[1])]
    for number, (question, answer) in enumerate(turns):
        sizes += [len(ids(f"###Human: {question}\n"))] * bool(number)
        sizes += [len(ids(f"###Assistant: {answer}\n"))]
    labels = np.ones(len(target.before) + queries + len(target.after), bool)
    place = len(ids("\n\n"))
    labels[:place] = False
    for number, size in enumerate(sizes):
        if number % 2 == 0:
            labels[place + 2 : place + size] = False
        place += size
    assert target.learned == labels[len(target.before) + queries :].tolist()
    stage._recipe = replace(stage._recipe, mask="answers")
    plain = stage.target(film, [0.0, 1.5])
    assert plain.after == target.after and plain.learned != target.learned


@torch.no_grad()
def test_the_loss_is_that_of_the_learned_tokens_one_by_one(stage_of):
    stage = stage_of(text="conversations")
    item = stage._items[1]
    stage.module.eval()
    pixels, times = stage._read(item, None)
    branch, language = stage._model.pictures, stage._model.language.model
    shown, target = branch.read(branch.frames(pixels)), stage.target(item, times)
    embed, total, count = language.get_input_embeddings(), 0.0, 0
    for place, (token, learned) in enumerate(zip(target.after, target.learned, strict=True)):
        if learned:
            before = [embed(torch.tensor(target.before)), shown]
            x = torch.cat([*before, embed(torch.tensor(target.after[:place], dtype=torch.long))])
            total -= language(inputs_embeds=x[None]).logits[0, -1].log_softmax(-1)[token]
            count += 1
    torch.testing.assert_close(stage.loss_of(item), total / count, atol=1e-4, rtol=1e-4)
    assert len(times) == 8


@pytest.mark.parametrize(
    ("branch", "hears"),
    [
        ("pictures", "pictures"),
        pytest.param("sound", "pictures", marks=pytest.mark.heavy),
        pytest.param("sound", "sound", marks=pytest.mark.heavy),
    ],
)
def test_a_few_steps_lower_the_loss_and_change_the_last_qformer_alone(stage_of, branch, hears):
    stage = stage_of(branch=branch, hears=hears)
    item, model = stage._items[hears == "sound"], stage._model  # the film has sound
    frozen = {
        name: value.clone()
        for part in (model.pictures, model.sound, model.language.model)
        for name, value in part.state_dict(prefix=f"{type(part).__name__}.").items()
    }
    learned = {id(p) for p in stage.module.parameters()}
    assert not {id(p) for p in model.language.model.parameters()} & learned
    stage.module.eval()
    optimizer, losses = torch.optim.AdamW(stage.module.parameters(), lr=3e-3), []
    for _ in range(12):
        value = stage.loss_of(item)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.8 * losses[0]
    moved = {
        name.split(".")[0] + "." + name.split(".")[1]
        for part in (model.pictures, model.sound, model.language.model)
        for name, value in part.state_dict(prefix=f"{type(part).__name__}.").items()
        if not torch.equal(value, frozen[name])
    }
    expected = {
        "pictures": {f"PictureBranch.{p}" for p in ("positions", "video_reader", "projection")},
        "sound": {f"SoundBranch.{p}" for p in ("positions", "reader", "projection")},
    }
    assert moved == expected[branch]


def test_what_sound_learns_from_is_the_pictures_branch_of_imagebind(folder, tmp_path):
    files = published.weights()
    w = {n: v.double().numpy() for n, v in files["imagebind_huge.pth"].items()}
    eyes = open_picture_branch(opened(folder, tmp_path))
    picture = np.random.default_rng(1).integers(0, 256, (28, 28, 3)).astype(np.uint8)
    sizes = eyes.config
    assert (sizes.width, sizes.layers, sizes.side, sizes.out) == (EARS, EAR_LAYERS, 28, OUT)
    read = eyes(torch.from_numpy(picture)[None])[0]
    np.testing.assert_allclose(read, vision(picture, w, sizes), atol=1e-4)


def test_frames_of_head_and_tail_are_of_both_halves_in_order(stage_of):
    stage = stage_of(crop=False)
    item = stage._items[1]  # 32 frames, four seconds
    for seed in range(5):
        _, times = stage._read(item, np.random.default_rng(seed))
        assert times == sorted(set(times)) and len(times) == 8
        assert sum(time < 2.0 for time in times) == 4
    assert stage._read(item, None)[1][0] == 0.0 and stage._read(item, None)[1][-1] == 31 / 8


def test_frames_are_held_at_the_size_of_the_tower_alone(stage_of, monkeypatch):
    from streammem.training import video_llama

    stage, held, plain = stage_of(), [], video_llama.decoded

    def decoded(path, prepare):
        pictures, times = plain(path, prepare)
        held.extend(picture.shape for picture in pictures)
        return pictures, times

    monkeypatch.setattr(video_llama, "decoded", decoded)
    for rng in (None, np.random.default_rng(0)):
        stage._read(stage._items[1], rng)
    assert set(held) == {(published.SIDE, published.SIDE, 3)} and len(held) == 64


def test_all_frames_of_a_film_are_cropped_alike_and_at_least_half_of_them_is_left():
    whole = np.arange(60 * 80, dtype=np.int64).reshape(60, 80, 1).repeat(3, 2)
    for seed in range(30):
        cut = crop_of(np.random.default_rng(seed))
        first, second = cut(whole), cut(whole + 7)
        assert np.array_equal(first + 7, second)
        assert first.shape[0] * first.shape[1] >= 0.45 * 60 * 80
        top, left = divmod(int(first[0, 0, 0]), 80)
        part = whole[top : top + first.shape[0], left : left + first.shape[1]]
        assert np.array_equal(first, part)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(checkpoint, "load_own", lambda name="", *, device="cpu": tiny_model())


@pytest.mark.heavy
def test_two_stages_from_fresh_branches_give_a_model_that_loads(folder, data, tmp_path, tiny):
    base = opened(folder, tmp_path)
    fresh = tmp_path / "fresh.toml"
    text = (tmp_path / "model.toml").read_text()
    for file in ("pictures", "sound"):
        text = text.replace(f"'{folder / (file + '.pth')}'", "'fresh'")
    fresh.write_text(text)
    previous = fresh
    for number, (branch, kind) in enumerate((("pictures", "captions"), ("sound", "conversations"))):
        recipe = tmp_path / f"{number}.toml"
        recipe.write_text(
            f'stage = "video-llama"\nmodel = "{previous}"\ndata = ["{data}"]\n'
            f'validation = ["{data}"]\nbranch = "{branch}"\ntext = "{kind}"\n'
            "steps = 2\naccumulate = 1\nwarmup_steps = 1\n"
        )
        assert stage_class(recipe) is VideoLlamaStage
        figures = run_recipe(recipe, tmp_path / f"run-{number}")
        assert figures["val_loss"] > 0 and figures["items"] == 2
        previous = tmp_path / f"run-{number}" / "checkpoint.toml"
    model = checkpoint.load_checkpoint(previous)
    stored = torch.load(tmp_path / "run-1" / "checkpoint.pth", weights_only=True)["model"]
    assert set(stored) == set(published.sound())
    assert stored["audio_llama_proj.weight"].shape == (L, W)
    assert model.sound is not None and model.options.heads == base.options.heads
    pictures = torch.load(tmp_path / "run-0" / "checkpoint.pth", weights_only=True)["model"]
    assert set(pictures) == set(published.pictures())


def test_a_recipe_that_cannot_be_meant_is_refused(folder, data, tmp_path, tiny, stage_of):
    recipe = tmp_path / "r.toml"
    recipe.write_text('stage = "video-llama"\n')
    with pytest.raises(ConfigError, match="name the model"):
        run_recipe(recipe, tmp_path / "run")
    for wrong in ({"branch": "smell"}, {"frames": 0}, {"least_rate": 1.0}, {"text": "poems"}):
        with pytest.raises(ConfigError):
            VideoLlamaRecipe(**wrong)
    files = published.weights()
    deaf = {n: v for n, v in files["imagebind_huge.pth"].items() if "vision" not in n}
    part = published.write(tmp_path / "part", files | {"imagebind_huge.pth": deaf})
    with pytest.raises(CheckpointError, match="no branch of pictures"):
        open_picture_branch(opened(part, tmp_path))


@pytest.mark.parametrize("name", ["1", "2", "sound-1", "sound-2"])
def test_the_parents_schedules_are_recipes(name):
    path = checkpoint.CONFIGS / "train" / f"video-llama-{name}.toml"
    assert stage_class(path) is VideoLlamaStage
    from streammem.config import override, read_toml

    recipe = override(VideoLlamaRecipe(), read_toml(path), "")
    stage, sound = name[-1], name.startswith("sound")
    assert recipe.branch == ("sound" if sound else "pictures")
    steps = {("1", False): 12_500, ("1", True): 25_000}.get((stage, sound), 3000)
    assert recipe.steps == steps and recipe.weight_decay == 0.05
