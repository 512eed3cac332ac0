"""The HTTP interface: each route checks a request, passes it to a session, returns the result.

sessions = Sessions(model, SessionConfig(), ServerConfig())
app = make_app(sessions, ["rtsp://camera/1"])
uvicorn.run(app)
"""

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from streammem import __version__
from streammem.errors import ServedModelError, StoreError, StreammemError
from streammem.server.archive import archive_routes
from streammem.server.chat import chat_routes
from streammem.server.guard import Guard, error_body
from streammem.server.inbox import MEDIA_TYPES, RAW, Inbox, decode
from streammem.server.query_routes import Id, QuerySeconds, query_routes
from streammem.server.refused import Refused
from streammem.server.schemas import (
    EVENTS_TEXT,
    WEBSOCKET,
    Error,
    MemoryInfo,
    MemoryList,
    Pushed,
    SessionInfo,
    SessionList,
    Uploaded,
    replies,
)
from streammem.server.sessions import Sessions
from streammem.server.wire import (
    MemoryChange,
    NewSession,
    SessionChange,
    follow_events,
    host_json,
    memory_json,
    sse,
)

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0  # between comments on a stream without events, so that proxies keep it open
BINARY = {"schema": {"type": "string", "format": "binary"}}
EVENT_STREAM = {"text/event-stream": {"schema": {"$ref": "#/components/schemas/Event"}}}
DOCS_FILES = "/docs/files"
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
        description=EVENTS_TEXT,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": Error, "description": "refused, with the reason"}},
    )
    app.state.failed = None
    app.add_middleware(Guard, config=sessions.config, counters=sessions.counters)

    async def memory(name: str) -> Any:
        with _conflict(sessions):
            return await sessions.memory(name)

    async def session(name: str) -> Any:
        return sessions.host(name)

    app.include_router(_session_routes(sessions), prefix="/v1")
    app.include_router(_frame_routes(sessions), prefix="/v1")
    app.include_router(_event_routes(sessions), prefix="/v1")
    app.include_router(query_routes(sessions, session), prefix="/v1/sessions/{name}")
    app.include_router(query_routes(sessions, memory), prefix="/v1/memories/{name}")
    app.include_router(archive_routes(sessions.archive, sessions.config), prefix="/v1")
    app.include_router(_other_routes(sessions))
    app.include_router(chat_routes(sessions, session, memory), prefix="/v1")
    _add_docs(app)
    _add_refusals(app, sessions)
    return app


def _add_docs(app: FastAPI) -> None:
    """Serve Swagger UI from the files of a package, so that it needs no other server."""
    found = importlib.util.find_spec("fastapi_offline")
    if found is None or found.origin is None:

        @app.get("/docs", include_in_schema=False)
        async def no_docs() -> None:
            raise Refused(404, "its pages are missing here: pip install fastapi-offline")

        return
    files = Path(found.origin).parent / "static"
    app.mount(DOCS_FILES, StaticFiles(directory=files))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        prefix = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{prefix}{app.openapi_url}",
            title="streammem",
            swagger_js_url=f"{prefix}{DOCS_FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{prefix}{DOCS_FILES}/swagger-ui.css",
            swagger_favicon_url="data:,",
        )
        page.headers["content-security-policy"] = (
            "default-src 'self'; script-src 'self' 'unsafe-inline'; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
        )
        return page


def _session_routes(sessions: Sessions) -> APIRouter:
    router = APIRouter()

    def described(name: str) -> dict[str, object]:
        return host_json(name, sessions.host(name), permanent=name in sessions.own())

    @router.post(
        "/sessions", status_code=201, response_model=None, responses=replies(SessionInfo, 201)
    )
    async def open_session(wanted: NewSession) -> dict[str, object]:
        """Open a session on a source, or for pictures that are pushed."""
        name = await sessions.open(
            wanted.source,
            wanted.options(),
            wanted.memory,
            source_options=wanted.source_options(),
            speech=wanted.speech_options(sessions.config.speech),
        )
        return described(name)

    @router.get("/sessions", response_model=None, responses=replies(SessionList))
    async def list_sessions() -> dict[str, object]:
        """List open sessions."""
        own = sessions.own()
        hosts = sessions.hosts().items()
        return {"sessions": [host_json(n, host, permanent=n in own) for n, host in hosts]}

    @router.get("/sessions/{name}", response_model=None, responses=replies(SessionInfo))
    async def describe_session(name: Id) -> dict[str, object]:
        """Describe a session."""
        return described(name)

    @router.patch("/sessions/{name}", response_model=None, responses=replies(SessionInfo))
    async def change_session(name: Id, change: SessionChange) -> dict[str, object]:
        """Give a session another title, or other alerts to wait for."""
        host = sessions.host(name)
        if change.alerts is not None:
            host.alerts = tuple(dict.fromkeys(change.alerts))
        if change.title is not None:
            host.title = change.title
        return described(name)

    @router.get(
        "/sessions/{name}/picture",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": BINARY}}},
    )
    async def picture(name: Id) -> Response:
        """Return the newest picture that was perceived, as a JPEG."""
        jpeg = await sessions.host(name).picture()
        if jpeg is None:
            raise Refused(404, "there is no picture yet")
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "no-store"})

    @router.delete("/sessions/{name}", status_code=204)
    async def close_session(name: Id) -> None:
        """Close a session: its open segment is closed and its events are sent first."""
        await sessions.close_session(name)

    return router


def _frame_routes(sessions: Sessions) -> APIRouter:
    """Make the routes of sessions whose pictures are pushed."""
    router = APIRouter()
    kinds = dict.fromkeys((*MEDIA_TYPES, RAW), BINARY)

    def inbox_of(name: str) -> Inbox:
        inbox = sessions.host(name).plan.inbox
        if inbox is None:
            text = "this session has a source of its own; open one without, to push frames"
            raise Refused(409, text)
        return inbox

    @router.post(
        "/sessions/{name}/frames",
        response_model=None,
        responses=replies(Pushed),
        openapi_extra={"requestBody": {"content": kinds}},
    )
    async def push_frame(
        name: Id,
        request: Request,
        time: QuerySeconds = None,
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

    @router.post("/sessions/{name}/end", response_model=None, responses=replies(SessionInfo))
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
        responses={200: {"content": EVENT_STREAM}, 204: {"description": "no more"}},
        openapi_extra=WEBSOCKET,
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
            # A browser shows its page no reason of a connection that is refused at once.
            await socket.accept()
            await socket.send_json(error_body(refused.status, refused.message))
            await socket.close(4000 + refused.status, refused.message)
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

    async def described(name: str) -> dict[str, object]:
        found = await sessions.memory_summary(name)
        return memory_json(name, sessions.memory_url(name), found)

    @router.get("/v1/memories", response_model=None, responses=replies(MemoryList))
    async def list_memories() -> dict[str, object]:
        """List the memories that can be asked."""
        return {"memories": [await described(name) for name in sessions.memory_names()]}

    @router.get("/v1/memories/{name}", response_model=None, responses=replies(MemoryInfo))
    async def describe_memory(name: Id) -> dict[str, object]:
        """Describe a memory."""
        return await described(name)

    @router.patch("/v1/memories/{name}", response_model=None, responses=replies(MemoryInfo))
    async def rename_memory(name: Id, change: MemoryChange) -> dict[str, object]:
        """Give a memory another name; refused while it is written."""
        with _conflict(sessions):
            await sessions.rename_memory(name, change.name)
        return await described(change.name)

    @router.delete("/v1/memories/{name}", status_code=204)
    async def remove_memory(name: Id) -> None:
        """Remove a memory for good; refused while it is written."""
        with _conflict(sessions):
            await sessions.remove_memory(name)

    body = {"requestBody": {"content": {RAW: BINARY}, "required": True}}

    @router.post(
        "/v1/uploads",
        status_code=201,
        response_model=None,
        responses=replies(Uploaded, 201),
        openapi_extra=body,
    )
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


@contextmanager
def _conflict(sessions: Sessions) -> Iterator[None]:
    """Refuse with a 409 where a memory is not fit for what is asked."""
    try:
        yield
    except StoreError as error:
        raise Refused(409, _without_folder(str(error), sessions)) from error


def _without_folder(message: str, sessions: Sessions) -> str:
    """Remove the paths of the server's folders from a message."""
    for folder in (sessions.config.memories, sessions.uploads.folder):
        if folder is not None:
            message = message.replace(f"{folder}/", "")
    return message
