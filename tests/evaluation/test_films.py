"""Films of joined clips and photos, and questions about them."""

import json

import numpy as np
import pytest

from streammem.errors import ConfigError, DatasetError
from streammem.evaluation import film_files
from streammem.evaluation.answers import Outcome
from streammem.evaluation.datasets import EvaluationOptions
from streammem.evaluation.film_files import (
    HALVES,
    MakeOptions,
    draw_curves,
    evaluate_films,
    make_films,
    read_films,
    rows_of,
    write,
)
from streammem.evaluation.films import (
    OPERATORS,
    SCENE_S,
    THINGS,
    Clip,
    ask_about,
    description_of,
    plan,
    risk_coverage,
    scenes_cited,
    shows,
    table,
)
from streammem.evaluation.timelines import TimedQuestion
from streammem.memory.retrieval import content_words
from tests.tiny import moving_square, tiny_model

SENTENCES = (
    "a camel walks in a fenced pen",
    "a silver car turns on a city street",
    "a taxi and bicycles on city streets",
    "two men ride a blue soapbox cart down a ramp",
    "a black swan swims in a pond",
)
CLIPS = [Clip(f"{i}.mp4", (text,), 4.0 + 3 * i) for i, text in enumerate(SENTENCES)]
PHOTOS = [
    Clip("a.jpg", ("A brown dog is running on grass .", "A puppy in a field .")),
    Clip("b.jpg", ("A boy is eating an apple .", "A child with fruit .")),
]


@pytest.mark.parametrize("seed", range(5))
def test_a_film_shows_every_clip_within_it_and_never_one_twice_in_a_row(seed):
    clips = CLIPS + PHOTOS
    film = plan(clips, 400.0, seed=seed)
    assert film == plan(clips, 400.0, seed=seed) != plan(clips, 400.0, seed=seed + 1)
    assert {scene.clip for scene in film.scenes} == set(range(len(clips)))
    assert all(a.clip != b.clip for a, b in zip(film.scenes, film.scenes[1:], strict=False))
    for scene in film.scenes:
        clip, length = clips[scene.clip], scene.end - scene.start
        assert length <= SCENE_S[1] and length >= min(SCENE_S[0], clip.seconds or SCENE_S[0])
        assert not clip.seconds or 0 <= scene.start < scene.end <= clip.seconds
        assert scene.move in (("plain", "mirrored") if clip.seconds else ("pan", "still"))
    assert film.edges[-2] < 400.0 <= film.edges[-1]


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        (CLIPS[0], "a camel walking in a fenced pen"),
        (CLIPS[4], "a black swan swimming in a pond"),
        (PHOTOS[0], "a brown dog running on grass"),
        (Clip("c.jpg", ("Snow .",)), None),
    ],
)
def test_a_clip_has_a_description_that_one_can_ask_for(clip, text):
    assert description_of(clip) == text


def test_everyday_things_are_many_and_each_can_be_looked_for():
    assert len(THINGS) >= 200
    assert all(content_words(thing) for thing in THINGS)
    assert shows(["a taxi drives"], "a car") and not shows(["a car drives"], "a taxi")
    assert shows(["two dogs run"], "a dog") and not shows(["two dogs run"], "a cat")


def test_questions_know_their_scenes_and_a_third_are_about_what_never_comes():
    film = plan(CLIPS, 200.0, seed=0)
    shown = [SENTENCES[scene.clip] for scene in film.scenes]
    questions = ask_about(film, CLIPS, seed=0)
    assert questions == ask_about(film, CLIPS, seed=0)
    absent = [question for question in questions if not question.gold]
    assert len(absent) == pytest.approx(len(questions) / 3, abs=1)
    assert {question.operator for question in absent} == set(OPERATORS)
    (camel,) = (q for q in questions if q.operator == "when" and "a camel?" in q.text)
    assert camel.gold == tuple(i for i, text in enumerate(shown) if "camel" in text)
    assert camel.common
    (car,) = (q for q in questions if q.operator == "when" and "a car?" in q.text)
    kin = [i for i, text in enumerate(shown) if "car " in text or "taxi" in text]
    assert car.gold == tuple(kin), "a taxi is a car"
    (often,) = (q for q in questions if q.operator == "how often" and "a car?" in q.text)
    assert often.gold == tuple(i for i in kin if i - 1 not in kin), "neighbours are one"
    for question in absent:
        if question.operator != "between":
            asked = [t for t in THINGS if f" {t}?" in question.text or f" {t} " in question.text]
            assert any(not shows(shown, thing) for thing in asked)


def test_evidence_shows_a_scene_that_it_covers_for_the_most_part():
    edges = np.array([0.0, 4.0, 10.0, 12.0])
    assert scenes_cited(edges, [(3.8, 10.4)]) == [1]
    assert scenes_cited(edges, [(10.0, 12.0), (0.0, 10.0)]) == [2, 0, 1]
    assert scenes_cited(edges, [(5.0, 6.0)]) == [1], "a part of a scene shows it"
    assert scenes_cited(edges, [(20.0, 21.0)]) == []


THERE, ABSENT = TimedQuestion("?", "when", (3,), common=True), TimedQuestion("?", "when", ())
OUTCOMES = [
    Outcome(THERE, True, True, True, (3,), False, "", 0.9),
    Outcome(THERE, True, False, False, (1, 3), False, "", 0.4),
    Outcome(ABSENT, True, False, True, (2,), False, "", 0.55),
    Outcome(ABSENT, True, True, False, (2,), False, "", 0.2),
]


def test_the_table_tells_refusals_of_what_is_there_from_claims_of_what_is_not():
    figures = table(OUTCOMES)
    assert figures["when"] == figures["all"] and figures["common"]["questions"] == 2
    assert figures["all"] == {
        "questions": 4, "right": 0.5, "right, present": 0.5, "refused": 0.5, "claimed": 0.5,
        "evidence": 1.0, "evidence, wrong": 1.0,
    }  # fmt: skip


def test_the_surest_answers_come_first_in_the_curve():
    assert risk_coverage(OUTCOMES) == [(0.25, 0.0), (0.5, 0.0), (0.75, 1 / 3), (1.0, 0.5)]


# -- files --


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips of two seconds, each of a square of another colour."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number, colour in enumerate(("red", "blue", "green", "white", "black", "red")):
        name = f"{number}.mp4"
        pictures = [moving_square(colour, n) for n in range(50)]
        write(folder / name, [np.resize(p, (360, 640, 3)) for p in pictures])
        sentence = f"a {colour} ball and a {('dog', 'cat', 'cow')[number % 3]} roll"
        rows.append({"file": name, "caption": sentence, "seconds": 2.0, "multi_shot": False})
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_films_of_a_seed_have_the_same_scenes_and_no_clip_is_in_both_halves(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(film_files, "write", lambda path, _: (written.append(path), path.touch()))
    rows = [{"file": f"{i}.mp4", "caption": SENTENCES[i % 5], "seconds": 4.0} for i in range(6)]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for row in rows:
        (tmp_path / row["file"]).touch()
    out, options = tmp_path / "films", MakeOptions(minutes=1, progress=False)
    made = make_films(tmp_path, out, options)
    assert written == made and [path.stem for path in made] == [f"{half}-0" for half in HALVES]
    listed = (out / "films.jsonl").read_text()
    make_films(tmp_path, out, options)
    assert (out / "films.jsonl").read_text() == listed, "the same by the same seed"
    assert written == made, "what is there stays"
    with pytest.raises(ConfigError, match="a new folder"):
        make_films(tmp_path, out, MakeOptions(minutes=1, seed=1, progress=False))
    made[0].unlink()
    with pytest.raises(DatasetError, match="not made yet"):
        evaluate_films(out, None, EvaluationOptions(progress=False))
    files = [{s["file"] for s in json.loads(line)["scenes"]} for line in listed.splitlines()]
    assert not files[0] & files[1]
    films = read_films(out)
    assert all(60 <= film.edges[-1] <= 64.1 and len(film.questions) > 20 for film in films)


@pytest.mark.heavy
def test_films_are_made_watched_once_and_asked(clips, tmp_path):
    made = make_films(clips, tmp_path, MakeOptions(minutes=1, progress=False))
    assert all(path.stat().st_size > 1000 for path in made)
    model = tiny_model()
    for context in ("memory", "blind"):
        report = evaluate_films(
            tmp_path, model, EvaluationOptions(limit=8, progress=False), context=context
        )
        json.dumps(report, allow_nan=False)
        assert report["halves"]["report"]["all"]["questions"] == 8
        assert len(list(rows_of(report))) >= 8
    draw_curves(report, tmp_path / "risk.png")
    assert (tmp_path / "risk.png").read_bytes().startswith(b"\x89PNG")


def test_what_makes_no_films_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="minutes"):
        MakeOptions(minutes=0)
    with pytest.raises(DatasetError, match=r"manifest\.jsonl"):
        make_films(tmp_path, tmp_path / "films", MakeOptions())
    (tmp_path / "films.jsonl").write_text("{}\n")
    with pytest.raises(DatasetError, match="make the films anew"):
        read_films(tmp_path)
