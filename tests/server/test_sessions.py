"""What holds inside of a server: places, uploads in use, own sources, errors, one model for all."""

import errno
import threading
import time
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import anyio
import pytest

from streammem.captioning.shared import share_model
from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.errors import SourceError
from streammem.models.protocols import ComposedModel
from streammem.output.render import to_json
from streammem.server.guard import Rates
from streammem.server.inbox import Inbox
from streammem.server.limits import Limits
from streammem.server.refused import Refused
from streammem.server.sessions import _forward_events, _WatchedSource
from streammem.server.uploads import Uploads
from streammem.server.wire import event_json
from streammem.types import Alert, Notice, Segment
from streammem.video import VideoSource
from streammem.video.source import Sampling
from tests.server.test_routes import sse
from tests.sessions import FILM, SHORT
from tests.tiny import film, tiny_model

pytestmark = pytest.mark.anyio
PATIENCE_S = 120


def test_a_bucket_never_holds_more_than_a_burst():
    clock = [0.0]
    rates = Rates(Limits(burst=2, requests_per_s=2.0), lambda: clock[0])
    rates.take("a")
    clock[0] = 1e6
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0.5]


def test_of_too_many_clients_the_one_that_asked_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr("streammem.server.guard.MAX_CLIENTS", 2)
    rates = Rates(Limits(burst=1, requests_per_s=1.0), lambda: 0.0)
    assert [rates.take(client) for client in "abab"] == [0, 0, 1, 1]
    rates.take("c")
    assert len(rates._buckets) == 2
    assert [rates.take(client) for client in "cb"] == [1, 1]
    assert rates.take("a") == 0


async def test_pictures_and_videos_have_limits_of_their_own(serving):
    limits = Limits(frame_bytes=1000, body_bytes=100, upload_bytes=10_000)
    async with serving(limits=limits) as client:
        found = {
            path: [(await client.post(path, content=bytes(n))).status_code for n in (99, 999, 9999)]
            for path in ("/v1/uploads", "/v1/sessions/x/frames", "/v1/sessions")
        }
        counted = (await client.get("/metrics")).text
    assert found == {
        "/v1/uploads": [415, 415, 415],
        "/v1/sessions/x/frames": [404, 404, 413],
        "/v1/sessions": [422, 413, 413],
    }
    assert 'streammem_refused_total{status="413"} 3\n' in counted


async def test_a_request_without_the_token_gets_the_challenge_that_browsers_need(serving):
    async with serving(token="a token of the tests") as client:
        assert "Basic" in (await client.get("/")).headers["www-authenticate"]


def test_an_alerts_picture_is_no_path_of_the_server():
    alert = Alert("a dog", 1.0, 4.0, 0, "/home/me/seen/alert-1.jpg")
    assert event_json(alert, "/v1/sessions/x")["keyframe"] is None


def test_an_upload_stays_while_it_is_used_or_asked_for(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("streammem.server.uploads.time.monotonic", lambda: clock[0])
    uploads = Uploads(tmp_path, Limits())
    used, asked, idle = (uploads.reserve() for _ in range(3))
    used.users = 1
    clock[0] = 5
    uploads.get(asked.id)
    clock[0] = 8
    uploads.expire(4)
    assert (uploads.get(used.id), uploads.get(asked.id)) == (used, asked)
    with pytest.raises(Refused):
        uploads.get(idle.id)


async def test_an_upload_that_arrives_is_not_idle_and_one_that_stalls_is_removed(
    tmp_path, monkeypatch, video
):
    clock = [0.0]
    monkeypatch.setattr("streammem.server.uploads.time.monotonic", lambda: clock[0])
    uploads, content = Uploads(tmp_path, Limits()), Path(video).read_bytes()

    async def arriving(pause_s):
        for start in range(0, len(content), 1 + len(content) // 5):
            yield content[start : start + 1 + len(content) // 5]
            clock[0] += pause_s
            uploads.expire(4)

    whole = await uploads.receive(arriving(3))
    assert whole.path.read_bytes() == content
    with pytest.raises(Refused, match="no such upload"):
        await uploads.receive(arriving(5))
    assert list(tmp_path.iterdir()) == [] and uploads.used_bytes == 0


@pytest.mark.parametrize("can_link", [True, False])
def test_a_file_is_adopted_and_stays_when_its_first_name_goes(
    tmp_path, monkeypatch, video, can_link
):
    uploads, content = Uploads(None, Limits()), Path(video).read_bytes()
    path = tmp_path / "my film.mp4"
    path.write_bytes(content)
    if not can_link:
        monkeypatch.setattr("os.link", Mock(side_effect=OSError))
    upload = uploads.adopt(path)
    assert upload.path.samefile(path) == can_link
    path.unlink()
    assert upload.path.read_bytes() == content
    assert (upload.title, uploads.used_bytes) == ("my film.mp4", len(content))
    uploads.close()


def test_a_file_that_cannot_be_adopted_leaves_nothing(tmp_path, monkeypatch, video):
    uploads, text = Uploads(None, Limits(quota_bytes=10**7)), tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(Refused, match="not a video"):
        uploads.adopt(text)
    for module, name in (("os", "link"), ("shutil", "copyfile")):
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(f"{module}.{name}", Mock(side_effect=full))
    with pytest.raises(Refused, match="cannot be kept: No space left"):
        uploads.adopt(Path(video))
    assert uploads.used_bytes == 0
    with pytest.raises(Refused, match="larger"):
        Uploads(tmp_path, Limits(upload_bytes=10)).adopt(Path(video))
    uploads.close()


async def test_an_upload_stays_while_a_session_on_it_is_open(serving, watched):
    async with serving() as client:
        path = await watched(client)  # to its end
        (upload,) = client.sessions.uploads._kept.values()
        assert upload.users == 1
        assert (await client.delete(path)).status_code == 204
        assert upload.users == 0


def test_a_temporary_folder_for_uploads_is_gone_at_the_end_and_another_stays(tmp_path):
    own, others = Uploads(None, Limits()), Uploads(tmp_path, Limits())
    folder = own.folder
    assert folder.is_dir()
    (tmp_path / "kept").touch()
    others.reserve().path.touch()
    own.close()
    others.close()
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


async def test_a_session_that_is_refused_lets_go_of_its_upload(serving, video, memories):
    async with serving(memories=memories) as client:
        sent = (await client.post("/v1/uploads", content=Path(video).read_bytes())).json()
        wanted = {"source": sent["source"], "memory": "../x"}
        assert (await client.post("/v1/sessions", json=wanted)).status_code == 422
        assert client.sessions.uploads.get(sent["id"]).users == 0


async def test_a_place_that_was_taken_meanwhile_is_not_given_twice(serving, monkeypatch):
    async with serving(limits=Limits(sessions=1)) as client:
        sessions, named = client.sessions, client.sessions._named
        released = []

        async def slow(source, options):
            await sessions.open(None, WatchOptions(), source_options=options)
            return _WatchedSource("x", lambda _: None, release=lambda: released.append(True))

        monkeypatch.setattr(sessions, "_named", slow)
        with pytest.raises(Refused, match="close one"):
            await sessions.open("http://films.example/a.mp4", WatchOptions())
        assert released and len(sessions.hosts()) == 1 and named


async def test_more_memories_than_are_open_at_a_time_are_all_asked(serving, watched, memories):
    async with serving(memories=memories, limits=Limits(memories=1)) as client:
        await client.delete(await watched(client, memory="new"))
        for name in ("trips", "new", "trips"):
            asked = {"question": "What?"}
            said = await client.post(f"/v1/memories/{name}/questions", json=asked)
            assert said.status_code == 200
            assert list(client.sessions._memories) == [name]


class Broken(VideoSource):
    """A source that breaks off after some pictures."""

    def _frames(self):
        yield from film(*FILM)[:20]
        raise SourceError("the camera has gone")


async def test_a_source_that_breaks_off_gives_a_warning_and_what_was_seen_stays(serving):
    async with serving() as client:
        name = await client.sessions._start(
            _WatchedSource("broken", lambda _: Broken("broken")), WatchOptions(), None
        )
        told = (await client.get(f"/v1/sessions/{name}/events")).text
        kept = (await client.get(f"/v1/sessions/{name}/segments")).json()["events"]
    assert Notice("the camera has gone").message in told and kept


async def test_a_session_that_fails_while_it_runs_reports_it_without_internals(serving):
    class Faulty(Broken):
        def _frames(self):
            yield from film(*FILM)[:3]
            raise LookupError("/secret/path")

    async with serving() as client:
        start = client.sessions._start(
            _WatchedSource("faulty", lambda _: Faulty("faulty")), WatchOptions(), None
        )
        path = f"/v1/sessions/{await start}"
        told = (await client.get(f"{path}/events")).text
        assert "internal error: LookupError" in told and "secret" not in told
        assert (await client.get(path)).json()["state"] == "failed"
        said = await client.post(f"{path}/questions", json={"question": "What is red?"})
        assert said.status_code == 410


async def test_a_session_that_is_watching_is_asked_meanwhile(serving):
    async with serving() as client:
        path = (await client.post("/v1/sessions", json={"fps": 2})).json()["url"]
        for frame in film(*FILM)[:20]:
            params = {"time": frame.time, "width": 32, "height": 24}
            headers = {"content-type": "application/octet-stream"}
            await client.post(
                f"{path}/frames", params=params, content=frame.pixels.tobytes(), headers=headers
            )
        with anyio.fail_after(PATIENCE_S):
            said = await client.post(f"{path}/questions", json={"question": "What is red?"})
        assert said.json()["type"] == "answer"
        assert (await client.get(path)).json()["state"] == "watching"


class OneAtATime:
    """A model that fails if two threads use the same of its two parts at once."""

    def __init__(self, model):
        self._model, self._seeing, self._speaking = model, threading.Lock(), threading.Lock()

    def __getattr__(self, name):
        return getattr(self._model, name)

    def _alone(self, lock, work):
        assert lock.acquire(blocking=False), "two at a time"
        try:
            threading.Event().wait(0.05)  # time for another thread to come too, if it can
            return work()
        finally:
            lock.release()

    def perceive(self, picture):
        return self._alone(self._seeing, lambda: self._model.perceive(picture))

    def stream(self, prompt, decoding):
        words = self._model.stream(prompt, decoding)
        while True:
            piece = self._alone(self._speaking, lambda: next(words, None))
            if piece is None:
                return
            yield piece


@pytest.mark.parametrize("part", ["perceiver", "generator"])
def test_one_picture_and_one_word_at_a_time_whatever_the_number_of_threads(model, part):
    alone = OneAtATime(model)
    composed = ComposedModel("alone", "0", alone, model, alone, model)
    shared, scheduler = share_model(composed)
    failed, picture = [], film(("red", 1))[0].pixels
    prompt = model.answer_prompt([], "What is red?")

    def work():
        try:
            if part == "perceiver":
                shared.perceiver.perceive(picture)
            else:
                list(shared.generator.stream(prompt, SHORT))
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    scheduler.close()
    assert not failed


class Clocked(VideoSource):
    """A source that knows when it began: three scenes, as a camera gives them."""

    wall_zero = 1_777_809_600.0  # 12:00 UTC

    def _frames(self):
        yield from film(*FILM)[:20]


async def test_events_of_a_live_source_have_its_wall_clock_for_clients_and_outlets(serving):
    from datetime import datetime

    passed = []

    class Outlet:
        def send(self, event, more):
            passed.append(to_json(event, more))

        def close(self):
            pass

    async with serving() as client:
        source = _WatchedSource("camera", lambda _: Clocked("camera"))
        name = await client.sessions._start(source, WatchOptions(stats_s=None), None)
        opened = client.sessions._sessions[name]
        await _forward_events(opened.host, Outlet())
        told = sse((await client.get(f"/v1/sessions/{name}/events")).text)
    told = [content for _, _, content in told]
    assert {event["type"] for event in told} == {"segment", "caption"}
    for event in told:  # clients have a URL besides, which an outlet has no use for
        if event["type"] == "segment":
            keyframe = event.pop("keyframe")
            assert keyframe == f"/v1/sessions/{name}/keyframes/{event['id']}"
    assert told == passed
    for event in told:
        shown = datetime.fromisoformat(event["wall_start"])
        assert shown.utcoffset() is not None
        assert shown.timestamp() == pytest.approx(Clocked.wall_zero + event["start"], abs=1e-3)


def test_pictures_without_times_of_their_own_have_the_wall_clocks():
    own, given = (Inbox(Sampling(max_side=64), 8) for _ in range(2))
    picture = film(("red", 1))[0].pixels
    for _ in range(2):
        own.push(picture, None)
    given.push(picture, 5.0)
    given.push(picture, 6.0)
    assert own.wall_zero == pytest.approx(time.time(), abs=PATIENCE_S)
    assert given.wall_zero is None


@pytest.mark.parametrize("later_s", [0.0, 500.0])
def test_pictures_that_are_pushed_into_a_memory_again_lie_behind_those_before(tmp_path, later_s):
    model, begins = tiny_model(), []
    for first in (0.0, later_s):
        inbox = Inbox(Sampling(max_side=64), 100)
        for frame in film(*FILM)[:20]:
            inbox.push(frame.pixels, first + frame.time)
        inbox.stop()
        with Session(model, memory=tmp_path / "m") as session:
            events = list(watch(session, inbox, WatchOptions(captions=False)))
            begins.append([e.start for e in events if isinstance(e, Segment)])
            rows = session.memory.entries()
    assert all(before.end <= after.start for before, after in pairwise(rows))
    assert begins[1] == [row.start for row in rows[-len(begins[1]) :]]
    if later_s:  # times that go on are kept
        assert begins[1][0] == later_s
