"""Videos of a list as one film: what the contract of all sources does not cover."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streammem.errors import ConfigError, SourceError, TruncatedError
from streammem.video import open_source
from streammem.video.registry import sources_help, sources_table
from tests.video.clips import indexed_first, make

JOINED = ("h264.mp4", "vfr.mkv", "h264.ts", "mpeg4.avi", "opengop.mp4", "vp9.webm", "odd.mp4")


def listed(folder, *lines):
    (folder / "list.txt").write_text("\n".join(lines))
    return f"concat:{folder / 'list.txt'}"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")
    for name in JOINED:
        make(name, folder)
    return listed(folder, *JOINED)


def equal(frames, expected):
    assert [f.time for f in frames] == pytest.approx([f.time for f in expected], abs=1e-9)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(frames, expected, strict=True))


def test_each_video_begins_at_the_end_of_the_one_before(film):
    whole, start, expected = open_source(film), 0.0, []
    folder = Path(film.partition(":")[2]).parent
    for name in JOINED:
        with open_source(folder / name) as video:
            expected += [replace(f, time=start + f.time) for f in video]
            start += video.end
    frames = list(whole)
    equal(frames, expected)
    assert [f.index for f in frames] == list(range(60 * len(JOINED)))
    assert whole.end == pytest.approx(start) == pytest.approx(whole.duration, abs=0.2)


@pytest.mark.parametrize("start", [0.0, 1.9, 2.4, 5.0, 9.99, 14.0])
@pytest.mark.parametrize("length", [0.3, 4.7, None])
def test_a_span_is_the_whole_pass_cut(film, start, length):
    end = None if length is None else start + length
    whole = [f for f in open_source(film) if start <= f.time + 1e-6 and f.time + 1e-6 < (end or 99)]
    equal(list(open_source(film, start=start, end=end)), whole)


@pytest.mark.parametrize("fps", [0.3, 2.0, 7.0, 25.0])
@pytest.mark.parametrize("start", [0.0, 3.1])
def test_samples_go_on_over_joins(film, fps, start):
    whole = [f for f in open_source(film) if f.time >= start - 1e-6]
    firsts = {}
    for frame in whole:
        firsts.setdefault(int((frame.time - start + 5e-4) * fps), frame)
    equal(list(open_source(film, fps=fps, start=start)), list(firsts.values()))


def test_after_a_video_that_breaks_off_the_next_is_played_and_the_end_reports_it(tmp_path):
    good = make("h264.mp4", tmp_path)
    whole = indexed_first(good, tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    spec = listed(tmp_path, good.name, "half.mp4", good.name)
    alone, frames = [], []
    for given, source in ((alone, str(tmp_path / "half.mp4")), (frames, spec)):
        with pytest.raises(TruncatedError) as caught:
            given.extend(open_source(source))
    assert "list.txt: 1 of 3 videos incomplete; line 2: " in str(caught.value)
    assert len(frames) == 60 + len(alone) + 60
    assert frames[60 + len(alone)].time == pytest.approx(2.4 + alone[-1].time + 0.04)


@pytest.mark.parametrize(
    ("line", "error", "text"),
    [
        ("nowhere.mp4", SourceError, "no such file"),
        ("list.txt", SourceError, "is no video that FFmpeg can read"),
        ("rtsp://me:secret@camera/1", ConfigError, "not for a rtsp source"),
        ("webcam:0", ConfigError, "not for a webcam source"),
        ("gopher://me:secret@host/x", ConfigError, "gopher://"),
        (".", ConfigError, "not for a folder source"),
        ("concat:list.txt", ConfigError, "not for a concat source"),
    ],
)
def test_a_line_that_cannot_be_played_is_named_before_anything_is(tmp_path, line, error, text):
    spec = listed(tmp_path, make("h264.mp4", tmp_path).name, "# next", line)
    with pytest.raises(error, match=f"list.txt, line 3: .*{text}") as caught:
        open_source(spec)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no such file.*give a list"),
        (b"\xff\xfe\x00", "is not text"),
        (b"# nothing\n\n", "names no video"),
    ],
)
def test_a_list_that_is_unreadable_or_empty_says_what_to_write(tmp_path, content, text):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(SourceError, match=f"list.txt: {text}"):
        open_source(f"concat:{tmp_path / 'list.txt'}")


def test_help_and_the_docs_table_show_it():
    assert "concat:LIST" in sources_help() and "| concat:LIST | concat | fails" in sources_table()
