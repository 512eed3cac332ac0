"""Self-training, on pictures of coloured shapes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from streammem.errors import ConfigError, DatasetError
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.caption_scores import Reranker
from streammem.models.tiny.words import WordsOfTokens
from streammem.training import loop, run, self_training
from streammem.training.answers import AnswerStage
from streammem.training.context import TrainingContext
from streammem.training.features import cache_features
from streammem.training.generated import make_pictures
from streammem.training.learner import Learner
from streammem.training.loop import JointStage, Schedule, train_stage
from streammem.training.lora import add_lora, lora_tensors
from streammem.training.questions import QuestionRecord
from streammem.training.recipe import LoraOptions, parse_recipe
from streammem.training.records import read_source
from streammem.training.run import make_stage, run_recipe
from streammem.training.self_training import (
    CaptionJudge,
    DrawnCaption,
    SelfTrainingStage,
    best_captions,
    draw_captions,
    listed_beginnings,
)
from tests.tiny import TinySentences, TinyVision, tiny_language, tiny_model
from tests.training.tiny_backbones import RECIPE, tiny_backbones, tiny_bridge

RERANKER = Reranker((1.0, 0.1), 8)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    source = read_source(make_pictures(folder / "shapes", 30))
    return cache_features(source, TinyVision(), folder, crops=0)


@pytest.fixture
def training(shapes):
    """Training pictures: every second one is captioned, all list their shape."""
    pictures = shapes.split("train")
    names = [captions[0].split()[2] for captions in pictures.captions]
    captions = [own if i % 2 else () for i, own in enumerate(pictures.captions)]
    return replace(pictures, captions=captions, things=[((name, 0.9),) for name in names])


@pytest.fixture
def language():
    language = tiny_language()
    add_lora(language, LoraOptions(rank=4, dropout=0.0), seed=0)
    return language


def test_captions_begin_with_what_a_list_is_sure_of():
    listed = (("pizza", 0.9), ("cup", 0.5), ("person", 0.8), ("knife", 0.2))
    assert listed_beginnings(listed) == (
        "A pizza", "A cup", "A person holding a pizza", "A person holding a cup",
        "A pizza and a cup",
    )  # fmt: skip
    zebras = (("zebra", 0.9), ("zebra", 0.6), ("sheep", 0.7), ("sheep", 0.6), ("sheep", 0.5))
    assert listed_beginnings(zebras) == (
        "Two zebras", "A group of sheep", "Two zebras and a group of sheep",
    )  # fmt: skip
    assert listed_beginnings((("person", 0.9), ("snow", 0.9))) == (), "captions name them anyway"
    assert listed_beginnings((("pants", 0.9),)) == ("Pants",)
    assert listed_beginnings((("pants", 0.9), ("pants", 0.9))) == ("Pants",)
    most = [(f"thing {i}", 0.9) for i in range(9)]
    assert len(listed_beginnings([*most, ("person", 0.9)])) <= self_training.DRAWN // 2


def test_a_killed_run_goes_on_with_the_captions_it_has_drawn(training, language, tmp_path):
    bridge, path = tiny_bridge(language, training), tmp_path / "draws.jsonl"
    pictures = training.select(range(10))
    whole = draw_captions(bridge, language, pictures, path)
    assert [*whole] == list(pictures.names)
    assert {len(drawn) for drawn in whole.values()} == {self_training.DRAWN}
    shape = pictures.things[0][0][0]
    begun = [c.text for c in whole[pictures.names[0]] if c.text.lower().startswith(f"a {shape}")]
    assert begun, "some begin with what the list names"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])  # killed in the middle of a line
    drawn_again = []
    candidates = type(language).candidates

    def counting(self, prompts, *more):
        drawn_again.append(len(prompts))
        return candidates(self, prompts, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(language), "candidates", counting)
        again = draw_captions(bridge, language, pictures, path)
    assert sum(drawn_again) == 7
    assert again == whole, "the same as if it had not been killed"
    assert [json.loads(line)["picture"] for line in path.read_text().splitlines()] == [*again]
    stamp = path.stat()
    assert draw_captions(bridge, None, pictures, path) == whole, "other processes only read"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    path.write_text("[]\n")
    with pytest.raises(DatasetError, match="move it away"):
        draw_captions(bridge, language, pictures, path)


def test_a_kill_while_a_cut_line_is_taken_out_loses_nothing(training, tmp_path, monkeypatch):
    path = tmp_path / "draws.jsonl"
    line = json.dumps({"picture": "a", "captions": [["A cup.", -1.0]]}) + "\n"
    path.write_text(line + line[:9])
    write = type(path).write_text

    def dying(self, text):
        write(self, text[:5])
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "write_text", dying)
    with pytest.raises(KeyboardInterrupt):
        draw_captions(None, None, training.select([]), path)
    monkeypatch.undo()
    assert path.read_text() == line + line[:9]
    assert draw_captions(None, None, training.select([]), path) == {"a": [("A cup.", -1.0)]}
    assert path.read_text() == line


def test_of_captioned_pictures_some_are_drawn_and_all_that_have_a_list(
    training, language, tmp_path, monkeypatch
):
    monkeypatch.setattr(self_training, "CAPTIONED_DRAWN", 2)
    things = [() if i % 2 else own for i, own in enumerate(training.things)]
    captions = [() if i < 3 else own for i, own in enumerate(training.captions)]
    pictures = replace(training, things=things, captions=captions).select(range(10))
    drawn = draw_captions(tiny_bridge(language, training), language, pictures, tmp_path / "d")
    assert {*pictures.names[::2]} <= {*drawn}, "all that have a list"
    captioned = {*drawn} - {*pictures.names[::2]}
    assert len(captioned) == 2 and captioned <= {*pictures.names[3::2]}


def worth_of(judge, picture, texts, keys=None):
    drawn = [DrawnCaption(text, -1.0) for text in texts]
    keys = np.ones((len(texts), 4)) / 2 if keys is None else keys
    return judge.worths(picture, drawn, keys, np.ones(4) / 2)


def test_a_listed_picture_values_what_its_list_names_and_not_what_it_could_have(training):
    things = [(("tennis racket", 0.9), ("person", 0.8)), (("cat", 0.9),)]
    pictures = replace(training.select([0, 2]), things=things)
    judge = CaptionJudge(pictures, RERANKER)
    said, kind, more, wrong, other = worth_of(
        judge, 0,
        ["A tennis racket.", "Two tennis rackets.", "A woman holds a tennis racket.",
         "A cat holds a tennis racket.", "A woman smiles."],
    )  # fmt: skip
    assert said == kind
    assert more > said > wrong, "cats are on lists of this folder, and not on this one"
    assert other == -np.inf, "it names a person only, where the list has more"
    alone = CaptionJudge(replace(pictures, things=[(("person", 0.8),), things[1]]), RERANKER)
    assert np.isfinite(worth_of(alone, 0, ["A woman smiles."])).all()
    fits = np.eye(4)[:2] * 0.9 + 0.1
    better, worse = CaptionJudge(pictures, RERANKER).worths(
        1, [DrawnCaption("A cat.", -0.1), DrawnCaption("A cat!", -2.0)], fits, np.eye(4)[0]
    )
    assert better > worse


def test_a_thing_of_two_words_is_not_taken_for_one_of_its_words(training):
    things = [(("hot dog", 0.68), ("table", 0.5)), (("dog", 0.9), ("plate", 0.9))]
    judge = CaptionJudge(replace(training.select([0, 2]), things=things), RERANKER)
    right, plate, both = worth_of(
        judge, 0,
        ["A hot dog on a table.", "A plate of food on a table.", "A hot dog, a dog and a table."],
    )  # fmt: skip
    assert right > both > plate, "dogs are on lists of this folder, and not on this one"


def test_a_captioned_picture_values_what_people_say_of_it(training):
    pictures = training.select([1, 3])
    judge = CaptionJudge(pictures, RERANKER)
    own, other = pictures.captions[0][0], "Nothing of the kind is there."
    worths = worth_of(judge, 0, [own, other])
    assert worths[0] > worths[1]
    made = CaptionJudge(replace(pictures, made=[True, False]), RERANKER)
    assert worth_of(made, 0, [other])[0] == -np.inf, "sentences made of a list are no captions"


def test_the_lora_learns_the_kept_captions_and_the_bridge_stays(training, language, tmp_path):
    bridge = tiny_bridge(language, training)
    before = {name: value.clone() for name, value in bridge.state_dict().items()}
    adapter = {name: value.clone() for name, value in lora_tensors(language).items()}
    kept = [["A red cup."] if i % 2 else ["Two blue cups."] for i in range(len(training))]
    kept[0] = []
    stage = SelfTrainingStage(bridge, language, training, kept, training.captioned(), batch=6)
    first = stage.loss(np.random.default_rng(0)).item()
    figures = train_stage(stage, Schedule(steps=30, lr=2e-2, warmup=2), tmp_path)
    assert stage.loss(np.random.default_rng(0)).item() < first - 0.1, "a tiny LoRA learns little"
    assert {"cider", "tokens"} <= figures.keys()
    assert all(torch.equal(before[n], value) for n, value in bridge.state_dict().items())
    assert any(not torch.equal(adapter[n], v) for n, v in lora_tensors(language).items())
    with pytest.raises(DatasetError, match="worth to learn"):
        SelfTrainingStage(bridge, language, training, [[]] * len(training), training.captioned())


def test_half_of_a_step_are_pictures_without_peoples_captions(training, language, monkeypatch):
    bridge = tiny_bridge(language, training)
    kept = [["A worded."] if captions else ["A listed."] for captions in training.captions]
    stage = SelfTrainingStage(bridge, language, training, kept, training.captioned(), batch=8)
    seen = []
    monkeypatch.setattr(stage, "_row", lambda text: seen.append(text) or stage_row(stage, text))
    stage_row = type(stage)._row
    stage.loss(np.random.default_rng(0))
    assert sorted(seen) == ["A listed."] * 4 + ["A worded."] * 4
    seen.clear()
    stage.batch = 1
    for step in range(12):
        stage.loss(np.random.default_rng(step))
    assert len(seen) == 12 and {*seen} == {"A listed.", "A worded."}


def test_stages_at_once_lose_the_weighted_sum_and_tell_both_figures():
    first, other = (
        SimpleNamespace(
            name=name,
            module=torch.nn.Linear(1, 1),
            loss=lambda rng, base=base: torch.tensor(base + rng.random()),
            evaluate=lambda base=base: {"val_loss": base},
        )
        for name, base in (("captions", 1.0), ("answers", 3.0))
    )
    both, rng = JointStage([first, other], [0.75, 0.25]), np.random.default_rng(0)
    drawn = np.random.default_rng(0).random(2)
    lost = both.loss(rng).item()
    assert lost == pytest.approx(0.75 * (1 + drawn[0]) + 0.25 * (3 + drawn[1]))
    assert both.evaluate() == {"val_loss": 1.0, "answers_val_loss": 3.0}
    assert (both.name, both.module) == ("captions", first.module)


def test_a_start_that_chooses_nothing_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("streammem.training.run.draw_captions", None)
    text, _, _ = RECIPE.partition("[[stages]]")
    stage = '[[stages]]\nkind = "self-training"\nsteps = 1\nlr = 4e-3\nbatch = 4\n'
    (tmp_path / "r.toml").write_text(text + stage)
    with pytest.raises(ConfigError, match="give --init"):
        run_recipe(tmp_path / "r.toml", tmp_path / "out", backbones=tiny_backbones())


def test_a_recipe_trains_itself_and_knows_the_words_it_has_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("streammem.training.run.draw_curves", lambda stages, out: None)
    monkeypatch.setattr(self_training, "DRAWN", 2)
    place = make_pictures(tmp_path / "shapes", 30)
    text, _, _ = RECIPE.partition("[[stages]]")
    text = text.replace("generated:30", str(place))
    stage = '[[stages]]\nkind = "{}"\nsteps = 1\nlr = 4e-3\nbatch = 4\n'
    saved = {}
    monkeypatch.setattr(
        "streammem.training.run.save", lambda model, folder, **more: saved.update(more, model=model)
    )
    (tmp_path / "first.toml").write_text(text + stage.format("captions"))
    run_recipe(tmp_path / "first.toml", tmp_path / "one", backbones=tiny_backbones())
    start = replace(saved["model"], reranker=RERANKER)
    monkeypatch.setattr(
        "streammem.training.run.Learner.open",
        lambda recipe, backbones, init, device: Learner(
            recipe, backbones, start, (saved["lora"], saved["lora_scale"]), device=device
        ),
    )
    monkeypatch.setattr(
        "streammem.training.run.best_captions",
        lambda learner, reranker, pictures, drawn: (
            best_captions(learner, reranker, pictures, drawn) and [["A quiz."]] * len(pictures)
        ),
    )
    before = {key: value.clone() for key, value in saved["lora"].items()}
    seeds = []
    monkeypatch.setattr(
        "streammem.training.run.draw_captions",
        lambda *given: seeds.append(given[-1]) or draw_captions(*given),
    )
    text = text.replace('name = "tiny"', 'name = "tiny"\nseed = 3')
    (tmp_path / "second.toml").write_text(text + stage.format("self-training"))
    figures = run_recipe(
        tmp_path / "second.toml", tmp_path / "two", init="x", backbones=tiny_backbones()
    )
    assert "cider" in figures["stages"]["self-training"]
    assert any(not torch.equal(value, saved["lora"][key]) for key, value in before.items())
    beside, lost = [], []
    # The start names things, but these data list none: prompts go without.
    start = replace(start, words=WordsOfTokens(4, 16, ("circle", "square"), hidden=3).eval())

    def joint(stages, weights):
        for stage in stages:
            beside.append(stage)
            loss = stage.loss
            stage.loss = lambda rng, loss=loss: lost.append(loss(rng)) or lost[-1]
        return JointStage(stages, weights)

    monkeypatch.setattr("streammem.training.run.JointStage", joint)
    (tmp_path / "third.toml").write_text(text + stage.format("self-training") + "answers = 2\n")
    asked = run_recipe(
        tmp_path / "third.toml", tmp_path / "three", init="x", backbones=tiny_backbones()
    )
    assert [type(one) for one in beside] == [SelfTrainingStage, AnswerStage]
    assert beside[0].language is beside[1].language and beside[1].batch == 2
    said, answered = (loss.item() for loss in lost)
    assert answered > 1 and lost[1].requires_grad, "an untrained model guesses badly"
    loss = asked["stages"]["self-training"]["loss"]
    assert loss == pytest.approx(0.6 * said + 0.4 * answered, abs=1e-3), "questions count too"
    assert seeds == [3, 3]
    drawn = (tmp_path / "two" / "self-training-draws.jsonl").read_text().splitlines()
    assert len(drawn) == figures["pictures"]["train"]
    new = set(tiny_language().ids("A quiz.")) - {*start.caption_tokens.tolist()}
    assert new and new <= {*saved["model"].caption_tokens.tolist()}


def test_at_most_two_captions_are_kept_the_best_first_and_none_that_is_much_worse(training):
    model = tiny_model()
    learner = SimpleNamespace(
        backbones=SimpleNamespace(sentences=TinySentences), device="cpu", text_key=model.text_key,
        picture_key=lambda patches: torch.ones(len(patches), model.background.shape[1]),
    )  # fmt: skip
    captioned = training.captioned()
    own = captioned.captions[0][0]
    bad = "Nothing of the kind."
    texts = {
        captioned.names[0]: [bad, own, own, own.replace(".", " !"), own.lower()],
        captioned.names[1]: [captioned.captions[1][0], bad],
    }
    drawn = {name: [DrawnCaption(t, -1.0) for t in each] for name, each in texts.items()}
    first, second, *rest = best_captions(learner, RERANKER, captioned, drawn)
    assert len(first) == 2 and bad not in first and own in first
    assert second == [captioned.captions[1][0]], "what is much worse is no second"
    assert not any(rest), "of others nothing was drawn"
    worse = {captioned.names[0]: [DrawnCaption(t, -1.0) for t in (f"{own} {own}", own)]}
    assert best_captions(learner, RERANKER, captioned, worse)[0][0] == own


def recipe_of(tmp_path, place, *stages, **options):
    """Write a recipe of stages for a folder of pictures."""
    head, _, _ = RECIPE.partition("[[stages]]")
    head = head.replace("generated:30", str(place)).replace("crops = 1", "crops = 0")
    table = '[[stages]]\nkind = "{}"\nsteps = 1\nlr = 4e-3\nbatch = 4\n'
    more = "".join(f"{key} = {value}\n" for key, value in options.items())
    path = tmp_path / "recipe.toml"
    path.write_text(head + "".join(map(table.format, stages)) + more)
    return path


def test_what_a_stage_needs_is_checked_before_other_stages_and_before_it_draws(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("streammem.training.run.make_stage", None)
    place = make_pictures(tmp_path / "shapes", 10)
    with pytest.raises(ConfigError, match="--init"):
        run_recipe(
            recipe_of(tmp_path, place, "things", "self-training"),
            tmp_path / "none",
            backbones=tiny_backbones(),
        )
    tiny = tiny_model(reranker=RERANKER)
    monkeypatch.setattr(
        run.Learner, "open", lambda *given, device: Learner(*given[:2], tiny, device=device)
    )
    rows = [json.loads(line) for line in (place / "captions.jsonl").read_text().splitlines()]
    (place / "captions.jsonl").unlink()

    def run_on(out, **labels):
        listed = [{"image": row["image"]} | labels for row in rows]
        (place / "labels.jsonl").write_text("\n".join(map(json.dumps, listed)))
        recipe = recipe_of(tmp_path, place, "things", "self-training", answers=2)
        run_recipe(recipe, tmp_path / out, backbones=tiny_backbones())

    with pytest.raises(DatasetError, match="no captioned validation picture"):
        run_on("uncaptioned", detected=[["cat", 0.9, [0, 0, 1, 1]]])
    monkeypatch.setattr("streammem.training.run.TrainingContext.validation_of", lambda *_: None)
    with pytest.raises(DatasetError, match="no picture of the data has questions"):
        run_on("unasked", detected=[["cat", 0.9, [0, 0, 1, 1]]])
    assert not (tmp_path / "uncaptioned").exists()
    assert not (tmp_path / "unasked").exists()


def test_captions_are_drawn_with_the_starts_bridge_where_the_learning_is(
    training, tmp_path, monkeypatch
):
    tiny, seen = tiny_model(reranker=RERANKER), []

    def drawing(bridge, language, *_):
        seen.extend([bridge, language])
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "draw_captions", drawing)
    tables = [{"kind": "self-training", "steps": 1, "lr": 1.0, "batch": 1}]
    recipe = parse_recipe({"data": ["x"], "stages": tables}, "")
    learner = Learner(recipe, tiny_backbones(), tiny, device="meta")
    context = TrainingContext(recipe, tmp_path, learner, {})
    context.pictures = context.validation = replace(training, device="meta")
    with pytest.raises(KeyboardInterrupt):
        make_stage(context, recipe.stages[0])
    assert seen[0] is tiny.bridge
    assert seen[0].patch_mean.device.type == "meta"
    assert isinstance(seen[1], CausalLanguageModel)


def test_names_of_asked_pictures_are_read_where_the_starts_head_is(training, tmp_path, monkeypatch):
    words = WordsOfTokens(4, 32, ("circle", "square"), hidden=3).eval()
    torch.nn.init.zeros_(words.up.weight)
    count, shape = len(training), (len(training), 1, 4, 32)
    monkeypatch.setattr(run, "own_captions", lambda *_: {})
    monkeypatch.setattr(run, "cross_fitted", lambda *_, **__: [[]] * count)
    monkeypatch.setattr(run, "tokens_of", lambda *_, **__: np.zeros(shape, np.float16))
    monkeypatch.setattr(run, "AnswerStage", lambda *_, named, **__: named)
    tables = [{"kind": "answers", "steps": 1, "lr": 1.0, "batch": 1}]
    recipe = parse_recipe({"data": ["x"], "stages": tables}, "")
    learner = Learner(recipe, tiny_backbones(), tiny_model(words=words), device="meta")
    context = TrainingContext(recipe, tmp_path, learner, {})
    context.pictures = context.validation_asked = replace(training, device="meta")
    named = make_stage(context, recipe.stages[0])
    assert named.keys() == {*training.names}
    assert {*map(tuple, named.values())} == {("circle", "square")}


def test_captions_and_questions_resumed_after_a_kill_end_as_if_uninterrupted(
    training, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    questions = [(QuestionRecord("What is it?", "A shape."),)] * len(training)
    pictures = replace(training, questions=questions)
    kept, named = [["A red cup."]] * len(pictures), {name: ["cup"] for name in pictures.names}
    schedule = Schedule(steps=4, lr=1e-2, warmup=1, evaluate_every=1)

    def trained(out, kill=0):
        language = tiny_language()
        add_lora(language, LoraOptions(rank=4, dropout=0.2), seed=0)
        bridge = tiny_bridge(language, training)
        drawing = SelfTrainingStage(bridge, language, pictures, kept, training.captioned(), batch=4)
        asking = AnswerStage(
            bridge, language, pictures, pictures.select([0, 1]), captions={}, named=named, batch=3
        )
        both, steps = JointStage([drawing, asking], [0.6, 0.4]), []
        loss = both.loss

        def dying(rng):
            steps.append(1)
            if len(steps) == kill:
                raise KeyboardInterrupt
            return loss(rng)

        both.loss = dying
        train_stage(both, schedule, tmp_path / out)
        return lora_tensors(language)

    whole = trained("whole")
    with pytest.raises(KeyboardInterrupt):
        trained("killed", 3)
    resumed = trained("killed")
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())
    figures = [loop.read_log(tmp_path / out / "self-training.jsonl") for out in ("whole", "killed")]
    plain, again = ([{**e, "seconds": 0} for e in entries] for entries in figures)
    assert plain == again and len(plain) == 4
