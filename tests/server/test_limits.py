"""The options of a server: wrong limits and folders are refused at its start."""

import dataclasses

import pytest

from streammem.errors import ConfigError
from streammem.server.counters import Counters
from streammem.server.guard import Guard
from streammem.server.inbox import Inbox
from streammem.server.limits import Limits, ServerConfig
from streammem.server.refused import Refused
from streammem.video.source import Sampling
from tests.tiny import film


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_is_above_zero(name, value):
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ["memories", "uploads"])
def test_a_missing_folder_is_an_error(tmp_path, name):
    (tmp_path / "file").touch()
    for missing in ("nowhere", "file"):
        with pytest.raises(ConfigError, match=missing):
            ServerConfig(**{name: tmp_path / missing})
    assert getattr(ServerConfig(**{name: tmp_path}), name) == tmp_path


def test_pictures_that_wait_have_a_bound_and_more_are_refused_for_now():
    inbox, picture = Inbox(Sampling(max_side=64), 2), film(("red", 1))[0].pixels
    assert [inbox.push(picture, at) for at in (0.0, 1.0)] == [True, True]
    with pytest.raises(Refused, match="more slowly") as refused:
        inbox.push(picture, 2.0)
    assert (refused.value.status, refused.value.retry_s, inbox.waiting) == (429, 1, 2)
    next(iter(inbox))
    assert inbox.push(picture, 3.0)


@pytest.mark.parametrize(
    ("sampling", "expected", "end"),
    [
        (Sampling(start=12, end=18), [(12, 8, 1)], 18),
        (Sampling(start=12, end=28), [(12, 8, 1), (20, 0.5, 2)], 20.5),
        (Sampling(start=19.5), [(20, 0.5, 2), (30, 0.5, 3)], 30.5),
        (Sampling(start=30.2), [(30.2, 0.3, 3)], 30.5),
        (Sampling(fps=2.0, end=12), [(0, 0.5, 0), (10, 0.5, 1)], 10.5),
        (Sampling(start=31), [], None),
    ],
)
def test_of_pushed_pictures_those_of_the_span_are_kept_with_the_one_shown_at_its_start(
    sampling, expected, end
):
    inbox = Inbox(sampling, 8)
    pictures = [frame.pixels for frame in film(("red", 4))[:4]]
    for number, pixels in enumerate(pictures):
        inbox.push(pixels, 10.0 * number)
    inbox.stop()
    frames = list(inbox)
    found = [(f.time, f.duration, f.index) for f in frames]
    assert [value for row in found for value in row] == pytest.approx(
        [value for row in expected for value in row]
    )
    assert inbox.end == (None if end is None else pytest.approx(end))


def test_a_request_of_the_page_may_have_a_video_or_a_picture_and_others_only_text():
    limits = Limits(upload_bytes=3, frame_bytes=2, body_bytes=1)
    guard = Guard(lambda *_: None, ServerConfig(limits=limits), Counters())
    paths = ("/v1/uploads", "/gradio_api/upload", "/gradio_api/run", "/v1/sessions/x/frames", "/v1")
    assert [guard._most_bytes(path) for path in paths] == [3, 3, 2, 2, 1]
