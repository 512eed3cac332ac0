"""Laws of open_source: mistakes come first, and one table says who opens what."""

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammem.errors import BackboneError, ConfigError, install_command
from streammem.types import Frame
from streammem.video import SourceOptions, decord_file, kind_of, open_source, registry
from streammem.video.registry import SourceKind, sources_help, sources_table
from streammem.video.source import Grid, Sampling, VideoSource


@pytest.mark.parametrize(
    "options",
    [{"fps": 0}, {"start": -1}, {"start": 2, "end": 1}, {"max_side": 0}, {"reader": "opencv"}],
)
def test_wrong_options_are_refused_before_anything_is_opened(tmp_path, options):
    with pytest.raises(ConfigError):
        open_source(tmp_path / "missing.mp4", **options)


@pytest.mark.parametrize("spec", [3, None, b"a.mp4"])
def test_what_is_no_source_is_a_config_error(spec):
    with pytest.raises(ConfigError, match="a source cannot be"):
        open_source(spec)


def test_an_unknown_scheme_is_refused_without_its_credentials():
    with pytest.raises(ConfigError, match="gopher://") as caught:
        open_source("gopher://me:secret@host/x")
    assert "secret" not in str(caught.value)


def test_kinds(tmp_path):
    def kind(spec):
        return kind_of(spec).name

    assert kind(tmp_path) == kind(str(tmp_path)) == "folder"
    assert kind("a/b.PNG") == "picture"
    assert kind("a/b.mp4") == kind("webcam of yesterday.mkv") == "file"
    assert kind("HTTPS://host/a.png") == "http"
    assert kind("rtsp+udp://host/1") == "rtsp" and kind("-") == "pipe"
    assert kind([]) == kind(np.zeros((1, 2, 2, 3))) == "frames"


def test_every_kind_has_an_opener_and_only_frames_cannot_be_typed():
    for kind in registry.SOURCES:
        module, _, name = kind.opener.partition(":")
        assert callable(getattr(import_module(f"streammem.video.{module}"), name))
        assert bool(kind.help) == (kind.name != "frames")


class Countdown(VideoSource):
    """``countdown:N``, as a new source would be written."""

    def __init__(self, spec, options):
        self._length = int(spec.partition(":")[2])
        super().__init__(spec, options, duration=self._length)

    def _frames(self):
        for number in range(self._length):
            yield Frame(np.zeros((2, 2, 3), np.uint8), float(number), 1.0, number)
        self._finish(self._length, self._length)


def test_a_new_kind_is_one_class_and_one_row(monkeypatch):
    monkeypatch.setattr("streammem.video.frames.Countdown", Countdown, raising=False)
    row = SourceKind("countdown", "frames:Countdown", "countdown:N", schemes=("countdown",))
    monkeypatch.setattr(registry, "SOURCES", (*registry.SOURCES, row))
    with open_source("countdown:3", sparse=True, reconnect=True) as source:
        assert [frame.time for frame in source] == [0.0, 1.0, 2.0] and source.end == 3
        assert source.sparse and source.reconnect
        assert not (source.finite or source.live or source.stopping)
        assert (source.num_connections, source.num_damaged, source.wall_zero) == (0, 0, None)
        assert not source.notices
    assert "countdown:N" in sources_help() and "countdown:N" in sources_table()
    with pytest.raises(ConfigError, match="countdown:"):
        open_source("gopher://host/x")


def test_the_docs_list_these_kinds():
    guide = Path(__file__).parents[2] / "docs" / "guide" / "cameras.md"
    begin = "<!-- sources: made by streammem.video.registry.sources_table -->\n"
    listed = guide.read_text().partition(begin)[2].partition("<!-- end of sources -->")[0]
    assert listed == sources_table(), f"put this between the markers:\n{sources_table()}"


@given(
    fps=st.sampled_from([0.5, 1.0, 4.0]),
    start=st.integers(0, 40).map(lambda n: n / 4),
    length=st.integers(1, 40).map(lambda n: n / 4),
    offset=st.integers(0, 40).map(lambda n: n / 4),
)
def test_a_part_of_a_stream_has_the_streams_samples(fps, start, length, offset):
    whole = Sampling(fps=fps, start=start, end=max(start, offset) + length)
    part = whole.after(offset)
    one, other = Grid(whole), Grid(part)
    for number in range(200):
        time = offset + number / 8
        slot = one.slot(time)
        assert other.slot(time - offset) == slot
        assert other.is_past(time - offset) == one.is_past(time)
    assert whole.after(0.0).after(offset) == part


def test_options_of_watching_are_a_sampling_with_defaults_of_their_own():
    options = SourceOptions(start=3.0)
    assert (options.fps, options.max_side) == (2.0, 640)
    assert options.after(1.0).reader == "pyav" and options.after(1.0).start == 2.0
    with pytest.raises(ConfigError, match="no reader 'opencv'"):
        SourceOptions(reader="opencv")


@pytest.mark.parametrize("spec", ["http://host/a.mp4", "a.png", []])
def test_decord_reads_files_only(spec):
    with pytest.raises(ConfigError, match="reads video files only"):
        open_source(spec, reader="decord")


def test_decord_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_text("never read")
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(BackboneError, match=re.escape(install_command("decord"))):
        open_source(tmp_path / "a.mp4", reader="decord")
    assert decord_file.__doc__
