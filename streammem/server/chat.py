"""OpenAI's chat form: the last message of the user is put to a session or a memory.

Which one stands in the model's name, ``session:ID`` or ``memory:NAME``, or in a field of its own.
Sampling options are the server's; those of a request are left unread.
"""

import json
import secrets
import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response

from streammem.server.asking import streamed
from streammem.server.looking import check_question, evidence_text
from streammem.server.refused import Refused
from streammem.server.room import Room
from streammem.server.rooms import Rooms
from streammem.server.wire import Chat, event_json
from streammem.types import Answer

Resolve = Callable[[str], Awaitable[Room]]
DONE = "data: [DONE]\n\n"


def chat_routes(rooms: Rooms, session: Resolve, memory: Resolve) -> APIRouter:
    """Make the routes that OpenAI's clients use.

    Args:
        rooms: of the server.
        session: gives the room of a session.
        memory: gives the room of a memory.
    """
    router = APIRouter()

    async def room_of(chat: Chat) -> Room:
        kind, _, name = chat.model.partition(":")
        if chat.session or (kind == "session" and name):
            return await session(chat.session or name)
        if chat.memory or (kind == "memory" and name):
            return await memory(chat.memory or name)
        text = "say what is asked: model session:ID or memory:NAME, or a field session or memory"
        raise Refused(422, text)

    @router.post("/chat/completions", response_model=None)
    async def complete(chat: Chat) -> Response | dict[str, object]:
        """Answer the user's last message."""
        asked = [m for m in chat.messages if m.role == "user"]
        question = asked[-1].text() if asked else ""
        if not question:
            raise Refused(422, "the messages hold no text of a user")
        check_question(question, rooms.config.limits.question_chars)
        room = await room_of(chat)
        form = _Form(chat)
        if chat.stream:
            return await streamed(room, question, form.chunk, DONE)
        return form.whole(await room.answer(question), room)

    @router.get("/models")
    async def models() -> dict[str, object]:
        """List what may be asked."""
        names = [f"session:{name}" for name in rooms.sessions()]
        names += [f"memory:{name}" for name in rooms.memory_names()]
        return {"object": "list", "data": [_model(name) for name in names]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, object]:
        """Describe something that may be asked."""
        kind, _, rest = name.partition(":")
        known = rooms.sessions() if kind == "session" else rooms.memory_names()
        if kind not in ("session", "memory") or rest not in known:
            raise Refused(404, "no such model; see /v1/models")
        return _model(name)

    return router


class _Form:
    """One reply in OpenAI's form, whole or in chunks."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": chat.model,
        }

    def whole(self, answer: Answer, room: Room) -> dict[str, object]:
        text = "\n".join([answer.text, *([answer.remark] if answer.remark else [])])
        listed = evidence_text(answer) if self._chat.evidence else ""
        message = {"role": "assistant", "content": text + listed}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        found = event_json(answer, room.path)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            **{key: found[key] for key in ("evidence", "seen", "method")},
        }

    def chunk(self, said: str | Answer, room: Room) -> str:
        if isinstance(said, str):
            return self._chunk({"role": "assistant", "content": said}, None)
        listed = evidence_text(said) if self._chat.evidence else ""
        found = event_json(said, room.path)
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
