"""`streammem watch` and `chat`, on cameras that fail, end, and are told to stop."""

import json
import os
import re
import signal
from functools import partial

import pytest

from benchmarks.rtsp_server import RtspCamera, encode
from streammem.commands import watching
from streammem.commands.watching import Lines
from streammem.types import Caption, Notice, Stats
from streammem.video import live_source
from tests.command_line import QUICK, SRT_CUE, events
from tests.looking import Scripted, model_of
from tests.tiny import film

PICTURES = [frame.pixels for frame in film(("red", 50), ("blue", 50), ("green", 50))]


@pytest.fixture(scope="module")
def units():
    return encode(PICTURES)


@pytest.fixture
def meanwhile(monkeypatch):
    """Take steps while `watch` runs: each after the first event of its kind since the last one."""

    def plan(*steps):
        waiting, show = list(steps), watching._Output.show

        def shown(out, event, wall_zero, source):
            show(out, event, wall_zero, source)
            if waiting and waiting[0][0](event):
                waiting.pop(0)[1]()

        monkeypatch.setattr(watching._Output, "show", shown)

    return plan


def is_caption(event):
    return isinstance(event, Caption)


def is_stats(event):
    return isinstance(event, Stats)


def is_back(event):
    return isinstance(event, Notice) and "is back" in event.message


def kill(number):
    return partial(os.kill, os.getpid(), number)


TERMINATE = kill(signal.SIGTERM)


def test_watch_captions_a_file_and_ends_with_it(run, video):
    code, out, _ = run("watch", video, "--format", "jsonl", *QUICK)
    assert code == 0
    assert {e["type"] for e in events(out)} == {"caption"}


def test_what_a_live_source_shows_has_the_time_of_day(run, units, meanwhile):
    meanwhile((is_stats, int), (is_caption, TERMINATE))
    with RtspCamera(units, speed=20.0) as camera:
        code, out, err = run("watch", camera.url, "--format", "jsonl", "--stats", "0.1s", *QUICK)
    assert code == 0, err
    shown = events(out)
    captions = [e for e in shown if e["type"] == "caption"]
    assert captions
    for caption in captions:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d", caption["wall_start"])
    last = [e for e in shown if e["type"] == "stats"][-1]
    dropped = last["dropped_full"] + last["dropped_at_stop"]
    assert last["captured"] == last["frames"] + last["waiting"] + dropped


def test_sigterm_flushes_and_ends_well_and_an_interrupt_ends_with_130(
    run, units, meanwhile, tmp_path
):
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        path = tmp_path / f"{number}.srt"
        meanwhile((is_caption, kill(number)))
        with RtspCamera(units, speed=20.0) as camera:
            done, _, err = run("watch", camera.url, "--format", "srt", "-o", path, *QUICK)
        assert done == code, err
        assert SRT_CUE.findall(path.read_text())
        assert "Traceback" not in err


def test_sighup_makes_the_output_anew(run, units, meanwhile, tmp_path):
    path, moved = tmp_path / "a.jsonl", tmp_path / "moved.jsonl"

    def move():
        path.rename(moved)
        os.kill(os.getpid(), signal.SIGHUP)

    meanwhile((is_stats, move), (is_stats, TERMINATE))
    with RtspCamera(units, speed=20.0) as camera:
        code, *_ = run(
            "watch", camera.url, "--format", "jsonl", "-o", path, "--stats", "0.1s", *QUICK
        )
    assert code == 0
    for file in (path, moved):
        assert [json.loads(line)["type"] for line in file.open()]


def test_a_camera_that_breaks_off_is_got_back_and_the_memory_keeps_no_password(
    run, units, meanwhile, tmp_path, monkeypatch
):
    monkeypatch.setattr(live_source, "BACK_OFF_S", (0.02, 0.05))
    metrics = tmp_path / "metrics.prom"
    with RtspCamera(units, speed=20.0, password="s3cret") as camera:
        meanwhile((is_caption, camera.drop), (is_back, int), (is_stats, TERMINATE))
        code, out, err = run(
            "watch", camera.url, "--memory", tmp_path / "kept", "--stats", "0.1s",
            "--metrics", metrics, *QUICK,
        )  # fmt: skip
    assert code == 0
    assert "connection lost" in err and "is back" in err
    assert 'streammem_connections_total{source="rtsp://127.0.0.1:' in metrics.read_text()
    kept = b"".join(p.read_bytes() for p in (tmp_path / "kept").rglob("*") if p.is_file())
    assert b"s3cret" not in kept + out.encode() + err.encode() + metrics.read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--rotate-size", "1MB"),
        ("-o", "x.jsonl", "--rotate-keep", "3"),
        ("--metrics", "nowhere/m.prom"),
        ("--drop", "all"),
        ("--refresh", "soon"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_opened(run, wrong, tmp_path):
    try:
        code, _, err = run("watch", "rtsp://127.0.0.1:9/x", *wrong)
    except SystemExit as left:  # argparse's own
        code, err = left.code, "\n"
    assert code == 2
    assert err.count("\n") == 1


def test_chat_answers_what_is_typed(run, video, monkeypatch, tmp_path):
    typed = tmp_path / "typed"
    typed.write_text("What moves?\n\nWhat is blue?")
    with typed.open() as file:
        monkeypatch.setattr("streammem.commands.watching.Lines", lambda fd: Lines(file.fileno()))
        code, out, err = run("chat", video, *QUICK)
    assert code == 0, err
    assert out.count("[00:0") >= 3


def test_lines_are_given_whole_and_never_waited_for():
    reading, writing = os.pipe()
    lines = Lines(reading)
    assert lines.take() is None
    os.write(writing, b"what is")
    assert lines.take() is None
    os.write(writing, b" there?\n\nand now?\nlast")
    assert [lines.take(), lines.take(), lines.take()] == ["what is there?", "and now?", None]
    os.close(writing)
    assert [lines.wait(), lines.wait()] == ["last", None]
    os.close(reading)


# -- until --


def test_watching_until_something_holds_ends_with_0_and_says_so(run, video, monkeypatch):
    monkeypatch.setattr(
        "streammem.commands.opening.load_model", lambda arguments: model_of(Scripted())
    )
    code, out, err = run("watch", video, "--until", "all is blue", "--format", "jsonl")
    last = events(out)[-2:]
    assert code == 0 and {"type": "until", "condition": "all is blue"}.items() <= last[0].items()
    assert 3 <= last[0]["time"] < 7 and err == ""
    code, out, err = run("watch", video, "--until", "all is black")
    assert code == 1 and "all is black" in err and "Traceback" not in err


def test_until_of_a_model_that_reads_no_pictures_is_an_error(run, video):
    code, out, err = run("watch", video, "--until", "all is blue")
    assert (code, out) == (2, "") and "reads no pictures" in err
