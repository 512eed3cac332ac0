"""`streammem summary`, and what `ask` and `find` know of times, zones and sheets."""

import re

import numpy as np
import pytest
from PIL import Image

from streammem.memory.store import Store
from streammem.models.tiny.model import VideoModel
from streammem.models.tiny.questions import QuestionReading
from tests.command_line import QUICK, events
from tests.looking import Scripted, calling, model_of

KEYS = ["type", "source", "start", "end", "segments", "captions"]


@pytest.fixture
def counted(monkeypatch):
    """Every question is how often, of everything."""
    monkeypatch.setattr(
        VideoModel, "read_question", lambda self, q: QuestionReading("how often", q)
    )
    seen = "streammem.memory.retrieval.Scale.probability"
    monkeypatch.setattr(seen, lambda scale, cosines: np.ones(len(cosines)))


@pytest.fixture
def memory(run, video, tmp_path):
    path = tmp_path / "trips"
    when = ("--recorded", "2026-05-03T14:00+02:00")
    assert run("scenes", video, "--memory", path, *when)[0] == 0
    return path


@pytest.mark.parametrize("remembered", [False, True])
def test_a_summary_lists_chapters_that_tile_what_was_seen(run, video, memory, remembered):
    where = memory if remembered else video
    code, out, err = run("summary", where, "--chapters", "2", "--format", "jsonl", *QUICK)
    chapters = events(out)
    keys = [*KEYS, "wall_start"] if remembered else KEYS  # it was kept with --recorded
    assert (code, err) == (0, "") and [list(c) for c in chapters] == [keys, keys]
    assert {c["type"] for c in chapters} == {"chapter"} and {c["source"] for c in chapters} == {
        video
    }
    assert chapters[0]["start"] == 0 and chapters[1]["end"] == 10
    assert chapters[0]["end"] == chapters[1]["start"]
    assert sum(c["segments"] for c in chapters) == 3
    for chapter in chapters:
        for caption in chapter["captions"]:
            assert chapter["start"] <= caption["start"] < caption["end"] <= chapter["end"]


def test_a_summary_reads_as_times_with_lines_of_the_timeline_below(run, memory):
    code, out, _ = run("summary", memory, "--between", "0", "0:02", *QUICK)
    heading, *lines = out.splitlines()
    assert code == 0 and re.fullmatch(r"00:00\.0-00:03\.\d .+ \(1 scene\)", heading)
    assert all(re.match(r"  \[00:00\.0-", line) for line in lines)


def test_a_day_lists_activities_by_the_wall_clock_or_names_the_days_there_are(run, memory):
    zone = ("--timezone", "Europe/Berlin")
    words = ("summary", memory, "--day", "2026-05-03", "--chapters", "1", *zone, *QUICK)
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"14:00-14:00 .+ \(3 scenes, .+\)\n", out)
    (chapter,) = events(run(*words, "--format", "jsonl")[1])
    assert chapter["type"] == "chapter"
    assert chapter["wall_start"] == "2026-05-03T14:00:00.000+02:00"
    code, out, err = run("summary", memory, "--day", "2026-05-04", *zone, *QUICK)
    assert (code, out) == (0, "") and "days that have scenes: 2026-05-03" in err


@pytest.mark.parametrize(
    "words",
    [
        ("find", "--between", "2026-05-03T16:40", "16:45", "red"),
        ("summary", "--between", "2026-05-03T16:40", "16:45"),
        ("summary", "--day", "2026-05-02"),
        ("ask", "Who came on 2 May 2026 at 3 pm?"),
    ],
)
def test_where_nothing_was_seen_then_it_is_told_and_why_that_may_be(
    run, memory, video, tmp_path, words
):
    command, *rest = words
    clockless = tmp_path / "clockless"
    assert run("scenes", video, "--memory", clockless)[0] == 0
    for path, is_clockless in ((memory, False), (clockless, True)):
        code, out, err = run(command, path, *rest, "--timezone", "Europe/Berlin", *QUICK)
        assert code == 0 and "nothing was seen" in out + err
        assert ("--recorded" in err) == is_clockless
    code, out, err = run("find", clockless, "red", "--between", "1:00:00", "2:00:00", *QUICK)
    assert (code, out) == (0, "") and err == "nothing was seen then\n"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--chapters", "0"), "--chapters 0"),
        (("--between", "5", "2"), "--between 5 2"),
        (("--format", "srt"), "--format srt"),
        (("--recorded", "noon"), "--recorded"),
        (("--day", "monday"), "--day"),
        (("--day", "2026-05-03", "--between", "1", "2"), "--day"),
    ],
)
def test_a_summary_that_cannot_be_meant_is_refused_first(run, flags, told):
    try:
        code, _, err = run("summary", "nothing.mp4", *flags)
    except SystemExit as stopped:
        code, err = stopped.code, told
    assert code == 2 and told in err


def test_a_recorded_time_is_kept_and_asked_by_the_wall_clock(run, memory, counted):
    with Store.open(memory, None, "r") as store:
        starts = [entry.wall_start for entry in store.load_entries()]
    assert starts[0] == 1_777_809_600.0 and starts[1] > starts[0]
    asked = ("ask", memory, "What was there on 2026-05-03 at 8 am?", "--format", "jsonl")
    (answer,) = events(run(*asked, "--timezone", "America/New_York")[1])
    assert answer["method"] == "computed" and answer["seen"] and "once" in answer["text"]
    assert "(2026-05-03 08:00:00-04:00)" in answer["text"]
    (answer,) = events(run(*asked, "--timezone", "Asia/Tokyo")[1])
    assert not answer["seen"] and answer["text"] == "nothing was seen then"
    assert answer["looked_at"] == "wall clock 2026-05-03 08:00:00+09:00 to 09:00:00"


def test_a_computed_answer_prints_its_value_then_its_evidence(run, memory, counted):
    code, out, _ = run("ask", memory, "How often?")
    value, *evidence = out.splitlines()
    assert code == 0 and value.startswith("once: 00:00.0-00:10.0")
    assert len(evidence) == 3 and all(line.startswith("  [") for line in evidence)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc", ""])
def test_an_unknown_time_zone_is_refused_before_anything_is_opened(run, zone):
    code, out, err = run("ask", "nothing.mp4", "When?", "--set", f'timezone="{zone}"')
    assert (code, out) == (2, "") and "timezone" in err and err.count("\n") == 1


def test_a_time_that_there_is_not_is_told_in_one_line(run, memory):
    code, _, err = run("ask", memory, "Who came between 2:00 and 1:00 of the video?")
    assert code == 2 and "earlier time first" in err and err.count("\n") == 1


def test_find_draws_its_moments(run, memory, tmp_path):
    sheet = tmp_path / "found.png"
    code, out, err = run("find", memory, "something blue", "--count", "2", "--sheet", sheet)
    assert code == 0 and len(out.splitlines()) == 2 and f"wrote {sheet}" in err
    assert Image.open(sheet).width == 1200


# -- looking again --


def _answers_by(monkeypatch, generator):
    """Every model's answers come from a generator."""
    model = model_of(generator)
    monkeypatch.setattr("streammem.commands.opening.load_model", lambda arguments: model)


def test_steps_are_shown_with_v_and_kept_in_the_answer(run, video, monkeypatch, caplog):
    script = [calling("search", text="red"), calling("look", segment=1, frames=2)]
    _answers_by(monkeypatch, Scripted(script=script))
    code, out, _ = run("ask", video, "What is it?", "--steps", "4", "--format", "jsonl")
    (answer,) = events(out)
    assert code == 0 and answer["method"] == "model"
    assert list(answer)[-1] == "steps"
    assert [step["call"] for step in answer["steps"]] == ["search", "look"]
    assert list(answer["steps"][1]) == [
        "call", "arguments", "text", "segments", "pictures", "failed",
    ]  # fmt: skip
    assert answer["steps"][1]["arguments"] == {"segment": 1, "frames": 2}
    assert answer["steps"][1]["pictures"] == 2  # of the file: one alone is stored
    with caplog.at_level("INFO", "streammem"):
        code, out, _ = run("ask", video, "What is it?", "--steps", "4", "-v")
    assert code == 0 and "blue" in out
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("step ")][1:] == [
        "step 2: look(segment=1, frames=2): scene 1, 00:03.0-00:07.0"
    ]


def test_steps_of_a_model_without_tools_are_an_error_that_says_so(run, video):
    code, out, err = run("ask", video, "What is it?", "--steps", "3")
    assert (code, out) == (2, "")
    assert "steps 3" in err and "cannot call tools" in err and err.count("\n") == 1


@pytest.mark.parametrize("steps", ["0", "33"])
def test_steps_out_of_range_are_refused(run, video, steps):
    code, _, err = run("ask", video, "What is it?", "--steps", steps)
    assert code == 2 and f"steps {steps}" in err


def test_verify_says_who_decided(run, video, monkeypatch):
    monkeypatch.setattr(
        VideoModel, "read_question", lambda self, q: QuestionReading("when", "black")
    )
    monkeypatch.setattr(
        "streammem.memory.retrieval.Scale.probability",
        lambda scale, cosines: 0.1 * np.ones(len(cosines)),
    )
    _answers_by(monkeypatch, Scripted())
    code, out, _ = run("ask", video, "When?", "--verify", "--format", "jsonl")
    (answer,) = events(out)
    assert code == 0 and (answer["seen"], answer["decided_by"]) == (False, "model")
    code, out, _ = run("ask", video, "When?", "--verify")
    assert code == 0 and "it does not show there" in out
