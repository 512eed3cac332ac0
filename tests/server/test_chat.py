"""Laws of the chat form: no part of a message is dropped without a word; usage where asked for."""

import base64
import dataclasses
import json

import numpy as np
import pytest

from streammem.models.protocols import ComposedModel, Reads
from tests.server.test_routes import jpeg

pytestmark = pytest.mark.anyio
RED = np.full((48, 64, 3), (200, 0, 0), np.uint8)
DATA = "data:image/jpeg;base64," + base64.b64encode(jpeg(RED)).decode()
TEXT = {"type": "text", "text": "What is this?"}


class Sighted:
    """A generator that reads two pictures and notes what its prompts hold."""

    def __init__(self, inner):
        self._inner, self.shown = inner, []

    @property
    def reads(self):
        return Reads(tokens=True, pictures=2)

    def answer_prompt(self, items, question):
        self.shown.append([picture for item in items for picture in item.keyframes])
        return self._inner.answer_prompt(items, question)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def picture(url=DATA):
    return {"type": "image_url", "image_url": {"url": url}}


def chat(path, *messages, **more):
    said = [{"role": role, "content": content} for role, content in messages]
    return {"model": path.replace("/v1/sessions/", "session:"), "messages": said, **more}


async def refused(client, wanted):
    reply = await client.post("/v1/chat/completions", json=wanted)
    assert reply.status_code == 422, reply.text
    return reply.json()["error"]["message"]


async def test_a_picture_is_read_where_the_model_reads_pictures(serving, watched, model):
    sighted = Sighted(model.generator)
    parts = {f.name: getattr(model, f.name) for f in dataclasses.fields(ComposedModel)}
    async with serving(model=ComposedModel(**parts | {"answer_generator": sighted})) as client:
        path = await watched(client)
        for stream in (False, True):
            # "How often" would be computed, and what is computed looks at no picture.
            wanted = chat(path, ("user", [TEXT | {"text": "How often is this red?"}, picture()]))
            reply = await client.post("/v1/chat/completions", json=wanted | {"stream": stream})
            assert reply.status_code == 200, reply.text
            assert len(sighted.shown[-1]) == 2, "the question's, and one of the evidence"
            assert np.abs(sighted.shown[-1][-1].astype(int) - RED).max() < 8
        earlier = chat(path, ("user", [picture()]), ("assistant", "Red."), ("user", "Why?"))
        assert (await client.post("/v1/chat/completions", json=earlier)).status_code == 200
        assert np.abs(sighted.shown[-1][-1].astype(int) - RED).max() < 8
        three = chat(path, ("user", [TEXT, *[picture()] * 3]))
        assert "3 pictures" in await refused(client, three)
        for url in (
            "http://host/a.jpg",
            "data:image/jpeg,x",
            "data:image/jpeg;base64,%%",
            DATA[:99],
        ):
            assert "image_url" in await refused(client, chat(path, ("user", [TEXT, picture(url)])))


async def test_where_it_does_not_the_picture_is_refused_by_name(serving, watched):
    async with serving() as client:
        path = await watched(client)
        large = picture(DATA + "A" * (2 << 20))  # a photo of a telephone, larger than other bodies
        for part in (picture(), large, {"type": "image_url", "image_url": DATA}):
            for said in ([("user", [TEXT, part])], [("system", [part]), ("user", "What?")]):
                message = await refused(client, chat(path, *said))
                assert "image_url" in message and "reads no pictures" in message


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "input_audio"),
        ({"type": "file", "file": {"file_id": "x"}}, "file"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "video_url"),
        ({"type": "input_image", "image_url": DATA}, "input_image"),
        ({"type": "text"}, "text"),
        ({"text": "no type"}, "type"),
    ],
)
async def test_a_part_that_is_not_known_is_refused_by_name(serving, part, named):
    async with serving() as client:
        path = (await client.post("/v1/sessions", json={})).json()["url"]
        for role in ("user", "system"):
            message = await refused(client, chat(path, (role, [part, TEXT]), ("user", "What?")))
            assert named in message and "valid string" not in message, message


async def test_a_streamed_chat_ends_with_its_usage_if_that_is_asked_for(serving, watched):
    async with serving() as client:
        path = await watched(client)
        wanted = chat(path, ("user", "What is red?"), stream=True)
        whole = await client.post("/v1/chat/completions", json=wanted | {"stream": False})
        assert whole.json()["usage"]["prompt_tokens"] == 3
        plain = await client.post("/v1/chat/completions", json=wanted)
        assert "usage" not in plain.text
        asked = wanted | {"stream_options": {"include_usage": True}}
        sent = (await client.post("/v1/chat/completions", json=asked)).text
    *lines, done = [line.removeprefix("data: ") for line in sent.split("\n\n") if line]
    *chunks, last = map(json.loads, lines)
    assert done == "[DONE]" and last["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks)
    usage = last["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
