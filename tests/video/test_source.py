"""Laws of open_source: mistakes come first, and one table says who opens what."""

import numpy as np
import pytest

from streammem.errors import BackboneError, ConfigError
from streammem.video import decord_file, open_source, source
from streammem.video.source import kind_of


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
    assert kind_of(tmp_path) == "folder"
    assert kind_of("a/b.PNG") == "picture"
    assert kind_of("a/b.mp4") == kind_of("webcam of yesterday.mkv") == "file"
    assert kind_of("HTTPS://host/a.png") == "https:"
    assert kind_of([]) == kind_of(np.zeros((1, 2, 2, 3))) == "frames"


def test_a_new_kind_is_one_line_in_the_table(monkeypatch):
    opened = []
    monkeypatch.setitem(source._OPENERS, "webcam:", lambda *args: opened.append(args[0]))
    open_source("webcam:0")
    assert opened == ["webcam:0"]


@pytest.mark.parametrize("spec", ["http://host/a.mp4", "a.png", []])
def test_decord_reads_files_only(spec):
    with pytest.raises(ConfigError, match="reads video files only"):
        open_source(spec, reader="decord")


def test_decord_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_text("never read")
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(BackboneError, match=r"streammem\[decord\]"):
        open_source(tmp_path / "a.mp4", reader="decord")
    assert decord_file.__doc__
