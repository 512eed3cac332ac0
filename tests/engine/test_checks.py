"""Alerts that the model confirms, and watching until a condition holds."""

import threading

import numpy as np
import pytest

from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.engine.watch_options import AlertConfig, WatchCallbacks, WatchOptions
from streammem.errors import BackboneError, ConfigError
from streammem.types import Alert, Notice, Segment, Stats, Until
from tests.engine.test_watch_camera import Camera, seeing
from tests.looking import Scripted, model_of
from tests.tiny import film, tiny_model


@pytest.fixture(scope="module")
def seer():
    """Every sentence means blue to its keys; its pictures are blue or something else."""
    return seeing(tiny_model())


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("streammem-")] == []


def events_of(seer, generator, frames, **options):
    options = {"captions": False, "stats_s": 1e9, "drop": "never", **options}
    session = Session(model_of(generator, seer))
    return list(watch(session, frames, WatchOptions(**options)))


def only(kind, events):
    return [event for event in events if isinstance(event, kind)]


TWICE = film(("red", 20), ("blue", 20), ("red", 20), ("blue", 10), ("red", 20))


@pytest.mark.parametrize("captions", [False, True])
@pytest.mark.parametrize("camera", [False, True])
def test_an_alert_is_told_once_the_model_has_seen_it(seer, camera, captions):
    source = Camera(TWICE) if camera else iter(TWICE)
    found = events_of(
        seer, Scripted(), source, alerts=("blue",), confirm_alerts=True, captions=captions
    )
    assert [alert.confirmed for alert in only(Alert, found)] == [True, True]
    assert only(Stats, found)[-1].alerts_refused == 0


def test_what_the_model_denies_is_counted_and_not_told(seer, tmp_path):
    alerting = AlertConfig(pictures=tmp_path / "seen")
    found = events_of(
        seer, Scripted(), iter(TWICE), alerts=("green",), confirm_alerts=True, alerting=alerting
    )
    assert only(Alert, found) == [] and only(Stats, found)[-1].alerts_refused >= 2
    assert list((tmp_path / "seen").iterdir()) == []
    told = events_of(seer, Scripted(), iter(TWICE), alerts=("green",))
    assert [alert.confirmed for alert in only(Alert, told)] == [None, None]


@pytest.mark.parametrize("sees", [True, False])
def test_an_alert_by_a_caption_is_confirmed_too_even_of_the_last_scene(seer, monkeypatch, sees):
    words = Scripted._words

    def scripted(self, parts):
        asks = any(isinstance(part, str) and "yes or no" in part for part in parts)
        return ("Yes." if sees else "No.") if asks else words(self, parts)

    monkeypatch.setattr(Scripted, "_words", scripted)
    frames = film(("red", 20), ("yellow", 20))
    found = events_of(
        seer, Scripted(), iter(frames), alerts=("yellow",), confirm_alerts=True, captions=True
    )
    told = [(alert.matched, alert.segment, alert.confirmed) for alert in only(Alert, found)]
    assert told == ([("caption", 1, True)] if sees else [])
    assert only(Stats, found)[-1].alerts_refused == (not sees)


def test_what_was_denied_is_asked_again_in_another_scene_only(seer):
    generator = Scripted()
    events_of(seer, generator, iter(TWICE), alerts=("green",), confirm_alerts=True)
    assert len(generator.prompts) <= len(only(Segment, events_of(seer, Scripted(), iter(TWICE))))


@pytest.mark.parametrize("fails", [False, True])
def test_an_alert_without_a_verdict_is_told_unconfirmed(seer, monkeypatch, fails):
    def words(self, parts):
        if fails:
            raise BackboneError("the server is away")
        return "Perhaps."

    monkeypatch.setattr(Scripted, "_words", words)
    found = events_of(seer, Scripted(), iter(TWICE), alerts=("blue",), confirm_alerts=True)
    assert [alert.confirmed for alert in only(Alert, found)] == [None, None]
    notices = [str(n) for n in only(Notice, found)]
    assert len(notices) == 2 * fails and all("the server is away" in text for text in notices)


def test_a_camera_is_perceived_while_the_model_thinks(seer, monkeypatch):
    """The verdict comes after all frames; alerts beyond those that may wait are told at once."""
    seen, asked, words = threading.Event(), threading.Event(), Scripted._words

    def slow(self, parts):
        asked.set()
        assert seen.wait(30)
        return words(self, parts)

    monkeypatch.setattr(Scripted, "_words", slow)
    frames = film(*(("red", 12), ("blue", 4)) * 10)
    session = Session(model_of(Scripted(), seer))
    count = 0

    def idle():
        nonlocal count
        count = session.num_frames
        if count == len(frames):
            seen.set()

    options = WatchOptions(captions=False, alerts=("blue",), confirm_alerts=True, drop="never")
    found = list(watch(session, Camera(frames), options, callbacks=WatchCallbacks(on_idle=idle)))
    assert asked.is_set() and count == len(frames)
    verdicts = [alert.confirmed for alert in only(Alert, found)]
    assert verdicts.count(True) == 8 and verdicts.count(None) == len(verdicts) - 8 > 0


# -- until --


def test_watching_ends_once_the_condition_holds(seer):
    frames = film(("red", 20), ("blue", 40), ("green", 40))
    generator = Scripted()
    found = events_of(seer, generator, iter(frames), until="all is blue")
    (until,) = only(Until, found)
    assert until.condition == "all is blue" and 10 <= until.time < 20
    assert found.index(until) < found.index(only(Segment, found)[-1])
    assert only(Segment, found)[-1].end < 30  # what was open is closed; no more is watched


def test_it_is_asked_when_scenes_change_and_not_every_second(seer):
    frames = film(("red", 60), ("white", 60), ("green", 60))
    generator = Scripted()
    found = events_of(seer, generator, iter(frames), until="all is blue", refresh_s=10.0)
    assert only(Until, found) == []
    assert len(generator.prompts) == len(only(Segment, found)) == 3  # of 180 frames


def test_one_yes_is_not_enough(seer, monkeypatch):
    replies = iter(["No.", "Yes.", "No.", "Yes.", "Yes.", "No."])
    monkeypatch.setattr(Scripted, "_words", lambda self, parts: next(replies))
    frames = film(("red", 20), ("white", 20), ("green", 20), ("red", 20))
    (until,) = only(Until, events_of(seer, Scripted(), iter(frames), until="it is so"))
    assert until.segment == 2


def test_the_model_sees_the_scene_before_and_the_newest_frame(seer):
    generator = Scripted(pictures=2)
    events_of(seer, generator, iter(film(("red", 20), ("white", 20))), until="all is blue")
    assert "last picture" in generator.prompts[-1][-1]
    shown = [part for part in generator.prompts[-1] if isinstance(part, np.ndarray)]
    assert len(shown) == 2


def test_a_model_that_fails_is_reported_and_asked_at_the_next_change(seer, monkeypatch):
    calls = []

    def words(self, parts):
        calls.append(parts)
        if len(calls) == 1:
            raise BackboneError("the server is away")
        return "Yes."

    monkeypatch.setattr(Scripted, "_words", words)
    found = events_of(seer, Scripted(), iter(film(("red", 20), ("blue", 20))), until="it is so")
    assert len(only(Notice, found)) == 1 and len(only(Until, found)) == 1


@pytest.mark.parametrize("options", [{"until": "x"}, {"confirm_alerts": True, "alerts": ("x",)}])
def test_a_model_that_reads_no_pictures_is_refused_before_anything_is_opened(seer, options):
    session = Session(model_of(Scripted(pictures=0), seer))
    with pytest.raises(ConfigError, match="reads no pictures"):
        watch(session, "no such film.mp4", WatchOptions(**options))


def test_an_empty_condition_is_refused():
    with pytest.raises(ConfigError, match="until is empty"):
        WatchOptions(until=" ")
