"""Stock clients on a real socket: OpenAI's, WebSocket, slow ones, and many at once."""

import asyncio
import json
import re

import httpx2 as httpx
import pytest

from streammem.engine.watch_options import WatchOptions
from streammem.server.limits import Limits
from tests.server.conftest import TOKEN
from tests.server.test_routes import sse

pytestmark = pytest.mark.anyio

PATIENCE_S = 240  # the machine may be busy: a client's usual 5 s are not ours to test


async def test_the_openai_client_asks_a_session_whole_and_streamed(listening, watched):
    openai = pytest.importorskip("openai", reason="needs streammem[dev]")
    async with listening(token=TOKEN) as (url, _):
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S) as client:
            path = await watched(client)
        name = f"session:{path.rpartition('/')[2]}"
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as client:
            assert name in [model.id async for model in client.models.list()]
            messages = [{"role": "user", "content": [{"type": "text", "text": "What is red?"}]}]
            whole = await client.chat.completions.create(
                model=name, messages=messages, extra_body={"evidence": True}
            )
            heading = "Evidence:" if whole.seen else "Nearest:"
            assert heading in whole.choices[0].message.content
            assert whole.evidence[0]["keyframe"].startswith(path)
            stream = await client.chat.completions.create(
                model=name, messages=messages, stream=True
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks).strip()
            assert chunks[-1].choices[0].finish_reason == "stop" and chunks[-1].evidence
            with pytest.raises(openai.UnprocessableEntityError, match="session:ID"):
                await client.chat.completions.create(model="gpt", messages=messages)


async def test_the_openai_client_asks_a_memory(listening, memories):
    openai = pytest.importorskip("openai", reason="needs streammem[dev]")
    async with (
        listening(memories=memories) as (url, _),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        messages = [{"role": "user", "content": "What is red?"}]
        said = await client.chat.completions.create(model="memory:trips", messages=messages)
        assert said.choices[0].message.content and said.method in ("model", "computed")


async def test_a_websocket_sends_what_the_stream_sends(listening, watched):
    websockets = pytest.importorskip("websockets", reason="needs streammem[serve]")
    async with (
        listening() as (url, _),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client,
    ):
        path = await watched(client)
        told = sse((await client.get(f"{path}/events")).text)
        async with websockets.connect(
            f"ws{url[4:]}{path}/events", open_timeout=PATIENCE_S
        ) as socket:
            said = [json.loads(message) async for message in socket]
    assert said == [content for _, _, content in told]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_a_websocket_needs_the_token_too(listening, headers):
    websockets = pytest.importorskip("websockets", reason="needs streammem[serve]")
    async with listening(token=TOKEN) as (url, sessions):
        name = await sessions.open(None, WatchOptions())
        at = f"ws{url[4:]}/v1/sessions/{name}/events"
        with pytest.raises(websockets.InvalidStatus, match="403"):
            await websockets.connect(at, additional_headers=headers, open_timeout=PATIENCE_S)
        known = {"Authorization": f"Bearer {TOKEN}"}
        async with websockets.connect(at, additional_headers=known, open_timeout=PATIENCE_S):
            pass


@pytest.mark.heavy
async def test_a_slow_client_loses_only_its_own_events_and_gets_their_count(listening):
    from streammem.types import Notice

    long = "x" * 20_000  # so that the socket's buffers are soon full
    async with listening(limits=Limits(events=20)) as (url, sessions):
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            path = (await client.post("/v1/sessions", json={})).json()["url"]
        host = sessions.host(path.rpartition("/")[2])
        address, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(address, int(port), limit=1 << 12)
        writer.write(f"GET {path}/events HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"streammem")
        fast, position = 0, 0
        for _ in range(300):
            host.events.add(Notice(long))
            taken = await host.events.take(position, 0)
            fast, position = fast + len(taken.events), taken.position
            await asyncio.sleep(0)
        host.stop()
        rest = (await reader.read(-1)).decode()
        writer.close()
    lost = [int(number) for number in re.findall(r'"lost": (\d+)', rest)]
    got = rest.count("event: warning") - len(lost)
    assert fast == 300
    assert lost and got + sum(lost) == 300
    assert f"streammem_events_lost_total {sum(lost)}\n" in sessions.counters.text({})


async def test_eight_clients_ask_at_once_and_none_loses_an_answer(listening, watched):
    async with (
        listening() as (url, _),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client,
    ):
        path = await watched(client)

        async def ask(number):
            asked = {"question": f"What is number {number}?"}
            return (await client.post(f"{path}/questions", json=asked)).json()

        answers = await asyncio.gather(*map(ask, range(8)))
    assert [answer["question"] for answer in answers] == [
        f"What is number {number}?" for number in range(8)
    ]


async def test_sixty_four_idle_clients_all_get_the_event(listening):
    from streammem.types import Notice

    async with (
        listening() as (url, sessions),
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client,
    ):
        path = (await client.post("/v1/sessions", json={})).json()["url"]
        host = sessions.host(path.rpartition("/")[2])

        following = 0

        async def follow():
            nonlocal following
            address, port = url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(address, int(port))
            writer.write(f"GET {path}/events HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            await reader.readuntil(b"streammem")
            following += 1
            if following == 64:
                host.events.add(Notice("hello"))
            await reader.readuntil(b"hello")
            writer.close()

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(follow() for _ in range(64)))
