"""Watching what does not wait: frames and captions that cannot keep up are dropped and counted."""

import itertools
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streammem.captioning.captioner import CaptionRequest
from streammem.engine.alerts import AlertConfig, Alerts
from streammem.engine.long_scenes import LongScene
from streammem.engine.reader import LIVE_FRAMES_AHEAD
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.errors import ConfigError
from streammem.models.backbones.language import GrowingReply
from streammem.models.caption_scores import ConfidenceModel, confidence_features
from streammem.perception.scenetilling import SceneTillingConfig
from streammem.types import Alert, Answer, Caption, Frame, Notice, Segment, Stats
from streammem.video import VideoSource
from tests.looking import Scripted, model_of, named
from tests.sessions import SHORT
from tests.tiny import film, moving_square, talkative_language, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("streammem-")] == []


class Camera(VideoSource):
    """Gives frames without waiting, but at each of `pauses` until its event is set."""

    live = True

    def __init__(self, frames, pauses=None):
        super().__init__("camera")
        self._given, self._pauses, self.num_given = frames, pauses or {}, 0

    def _frames(self):
        for number, frame in enumerate(self._given):
            if number in self._pauses:
                assert self._pauses[number].wait(120)
            if self.stopping:
                return
            yield frame
            self.num_given += 1


def ended(events):
    events = list(events)
    return events, next(e for e in reversed(events) if isinstance(e, Stats))


def check(stats):
    assert stats.captured == (
        stats.frames + stats.waiting + stats.dropped_full + stats.dropped_at_stop
    )


class Slow:
    """A language model whose first word waits for an event."""

    def __init__(self, event):
        self._language, self._event = talkative_language(), event

    def __getattr__(self, name):
        return getattr(self._language, name)

    def replies(self, prompts, config, count=1):
        assert self._event.wait(120)
        yield from self._language.replies(prompts, config, count)


FILM = film(*((c, 6) for c in ("red", "blue", "green", "white", "red", "black") * 3))


# -- accounting --


@pytest.mark.parametrize("drop", ["oldest", "newest", "never"])
def test_every_captured_frame_is_accounted_for(model, drop):
    session, camera = Session(model), Camera(FILM)
    options = WatchOptions(drop=drop, stats_s=0.0, captions=False)
    _, last = ended(watch(session, camera, options))
    assert last.captured == len(FILM) == camera.num_given
    assert last.frames == session.num_frames
    assert last.waiting == last.dropped_at_stop == 0
    check(last)
    if drop == "never":
        assert last.dropped_full == 0


@pytest.mark.parametrize("drop", ["oldest", "newest"])
def test_perception_that_falls_behind_drops_what_it_was_told_to(model, drop):
    resumed, first = threading.Event(), threading.Event()
    camera = Camera(FILM, {1: first})
    session = Session(model)
    events = watch(session, camera, WatchOptions(drop=drop, stats_s=1e9, captions=False))
    pushed = []
    push = session.push

    def slow(frame):
        pushed.append(frame.index)
        if len(pushed) == 1:
            first.set()
            while camera.num_given < len(FILM) - 1:
                resumed.wait(0.001)
        return push(frame)

    session.push = slow
    _, last = ended(events)
    check(last)
    assert last.dropped_full >= len(FILM) - 2 - LIVE_FRAMES_AHEAD > 0
    kept = FILM[-LIVE_FRAMES_AHEAD:] if drop == "oldest" else FILM[1 : LIVE_FRAMES_AHEAD + 1]
    assert set(pushed[1:]) >= {f.index for f in kept[2:-2]}


@pytest.mark.parametrize("after", range(0, 100, 7))
def test_stopping_at_any_moment_accounts_for_all(model, after):
    calls = itertools.count()
    options = WatchOptions(stats_s=1e9, captions=False)
    callbacks = WatchCallbacks(stop=lambda: next(calls) >= after)
    session = Session(model)
    _, last = ended(watch(session, Camera(FILM), options, callbacks=callbacks))
    check(last)
    assert last.frames == session.num_frames and session.open_frames == ()


def test_what_a_source_has_to_say_becomes_warnings(model):
    camera = Camera(FILM[:3])
    camera.notices = deque(["camera: connection lost"])
    assert Notice("camera: connection lost") in list(watch(Session(model), camera))


# -- speech --


def test_speech_never_holds_up_perception_and_skipped_captions_are_counted():
    spoken = threading.Event()
    model = tiny_model(open_language=lambda: Slow(spoken))
    session = Session(model, SessionConfig(caption=SHORT))
    events = watch(session, Camera(FILM), WatchOptions(stats_s=1e9, drop="never"))
    seen = []
    for event in events:
        seen.append(event)
        if session.num_frames == len(FILM):
            spoken.set()  # all was perceived before the first word
    stats = seen[-1]
    captions = [e for e in seen if isinstance(e, Caption)]
    segments = [e for e in seen if isinstance(e, Segment)]
    assert stats.captions_skipped > 0
    assert stats.captions_skipped + len(captions) == len(segments)
    assert captions[-1].segment == segments[-1].id  # the newest is said
    assert stats.caption_lag_s > 0


def test_the_language_model_is_opened_before_the_first_frame_comes():
    opened = threading.Event()

    def open_language():
        opened.set()
        return talkative_language()

    session = Session(tiny_model(open_language=open_language), SessionConfig(caption=SHORT))
    assert list(watch(session, Camera(FILM[:4], {0: opened})))  # the camera waits for it


def test_captions_of_a_long_scene_tile_it_and_none_is_taken_back(model):
    frames = [Frame(faded(k / 160), k / 2, 0.5, k) for k in range(160)]
    session = Session(model, SessionConfig(caption=SHORT))
    gates = {k: threading.Event() for k in range(0, 160, 20)}
    events = watch(session, Camera(frames, gates), WatchOptions(refresh_s=5.0, stats_s=0.0))
    said = []
    for event in opened(events, session, gates, said):
        if isinstance(event, Caption):
            said.append(event)
        if isinstance(event, Segment):
            last = event
    parts = [c for c in said if c.segment == last.id]
    assert len(parts) > 2
    assert all(a.end <= b.start for a, b in itertools.pairwise(parts))
    assert parts[0].start == last.start and parts[-1].end == last.end
    kept = session.memory.get(last.id).caption.splitlines()
    assert kept == [text for text, _ in itertools.groupby(c.text for c in parts)]


def faded(share):
    """A picture between red and blue; each next one is too near to cut."""
    red, blue = moving_square("red", 0).astype(float), moving_square("blue", 0)
    return (red * (1 - share) + blue * share).astype(np.uint8)


def opened(events, session, gates, said):
    """Let the camera go on when the frames before a gate are seen and a part of them captioned."""
    for event in events:  # counters come at every tick
        yield event
        for number, gate in gates.items():
            if session.num_frames >= number - 1 and len(said) >= number // 40:
                gate.set()


def test_a_static_scene_is_described_once(model):
    still = moving_square("red", 0)
    frames = [Frame(still, k / 2, 0.5, k) for k in range(130)]
    config = SessionConfig(caption=SHORT, scenes=SceneTillingConfig(max_frames=60))
    options = WatchOptions(refresh_s=5.0, drop="never")
    events = list(watch(Session(model, config), Camera(frames), options))
    assert sum(isinstance(e, Segment) for e in events) == 3
    assert sum(isinstance(e, Caption) for e in events) == 1


# -- alerts --


BLUE_KEY, OTHER_KEY = np.eye(16, dtype=np.float32)[:2]


def seeing(model):
    """Make a model for which every sentence means blue, and only blue pictures look like that."""

    class Seeing(type(model)):
        def sentence_keys(self, sentences):
            return np.stack([BLUE_KEY for _ in sentences])

        def perceive(self, picture):
            is_blue = picture[0, 0, 2] > picture[0, 0, 0]
            return super().perceive(picture)._replace(key=BLUE_KEY if is_blue else OTHER_KEY)

    fields = {name: getattr(model, name) for name in model.__dataclass_fields__}
    bank = np.random.default_rng(3).standard_normal((64, 16)).astype(np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    return Seeing(**(fields | {"background": torch.from_numpy(bank)}))


def test_an_alert_fires_once_per_appearance(model, tmp_path):
    frames = film(("red", 20), ("blue", 20), ("red", 20), ("blue", 10), ("red", 20))
    alerting = AlertConfig(pictures=tmp_path / "seen")
    options = WatchOptions(alerts=("something blue",), alerting=alerting, captions=False)
    alerts = [
        e for e in watch(Session(seeing(model)), iter(frames), options) if isinstance(e, Alert)
    ]
    assert [a.query for a in alerts] == ["something blue"] * 2
    assert all(AlertConfig().min_score <= a.score <= 1 for a in alerts)
    assert [10.0 <= alerts[0].time < 12.0, 30.0 <= alerts[1].time < 32.0] == [True, True]
    assert all((tmp_path / "seen").joinpath(a.keyframe).exists() for a in alerts)
    assert len({a.keyframe for a in alerts}) == 2


def test_a_flicker_is_no_appearance_and_a_short_absence_is_no_leaving(model):
    alerts = Alerts(seeing(model), ["blue"], AlertConfig(confirm=2, away_s=5.0))
    keys = [OTHER_KEY, BLUE_KEY]
    shown = [0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, *[0] * 20, 1, 1]
    fired = [
        k
        for k, which in enumerate(shown)
        if alerts.take(replace(FILM[0], time=k / 2), keys[which], 0)
    ]
    assert fired == [6, len(shown) - 1]


def test_what_is_waited_for_may_change_and_what_stays_is_not_told_anew(model):
    alerts = Alerts(seeing(model), ["blue"], AlertConfig(confirm=1))
    times = iter(range(100))

    def fired(key):
        return [a.query for a in alerts.take(replace(FILM[0], time=float(next(times))), key, 0)]

    assert fired(BLUE_KEY) == ["blue"]
    alerts.change(["blue", "something blue"])
    assert fired(BLUE_KEY) == ["something blue"]
    with pytest.raises(ConfigError, match="empty"):
        alerts.change(["blue", " "])
    assert alerts.queries == ("blue", "something blue")
    alerts.change([])
    assert fired(OTHER_KEY) == fired(BLUE_KEY) == []


def test_alerts_are_asked_for_while_a_source_is_watched(model):
    wanted = []
    frames = film(("red", 20), ("blue", 20))
    callbacks = WatchCallbacks(
        alerts=lambda: wanted,
        on_frame=lambda frame: wanted.append("blue") if frame.time == 5.0 else None,
    )
    options = WatchOptions(captions=False)
    found = list(watch(Session(seeing(model)), iter(frames), options, callbacks=callbacks))
    assert [e.query for e in found if isinstance(e, Alert)] == ["blue"]


def test_pictures_of_alerts_are_bounded(model, tmp_path):
    config = AlertConfig(confirm=1, away_s=0.0, pictures=tmp_path, max_pictures=3)
    alerts = Alerts(seeing(model), ["blue"], config)
    for k in range(20):
        alerts.take(replace(FILM[0], time=float(k)), OTHER_KEY if k % 2 else BLUE_KEY, 0)
    assert len(list(tmp_path.glob("*.jpg"))) == 3


def test_pictures_of_others_in_the_folder_of_alerts_stay(model, tmp_path):
    others = [tmp_path / name for name in ("alert-dog.jpg", "alert-7.jpg", "alert-00000001b.jpg")]
    own = [tmp_path / f"alert-{number:08d}.jpg" for number in (99_999_999, 100_000_000)]
    for path in (*others, *own):
        path.write_bytes(b"")
    config = AlertConfig(confirm=1, pictures=tmp_path, max_pictures=1)
    (alert,) = Alerts(seeing(model), ["blue"], config).take(FILM[0], BLUE_KEY, 0)
    assert alert.keyframe == str(tmp_path / "alert-100000001.jpg")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "alert-100000001.jpg"])


def test_a_picture_that_cannot_be_written_is_a_notice_and_the_watching_goes_on(model, tmp_path):
    folder = tmp_path / "seen"
    frames = film(("red", 20), ("blue", 20), ("red", 20), ("blue", 10), ("red", 20))
    alerting = AlertConfig(pictures=folder)
    options = WatchOptions(alerts=("something blue",), alerting=alerting, captions=False)
    events = watch(Session(seeing(model)), iter(frames), options)
    folder.rmdir()
    folder.write_bytes(b"")  # stands in for a disk that is full or gone
    found = list(events)
    assert [e.keyframe for e in found if isinstance(e, Alert)] == [None, None]
    notices = [e.message for e in found if isinstance(e, Notice)]
    assert notices == [f"pictures of alerts: {folder}: not a directory"]


def test_a_picture_of_an_alert_that_cannot_be_removed_is_a_notice(model, tmp_path):
    config = AlertConfig(confirm=1, pictures=tmp_path)
    alerts = Alerts(seeing(model), ["blue"], config)
    (alert,) = alerts.take(FILM[0], BLUE_KEY, 0)
    Path(alert.keyframe).unlink()
    Path(alert.keyframe).mkdir()  # what no unlinking removes
    alerts.deny(alert)
    assert len(alerts.notices) == 1


@pytest.mark.parametrize("query", [" ", "a dog | ", "|"])
def test_an_empty_alert_is_refused_at_the_call(model, query):
    with pytest.raises(ConfigError, match="empty"):
        watch(Session(model), [], WatchOptions(alerts=(query,)))


def test_an_alert_said_in_several_ways_waits_for_what_they_have_in_common(model):
    basis = dict(zip(("sofa", "couch", "dog"), np.eye(16, dtype=np.float32), strict=False))
    seer = seeing(model)
    means = {"one way": basis["sofa"] + basis["dog"], "another": basis["couch"] + basis["dog"]}
    type(seer).sentence_keys = lambda self, texts: np.stack(
        [means[text] / np.linalg.norm(means[text]) for text in texts]
    )

    def shown(query, key):
        alerts = Alerts(seer, [query], AlertConfig(confirm=1))
        return bool(alerts.take(FILM[0], key, 0))

    for key, alone, together in ((basis["sofa"], True, False), (basis["dog"], True, True)):
        assert shown("one way", key) is alone
        assert shown("one way | another", key) is together


# -- questions --


def test_a_question_is_answered_while_perception_goes_on(model):
    questions = iter([None] * 30 + ["What is there?"])
    session = Session(model, SessionConfig(answer=SHORT, caption=SHORT))
    pieces = []
    asked = WatchCallbacks(question=lambda: next(questions, None), on_answer=pieces.append)
    events = list(watch(session, Camera(FILM), callbacks=asked))
    (answer,) = [e for e in events if isinstance(e, Answer)]
    assert answer.question == "What is there?"
    segments = [e for e in events if isinstance(e, Segment)]
    assert [s.id for s in segments] == list(range(len(segments)))


def test_a_caption_of_an_open_scene_is_as_sure_as_one_of_a_closed_scene(model):
    fitted = replace(model, confidence_model=ConfidenceModel((1.0, 0.5, -2.0, 3.0), 0.2))
    session = Session(fitted)
    for frame in film(("red", 8)):
        session.push(frame)
    keys = np.stack([held.key for held in session.open_frames])
    number = session.next_segment
    part = CaptionRequest(Segment(number, 0.0, 1.0, None, None), keys[:1])
    replies = (GrowingReply("a square", [], []),)
    open_one = LongScene(session, 5.0).keep(part.segment, session.captioner.score(part, replies))
    (closed,) = session.flush()
    visual = session.memory.get(closed.id).visual_keys
    scored = session.captioner.score(session.request(closed), replies)
    words, background = fitted.sentence_keys(["a square"])[0], fitted.background.numpy()
    assert open_one.confidence == round(
        fitted.confidence_model(confidence_features(keys[:1], words, background)), 3
    )
    assert scored.confidence == round(
        fitted.confidence_model(confidence_features(visual, words, background)), 3
    )


@pytest.mark.parametrize("options", [{"drop": "some"}, {"refresh_s": 0.0}, {"stats_s": -1.0}])
def test_options_that_cannot_be_meant_are_refused(options):
    with pytest.raises(ConfigError):
        WatchOptions(**options)


def read(alerts, segment, text):
    caption = Caption(segment, segment * 10.0, segment * 10.0 + 10, text)
    return [(a.query, a.segment) for a in alerts.read(caption, OTHER_KEY[None], OTHER_KEY)]


def test_a_caption_raises_what_it_names_once_while_it_goes_on(model):
    alerts = Alerts(seeing(model), ["a red dog | two cats", "snow"])
    told = [
        read(alerts, segment, text)
        for segment, text in enumerate(
            [
                "",
                "A dog.",
                "A dog is red",
                "Red dogs run.",
                "A man.",
                "A red dog.",
                "Cats, snow.",
            ]
        )
    ]
    dog, snow = alerts.queries
    assert told == [[], [], [(dog, 2)], [], [], [(dog, 5)], [(snow, 6)]]
    assert read(alerts, 5, "A red dog in snow.") == []  # a scene is told of once


def test_a_sentence_that_is_merely_near_raises_no_alert(model):
    alerts = Alerts(seeing(model), ["a red dog"])
    caption = Caption(0, 0.0, 1.0, "A cat sleeps.")
    assert alerts.read(caption, OTHER_KEY[None], BLUE_KEY) == ()
    # Nor does a picture that frames did not show twice in a row.
    assert alerts.read(caption, BLUE_KEY[None], BLUE_KEY) == ()


def test_what_a_frame_has_shown_no_caption_tells_again(model):
    alerts = Alerts(seeing(model), ["blue"], AlertConfig(confirm=1))
    (told,) = alerts.take(FILM[0], BLUE_KEY, 5)
    assert told.matched == "picture"
    # The boundary settles late: a frame may be counted to the scene before its own.
    assert [read(alerts, n, "It is blue.") for n in (4, 5, 6, 8)] == [[], [], [], [("blue", 8)]]


def test_what_was_denied_in_a_scene_its_caption_does_not_raise(model):
    alerts = Alerts(seeing(model), ["blue"], AlertConfig(confirm=1))
    (told,) = alerts.take(FILM[0], BLUE_KEY, 5)
    alerts.deny(told)
    assert [read(alerts, n, "It is blue.") for n in (5, 6)] == [[], [("blue", 6)]]


@pytest.mark.parametrize("live", [False, True])
def test_an_alert_by_a_caption_comes_after_it_with_the_scenes_picture(model, tmp_path, live):
    """No frame is near enough; the caption names it."""
    frames = film(("red", 20), ("yellow", 20), ("red", 20))
    options = WatchOptions(
        alerts=("something yellow",), alerting=AlertConfig(pictures=tmp_path), drop="never"
    )
    session = Session(model_of(Scripted(), seeing(model)))
    events = list(watch(session, Camera(frames) if live else iter(frames), options))
    (number,) = [n for n, event in enumerate(events) if isinstance(event, Alert)]
    alert, segment = events[number], next(e for e in events if isinstance(e, Segment) and e.id == 1)
    assert (alert.matched, alert.segment, alert.time) == ("caption", 1, segment.start)
    assert AlertConfig().min_score <= alert.score < 1
    assert any(isinstance(e, Caption) and e.segment == 1 for e in events[:number])
    assert named(np.asarray(Image.open(alert.keyframe))) == "yellow"
