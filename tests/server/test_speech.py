"""A server recognises speech where its operator says so; clients may want none of it."""

import numpy as np
import pytest

from streammem.audio.recogniser import PIECE_S
from streammem.audio.track import SpeechOptions
from streammem.engine import speech as speaking
from streammem.errors import BackboneError
from streammem.types import Note
from tests.audio.clapper import clapper
from tests.server.test_routes import sse

pytestmark = pytest.mark.anyio


class Words:
    """A recogniser that gives a note where sound begins to be loud."""

    piece_s = PIECE_S

    def transcribe(self, samples, stopping):
        first = float(np.argmax(np.abs(samples) > 0.2)) / 16_000
        yield Note(first, first + 1, "A click.")


@pytest.fixture
def languages(monkeypatch):
    wanted = []
    monkeypatch.setattr(
        speaking,
        "recogniser",
        lambda name, language=None, spend=None: wanted.append(language) or Words,
    )
    return wanted


async def notes_of(client, **wanted):
    reply = await client.post("/v1/sessions", json={"captions": False, **wanted})
    assert reply.status_code == 201, reply.text
    told = sse((await client.get(f"{reply.json()['url']}/events")).text)
    return [event["text"] for *_, event in told if event["type"] == "note"]


async def test_sessions_take_the_servers_speech_and_clients_may_want_none(
    serving, languages, tmp_path
):
    film = clapper(tmp_path / "clap.mp4", seconds=3).read_bytes()
    async with serving(speech=SpeechOptions("on", "de")) as client:
        source = f"upload:{(await client.post('/v1/uploads', content=film)).json()['id']}"
        assert await notes_of(client, source=source) == ["A click."]
        spanish = await notes_of(client, source=source, speech="on", speech_language="es")
        assert spanish == ["A click."] and languages == ["de", "es"]
        assert await notes_of(client, source=source, speech="auto") == []
        assert await notes_of(client, source=source, speech="off") == []
        # What can have no sound is watched without words.
        assert (await client.post("/v1/sessions", json={})).status_code == 201


async def test_a_server_without_a_recogniser_says_how_to_have_one(serving, languages, tmp_path):
    film = clapper(tmp_path / "clap.mp4", seconds=3).read_bytes()
    async with serving() as client:
        source = f"upload:{(await client.post('/v1/uploads', content=film)).json()['id']}"
        refused = await client.post("/v1/sessions", json={"source": source, "speech": "on"})
        assert refused.status_code == 422 and "--speech on" in refused.text
        for wrong in ({"speech": "/etc"}, {"speech_language": "../x"}):
            assert (await client.post("/v1/sessions", json=wrong)).status_code == 422
        assert await notes_of(client, source=source) == [] and not languages


async def test_the_operators_own_sources_are_heard(serving, languages, tmp_path):
    path = clapper(tmp_path / "clap.mp4", seconds=3)
    async with serving(speech=SpeechOptions("on")) as client:
        name = await client.sessions.open_trusted(str(path))
        told = sse((await client.get(f"/v1/sessions/{name}/events")).text)
        assert [event["text"] for *_, event in told if event["type"] == "note"] == ["A click."]


def test_a_recogniser_that_is_missing_ends_the_server_before_it_begins(monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMMEM_HOME", str(tmp_path))
    with pytest.raises(BackboneError, match=r"whisper-base|faster-whisper"):
        speaking.check_recogniser(SpeechOptions("on"))
    speaking.check_recogniser(SpeechOptions("auto"))
