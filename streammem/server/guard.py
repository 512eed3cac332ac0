"""Middleware that checks every request first: token, origin, rate and size of the body."""

import asyncio
import base64
import binascii
import hmac
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streammem.server.addresses import is_loopback
from streammem.server.counters import Counters
from streammem.server.limits import Limits, ServerConfig
from streammem.server.refused import Refused

MAX_CLIENTS = 4096
OPEN_PATHS = ("/healthz",)
ALLOWED_ORIGIN = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"content-range, content-disposition, retry-after"),
]
PREFLIGHT = [
    *ALLOWED_ORIGIN,
    (b"access-control-allow-methods", b"GET, HEAD, POST, PATCH, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, last-event-id, range"),
    (b"access-control-max-age", b"600"),
]
CHALLENGE = 'Bearer realm="streammem", Basic realm="streammem"'


class Rates:
    """Rate limits: a token bucket per client; the least recently active clients are forgotten.

    Args:
        limits: of requests.
        now: returns seconds of a monotonic clock.
    """

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._now = limits, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Take a token for one request; return 0, or the seconds until there is one."""
        now, rate = self._now(), self._limits.requests_per_s
        left, at = self._buckets.pop(client, (float(self._limits.burst), now))
        left = min(float(self._limits.burst), left + (now - at) * rate)
        wait = 0.0 if left >= 1 else (1 - left) / rate
        self._buckets[client] = (left if wait else left - 1, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait


class Guard:
    """ASGI middleware that refuses a request with a reason in JSON.

    Without a token, only clients on this computer are admitted, and in a browser no page of another
    site.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, counters: Counters) -> None:
        self._app, self._config, self._counters = app, config, counters
        self._rates = Rates(config.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope = self._below_prefix(scope)
        if self._is_preflight(scope):
            await _allow_origin(send)
            return
        if self._config.token is not None and Headers(scope=scope).get("origin"):
            send = _with_headers(send, ALLOWED_ORIGIN)
        try:
            most = self._admit(scope)
        except Refused as refused:
            self._counters.add("refused_total", label=f'status="{refused.status}"')
            await _refuse(scope, send, refused)
            return
        counting = self._counting(send)
        if scope.get("method") == "HEAD":
            await _answer_head(self._app, scope, receive, counting)
            return
        await self._app(scope, _bounded(receive, most), counting)

    def _below_prefix(self, scope: Scope) -> Scope:
        """Return the scope with its whole path, whether or not a proxy has removed the prefix."""
        prefix, path = self._config.prefix, scope["path"]
        if not prefix:
            return scope
        if path != prefix and not path.startswith(f"{prefix}/"):
            path = prefix + path
        return {**scope, "path": path, "raw_path": path.encode(), "root_path": prefix}

    def _is_preflight(self, scope: Scope) -> bool:
        """Return whether a browser asks if a page of another site may ask.

        It presents no token then; with one, any client that has it may ask from anywhere. Without,
        no page of another site may.
        """
        asks = "access-control-request-method" in Headers(scope=scope)
        return self._config.token is not None and scope.get("method") == "OPTIONS" and asks

    def _admit(self, scope: Scope) -> int:
        """Return the bytes that the request's body may have.

        Raises:
            Refused: the request is not admitted.
        """
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(self._config.prefix)
        client = scope["client"][0] if scope.get("client") else ""
        if wait := self._rates.take(client):
            raise Refused(429, "too many requests; send fewer", retry_s=math.ceil(wait))
        if path not in OPEN_PATHS:
            self._check_caller(headers)
        most = self._most_bytes(path)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, "content-length is not a number")
        if int(length) > most:
            raise Refused(413, f"the body may have {most} bytes here, not {length}")
        return most

    def _check_caller(self, headers: Headers) -> None:
        token = self._config.token
        if token is not None:
            if not hmac.compare_digest(_token_of(headers).encode(), token.encode()):
                raise Refused(401, "a bearer token is required: Authorization: Bearer TOKEN")
            return
        # A page of another site could make a browser send requests here, by name or by address.
        named = [headers.get("host", "")]
        if origin := headers.get("origin"):
            named.append(urlsplit(origin).netloc or origin)
        for netloc in named:
            if not is_loopback(_host(netloc)):
                raise Refused(403, "without a token only this computer may ask, as localhost")

    def _most_bytes(self, path: str) -> int:
        limits = self._config.limits
        if path == "/v1/uploads" or path.startswith("/gradio_api/upload"):
            return limits.upload_bytes
        is_frame = path.startswith("/v1/sessions/") and path.endswith("/frames")
        if is_frame or path == "/v1/chat/completions":  # its messages may hold pictures
            return limits.frame_bytes
        # The page sends webcam pictures as text.
        return limits.frame_bytes if path.startswith("/gradio_api/") else limits.body_bytes

    def _counting(self, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                label = f'status="{message["status"] // 100}xx"'
                self._counters.add("requests_total", label=label)
            await send(message)

        return counted


def error_body(status: int, message: str) -> dict[str, Any]:
    """Return the body of every refusal, in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": status, "param": None}}


def _bounded(receive: Receive, most: int) -> Receive:
    """Bound a body while it is read: content-length may be missing or wrong."""
    left = most

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"the body may have {most} bytes here")
        return message

    return bounded


async def _allow_origin(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": PREFLIGHT})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return with_headers


async def _answer_head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer HEAD with what GET would, without its body; what would go on for ever is ended."""
    ended = False

    async def send_head(message: Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.start":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b""})
            if message.get("more_body"):
                answering.cancel()

    got = {**scope, "method": "GET"}
    answering = asyncio.ensure_future(app(got, receive, send_head))
    try:
        await answering
    except asyncio.CancelledError:
        if not ended:
            answering.cancel()
            raise


async def _refuse(scope: Scope, send: Send, refused: Refused) -> None:
    if scope["type"] == "websocket":  # not accepted yet, so the client gets a 403
        await send({"type": "websocket.close", "code": 1008, "reason": refused.message})
        return
    body = json.dumps(error_body(refused.status, refused.message)).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    if refused.retry_s:
        headers.append((b"retry-after", str(refused.retry_s).encode()))
    if refused.status == 401:
        headers.append((b"www-authenticate", CHALLENGE.encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _token_of(headers: Headers) -> str:
    """Return the token of a request: a bearer token, or the password of basic authentication."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return ""


def _host(netloc: str) -> str:
    """Return the host of ``host:port``, an IPv6 address with its brackets."""
    return netloc if netloc.endswith("]") else netloc.rpartition(":")[0] or netloc
