"""OpenAI's chat interface: a session or a memory answers the user's last message.

The model's name selects it, ``session:ID`` or ``memory:NAME``, or else the field ``session`` or
``memory``. Sampling options are the server's; those of a request are ignored.
"""

import json
import secrets
import time

from fastapi import APIRouter, Response

from streammem.server.queries import check_question, evidence_text
from streammem.server.query_routes import FindHost, stream_answer
from streammem.server.refused import Refused
from streammem.server.session_host import SessionHost
from streammem.server.sessions import Sessions
from streammem.server.wire import ChatRequest, event_json
from streammem.types import Answer

DONE = "data: [DONE]\n\n"


def chat_routes(sessions: Sessions, session: FindHost, memory: FindHost) -> APIRouter:
    """Make the routes that OpenAI's clients use.

    Args:
        sessions: of the server.
        session: returns the host of a session.
        memory: returns the host of a memory.
    """
    router = APIRouter()

    async def host_of(chat: ChatRequest) -> SessionHost:
        kind, _, name = chat.model.partition(":")
        if chat.session or (kind == "session" and name):
            return await session(chat.session or name)
        if chat.memory or (kind == "memory" and name):
            return await memory(chat.memory or name)
        text = "name what to ask: model session:ID or memory:NAME, or a field session or memory"
        raise Refused(422, text)

    @router.post("/chat/completions", response_model=None)
    async def complete(chat: ChatRequest) -> Response | dict[str, object]:
        """Answer the user's last message."""
        asked = [m for m in chat.messages if m.role == "user"]
        question = asked[-1].text() if asked else ""
        if not question:
            raise Refused(422, "the messages hold no text of a user")
        check_question(question, sessions.config.limits.question_chars)
        host = await host_of(chat)
        form = _ChatReply(chat)
        if chat.stream:
            return await stream_answer(host, question, form.chunk, DONE)
        return form.whole(await host.answer(question), host)

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


class _ChatReply:
    """Formats one reply for OpenAI's clients, whole or in chunks."""

    def __init__(self, chat: ChatRequest) -> None:
        self._chat = chat
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
            **{key: found[key] for key in ("evidence", "seen", "method")},
        }

    def chunk(self, piece: str | Answer, host: SessionHost) -> str:
        if isinstance(piece, str):
            return self._chunk({"role": "assistant", "content": piece}, None)
        listed = evidence_text(piece) if self._chat.evidence else ""
        found = event_json(piece, host.path)
        more = {key: found[key] for key in ("evidence", "seen", "method")}
        return self._chunk({"content": listed} if listed else {}, "stop", more)

    def _chunk(
        self, delta: dict[str, str], finish: str | None, more: dict[str, object] | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        body = {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [choice],
            **(more or {}),
        }
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "streammem"}
