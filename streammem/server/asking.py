"""What may be asked of a session and of a memory alike."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from streammem.errors import StreammemError
from streammem.output.render import FORMATS
from streammem.server.looking import check_question, rows
from streammem.server.refused import Refused
from streammem.server.room import Room
from streammem.server.rooms import Rooms
from streammem.server.wire import MAX_S, Question, Search, event_json, sse
from streammem.types import Answer

Form = Literal["jsonl", "srt", "vtt", "text"]
EXPORTS: dict[Form, str] = {
    "jsonl": "application/jsonl",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "text": "text/plain",
}
Resolve = Callable[[str], Awaitable[Room]]
Id = Annotated[str, Path(max_length=64)]
Seconds = Annotated[float | None, Query(ge=0, le=MAX_S)]
At = Annotated[float, Query(ge=0, le=MAX_S, description="seconds")]


def asking_routes(rooms: Rooms, resolve: Resolve) -> APIRouter:
    """Make the routes below a session or memory.

    Args:
        rooms: of the server.
        resolve: gives the room of a name.
    """
    router = APIRouter()
    longest = rooms.config.limits.question_chars

    @router.post("/questions", response_model=None)
    async def ask(name: Id, asked: Question) -> Response | dict[str, object]:
        """Answer a question; with ``stream`` piece by piece, the answer last."""
        check_question(asked.question, longest)
        room = await resolve(name)
        if not asked.stream:
            return event_json(await room.answer(asked.question), room.path)
        return await streamed(room, asked.question, _piece)

    @router.post("/find")
    async def find(name: Id, wanted: Search) -> dict[str, object]:
        """Find the moments that a description fits best."""
        check_question(wanted.query, longest)
        room = await resolve(name)
        moments = await room.do(lambda session: session.find(wanted.query, wanted.count))
        return {"moments": [event_json(moment, room.path) for moment in moments]}

    @router.get("/summary")
    async def summary(
        name: Id,
        chapters: Annotated[int | None, Query(ge=1, le=100)] = None,
        start: Seconds = None,
        end: Seconds = None,
    ) -> dict[str, object]:
        """List chapters, each with captions of its most central scenes."""
        between = _span(start, end)
        room = await resolve(name)
        found = await room.do(lambda session: session.chapters(chapters, between))
        return {"chapters": [event_json(chapter, room.path) for chapter in found]}

    @router.get("/segments")
    async def segments(name: Id, start: Seconds = None, end: Seconds = None) -> dict[str, object]:
        """List what is kept: segments, captions, speech; the newest, if there is too much."""
        between = _span(start, end)
        room = await resolve(name)
        kept = await room.do(lambda session: rows(session, between))
        return {"events": [event_json(event, room.path) for event in kept]}

    @router.get("/export", responses={200: {"content": {kind: {} for kind in EXPORTS.values()}}})
    async def export(name: Id, format: Form = "jsonl") -> Response:
        """Give all that is kept as a file: JSON Lines, SubRip, WebVTT or plain text."""
        room = await resolve(name)
        kept = await room.do(lambda session: rows(session, None, len(session.memory) + 1))
        renderer = FORMATS[format]()
        text = "".join([*map(renderer.write, kept), renderer.close()])
        headers = {"content-disposition": f'attachment; filename="streammem.{format}"'}
        return Response(text, media_type=EXPORTS[format], headers=headers)

    @router.get("/keyframes/{segment}", responses={200: {"content": {"image/jpeg": {}}}})
    async def keyframe(name: Id, segment: Annotated[int, Path(ge=0, le=2**53)]) -> Response:
        """Give the picture of a segment."""
        room = await resolve(name)
        try:
            jpeg = await room.do(lambda session: session.memory.keyframe(segment))
        except KeyError:
            jpeg = None
        if jpeg is None:
            raise Refused(404, "no such segment, or its picture is not kept any more")
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "max-age=3600"})

    router.add_api_route(
        "/clip", _clip_route(rooms, resolve), responses={200: {"content": {"video/mp4": {}}}}
    )
    return router


def _clip_route(rooms: Rooms, resolve: Resolve) -> Callable[..., Awaitable[Response]]:
    async def clip(name: Id, start: At, end: At) -> Response:
        """Give a span of the video as MP4, where the source is a file that is still there."""
        cut = await rooms.clips.cut(await resolve(name), start, end)
        headers = {"content-length": str(cut.num_bytes)}
        return StreamingResponse(rooms.clips.blocks(cut), media_type="video/mp4", headers=headers)

    return clip


async def streamed(
    room: Room, question: str, form: Callable[[str | Answer, Room], str], end: str = ""
) -> StreamingResponse:
    """Answer piece by piece; what fails before the first piece is refused as usual.

    Args:
        room: that is asked.
        question: the question.
        form: makes a Server-Sent Event of each piece and of the answer.
        end: is sent last.
    """
    saying = room.ask(question)
    first = await anext(saying)

    async def stream() -> AsyncIterator[str]:
        try:
            yield form(first, room)
            async for said in saying:
                yield form(said, room)
        except Exception as error:  # noqa: BLE001, the status is sent already; this is said instead
            known = isinstance(error, Refused | StreammemError)
            text = str(error) if known else f"internal error: {type(error).__name__}"
            yield sse("error", {"error": {"message": text}})
        finally:
            await saying.aclose()
        yield end

    return StreamingResponse(stream(), media_type="text/event-stream")


def _piece(said: str | Answer, room: Room) -> str:
    if isinstance(said, str):
        return sse("text", {"text": said})
    return sse("answer", event_json(said, room.path))


def _span(start: float | None, end: float | None) -> tuple[float, float] | None:
    if start is None and end is None:
        return None
    span: tuple[float, Any] = (start or 0.0, MAX_S if end is None else end)
    if not span[0] < span[1]:
        raise Refused(422, "start must be before end")
    return span
