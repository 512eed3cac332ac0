"""A server around the tiny model: in memory, and on a socket of this computer."""

import threading
from contextlib import asynccontextmanager
from functools import partial

import pytest

pytest.importorskip("fastapi", reason="needs streammem[serve]")
httpx = pytest.importorskip("httpx2", reason="needs streammem[dev]")

from streammem.engine.session_config import SessionConfig  # noqa: E402
from streammem.server.app import make_app  # noqa: E402
from streammem.server.limits import Limits, ServerConfig  # noqa: E402
from streammem.server.sessions import Sessions  # noqa: E402
from tests.serving import listening as serving_on_a_socket  # noqa: E402
from tests.sessions import SHORT  # noqa: E402

TOKEN = "a token of the tests"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """What a server starts ends with it: a thread that stays holds its model for ever."""
    before = set(threading.enumerate())
    yield
    ours = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("streammem-")
    ]
    for thread in ours:
        thread.join(20)
    assert [thread.name for thread in ours if thread.is_alive()] == []


@pytest.fixture
def serving(model):
    """Serve with options; give a client, and the sessions as its attribute."""

    @asynccontextmanager
    async def serving(*, model=model, limits=None, headers=None, **config):
        options = SessionConfig(answer=SHORT, caption=SHORT)
        sessions = Sessions(model, options, ServerConfig(limits=limits or Limits(), **config))
        app = make_app(sessions)
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        )
        async with app.router.lifespan_context(app), client:
            client.sessions, client.app = sessions, app
            yield client

    return serving


@pytest.fixture
def listening(model):
    """Serve on a socket; give its URL and the sessions."""
    pytest.importorskip("uvicorn", reason="needs streammem[serve]")
    return partial(serving_on_a_socket, model)


@pytest.fixture
def watched(video):
    """Upload the three scenes, watch them to their end, and give the session's path."""

    async def watched(client, **options):
        with open(video, "rb") as file:
            sent = (await client.post("/v1/uploads", content=file.read())).json()
        wanted = {"source": sent["source"], **options}
        opened = await client.post("/v1/sessions", json=wanted)
        assert opened.status_code == 201, opened.text
        path = opened.json()["url"]
        await client.get(f"{path}/events")
        return path

    return watched
