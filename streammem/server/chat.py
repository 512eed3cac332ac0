"""OpenAI's chat interface: a session or a memory answers the user's last message.

The model's name selects it, ``session:ID`` or ``memory:NAME``, or else the field ``session`` or
``memory``, or else the video in a message, which is watched first. Sampling options are the
server's; those of a request are ignored. A picture in a message is read where the model reads
pictures, and otherwise refused.
"""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

import numpy as np
from fastapi import APIRouter, Response

from streammem.server.inbox import decode_picture
from streammem.server.queries import check_question, evidence_text
from streammem.server.query_routes import FindHost, stream_answer
from streammem.server.refused import Refused
from streammem.server.session_host import SessionHost
from streammem.server.sessions import Sessions
from streammem.server.wire import ChatRequest, event_json
from streammem.types import Answer
from streammem.video.pixels import fitted_pixels
from streammem.video.source import WATCHED_SIDE

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
DONE = "data: [DONE]\n\n"


def chat_routes(sessions: Sessions, session: FindHost, memory: FindHost) -> APIRouter:
    """Make the routes that OpenAI's clients use.

    Args:
        sessions: of the server.
        session: returns the host of a session.
        memory: returns the host of a memory.
    """
    router = APIRouter()

    async def host_of(chat: ChatRequest, video: str | None, asking: AsyncExitStack) -> SessionHost:
        kind, _, name = chat.model.partition(":")
        is_named = kind in ("session", "memory") and name
        if video and (is_named or chat.session or chat.memory):
            raise Refused(422, "video_url: ask a session or memory, or send a video, not both")
        if video:
            return await asking.enter_async_context(sessions.videos.watched(video))
        if chat.session or (kind == "session" and name):
            return await session(chat.session or name)
        if chat.memory or (kind == "memory" and name):
            return await memory(chat.memory or name)
        text = (
            "name what to ask: model session:ID or memory:NAME, a field session or memory, or send "
            "a video_url"
        )
        raise Refused(422, text)

    @router.post("/chat/completions", response_model=None)
    async def complete(chat: ChatRequest) -> Response | dict[str, object]:
        """Answer the user's last message."""
        asked = [m for m in chat.messages if m.role == "user"]
        question = asked[-1].text() if asked else ""
        shown = [url for message in chat.messages for url in message.pictures()]
        _check_pictures(len(shown), sessions.model.answer_generator.reads.pictures)
        if not question:
            raise Refused(422, "the messages hold no text of a user")
        check_question(question, sessions.config.limits.question_chars)
        videos = list(dict.fromkeys(url for message in chat.messages for url in message.videos()))
        if len(videos) > 1:
            raise Refused(422, f"video_url: {len(videos)} videos; a question is about one")
        pictures = [await asyncio.to_thread(picture_of, url) for url in shown]
        form = _ChatReply(chat, question)
        async with AsyncExitStack() as asking:
            host = await host_of(chat, videos[0] if videos else None, asking)
            # Of a video each question stands alone: its clients send no session to go on with.
            pieces = host.ask(question, pictures, alone=bool(videos))
            if chat.stream:
                return await stream_answer(
                    host, _closing(pieces, asking.pop_all()), form.chunk, DONE
                )
            async with aclosing(pieces):
                answer = [piece async for piece in pieces][-1]
            assert isinstance(answer, Answer)
            return form.whole(answer, host)

    @router.get("/models")
    async def models() -> dict[str, object]:
        """List the sessions and memories that can be asked."""
        names = [f"session:{name}" for name in sessions.hosts()]
        names += [f"memory:{name}" for name in sessions.memory_names()]
        return {"object": "list", "data": [_model(name) for name in names]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, object]:
        """Describe a session or memory that can be asked."""
        kind, _, rest = name.partition(":")
        known = sessions.hosts() if kind == "session" else sessions.memory_names()
        if kind not in ("session", "memory") or rest not in known:
            raise Refused(404, "no such model; see /v1/models")
        return _model(name)

    return router


async def _closing(
    pieces: AsyncGenerator[str | Answer], asking: AsyncExitStack
) -> AsyncGenerator[str | Answer]:
    """Yield the pieces of an answer, and close what was opened for it at their end."""
    async with asking, aclosing(pieces):
        async for piece in pieces:
            yield piece


def picture_of(url: str) -> np.ndarray:
    """Decode a picture that a message holds.

    Args:
        url: ``data:image/...;base64,...``; nothing is fetched.

    Returns:
        [H, W, 3] uint8 RGB, its longer side at most WATCHED_SIDE pixels.

    Raises:
        Refused: another address, or no picture.
    """
    head, _, content = url.partition(",")
    if not (head.lower().startswith("data:") and head.lower().endswith(";base64")):
        raise Refused(422, "image_url: send the picture itself, as data:image/jpeg;base64,...")
    try:
        body = base64.b64decode(content, validate=True)
    except ValueError:
        raise Refused(422, "image_url: what follows base64, is not base64") from None
    pixels = decode_picture(body, PICTURE_FORMATS, "image_url: not a JPEG, PNG, WebP or GIF")
    return fitted_pixels(pixels, WATCHED_SIDE)


def _check_pictures(count: int, most: int) -> None:
    if count and not most:
        text = "image_url: the model here reads no pictures in messages; leave them out"
        raise Refused(422, text)
    if count > most:
        raise Refused(422, f"image_url: {count} pictures; the model here reads {most} at most")


class _ChatReply:
    """Formats one reply for OpenAI's clients, whole or in chunks.

    The usage counts words, of the question and of the answer: prompts hold visual tokens besides,
    which no client pays for, and what is computed has none.
    """

    def __init__(self, chat: ChatRequest, question: str) -> None:
        self._chat, self._question = chat, question
        options = chat.stream_options
        self._counts = options is not None and options.include_usage
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": chat.model,
        }

    def whole(self, answer: Answer, host: SessionHost) -> dict[str, object]:
        text = "\n".join([answer.text, *([answer.remark] if answer.remark else [])])
        listed = evidence_text(answer) if self._chat.evidence else ""
        message = {"role": "assistant", "content": text + listed}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        found = event_json(answer, host.path)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(text + listed),
            **{key: found[key] for key in ("evidence", "seen", "method")},
        }

    def chunk(self, piece: str | Answer, host: SessionHost) -> str:
        if isinstance(piece, str):
            return self._chunk({"role": "assistant", "content": piece}, None)
        listed = evidence_text(piece) if self._chat.evidence else ""
        found = event_json(piece, host.path)
        more = {key: found[key] for key in ("evidence", "seen", "method")}
        last = self._chunk({"content": listed} if listed else {}, "stop", more)
        if not self._counts:
            return last
        said = " ".join([piece.text, piece.remark or "", listed])
        return last + self._line({"choices": [], "usage": self._usage(said)})

    def _chunk(
        self, delta: dict[str, str], finish: str | None, more: dict[str, object] | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        uncounted = {"usage": None} if self._counts else {}
        return self._line({"choices": [choice], **uncounted, **(more or {})})

    def _line(self, content: dict[str, object]) -> str:
        body = {**self._head, "object": "chat.completion.chunk", **content}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    def _usage(self, said: str) -> dict[str, int]:
        asked, answered = len(self._question.split()), len(said.split())
        return {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
        }


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "streammem"}
