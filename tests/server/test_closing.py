"""Who waits, who leaves, and how sessions are closed: while they open, while others are."""

import asyncio
import threading
from pathlib import Path

import anyio
import pytest

from streammem.engine.session import Session
from streammem.engine.watch_options import WatchOptions
from streammem.server.limits import Limits
from streammem.server.refused import Refused
from streammem.server.sessions import _WatchedSource
from streammem.server.wire import follow_events
from tests.server.test_sessions import Broken

pytestmark = pytest.mark.anyio
PATIENCE_S = 120


async def test_own_sources_are_never_closed_as_idle(serving, video, monkeypatch):
    monkeypatch.setattr("streammem.server.sessions.SWEEP_S", 0.001)
    async with serving(limits=Limits(idle_s=0.2)) as client:
        await client.sessions.open_own([video])
        await client.post("/v1/sessions", json={})
        assert len(client.sessions.hosts()) == 2
        with anyio.fail_after(PATIENCE_S):
            while len(client.sessions.hosts()) > 1:
                await anyio.sleep(0.005)
        ((_, host),) = client.sessions.hosts().items()
        assert host.plan.source == Path(video).name


async def test_a_failure_does_not_end_the_sweeping(serving, monkeypatch, caplog):
    monkeypatch.setattr("streammem.server.sessions.SWEEP_S", 0.001)
    failed = []

    async def failing(self, idle_s):
        failed.append(idle_s)
        raise OSError("the disk is gone")

    monkeypatch.setattr("streammem.server.archive.OpenArchive.close_idle", failing)
    async with serving(limits=Limits(idle_s=0.05)) as client:
        with anyio.fail_after(PATIENCE_S):
            while len(failed) < 3:
                await anyio.sleep(0.005)
            sent = client.sessions.uploads.reserve()
            sent.path.touch()
            while sent.path.exists():
                await anyio.sleep(0.005)
    assert "the disk is gone" in caplog.text


async def test_clients_that_wait_when_a_session_is_closed_are_refused(serving, watched):
    async with serving() as client:
        path = await watched(client)
        host = client.sessions.host(path.rpartition("/")[2])
        begun, go = threading.Event(), threading.Event()

        def slow(session):
            begun.set()
            assert go.wait(PATIENCE_S)

        async def refused():
            with pytest.raises(Refused, match="was closed"):
                await host.do(lambda session: None)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(host.do, slow)
                while not begun.is_set():
                    await anyio.sleep(0.005)
                tasks.start_soon(refused)
                while host._num_waiting < 2:
                    await anyio.sleep(0.005)
                host.stop()
                go.set()


async def test_a_session_that_is_closed_while_it_opens_does_not_come_back(serving):
    begun, go = threading.Event(), threading.Event()

    def slow(stop):
        begun.set()
        assert go.wait(PATIENCE_S)
        return Broken("broken")

    async with serving() as client:
        opening = asyncio.ensure_future(
            client.sessions._start(_WatchedSource("slow", slow), WatchOptions(), None)
        )
        with anyio.fail_after(PATIENCE_S):
            while not begun.is_set():
                await anyio.sleep(0.005)
            (name,) = client.sessions.hosts()
            closing = asyncio.ensure_future(client.sessions.close_session(name))
            await anyio.sleep(0)
            go.set()
            await closing
            await opening
        assert client.sessions.hosts() == {}


async def test_a_session_that_is_closed_while_another_is_swept_does_not_end_the_sweeping(
    serving, monkeypatch
):
    monkeypatch.setattr("streammem.server.sessions.SWEEP_S", 0.001)
    async with serving(limits=Limits(idle_s=0.2)) as client:
        sessions, stopped = client.sessions, []
        stop = sessions._stop

        async def slow(opened):
            if not stopped:  # while the first is stopped, a client closes all others
                stopped.append(opened)
                for name in list(sessions.hosts()):
                    await sessions.close_session(name)
            await stop(opened)

        monkeypatch.setattr(sessions, "_stop", slow)
        for _ in range(2):
            await client.post("/v1/sessions", json={})
        upload = sessions.uploads.reserve()
        with anyio.fail_after(PATIENCE_S):
            while upload.id in sessions.uploads._kept:  # swept last
                await anyio.sleep(0.005)
        assert stopped and sessions.hosts() == {}


async def test_a_client_that_leaves_frees_its_place_among_the_questions(serving, watched):
    async with serving(limits=Limits(questions_waiting=1)) as client:
        path = await watched(client)
        host = client.sessions.host(path.rpartition("/")[2])
        for _ in range(2):
            asked = await client.post(f"{path}/find", json={"query": "red"})
            assert asked.status_code == 200
        begun, go = threading.Event(), threading.Event()

        def slow(session):
            begun.set()
            assert go.wait(PATIENCE_S)

        leaving = asyncio.ensure_future(host.do(slow))
        with anyio.fail_after(PATIENCE_S):
            while not begun.is_set():
                await anyio.sleep(0.005)
            leaving.cancel()
            await asyncio.wait([leaving])
            go.set()
            assert await host.do(lambda session: "served") == "served"


async def test_a_job_whose_client_has_left_is_not_done(serving, watched):
    async with serving() as client:
        path = await watched(client)
        host, done = client.sessions.host(path.rpartition("/")[2]), []
        begun, go = threading.Event(), threading.Event()

        def slow(session):
            begun.set()
            assert go.wait(PATIENCE_S)

        with anyio.fail_after(PATIENCE_S):
            first = asyncio.ensure_future(host.do(slow))
            while not begun.is_set():
                await anyio.sleep(0.005)
            left = asyncio.ensure_future(host.do(lambda session: done.append("left")))
            await anyio.sleep(0)
            left.cancel()
            await asyncio.wait([left])
            go.set()
            await first
            await host.do(lambda session: done.append("stayed"))
    assert done == ["stayed"]


async def test_a_client_that_only_listens_keeps_the_session_open(serving):
    async with serving() as client:
        host = client.sessions.host(await client.sessions.open(None, WatchOptions()))
        host.touched = 0.0
        assert await anext(follow_events(host, 0, 0)) is None
        assert host.touched > 0


async def test_an_answer_ends_when_its_reader_leaves(serving, watched, monkeypatch):
    left, ended = threading.Event(), []

    def ask(session, question, on_text, pictures=()):
        on_text("one")
        assert left.wait(PATIENCE_S)
        ended.append(True)
        on_text("two")
        ended.append(False)

    async with serving() as client:
        host = client.sessions.host((await watched(client)).rpartition("/")[2])
        monkeypatch.setattr(Session, "ask", ask)
        with anyio.fail_after(PATIENCE_S):
            asking = host.ask("What?")
            assert await anext(asking) == "one"
            await asking.aclose()
            left.set()
            await host.do(lambda session: None)
    assert ended == [True]
