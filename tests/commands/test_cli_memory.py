"""`streammem memory`, and memories that stay within limits."""

import itertools
import json
import os
import re
import shutil
import sys
from dataclasses import replace

import pytest
from PIL import Image

from streammem.captioning.captioner import Captioner
from streammem.commands import opening
from streammem.memory.store import Store
from streammem.memory.upkeep import info
from tests.command_line import QUICK, SRT_CUE, events, record
from tests.memory.entries import DIM, TOKENS, make
from tests.sessions import SHORT
from tests.tiny import film

ACTIONS = (
    "info",
    "verify",
    "export",
    "compact",
    "prune --keep 7d",
    "forget --between 0 1",
    "forget --between 0 1 --yes",
    "names",
    "forget-name cup",
)


@pytest.fixture
def memory(run, video, tmp_path):
    """Three captioned segments of one video, one of another."""
    path = tmp_path / "trips"
    assert run("caption", video, "--memory", path)[0] == 0
    other = record(tmp_path / "other.mp4", (("white", 2),))
    assert run("scenes", other, "--memory", path)[0] == 0
    return path


def segments(path):
    with Store.open(path, None, "r") as store:
        return [entry.segment for entry in store.load_entries()]


# -- looking --


def test_info_tells_what_is_there(run, memory, video):
    code, out, err = run("memory", "info", memory, "--format", "jsonl")
    (facts,) = events(out)
    assert (code, err, facts["type"], facts["path"]) == (0, "", "memory", str(memory))
    assert (facts["segments"], facts["captions"], facts["keyframes"]) == (4, 3, 4)
    assert facts["sources"][0] == video and (facts["start"], facts["end"]) == (0.0, 10.0)
    text = run("memory", "info", memory)[1]
    assert re.search(r"^end +00:10\.0$", text, re.MULTILINE) and video in text


def test_export_gives_every_event_with_its_source(run, memory, video):
    code, out, err = run("memory", "export", memory, "--format", "jsonl")
    assert (code, err) == (0, "")
    told = events(out)
    assert [event["type"] for event in told] == ["segment", "caption"] * 3 + ["segment"]
    assert list(told[0]) == ["type", "id", "start", "end", "depth", "reason", "source"]
    keys = ["type", "segment", "start", "end", "text", "confidence", "reason", "source"]
    assert list(told[1]) == [key for key in keys if key != "reason" or "reason" in told[1]]
    # A memory does not know them, and does not pretend to.
    assert (told[0]["depth"], told[0]["reason"]) == (None, None)
    assert {event["source"] for event in told[:6]} == {video} != {told[6]["source"]}
    captions = events(run("caption", video, "--format", "jsonl")[1])
    exported = [event for event in told if event["type"] == "caption"]
    assert exported == [{**caption, "source": video} for caption in captions]


def test_a_file_that_is_watched_into_a_memory_again_is_told(run, video, tmp_path):
    other = tmp_path / "other.mp4"
    shutil.copy(video, other)
    words = ("--memory", tmp_path / "trips", "--format", "jsonl", *QUICK)
    for path, is_told in ((video, False), (other, False), (video, True)):
        code, _, err = run("caption", path, *words)
        assert code == 0 and ("count besides" in err) == is_told
        assert not is_told or f"has scenes of {video} already" in err


def test_a_growing_folder_that_is_read_into_a_memory_again_is_told(run, tmp_path):
    folder = tmp_path / "recorded"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    words = (f"growing:{folder}", "--memory", tmp_path / "m", *QUICK)
    for is_told in (False, True):
        code, _, err = run("caption", *words)
        assert code == 0 and (f"has scenes of {folder} already" in err) == is_told


def test_unsure_captions_are_exported_as_they_were_given(run, video, tmp_path, monkeypatch):
    score, texts = Captioner.score, itertools.cycle(("a dog", ""))  # cut, and withheld

    def unsure(*arguments):
        return replace(score(*arguments), text=next(texts), confidence=0.125, unsure=True)

    monkeypatch.setattr(Captioner, "score", unsure)
    path = tmp_path / "m"
    given = events(run("caption", video, "--memory", path, "--format", "jsonl")[1])
    assert [c["text"] for c in given] == ["a dog", "", "a dog"]
    assert {(c["confidence"], c["reason"]) for c in given} == {(0.125, "unsure")}
    told = events(run("memory", "export", path, "--format", "jsonl")[1])
    exported = [event for event in told if event["type"] == "caption"]
    assert exported == [{**caption, "source": video} for caption in given]
    lines = run("memory", "export", path)[1].splitlines()
    assert [line for line in lines if " scene " not in line] == [
        "[00:00.0-00:03.0] a dog … (unsure)",
        "[00:03.0-00:07.0] (unsure)",
        "[00:07.0-00:10.0] a dog … (unsure)",
    ]
    cues = SRT_CUE.findall(run("memory", "export", path, "--format", "srt")[1])
    assert [text for *_, text in cues] == ["a dog", "a dog"]


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_export_of_one_source_is_as_captioning_it(run, memory, video, tmp_path, form):
    path = tmp_path / "out"
    code, out, err = run(
        "memory", "export", memory, "--format", form, "--source", video, "-o", path
    )
    assert (code, out, err) == (0, "", "")
    captioned = run("caption", video, "--format", form)[1]
    lines = [line for line in path.read_text().splitlines() if " scene " not in line]
    assert lines == [line.rstrip() for line in captioned.splitlines()]


def test_an_export_that_will_be_read_as_subtitles_is_told(run, video, tmp_path):
    film, path = tmp_path / "film.mp4", tmp_path / "trips"
    shutil.copy(video, film)
    run("caption", film, "--memory", path, *QUICK)
    form = ("--format", "srt", "-o")
    for speech, is_told in (("merged", True), ("only", False)):
        (tmp_path / "film.srt").unlink(missing_ok=True)
        said = run("memory", "export", path, "--with-speech", speech, *form, tmp_path / "film.srt")
        assert said[0] == 0 and ("named like the video" in said[2]) == is_told
    assert run("memory", "export", path, *form, tmp_path / "film.captions.srt") == (0, "", "")


@pytest.mark.parametrize("command", ["caption", "export"])
def test_subtitles_of_the_video_are_not_written_over(run, video, tmp_path, command):
    film, path, words = tmp_path / "film.mp4", tmp_path / "trips", tmp_path / "film.srt"
    shutil.copy(video, film)
    run("caption", film, "--memory", path, *QUICK)
    words.write_text("1\n00:00:00,000 --> 00:00:02,000\nHello.\n")
    begin = ("caption", film) if command == "caption" else ("memory", "export", path)
    code, out, err = run(*begin, "--format", "srt", "-o", words)
    assert code and not out and "film.captions.srt" in err
    assert words.read_text().endswith("Hello.\n")


def test_cues_of_several_sources_come_with_a_remark(run, memory):
    code, out, err = run("memory", "export", memory, "--format", "srt")
    assert code == 0 and len(SRT_CUE.findall(out)) == 3
    assert len(err.splitlines()) == 1 and "--source" in err


def test_notes_are_exported_too_with_the_wall_clock(run, tmp_path):
    from streammem.types import Note

    path = tmp_path / "a.mem"
    with Store.create(path, "tiny", key_dim=DIM, token_shape=TOKENS) as store:
        entry = make(0, notes=(Note(0.25, 0.5, "Hello\nthere"),), wall_start=1_700_000_000.5)
        store.append(entry, b"")
    segment, note = events(run("memory", "export", path, "--format", "jsonl")[1])
    assert note["type"] == "note" and (note["start"], note["end"]) == (0.25, 0.5)
    assert re.fullmatch(r"2023-11-1\dT.+\.500[+-]\d\d:\d\d", segment["wall_start"])


def test_subtitles_begin_with_the_wall_clock_where_it_is_asked_for(run, tmp_path):
    path = tmp_path / "a.mem"
    with Store.create(path, "tiny", key_dim=DIM, token_shape=TOKENS) as store:
        store.append(make(0, caption="A dog.", wall_start=1_700_000_000.5), b"")
    asked = ("memory", "export", path, "--format", "srt")
    assert "\nA dog.\n" in run(*asked)[1] and "2023-" not in run(*asked)[1]
    assert re.search(
        r"\n2023-11-1\d [\d:]{8}[+-]\d\d:\d\d\nA dog.\n", run(*asked, "--wall-clock")[1]
    )


def test_a_sound_memory_verifies_and_a_damaged_one_is_1(run, memory):
    code, out, err = run("memory", "verify", memory)
    assert (code, out) == (0, "") and err == f"{memory}: sound\n"
    keyframe = next((memory / "keyframes").iterdir())
    keyframe.write_bytes(b"flipped")
    code, out, err = run("memory", "verify", memory, "--format", "jsonl")
    (fault,) = events(out)
    assert code == 1 and list(fault) == ["type", "segment", "message"]
    assert len(err.splitlines()) == 1 and "1 fault;" in err
    assert run("memory", "verify", memory)[1].startswith(f"segment {fault['segment']}: ")


def test_looking_needs_no_model_and_no_torch():
    import subprocess

    script = (
        "import sys, streammem.cli\n"
        "streammem.cli.main(['memory', 'info', 'nowhere'])\n"
        "sys.exit('torch' in sys.modules or 'faiss' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1, done.stderr


# -- removing --


def test_forgetting_shows_a_stretch_and_removes_it_only_with_yes(run, memory, video):
    asked = ("memory", "forget", memory, "--between", "0:03.5", "4", "--source", video)
    shown = f"00:03.0-00:07.0 1 segment {video}\n"
    for more in ((), ("--dry-run",)):
        code, out, err = run(*asked, *more)
        assert (code, out) == (0, shown)
        assert (
            err == f"{memory}: would forget 1 segment (1); --yes removes what is listed, for good\n"
        )
        assert segments(memory) == [0, 1, 2, 3]
    code, out, err = run(*asked, "--yes")
    assert (code, out, err) == (0, shown, f"{memory}: forgot 1 segment (1)\n")
    assert segments(memory) == [0, 2, 3]
    code, out, err = run("memory", "forget", memory, "--between", "50", "60", "--yes")
    assert (code, out) == (0, "") and "forgot 0 segments\n" in err
    run("memory", "forget", memory, "--between", "0", "1", "--source", video, "--yes")
    assert segments(memory) == [2, 3]
    run("memory", "forget", memory, "--between", "0", "9", "--yes")
    assert segments(memory) == []


def test_forgetting_takes_and_shows_the_wall_clock_of_a_time_zone(run, tmp_path):
    path = tmp_path / "a.mem"
    with Store.create(path, "tiny", key_dim=DIM, token_shape=TOKENS) as store:
        for number in range(3):  # 22:13:20 UTC and the two hours after it
            start = 3600.0 * number
            wall = 1_700_000_000.0 + start
            store.append(make(number, start=start, end=start + 60, wall_start=wall), b"")
    between = ("memory", "forget", path, "--between", "2023-11-15T08:13", "08:14")
    code, out, err = run(*between, "--timezone", "Asia/Tokyo")
    assert code == 0 and "(2023-11-15 08:13:20+09:00) 1 segment" in out and "(1)" in err
    code, _, err = run(*between, "--timezone", "Nowhere")
    assert code == 2 and "Nowhere" in err and len(err.splitlines()) == 1
    assert segments(path) == [0, 1, 2]


def test_pruning_by_size_says_what_went(run, memory):
    with Store.open(memory, None, "r") as store:
        size = info(store).database_bytes
    asked = ("memory", "prune", memory, "--budget", str(size))
    code, out, err = run(*asked, "--dry-run")
    assert (code, out) == (0, "") and f"{memory}: would remove 4 keyframes, 0 token" in err
    assert len(list((memory / "keyframes").iterdir())) == 4
    code, out, err = run(*asked)
    assert (code, out) == (0, "") and f"{memory}: removed 4 keyframes, 0 token" in err
    assert list((memory / "keyframes").iterdir()) == [] and segments(memory) == [0, 1, 2, 3]


def test_pruning_by_age_takes_what_is_older(run, memory):
    assert run("memory", "prune", memory, "--keep", "1h")[0] == 0
    assert segments(memory) == [0, 1, 2, 3]
    assert "4 segments" in run("memory", "prune", memory, "--keep", "0s")[2]
    assert segments(memory) == []


def test_an_unreachable_budget_is_remarked(run, memory):
    code, _, err = run("memory", "prune", memory, "--budget", "1B")
    assert code == 0 and "less than an empty memory takes" in err


def test_compacting_keeps_everything(run, memory):
    before = run("memory", "export", memory, "--format", "jsonl")[1]
    code, out, err = run("memory", "compact", memory)
    assert (code, out) == (0, "") and len(err.splitlines()) == 1
    assert run("memory", "export", memory, "--format", "jsonl")[1] == before


# -- what cannot be --


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("what", ["nothing", "file", "folder"])
def test_what_is_no_memory_is_one_line_and_1(run, tmp_path, action, what):
    path = tmp_path / what
    if what == "file":
        path.write_text("x")
    if what == "folder":
        path.mkdir()
    name, *options = action.split()
    code, out, err = run("memory", name, path, *options)
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert err.startswith("streammem: ") and "not a memory" in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("prune",), 2),
        (("forget", "--between", "5", "3"), 2),
        (("forget", "--between", "3", "3"), 2),
        (("forget", "--between", "-1", "3"), 2),
        (("forget", "--between", "0", "nan"), 2),
        (("forget", "--between", "0", "2026-05-03T16:40", "--yes"), 2),
        (("forget", "--between", "2026-05-03T16:40", "9", "--yes"), 2),
        (("forget", "--between", "2026-05-03T16:40", "2026-05-03T16:40", "--yes"), 2),
        (("forget", "--between", "2026-13-03T16:40", "16:45", "--yes"), 2),
        (("export", "-o", "no/such/folder/out"), 2),
        (("forget", "--between", "0", "1", "--source", "nowhere.mp4"), 1),
        (("export", "--source", "nowhere.mp4"), 1),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_changes_nothing(run, memory, arguments, code):
    name, *options = arguments
    left, out, err = run("memory", name, memory, *options)
    assert (left, out) == (code, "") and len(err.splitlines()) == 1
    assert segments(memory) == [0, 1, 2, 3]


def test_nobody_prunes_what_another_writes(run, memory):
    with Store.open(memory):
        for action in ("compact", "prune --keep 0s", "forget --between 0 9 --yes"):
            name, *options = action.split()
            code, out, err = run("memory", name, memory, *options)
            assert (code, out) == (1, "") and "is being written by" in err
        assert run("memory", "info", memory)[0] == 0
        assert run("memory", "forget", memory, "--between", "0", "9", "--dry-run")[0] == 0
    assert segments(memory) == [0, 1, 2, 3]


# -- asked later --


def test_a_memory_answers_later_without_the_video(run, video, tmp_path):
    memory = tmp_path / "kitchen.mem"
    assert run("caption", video, "--memory", memory)[0] == 0
    code, out, err = run("ask", memory, "What was red?", "--format", "jsonl", *QUICK)
    assert (code, err) == (0, "")
    (answer,) = events(out)
    assert {item["source"] for item in answer["evidence"]} == {video}
    assert all(os.path.isfile(item["keyframe"]) for item in answer["evidence"])
    moments = events(run("find", memory, "red", "--format", "jsonl")[1])
    assert len(moments) == 3


def test_a_memory_path_that_is_a_file_is_told(run, video, tmp_path):
    (tmp_path / "file").write_text("x")
    code, out, err = run("caption", video, "--memory", tmp_path / "file")
    assert code in (1, 2) and out == "" and len(err.splitlines()) == 1


# -- a memory as a source --


def test_a_memory_is_no_video_and_takes_no_span(run, memory):
    for command in ("caption", "scenes"):
        code, out, err = run(command, memory)
        assert (code, out) == (2, "") and "is a memory, not a video" in err
    for option in (("--start", "1"), ("--fps", "1"), ("--memory", "other"), ("--reader", "pyav")):
        code, out, err = run("ask", memory, "Why?", *option)
        assert (code, out) == (2, "") and option[0] in err


def test_an_empty_memory_is_told(run, memory):
    run("memory", "prune", memory, "--keep", "0s")
    for command in ("ask", "find"):
        code, out, err = run(command, memory, "Why?")
        assert (code, out) == (1, "") and "nothing is in this memory yet" in err


# -- limits while it is written --


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--budget", "5MB"), "--memory"),
        (("--keep", "7d"), "--memory"),
        (("--memory", "m", "--budget", "100KB"), "1MB"),
        (("--memory", "m", "--keep", "10m"), "1h"),
    ],
)
def test_limits_that_cannot_be_kept_are_2(run, video, options, named):
    code, out, err = run("caption", video, *options)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and named in err


def test_a_stream_keeps_its_memory_within_the_budget(run, video, tmp_path, monkeypatch):
    """Limits are checked while it runs, and what went is not found any more."""
    monkeypatch.setattr("streammem.commands.options.LEAST_BUDGET_BYTES", 0)
    seen, sizes = [], []
    original = opening.prune

    def pruning(session, arguments):
        with Store.open(session.memory.path, None, "r") as store:
            found = info(store)
        sizes.append(found.database_bytes + found.keyframe_bytes)
        original(session, arguments)
        seen.append([entry.segment for entry in session.memory.entries()])

    monkeypatch.setattr(opening, "prune", pruning)
    path = tmp_path / "small"
    assert run("scenes", video, "--memory", path, "--budget", "30KB")[0] == 0
    assert len(seen) == 1 + 3 + 1  # before, after each of three segments, at the end
    assert max(sizes) <= 30_000 + opening.SEGMENT_BYTES // 2
    with Store.open(path, None, "r") as store:
        found = info(store)
        assert found.database_bytes + found.keyframe_bytes <= 30_000
        assert found.keyframes < 3
        assert seen[-1] == [entry.segment for entry in store.load_entries()]


@pytest.mark.parametrize("budget", [1_000_000, 5_000_000, 50_000_000, 2_000_000_000])
def test_between_two_prunings_a_memory_grows_by_a_16th_of_its_budget_or_2_mb(budget):
    grown = opening.pruned_every(budget) * opening.SEGMENT_BYTES
    assert grown <= max(budget / 16, opening.SEGMENT_BYTES) and grown <= 64 * opening.SEGMENT_BYTES


def test_rows_that_are_pruned_leave_the_cache(model, tmp_path):
    import argparse

    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig

    with Session(model, SessionConfig(caption=SHORT), memory=tmp_path / "m") as session:
        for frame in film(("red", 6), ("blue", 6), ("green", 6)):
            session.push(frame)
        session.flush()
        assert len(session.memory) == 3
        opening.prune(session, argparse.Namespace(budget=None, keep=0.0))
        assert len(session.memory) == 0 and session.find("red") == ()
        opening.prune(session, argparse.Namespace(budget=None, keep=None))


def test_every_line_of_info_is_one_fact(run, memory):
    facts = json.loads(run("memory", "info", memory, "--format", "jsonl")[1])
    lines = run("memory", "info", memory)[1].splitlines()
    assert [line.split()[0] for line in lines] == [k for k in facts if k not in ("type", "path")]


# -- names --


def test_a_thing_is_taught_found_by_its_name_listed_and_forgotten(run, memory, monkeypatch):
    monkeypatch.setattr("streammem.qa.teaching.PEOPLE", ())
    code, out, err = run("memory", "teach", memory, "my cup", "--at", "0:01", "--box", "0,0,1,1")
    assert (code, out) == (0, "") and re.search(r"my cup: 1 picture; seen in [1-4] scenes?$", err)
    (best,) = events(run("find", memory, "my cup", "--count", "1", "--format", "jsonl")[1])
    assert best["names"] == ["my cup"]
    code, out, err = run("memory", "names", memory, "--format", "jsonl")
    assert events(out) == [{"type": "name", "name": "my cup", "person": False, "pictures": 1}]
    assert run("memory", "names", memory)[1] == "my cup: 1 picture\n"
    code, out, err = run("memory", "forget-name", memory, "My Cup")
    assert (code, err) == (0, f"{memory}: forgot my cup\n")
    code, out, err = run("memory", "forget-name", memory, "my cup")
    assert code == 1 and "was taught nothing, and no my cup" in err
    assert run("memory", "names", memory)[2] == f"{memory}: nothing was taught\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "give pictures that show it, or --at TIME"),
        (("--box", "0,0,1,1"), "give --at TIME, too"),
        (("--at", "0:01", "--box", "0,0,1,2"), "give x,y,w,h in shares"),
        (("no.jpg",), "no.jpg"),
        (("--at", "9:00:00"), "nothing was seen at"),
    ],
)
def test_what_cannot_be_taught_is_refused(run, memory, words, reason):
    code, _, err = run("memory", "teach", memory, "my cup", *words)
    assert code in (1, 2) and reason in err
