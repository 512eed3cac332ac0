"""The HTTP contract: each route checks a request, lets a room do it, and says what came of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from streammem import __version__
from streammem.errors import StoreError, StreammemError
from streammem.server.asking import asking_routes
from streammem.server.chat import chat_routes
from streammem.server.guard import Guard, error_body
from streammem.server.inbox import FORMATS, RAW, decode
from streammem.server.refused import Refused
from streammem.server.room import Room
from streammem.server.rooms import Rooms
from streammem.server.wire import MAX_S, NewSession, room_json, sse, told

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0  # between signs of life on a silent stream, so that proxies keep it
BINARY = {"schema": {"type": "string", "format": "binary"}}
Id = Annotated[str, Path(max_length=64)]
# It is printed in terminals, which control characters would drive.
Title = Annotated[str, Query(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Seconds = Annotated[float | None, Query(ge=0, le=MAX_S)]
Pixels = Annotated[int | None, Query(ge=1, le=16384)]
Position = Annotated[int, Query(ge=0, le=2**53)]


def make_app(rooms: Rooms, sources: Sequence[str] = ()) -> FastAPI:
    """Make the application of a server.

    Args:
        rooms: its sessions and memories; closed when the application ends.
        sources: that the operator wants to be watched from the start.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.ensure_future(rooms.sweep())
        try:
            try:
                await rooms.open_own(sources)
            except StreammemError as error:  # told by whoever runs the server, which ends then
                app.state.failed = error
            yield
        finally:
            sweeping.cancel()
            await rooms.close()

    app = FastAPI(
        title="streammem",
        version=__version__,
        description="Watches video and answers questions about it, with times.",
        lifespan=lifespan,
        responses={"4XX": {"description": "refused, with the reason"}},
    )
    app.state.failed = None
    app.add_middleware(Guard, config=rooms.config, counters=rooms.counters)

    async def memory(name: str) -> Any:
        try:
            return await rooms.memory(name)
        except StoreError as error:
            raise Refused(409, _without_folder(str(error), rooms)) from error

    async def session(name: str) -> Any:
        return rooms.session(name)

    app.include_router(_session_routes(rooms), prefix="/v1")
    app.include_router(asking_routes(rooms, session), prefix="/v1/sessions/{name}")
    app.include_router(asking_routes(rooms, memory), prefix="/v1/memories/{name}")
    app.include_router(_other_routes(rooms))
    app.include_router(chat_routes(rooms, session, memory), prefix="/v1")
    _add_refusals(app, rooms)
    return app


def _session_routes(rooms: Rooms) -> APIRouter:
    router = APIRouter()

    @router.post("/sessions", status_code=201)
    async def open_session(wanted: NewSession) -> dict[str, object]:
        """Open a session on a source, or for pictures that are pushed."""
        name = await rooms.open(
            wanted.source, wanted.options(), wanted.memory, source_options=wanted.source_options()
        )
        return room_json(name, rooms.session(name))

    @router.get("/sessions")
    async def list_sessions() -> dict[str, object]:
        """List open sessions."""
        return {"sessions": [room_json(name, room) for name, room in rooms.sessions().items()]}

    @router.get("/sessions/{name}")
    async def describe_session(name: Id) -> dict[str, object]:
        """Describe a session."""
        return room_json(name, rooms.session(name))

    @router.delete("/sessions/{name}", status_code=204)
    async def close_session(name: Id) -> None:
        """Close a session: its open segment is closed and said first."""
        await rooms.close_session(name)

    kinds = dict.fromkeys((*FORMATS, RAW), BINARY)

    @router.post("/sessions/{name}/frames", openapi_extra={"requestBody": {"content": kinds}})
    async def push_frame(
        name: Id,
        request: Request,
        time: Seconds = None,
        width: Pixels = None,
        height: Pixels = None,
        content_type: Annotated[str, Header()] = "",
    ) -> dict[str, object]:
        """Push a picture: JPEG, PNG, or raw RGB with its width and height."""
        inbox = _inbox(rooms, name)
        body = await request.body()
        pixels = await asyncio.to_thread(decode, body, content_type, width, height)
        taken = inbox.push(pixels, time)
        rooms.counters.add("frames_pushed_total")
        return {"taken": taken, "waiting": inbox.waiting}

    @router.post("/sessions/{name}/end")
    async def end_frames(name: Id) -> dict[str, object]:
        """End the stream of pushed pictures; the session stays open for questions."""
        _inbox(rooms, name).stop()
        return room_json(name, rooms.session(name))

    router.add_api_route(
        "/sessions/{name}/events",
        _events_route(rooms),
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "no more"}},
    )
    router.add_api_websocket_route("/sessions/{name}/events", _socket_route(rooms))
    return router


def _inbox(rooms: Rooms, name: str) -> Any:
    inbox = rooms.session(name).plan.inbox
    if inbox is None:
        raise Refused(409, "this session has a source of its own; open one without, to push frames")
    return inbox


def _events_route(rooms: Rooms) -> Callable[..., Awaitable[Response]]:
    async def events(
        name: Id,
        position: Annotated[Position | None, Query(description="number of the first")] = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Follow a session's events (Server-Sent Events); 204 when nothing will follow any more."""
        room = rooms.session(name)
        known = last_event_id or ""
        first = position if position is not None else 0
        if position is None and known.isascii() and known.isdigit() and len(known) < 16:
            first = int(known) + 1
            if room.events.over and first >= room.events.count:
                return Response(status_code=204)  # tells a browser to stop asking

        async def stream() -> AsyncIterator[str]:
            yield ": streammem\n\n"
            async for said in told(room, first, HEARTBEAT_S):
                yield sse(str(said[1]["type"]), said[1], said[0]) if said else ": waiting\n\n"

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    return events


def _socket_route(rooms: Rooms) -> Callable[[WebSocket, str], Awaitable[None]]:
    async def socket(socket: WebSocket, name: str) -> None:
        try:
            room = rooms.session(name)
        except Refused as refused:
            await socket.close(1008, refused.message)
            return
        await socket.accept()
        telling = asyncio.ensure_future(_tell(socket, room))
        try:  # whoever leaves is noticed here, also while there is nothing to tell
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass
        finally:
            telling.cancel()

    return socket


async def _tell(socket: WebSocket, room: Room) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):  # it has left meanwhile
        async for said in told(room, 0, HEARTBEAT_S):
            if said:
                await socket.send_json(said[1])
        await socket.close()


def _other_routes(rooms: Rooms) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/memories")
    async def list_memories() -> dict[str, object]:
        """List the memories that may be asked."""
        return {"memories": [{"id": name} for name in rooms.memory_names()]}

    body = {"requestBody": {"content": {RAW: BINARY}, "required": True}}

    @router.post("/v1/uploads", status_code=201, openapi_extra=body)
    async def upload(request: Request, name: Title = "") -> dict[str, object]:
        """Upload a video; its id is a source: upload:ID. Evidence calls it by its name."""
        kept = await rooms.uploads.receive(request.stream())
        kept.title = name
        return {"id": kept.id, "source": f"upload:{kept.id}", "bytes": kept.num_bytes}

    @router.delete("/v1/uploads/{name}", status_code=204)
    async def remove_upload(name: Id) -> None:
        """Remove an upload."""
        rooms.uploads.get(name)
        rooms.uploads.remove(name)

    @router.get("/healthz")
    async def health() -> dict[str, str]:
        """Say that the server runs."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Count, in Prometheus's form."""
        sessions = rooms.sessions().values()
        return rooms.counters.text(
            {
                "sessions": len(sessions),
                "frames_waiting": sum(r.plan.inbox.waiting for r in sessions if r.plan.inbox),
                "upload_bytes": rooms.uploads.used_bytes,
            }
        )

    return router


def _add_refusals(app: FastAPI, rooms: Rooms) -> None:
    """Let every failure say in one line why."""

    def reply(status: int, message: str, retry_s: int | None = None) -> JSONResponse:
        headers = {"retry-after": str(retry_s)} if retry_s else None
        return JSONResponse(error_body(status, message), status, headers=headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return reply(error.status, error.message, error.retry_s)

    @app.exception_handler(StreammemError)
    async def unusable(request: Request, error: StreammemError) -> JSONResponse:
        return reply(422, _without_folder(str(error), rooms))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return reply(422, "; ".join(map(_fault, error.errors()))[:1000])

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return reply(error.status_code, str(error.detail))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> JSONResponse:
        return reply(400, "the request broke off")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return reply(500, f"internal error: {type(error).__name__}")


def _fault(error: dict[str, Any]) -> str:
    """Say what is wrong with which part of a request."""
    place = [str(part) for part in error["loc"][1:] if error["type"] != "json_invalid"]
    if not place:
        return f"{error['msg']}; send a JSON object, with content-type: application/json"
    return f"{'.'.join(place)}: {error['msg']}"


def _without_folder(message: str, rooms: Rooms) -> str:
    """Take this computer's paths out of a message."""
    for folder in (rooms.config.memories, rooms.uploads.folder):
        if folder is not None:
            message = message.replace(f"{folder}/", "")
    return message
