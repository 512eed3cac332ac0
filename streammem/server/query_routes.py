"""The routes that sessions and memories share: questions, search, chapters, segments, export."""

import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import date
from pathlib import PurePath
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import FileResponse, StreamingResponse

from streammem.errors import StreammemError
from streammem.output.render import FORMATS, stamped, to_line
from streammem.server.queries import MAX_SEGMENTS, check_question, rows
from streammem.server.refused import Refused
from streammem.server.schemas import AnswerEvent, Chapters, Events, Moments, PlanEvent, replies
from streammem.server.session_host import SessionHost
from streammem.server.sessions import Sessions
from streammem.server.wire import (
    MAX_S,
    PlanRequest,
    QuestionRequest,
    SearchRequest,
    event_json,
    sse,
)
from streammem.types import Answer

Form = Literal["jsonl", "srt", "vtt", "text"]
EXPORTS: dict[Form, str] = {
    "jsonl": "application/jsonl",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "text": "text/plain",
}
FindHost = Callable[[str], Awaitable[SessionHost]]
Id = Annotated[str, Path(max_length=255)]
QuerySeconds = Annotated[float | None, Query(ge=0, le=MAX_S)]
At = Annotated[float, Query(ge=0, le=MAX_S, description="seconds")]


def query_routes(sessions: Sessions, find_host: FindHost) -> APIRouter:
    """Make the routes below a session or memory.

    Args:
        sessions: of the server.
        find_host: returns the host of a session or memory by its name.
    """
    router = APIRouter()
    router.include_router(_plan_routes(find_host))
    longest = sessions.config.limits.question_chars

    streamed = {"text/event-stream": {"schema": {"$ref": "#/components/schemas/AnswerEvent"}}}

    @router.post(
        "/questions", response_model=None, responses=replies(AnswerEvent, content=streamed)
    )
    async def ask(name: Id, asked: QuestionRequest) -> Response | dict[str, object]:
        """Answer a question; with ``stream`` piece by piece, the whole answer last."""
        check_question(asked.question, longest)
        host = await find_host(name)
        if not asked.stream:
            return event_json(await host.answer(asked.question), host.path)
        return await stream_answer(host, host.ask(asked.question), as_event)

    @router.post("/find", response_model=None, responses=replies(Moments))
    async def find(name: Id, wanted: SearchRequest) -> dict[str, object]:
        """Find the moments that fit a description best."""
        check_question(wanted.query, longest)
        host = await find_host(name)
        moments = await host.do(lambda session: session.find(wanted.query, wanted.count))
        return {"moments": [event_json(moment, host.path) for moment in moments]}

    @router.get("/summary", response_model=None, responses=replies(Chapters))
    async def summary(
        name: Id,
        chapters: Annotated[int | None, Query(ge=1, le=100)] = None,
        start: QuerySeconds = None,
        end: QuerySeconds = None,
        day: Annotated[
            date | None,
            Query(description="its activities, by the wall clock"),
        ] = None,
    ) -> dict[str, object]:
        """List chapters, each with captions of its most central scenes."""
        between = _span(start, end)
        host = await find_host(name)
        found = await host.do(
            lambda session: (
                session.day(day, chapters) if day else session.chapters(chapters, between)
            )
        )
        return {"chapters": [event_json(chapter, host.path) for chapter in found]}

    @router.get("/segments", response_model=None, responses=replies(Events))
    async def segments(
        name: Id,
        start: QuerySeconds = None,
        end: QuerySeconds = None,
        before: Annotated[int | None, Query(ge=0, le=2**53, description="segment id")] = None,
        count: Annotated[int, Query(ge=1, le=MAX_SEGMENTS)] = MAX_SEGMENTS,
    ) -> dict[str, object]:
        """List segments, captions and speech in memory: the newest ``count`` segments.

        Older ones: ask again with ``before``, the lowest id that came.
        """
        between = _span(start, end)
        host = await find_host(name)
        kept = await host.do(lambda session: rows(session, between, count, before))
        return {"events": [event_json(row.event, host.path, row.more) for row in kept]}

    @router.get("/export", responses={200: {"content": {kind: {} for kind in EXPORTS.values()}}})
    async def export(
        name: Id,
        format: Form = "jsonl",
        wall_clock: Annotated[
            bool, Query(description="put the wall clock before the words, where it is known")
        ] = False,
    ) -> Response:
        """Download the whole memory as a file: JSON Lines, SubRip, WebVTT or plain text."""
        host = await find_host(name)
        kept = await host.do(lambda session: rows(session, None, len(session.memory) + 1))
        if format == "jsonl":
            text = "".join(to_line(row.event, row.more) + "\n" for row in kept)
        else:
            renderer = FORMATS[format]()
            shown = (stamped(*row) if wall_clock else row.event for row in kept)
            text = "".join([*map(renderer.write, shown), renderer.close()])
        stem = PurePath(host.title).stem or "streammem"
        file = f"attachment; filename*=UTF-8''{quote(f'{stem}.{format}', safe='')}"
        headers = {"content-disposition": file}
        return Response(text, media_type=EXPORTS[format], headers=headers)

    @router.get("/keyframes/{segment}", responses={200: {"content": {"image/jpeg": {}}}})
    async def keyframe(name: Id, segment: Annotated[int, Path(ge=0, le=2**53)]) -> Response:
        """Return the keyframe of a segment."""
        host = await find_host(name)
        try:
            jpeg = await host.do(lambda session: session.memory.keyframe(segment))
        except KeyError:
            jpeg = None
        if jpeg is None:
            raise Refused(404, "no such segment, or its picture is not kept any more")
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "max-age=3600"})

    @router.get("/clip", responses={200: {"content": {"video/mp4": {}}}})
    async def clip(name: Id, start: At, end: At) -> Response:
        """Return a part of the video as MP4, if the source is a file that still exists."""
        return await sessions.clips.reply(await find_host(name), start, end)

    @router.get("/video", responses={200: {"content": {"video/mp4": {}}}})
    async def video(name: Id) -> FileResponse:
        """Return the video itself, or a range of it, if the source is a file that still exists."""
        host = await find_host(name)
        file = host.plan.file
        if file is None or not file.is_file():
            raise Refused(404, "no video is at hand here, only captions and keyframes")
        kind = mimetypes.guess_type(host.plan.source)[0] or "video/mp4"
        kind = kind if kind.startswith("video/") else "video/mp4"
        return FileResponse(file, media_type=kind, headers={"x-content-type-options": "nosniff"})

    return router


def _plan_routes(find_host: FindHost) -> APIRouter:
    router = APIRouter()

    @router.post("/plan", response_model=None, responses=replies(PlanEvent))
    async def plan(name: Id, wanted: PlanRequest) -> dict[str, object]:
        """Tell how far a goal has come; of a session also follow it, with ``plan`` events."""
        host = await find_host(name)
        goal, steps = wanted.goal, wanted.steps
        if wanted.follow:
            found = await host.follow_plan(goal, steps, alert_steps=wanted.alert_steps)
        else:
            found = await host.do(lambda session: session.plan(goal, steps))
        return event_json(found, host.path)

    @router.delete("/plan", status_code=204)
    async def end_plan(name: Id) -> None:
        """Follow no plan any more."""
        await (await find_host(name)).end_plan()

    return router


async def stream_answer(
    host: SessionHost,
    pieces: AsyncGenerator[str | Answer],
    form: Callable[[str | Answer, SessionHost], str],
    end: str = "",
) -> StreamingResponse:
    """Reply with an answer piece by piece; an error before the first piece is raised as usual.

    Args:
        host: of the session or memory.
        pieces: of the answer, from ``SessionHost.ask``.
        form: formats a piece, or the whole answer, as a Server-Sent Event.
        end: text to send last.
    """
    first = await anext(pieces)

    async def stream() -> AsyncIterator[str]:
        try:
            yield form(first, host)
            async for piece in pieces:
                yield form(piece, host)
        except Exception as error:  # noqa: BLE001, the status is already sent, so an event reports the error
            known = isinstance(error, Refused | StreammemError)
            text = str(error) if known else f"internal error: {type(error).__name__}"
            yield sse("error", {"error": {"message": text}})
        finally:
            await pieces.aclose()
        yield end

    return StreamingResponse(stream(), media_type="text/event-stream")


def as_event(piece: str | Answer, host: SessionHost) -> str:
    """Format a piece of an answer, or the whole answer, as a Server-Sent Event."""
    if isinstance(piece, str):
        return sse("text", {"text": piece})
    return sse("answer", event_json(piece, host.path))


def _span(start: float | None, end: float | None) -> tuple[float, float] | None:
    if start is None and end is None:
        return None
    span: tuple[float, Any] = (start or 0.0, MAX_S if end is None else end)
    if not span[0] < span[1]:
        raise Refused(422, "start must be before end")
    return span
