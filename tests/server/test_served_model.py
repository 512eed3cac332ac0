"""Sessions over HTTP whose answers come from a model server: answers, faults, counts."""

import dataclasses

import anyio
import pytest

from streammem.engine.checks import check_reads
from streammem.errors import ConfigError
from streammem.models.protocols import ComposedModel
from streammem.models.registry import open_generator
from streammem.types import Alert
from tests.engine.test_watch_camera import seeing
from tests.looking import Scripted, model_of
from tests.model_server import ModelServer
from tests.tiny import tiny_model

pytestmark = pytest.mark.anyio


def answered_by(model, name):
    parts = {f.name: getattr(model, f.name) for f in dataclasses.fields(ComposedModel)}
    return ComposedModel(**parts | {"answer_generator": open_generator(name)})


async def test_answers_come_from_the_server_and_captions_from_ours(serving, watched, model):
    with ModelServer(context=20_000) as server:
        async with serving(model=answered_by(model, server.ollama)) as client:
            path = await watched(client)
            asked = {"question": "What is this?"}
            reply = await client.post(f"{path}/questions", json=asked)
            assert reply.status_code == 200, reply.text
            assert reply.json()["text"].startswith("I see red, blue, green")
            assert all(not e["caption"].startswith("I see") for e in reply.json()["evidence"])
            metrics = (await client.get("/metrics")).text
    assert "streammem_model_server_requests_total " in metrics


async def test_a_fault_of_the_server_is_502_with_its_reason_and_the_session_goes_on(
    serving, watched, model
):
    with ModelServer("keeps the first", context=20_000) as server:
        async with serving(model=answered_by(model, server.openai)) as client:
            path = await watched(client)
            for stream in (False, True):
                asked = {"question": "What is this?", "stream": stream}
                reply = await client.post(f"{path}/questions", json=asked)
                assert reply.status_code == 502, reply.text
                assert "lost pictures" in reply.json()["error"]["message"]
            server.fault = None
            reply = await client.post(f"{path}/questions", json={"question": "What is this?"})
            assert reply.status_code == 200


async def test_two_clients_are_answered_at_the_same_time(serving, watched, model):
    with ModelServer(context=20_000) as server:
        async with serving(model=answered_by(model, server.openai)) as client:
            paths = [await watched(client), await watched(client)]
            asked = {"question": "What is this?"}
            assert (await client.post(f"{paths[0]}/questions", json=asked)).status_code == 200
            server.release.clear()
            before, codes = len(server.requests), []

            async def ask(path):
                codes.append((await client.post(f"{path}/questions", json=asked)).status_code)

            async with anyio.create_task_group() as group:
                for path in paths:
                    group.start_soon(ask, path)
                with anyio.fail_after(60):
                    while len(server.requests) < before + 2:
                        await anyio.sleep(0.01)
                server.release.set()
    assert codes == [200, 200]


@pytest.mark.parametrize(("alert", "confirmed"), [("blue", [True]), ("purple", [])])
async def test_alerts_of_the_operators_sources_are_confirmed_where_asked(
    serving, video, alert, confirmed
):
    """Every sentence means blue to its keys; the model that answers names what it sees."""
    seer = model_of(Scripted(), seeing(tiny_model()))
    async with serving(model=seer, alerts=(alert,), confirm_alerts=True) as client:
        await client.sessions.open_own([video])
        (host,) = client.sessions.hosts().values()
        with anyio.fail_after(60):
            while host.state in ("opening", "watching"):
                await anyio.sleep(0.02)
        told = [event for event in host.events.kept() if isinstance(event, Alert)]
    assert [event.confirmed for event in told] == confirmed


def test_confirming_needs_a_model_that_reads_pictures():
    with pytest.raises(ConfigError, match="reads no pictures"):
        check_reads(tiny_model())
