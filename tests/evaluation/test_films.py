"""Films of joined clips and photos, and questions about them."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streammem.cli import main
from streammem.errors import ConfigError, DatasetError
from streammem.evaluation import film_files
from streammem.evaluation.answers import is_right
from streammem.evaluation.film_files import HALVES, MakeOptions, make_films, write
from streammem.evaluation.films import (
    LATER_SHARE,
    OPERATORS,
    SCENE_S,
    THINGS,
    UNSAID,
    FilmClip,
    ask_along,
    description_of,
    plan,
    questions_of,
    scenes_cited,
    shows,
)
from streammem.evaluation.questions import read_suite
from streammem.evaluation.timelines import TimedQuestion
from streammem.memory.retrieval import content_words
from streammem.types import Answer
from tests.tiny import moving_square, tiny_model

SENTENCES = (
    "a camel walks in a fenced pen",
    "a silver car turns on a city street",
    "a taxi and bicycles on city streets",
    "two men ride a blue soapbox cart down a ramp",
    "a black swan swims in a pond",
)
CLIPS = [FilmClip(f"{i}.mp4", (text,), 4.0 + 3 * i) for i, text in enumerate(SENTENCES)]
PHOTOS = [
    FilmClip("a.jpg", ("A brown dog is running on grass .", "A puppy in a field .")),
    FilmClip("b.jpg", ("A boy is eating an apple .", "A child with fruit .")),
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
        (FilmClip("c.jpg", ("Snow .",)), None),
    ],
)
def test_a_clip_has_a_description_that_one_can_ask_for(clip, text):
    assert description_of(clip) == text


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ("A man looks up at the cliff he is climbing near the ocean .", None),
        ("A boy wearing a brown shirt sits on a box .", None),
        ("A dog that is running on grass .", None),
        ("A man wearing a hat .", "a man wearing a hat"),
        ("Two dogs are running on grass .", None),
    ],
)
def test_a_sentence_of_two_verbs_is_no_description(sentence, text):
    assert description_of(FilmClip("a.jpg", (sentence,))) == (
        "two dogs running on grass" if sentence.startswith("Two") else text
    )


def test_every_verb_of_a_clip_becomes_a_participle():
    clip = FilmClip("a.mp4", ("a hand places and removes plastic bottles on a table",), 4.0)
    assert description_of(clip) == "a hand placing and removing plastic bottles on a table"
    clip = FilmClip("b.mp4", ("a woman applies makeup to her eye",), 4.0)
    assert description_of(clip) == "a woman applying makeup to her eye"


def test_what_sentences_leave_out_is_asked_for_only_where_one_names_it():
    clips = [FilmClip("a.mp4", ("a dog runs by a tree",), 8.0), *CLIPS]
    for questions in (ask_along(plan(clips, 200.0, seed=0), clips, seed=s) for s in range(3)):
        about = [q for q in questions if re.search(r"\ba tree\b(?! )|\ba hat\b", q.text)]
        about = [q for q in about if "by a tree" not in q.text]
        assert {(q.operator, bool(q.gold)) for q in about} == {("exists", True)}
    assert set(THINGS) >= UNSAID
    assert not shows(["a girl smiles at the camera"], "a camera")
    assert shows(["a man holds a camera"], "a camera")


def test_everyday_things_are_many_and_each_can_be_looked_for():
    assert len(THINGS) >= 200
    assert all(content_words(thing) for thing in THINGS)
    assert shows(["a taxi drives"], "a car") and not shows(["a car drives"], "a taxi")
    assert shows(["two dogs run"], "a dog") and not shows(["two dogs run"], "a cat")


def test_questions_know_their_scenes_and_half_are_about_what_was_not_shown():
    film = plan(CLIPS, 200.0, seed=0)
    shown = [SENTENCES[scene.clip] for scene in film.scenes]
    questions = questions_of(film, CLIPS, seed=0)
    assert questions == questions_of(film, CLIPS, seed=0)
    absent = [question for question in questions if not question.gold]
    assert len(absent) == pytest.approx(len(questions) / 2, abs=1)
    assert {question.operator for question in absent} == {*OPERATORS, "swapped"}
    assert not any(question.later for question in questions), "nothing comes any more"
    (camel,) = (q for q in questions if q.operator == "when" and "a camel?" in q.text)
    assert camel.gold == tuple(i for i, text in enumerate(shown) if "camel" in text)
    assert camel.common
    (car,) = (q for q in questions if q.operator == "when" and "a car?" in q.text)
    kin = [i for i, text in enumerate(shown) if "car " in text or "taxi" in text]
    assert car.gold == tuple(kin), "a taxi is a car"
    (often,) = (q for q in questions if q.operator == "how often" and "a car?" in q.text)
    assert often.gold == tuple(i for i in kin if i - 1 not in kin), "neighbours are one"
    for question in absent:
        if question.operator not in ("between", "swapped"):
            asked = [t for t in THINGS if f" {t}?" in question.text or f" {t} " in question.text]
            assert any(not shows(shown, thing) for thing in asked)


def test_swapped_questions_join_halves_of_two_scenes_and_no_scene_shows_them():
    film = plan(CLIPS + PHOTOS, 300.0, seed=1)
    asked = [q for q in questions_of(film, CLIPS + PHOTOS, seed=1) if q.operator == "swapped"]
    wholes = [description_of(clip) for clip in CLIPS + PHOTOS]
    found = [re.fullmatch(r"(.+?) (\w+ing .+)", whole) for whole in wholes]
    halves = [each.groups() for each in found if each]
    assert asked
    for question in asked:
        (whose,) = {act for who, act in halves if f"{who} " in question.text}
        (act,) = {act for _, act in halves if act in question.text}
        assert act != whose and not question.gold


@pytest.mark.parametrize("seed", range(3))
def test_questions_are_asked_while_the_film_runs_and_know_what_was_shown_by_then(seed):
    clips = CLIPS + PHOTOS
    film = plan(clips, 400.0, seed=seed)
    edges = film.edges
    questions = ask_along(film, clips, seed=seed)
    times = sorted({question.time for question in questions})
    assert len(times) == 5 and times[-1] == pytest.approx(edges[-1], abs=0.1)
    absent = [question for question in questions if not question.gold]
    assert len(absent) == pytest.approx(len(questions) / 2, rel=0.05)
    for question in questions:
        until = int(np.searchsorted(edges, question.time))
        assert all(scene < until for scene in question.gold), "the future answers nothing"
        texts = [text for scene in film.scenes[until:] for text in clips[scene.clip].sentences]
        if question.later and question.operator != "between":
            assert not question.gold
            assert any(f"{t}?" in question.text or f"{t} " in question.text
                       for t in THINGS if shows(texts, t))  # fmt: skip
    later = sum(question.later for question in absent if question.time < times[-1])
    assert 0 < later <= len(absent) * (LATER_SHARE + 0.1)
    ages = [q.time - edges[max(q.gold) + 1] for q in questions if q.gold]
    assert min(ages) < 10 and max(ages) > 200


def test_what_is_said_is_about_what_is_never_visible_and_is_asked_for():
    unseen = [FilmClip(f"s{i}.jpg", (f"There is {thing} somewhere .",)) for i, thing in
              enumerate(("a dog", "a piano", "a map", "a lemon", "a kettle"))]  # fmt: skip
    clips = [*CLIPS, *unseen]
    film = None
    for seed in range(40):  # one that shows few of the photos
        film = plan(clips, 60.0, seed=seed)
        if film.cues:
            break
    assert film and film.cues
    shown = [clips[scene.clip].sentences for scene in film.scenes]
    for cue in film.cues:
        assert not any(shows(each, cue.topic) for each in shown) and shows([cue.text], cue.topic)
    asked = [q for q in questions_of(film, clips, seed=0) if q.operator == "said"]
    told = [q for q in asked if q.gold]
    assert {q.gold for q in told} == {(cue.scene,) for cue in film.cues}
    assert all(any(cue.topic in q.text for cue in film.cues) for q in told)
    for question in (q for q in questions_of(film, clips, seed=0) if q.operator != "said"):
        assert not any(f" {cue.topic}?" in question.text for cue in film.cues)


def test_a_quote_is_right_if_it_is_of_the_scene_in_which_it_was_said():
    question, edges = TimedQuestion("?", "said", (2,)), np.arange(5.0)
    heard = Answer("?", "0:02 a dog", True, "computed")
    assert is_right(question, heard, {2}, edges) and not is_right(question, heard, {1}, edges)
    silent = Answer("?", "nothing", False, "computed")
    assert not is_right(question, silent, {2}, edges)
    assert is_right(TimedQuestion("?", "said", ()), silent, set(), edges)


def test_evidence_shows_a_scene_that_it_covers_for_the_most_part():
    edges = np.array([0.0, 4.0, 10.0, 12.0])
    assert scenes_cited(edges, [(3.8, 10.4)]) == [1]
    assert scenes_cited(edges, [(10.0, 12.0), (0.0, 10.0)]) == [2, 0, 1]
    assert scenes_cited(edges, [(5.0, 6.0)]) == [1], "a part of a scene shows it"
    assert scenes_cited(edges, [(20.0, 21.0)]) == []


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
    monkeypatch.setattr(film_files, "write", lambda path, *_: (written.append(path), path.touch()))
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
    files = [{s["file"] for s in json.loads(line)["scenes"]} for line in listed.splitlines()]
    assert not files[0] & files[1]
    found = read_suite("films", out)
    assert {q.video for q in found.questions} == {path.name for path in made}
    assert len(found.questions) > 80 and len({q.id for q in found.questions}) == len(
        found.questions
    )
    for question in found.questions:
        asked, edges = question.truth
        assert 60 <= edges[-1] <= 64.1 and question.time <= edges[-1]
        assert (question.kind == "recall") == bool(asked.gold) == bool(question.evidence)
        assert asked.thing.split(" and ")[0] in question.text
        assert question.cluster == f"{question.video}: {asked.thing}"


@pytest.mark.parametrize(
    ("minutes", "fps"), [(5, 5), pytest.param(90, 25, marks=pytest.mark.heavy)]
)
def test_scenes_of_a_long_film_begin_at_their_edges_to_a_frame(tmp_path, monkeypatch, minutes, fps):
    shown, told = [], {}

    def one_more(path, start, end, fps):  # as a clip whose frames do not fall on the film's
        count = round((end - start) * fps) + (1 if path.stem in "024" else -1)
        yield from [np.full((1, 1, 3), int(path.stem), np.uint8)] * count

    def kept(path, pictures, fps):
        shown.append(np.array([picture.max() for picture in pictures]))
        told[path.name] = fps

    monkeypatch.setattr(film_files, "letterboxed", one_more)
    monkeypatch.setattr(film_files, "write", kept)
    rows = [{"file": f"{i}.mp4", "caption": SENTENCES[i % 5], "seconds": 4.0} for i in range(6)]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for row in rows:
        (tmp_path / row["file"]).touch()
    out = tmp_path / "films"
    make_films(tmp_path, out, MakeOptions(minutes=minutes, fps=fps, progress=False))
    assert set(told.values()) == {fps}
    lines = [json.loads(line) for line in (out / "films.jsonl").read_text().splitlines()]
    for line, pictures in zip(lines, shown, strict=True):
        edges = np.cumsum([0.0, *(scene["end"] - scene["start"] for scene in line["scenes"])])
        assert line["fps"] == fps and len(pictures) == round(edges[-1] * fps)
        middles = np.round((edges[:-1] + edges[1:]) / 2 * fps).astype(int)
        files = [int(scene["file"][0]) for scene in line["scenes"]]
        assert pictures[middles].tolist() == files
        ages = [q["time"] - edges[max(q["gold"]) + 1] for q in line["questions"] if q["gold"]]
        assert min(ages) < 10 and max(ages) > 45 * minutes, "from seconds to hours"


@pytest.mark.heavy
def test_films_are_made_watched_and_asked_while_they_run(clips, tmp_path, capsys, monkeypatch):
    made = make_films(clips, tmp_path / "films", MakeOptions(minutes=1, progress=False))
    assert all(path.stat().st_size > 1000 for path in made)
    model = tiny_model()
    monkeypatch.setattr("streammem.models.registry.load", lambda *_, **__: model)
    out = tmp_path / "run"
    line = ["eval", "films", str(tmp_path / "films"), "--limit", "24", "-o", str(out)]
    code = main(line)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    checks = {check["name"]: check["holds"] for check in report["checks"]}
    assert checks["past only"] and code == (0 if checks.get("knows no future", True) else 1)
    assert set(report["pair"]) == {"memory"} and report["ages"]["memory"]
    assert report["parts"]["all"]["contexts"]["memory"]["strict"][3] == 24
    assert main(line) == code, "it goes on from what is there"


@pytest.mark.heavy
def test_the_guides_five_commands_lead_from_nothing_to_a_comparison(
    clips, farm_folder, tmp_path, monkeypatch, capsys
):
    guide = Path(__file__).parents[2] / "docs/guide/evaluation.md"
    block = re.search(r"```console\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)[1]
    commands = [shlex.split(line) for line in block.strip().splitlines()]
    assert len(commands) == 5 and all(words[:2] == ["streammem", "eval"] for words in commands)
    model = tiny_model()
    monkeypatch.setattr("streammem.models.registry.load", lambda *_, **__: model)
    monkeypatch.setattr(film_files, "FPS", 5)  # films are made in a fifth of the time
    monkeypatch.chdir(tmp_path)
    Path("clips").symlink_to(clips)
    Path("flickr8k").symlink_to(farm_folder)
    for words in commands:
        assert main(words[1:]) == 0, words
        told = capsys.readouterr().out
    assert {path.name for path in Path("films").iterdir()} >= {"fit-0.mp4", "report-0.mp4"}
    found = json.loads(told.splitlines()[-1])
    assert found["runs"] == ["streammem-tiny, memory", "streammem-tiny, now"]
    assert 0 < found["all"]["first"][3] <= 60 and not found["unfinished"]


def test_a_folder_of_photos_alone_makes_films_of_photos(photo_folder, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(film_files, "write", lambda path, *_: shown.append(path))
    options = MakeOptions(minutes=1, progress=False)
    made = make_films(photo_folder, tmp_path / "films", options)
    assert shown == made and len(made) == 2
    lines = [json.loads(line) for line in (tmp_path / "films/films.jsonl").read_text().splitlines()]
    halves = [{scene["file"] for scene in line["scenes"]} for line in lines]
    assert halves[0] | halves[1] == {f"{n}.png" for n in range(4)} and not halves[0] & halves[1]
    with pytest.raises(ConfigError, match="no clips that --photos could come between"):
        make_films(photo_folder, tmp_path / "b", replace(options, photos=photo_folder))
    with pytest.raises(DatasetError, match="needs four photos, and has 3"):
        make_films(photo_folder, tmp_path / "c", replace(options, limit=3))


def test_what_makes_no_films_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="minutes"):
        MakeOptions(minutes=0)
    with pytest.raises(ConfigError, match=r"1 frames a second; give a number in \[2, 60\]"):
        MakeOptions(fps=1)
    with pytest.raises(DatasetError, match=r"manifest\.jsonl"):
        make_films(tmp_path, tmp_path / "films", MakeOptions())
    (tmp_path / "films.jsonl").write_text('{"film": "a.mp4"}\n')
    with pytest.raises(DatasetError, match=r"films\.jsonl: row 1: malformed; make the films anew"):
        read_suite("films", tmp_path)
