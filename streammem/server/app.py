"""The HTTP interface: each route checks a request, passes it to a session, returns the result.

sessions = Sessions(model, SessionConfig(), ServerConfig())
app = make_app(sessions, ["rtsp://camera/1"])
uvicorn.run(app)
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from streammem import __version__
from streammem.errors import ServedModelError, StoreError, StreammemError
from streammem.server.chat import chat_routes
from streammem.server.guard import Guard, error_body
from streammem.server.inbox import MEDIA_TYPES, RAW, Inbox, decode
from streammem.server.query_routes import Id, Seconds, query_routes
from streammem.server.refused import Refused
from streammem.server.sessions import Sessions
from streammem.server.wire import NewSession, follow_events, host_json, sse

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0  # between comments on a stream without events, so that proxies keep it open
BINARY = {"schema": {"type": "string", "format": "binary"}}
# Titles are printed in terminals, which would execute control characters.
Title = Annotated[str, Query(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Pixels = Annotated[int | None, Query(ge=1, le=16384)]
Position = Annotated[int, Query(ge=0, le=2**53)]


def make_app(sessions: Sessions, sources: Sequence[str] = ()) -> FastAPI:
    """Make the application of a server.

    Args:
        sessions: its sessions and memories; closed when the application ends.
        sources: of the operator, watched from the start.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.ensure_future(sessions.sweep())
        try:
            try:
                await sessions.open_own(sources)
            except StreammemError as error:  # the command reads it, reports it and ends
                app.state.failed = error
            yield
        finally:
            sweeping.cancel()
            await sessions.close()

    app = FastAPI(
        title="streammem",
        version=__version__,
        description="Watches video and answers questions about it, with times.",
        lifespan=lifespan,
        responses={"4XX": {"description": "refused, with the reason"}},
    )
    app.state.failed = None
    app.add_middleware(Guard, config=sessions.config, counters=sessions.counters)

    async def memory(name: str) -> Any:
        try:
            return await sessions.memory(name)
        except StoreError as error:
            raise Refused(409, _without_folder(str(error), sessions)) from error

    async def session(name: str) -> Any:
        return sessions.host(name)

    app.include_router(_session_routes(sessions), prefix="/v1")
    app.include_router(_event_routes(sessions), prefix="/v1")
    app.include_router(query_routes(sessions, session), prefix="/v1/sessions/{name}")
    app.include_router(query_routes(sessions, memory), prefix="/v1/memories/{name}")
    app.include_router(_other_routes(sessions))
    app.include_router(chat_routes(sessions, session, memory), prefix="/v1")
    _add_refusals(app, sessions)
    return app


def _session_routes(sessions: Sessions) -> APIRouter:
    router = APIRouter()

    @router.post("/sessions", status_code=201)
    async def open_session(wanted: NewSession) -> dict[str, object]:
        """Open a session on a source, or for pictures that are pushed."""
        name = await sessions.open(
            wanted.source, wanted.options(), wanted.memory, source_options=wanted.source_options()
        )
        return host_json(name, sessions.host(name))

    @router.get("/sessions")
    async def list_sessions() -> dict[str, object]:
        """List open sessions."""
        return {"sessions": [host_json(name, host) for name, host in sessions.hosts().items()]}

    @router.get("/sessions/{name}")
    async def describe_session(name: Id) -> dict[str, object]:
        """Describe a session."""
        return host_json(name, sessions.host(name))

    @router.delete("/sessions/{name}", status_code=204)
    async def close_session(name: Id) -> None:
        """Close a session: its open segment is closed and its events are sent first."""
        await sessions.close_session(name)

    kinds = dict.fromkeys((*MEDIA_TYPES, RAW), BINARY)

    def inbox_of(name: str) -> Inbox:
        inbox = sessions.host(name).plan.inbox
        if inbox is None:
            text = "this session has a source of its own; open one without, to push frames"
            raise Refused(409, text)
        return inbox

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
        inbox = inbox_of(name)
        body = await request.body()
        pixels = await asyncio.to_thread(decode, body, content_type, width, height)
        taken = inbox.push(pixels, time)
        sessions.counters.add("frames_pushed_total")
        return {"taken": taken, "waiting": inbox.waiting}

    @router.post("/sessions/{name}/end")
    async def end_frames(name: Id) -> dict[str, object]:
        """End the stream of pushed pictures; the session stays open for questions."""
        inbox_of(name).stop()
        return host_json(name, sessions.host(name))

    return router


def _event_routes(sessions: Sessions) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/sessions/{name}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "no more"}},
    )
    async def events(
        name: Id,
        position: Annotated[Position | None, Query(description="number of the first")] = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Follow a session's events (Server-Sent Events); 204 when nothing will follow any more."""
        host = sessions.host(name)
        known = last_event_id or ""
        first = position if position is not None else 0
        if position is None and known.isascii() and known.isdigit() and len(known) < 16:
            first = int(known) + 1
            if host.events.over and first >= host.events.count:
                return Response(status_code=204)  # makes a browser stop reconnecting

        async def stream() -> AsyncIterator[str]:
            yield ": streammem\n\n"
            async for sent in follow_events(host, first, HEARTBEAT_S):
                yield sse(str(sent[1]["type"]), sent[1], sent[0]) if sent else ": waiting\n\n"

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    @router.websocket("/sessions/{name}/events")
    async def events_by_websocket(socket: WebSocket, name: str) -> None:
        try:
            host = sessions.host(name)
        except Refused as refused:
            await socket.close(1008, refused.message)
            return
        await socket.accept()

        async def send_events() -> None:
            with suppress(WebSocketDisconnect, RuntimeError):  # the client has left meanwhile
                async for sent in follow_events(host, 0, HEARTBEAT_S):
                    if sent:
                        await socket.send_json(sent[1])
                await socket.close()

        sending = asyncio.ensure_future(send_events())
        try:  # only reading notices that a client has left while there are no events to send
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass
        finally:
            sending.cancel()

    return router


def _other_routes(sessions: Sessions) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/memories")
    async def list_memories() -> dict[str, object]:
        """List the memories that can be asked."""
        return {"memories": [{"id": name} for name in sessions.memory_names()]}

    body = {"requestBody": {"content": {RAW: BINARY}, "required": True}}

    @router.post("/v1/uploads", status_code=201, openapi_extra=body)
    async def upload(
        request: Request, name: Title = "", content_type: Annotated[str, Header()] = ""
    ) -> dict[str, object]:
        """Upload a video; its id is a source: upload:ID. Evidence calls it by its name."""
        if content_type.lower().startswith("multipart/"):
            text = "this is a form (curl -F); send the file itself: curl --data-binary @film.mp4"
            raise Refused(415, text)
        kept = await sessions.uploads.receive(request.stream())
        kept.title = name
        return {"id": kept.id, "source": f"upload:{kept.id}", "bytes": kept.num_bytes}

    @router.delete("/v1/uploads/{name}", status_code=204)
    async def remove_upload(name: Id) -> None:
        """Remove an upload."""
        sessions.uploads.get(name)
        sessions.uploads.remove(name)

    @router.get("/healthz")
    async def health() -> dict[str, str]:
        """Report that the server runs."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Return the counters in Prometheus's text form."""
        hosts = sessions.hosts().values()
        return sessions.counters.text(
            {
                "sessions": len(hosts),
                "frames_waiting": sum(h.plan.inbox.waiting for h in hosts if h.plan.inbox),
                "upload_bytes": sessions.uploads.used_bytes,
            }
        )

    return router


def _add_refusals(app: FastAPI, sessions: Sessions) -> None:
    """Turn every error into a reply with its reason in one line."""

    def reply(status: int, message: str, retry_s: int | None = None) -> JSONResponse:
        headers = {"retry-after": str(retry_s)} if retry_s else None
        return JSONResponse(error_body(status, message), status, headers=headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return reply(error.status, error.message, error.retry_s)

    @app.exception_handler(StreammemError)
    async def unusable(request: Request, error: StreammemError) -> JSONResponse:
        status = 502 if isinstance(error, ServedModelError) else 422
        return reply(status, _without_folder(str(error), sessions))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = []
        for fault in error.errors():
            place = [str(part) for part in fault["loc"][1:] if fault["type"] != "json_invalid"]
            where = ".".join(place)
            advice = "; send a JSON object, with content-type: application/json"
            faults.append(f"{where}: {fault['msg']}" if place else f"{fault['msg']}{advice}")
        return reply(422, "; ".join(faults)[:1000])

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


def _without_folder(message: str, sessions: Sessions) -> str:
    """Remove the paths of the server's folders from a message."""
    for folder in (sessions.config.memories, sessions.uploads.folder):
        if folder is not None:
            message = message.replace(f"{folder}/", "")
    return message
