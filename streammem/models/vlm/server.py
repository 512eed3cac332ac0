"""HTTP with a model server: time-outs, retries, a budget, and errors that name the way out.

    server = Server("http://localhost:8000/v1", "vllm", ServerOptions(), Spend())
    reply = server.post("/chat/completions", {"model": ...})

What a server sends is untrusted: its size is bounded, and of its messages only printable characters
are shown. A key comes from the environment, goes into one header, and is never shown.
"""

import json
import logging
import math
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from streammem.errors import ConfigError, ServedModelError
from streammem.types import encodable
from streammem.video.address import public_url, split_address

if TYPE_CHECKING:
    from streammem.audio.track import Budget

log = logging.getLogger(__name__)

KEY = "STREAMMEM_API_KEY"
SPEECH_KEY = "STREAMMEM_SPEECH_API_KEY"
HOUR_S = 3600.0
MAX_REPLY_BYTES = 4 << 20
MAX_MESSAGE = 200  # characters of a server's message that are shown
MAX_CONNECT_S = 10.0
MAX_WAIT_S = 60.0  # that a server may ask for before the next try
JSON = "application/json"
SEE_LOG = "see the server's own log"
WRONG = f"correct the address, or {SEE_LOG}"
RETRIED = {408, 425, 429, 500, 502, 503, 504}


class RefusedByServer(Exception):
    """A request that the server understood and refuses, so that trying again is in vain.

    Args:
        status: of HTTP.
        message: the server's own, printable and short.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message = status, message


class Counts(NamedTuple):
    """What model servers were asked.

    Attributes:
        requests: all of them; of these
        retries: after one that failed.
        failures: requests that were given up.
        tokens: of prompts and replies, as the servers counted them.
    """

    requests: int = 0
    retries: int = 0
    failures: int = 0
    tokens: int = 0

    def since(self, before: "Counts") -> "Counts":
        """Return what was added to earlier counts."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


class RequestCounter:
    """What this process has asked of model servers so far."""

    def __init__(self) -> None:
        self._lock, self.counts = threading.Lock(), Counts()

    def add(self, more: Counts) -> None:
        """Count more."""
        with self._lock:
            self.counts = Counts(*map(sum, zip(self.counts, more, strict=True)))


REQUESTS = RequestCounter()


class Spend:
    """A budget of tokens and requests an hour, shared by all that is asked of servers.

    Args:
        tokens: of prompts and replies in any hour.
        requests: likewise; a retry counts.
        clock: seconds.
    """

    def __init__(
        self,
        tokens: float = math.inf,
        requests: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = tokens, requests
        self._clock, self._lock = clock, threading.Lock()
        self._spent: deque[tuple[float, int, int]] = deque()  # time, tokens, requests

    def __reduce__(self) -> tuple[type["Spend"], tuple[float, float]]:
        """Another process has a budget of its own, as large."""
        return Spend, self._most

    @classmethod
    def read(cls, text: str) -> "Spend":
        """Read ``TOKENS``, ``TOKENS,REQUESTS`` or ``,REQUESTS`` an hour.

        Raises:
            ConfigError: none of these.
        """
        try:
            tokens, _, requests = text.partition(",")
            most = [float(part) if part.strip() else math.inf for part in (tokens, requests)]
            if not all(part >= 1 for part in most) or min(most) == math.inf:
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"--spend {text}: give tokens an hour, as in 200000, and requests after a comma"
            ) from None
        return cls(most[0], most[1])

    def begin(self, where: str) -> None:
        """Count a request.

        Raises:
            ServedModelError: the budget of this hour is spent.
        """
        with self._lock:
            now = self._clock()
            while self._spent and self._spent[0][0] <= now - HOUR_S:
                self._spent.popleft()
            sums = sum(row[1] for row in self._spent), sum(row[2] for row in self._spent)
            for spent, most, unit in zip(sums, self._most, ("tokens", "requests"), strict=True):
                if spent >= most:
                    minutes = math.ceil((self._spent[0][0] + HOUR_S - now) / 60)
                    raise ServedModelError(
                        f"{where}: not asked, the budget of {most:g} {unit} an hour is spent; "
                        f"it goes on within {minutes} min, or give a larger --spend"
                    )
            self._add(now, 0, 1)

    def add(self, tokens: int) -> None:
        """Count what a reply has cost."""
        with self._lock:
            self._add(self._clock(), tokens, 0)

    def _add(self, now: float, tokens: int, requests: int) -> None:
        """Add to this second's row, so that there are 3600 at most."""
        if self._spent and now - self._spent[-1][0] < 1:
            at, *sums = self._spent.pop()
            now, tokens, requests = at, sums[0] + tokens, sums[1] + requests
        self._spent.append((now, tokens, requests))


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server is asked; each may stand in a model's name, as in ``?timeout_s=300``.

    Attributes:
        timeout_s: seconds from a request to the end of its reply, > 0; a local model that is
            loaded first may take a minute.
        tries: of a request that fails in a way that may pass, >= 1.
        backoff_s: seconds before the second try, doubled before each further one, >= 0. Where the
            server says how long to wait, that counts.
        concurrency: requests at a time, >= 1.
        pictures: in one prompt at most, >= 1.
        caption_pictures: of them, shown for a caption, >= 1.
        context: tokens of prompt and reply; None asks the server. Of Ollama it is asked for, at
            most what the model has, and 16384 by default.
        keep_alive: how long Ollama keeps the model loaded.
        check: refuse a reply of which the server's own counts say that a picture was lost, or that
            another model wrote it.

    Raises:
        ConfigError: a value outside its range.
    """

    timeout_s: float = 120.0
    tries: int = 5
    backoff_s: float = 1.0
    concurrency: int = 2
    pictures: int = 8
    caption_pictures: int = 4
    context: int | None = None
    keep_alive: str = "30m"
    check: bool = True

    def __post_init__(self) -> None:
        least = min(self.tries, self.concurrency, self.pictures, self.caption_pictures)
        if least < 1 or not 0 < self.timeout_s < math.inf or not 0 <= self.backoff_s < math.inf:
            raise ConfigError("timeout_s must be > 0, and tries, concurrency and pictures >= 1")
        if self.context is not None and self.context < 512:
            raise ConfigError(f"context={self.context}: give 512 tokens or more")


def speech_key_name() -> str:
    """Return the name of the environment variable with a transcription server's key.

    One of its own, so that a model server's key need not be sent to another server.
    """
    return SPEECH_KEY if SPEECH_KEY in os.environ else KEY


def printable(text: object, most: int = MAX_MESSAGE) -> str:
    """Return untrusted text on one line, of printable characters, at most ``most`` of them."""
    line = " ".join("".join(c if c.isprintable() else " " for c in encodable(str(text))).split())
    return line if len(line) <= most else line[: most - 1] + "…"


@dataclass(eq=False)
class Server:
    """A model server, which many threads may ask.

    Args:
        url: http or https; paths are appended to it.
        kind: for messages, such as ``Ollama``.
        advice: how one starts it.
        options: how it is asked.
        spend: the budget that its requests count against.
        key_name: of the environment variable that holds its key.
        less: how it is given less to do; empty where that cannot be said.

    Raises:
        ConfigError: no such address.
    """

    url: str
    kind: str
    advice: str
    options: ServerOptions
    spend: "Budget" = field(default_factory=Spend)
    wait: Callable[[float], None] = time.sleep
    key_name: str = KEY
    less: str = "show it less (?pictures=4)"

    def __post_init__(self) -> None:
        import httpx

        parts = split_address(self.url)
        if parts.scheme not in ("http", "https"):
            raise ConfigError(f"{parts.scheme}: a model server has an http or https address")
        if parts.username or parts.password:
            raise ConfigError(
                f"a model server's key is given in {self.key_name}, not in its address"
            )
        self.url = self.url.rstrip("/")
        self.where = f"{self.kind} at {public_url(self.url)}"
        self._key = os.environ.get(self.key_name) or None
        self._reached = False
        self._slots = threading.BoundedSemaphore(self.options.concurrency)
        headers = {"Accept-Encoding": "identity", "Content-Type": JSON}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        near = parts.hostname in ("localhost", "127.0.0.1", "::1")
        # A proxy of the environment does not know this computer's own ports.
        limit_s = self.options.timeout_s
        timeout = httpx.Timeout(limit_s, connect=min(limit_s, MAX_CONNECT_S))
        self._client = httpx.Client(headers=headers, timeout=timeout, trust_env=not near)
        weakref.finalize(self, self._client.close)  # with the last model that asks it

    def get(self, path: str, base: str | None = None, *, optional: bool = False) -> Any:
        """Return what JSON stands at a path; None where nothing does.

        Args:
            path: behind ``base`` or, without one, behind the URL.
            base: another part of the server.
            optional: any failure counts as nothing.

        Raises:
            ServedModelError: the server cannot be reached, fails, or refuses the key.
        """
        try:
            tries = 1 if optional else self.options.tries
            return self._tried("GET", (base or self.url) + path, None, tries)
        except RefusedByServer as refused:
            if refused.status in (401, 403) and not optional:
                raise self.key_refused(refused) from None
        except ServedModelError:
            if not optional:
                raise
        return None

    def post(self, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object that the server replies, within its budget and concurrency.

        Raises:
            Refused: the server does not want it.
            ServedModelError: the server cannot be reached, fails or sends what is no JSON.
        """
        return self._posted(path, json.dumps(payload).encode(), JSON)

    def post_file(
        self, path: str, fields: Iterable[tuple[str, str]], name: str, content: bytes
    ) -> dict[str, Any]:
        """Return the JSON object that the server replies to a form with a file; as ``post``.

        Args:
            path: behind the URL.
            fields: names and values of the form; a name may come twice.
            name: of the file, which is the field ``file``.
            content: of the file.

        Source: RFC 7578, multipart/form-data.
        """
        boundary = secrets.token_hex(16)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
        form = "".join(f"{head % (field, '')}{value}\r\n" for field, value in fields)
        form += head % ("file", f'; filename="{name}"')
        body = form.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        return self._posted(path, body, f"multipart/form-data; boundary={boundary}")

    def _posted(self, path: str, content: bytes, kind: str) -> dict[str, Any]:
        with self._slots:
            reply = self._tried("POST", self.url + path, content, self.options.tries, kind)
        if not isinstance(reply, dict):
            raise self.error("its reply is no JSON object", WRONG)
        return reply

    def error(self, what: str, advice: str) -> ServedModelError:
        """Count and return the error that names this server, what it did, and the way out."""
        REQUESTS.add(Counts(failures=1))
        return ServedModelError(self._without_key(f"{self.where}: {what}; {advice}"))

    def spent(self, tokens: int) -> None:
        """Count what a reply has cost."""
        self.spend.add(tokens)
        REQUESTS.add(Counts(tokens=tokens))

    def key_refused(self, refused: RefusedByServer) -> ServedModelError:
        """Return the error of a key that is missing or wrong."""
        state = "another key" if self._key else "its key"
        return self.error(
            f"refuses access (HTTP {refused.status})", f"set {self.key_name} to {state}"
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "...") if self._key else text

    def _tried(
        self, method: str, url: str, content: bytes | None, tries: int, kind: str = JSON
    ) -> Any:
        """Ask until there is a reply, or no try is left."""
        import httpx

        what, advice, wait_s = "", SEE_LOG, 0.0
        for number in range(tries):
            if number:
                asked = wait_s or self.options.backoff_s * 2 ** (number - 1)
                shown = self._without_key(what)
                log.info("%s: %s; asked again in %.1f s", self.where, shown, asked)
                self.wait(asked)
            self.spend.begin(self.where)
            REQUESTS.add(Counts(requests=1, retries=int(number > 0)))
            wait_s = 0.0
            try:
                status, headers, body = self._asked(method, url, content, kind)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                what = f"cannot be reached ({printable(error) or 'no connection'})"
                advice = self.advice
                if not self._reached:  # it was never there: say so at once
                    raise self.error(what, advice) from None
                continue
            except httpx.TimeoutException:
                raise self._late() from None
            except httpx.TransportError as error:
                what = f"broke off in the middle of a reply ({printable(error)})"
                continue
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self.error(f"cannot be asked ({printable(error)})", self.advice) from None
            self._reached = True
            if status in RETRIED:
                what = f"HTTP {status}: {_message(body)}"
                advice = SEE_LOG
                if status == 429:
                    advice = "ask it less: ?concurrency=1, or --spend"
                    wait_s = retry_after(headers.get("Retry-After"))
                if wait_s > MAX_WAIT_S:
                    raise self.error(f"{what}, and asks to wait {wait_s:.0f} s", advice)
                continue
            if status >= 300:
                raise RefusedByServer(status, _message(body))
            try:
                return json.loads(body)
            except (ValueError, RecursionError):
                what = "its reply is no JSON"
                advice = WRONG
        raise self.error(f"{what}, {tries} {'try' if tries == 1 else 'tries'}", advice)

    def _asked(
        self, method: str, url: str, content: bytes | None, kind: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        until, body = time.monotonic() + self.options.timeout_s, bytearray()
        with self._client.stream(
            method, url, content=content, headers={"Content-Type": kind}
        ) as response:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    size = MAX_REPLY_BYTES >> 20
                    raise self.error(f"its reply is larger than {size} MiB", WRONG)
                if time.monotonic() > until:
                    raise self._late()
            return response.status_code, response.headers, bytes(body)

    def _late(self) -> ServedModelError:
        took = f"{self.options.timeout_s:g} s"
        advice = f"{self.less}{self.less and ', or '}wait longer (?timeout_s=300)"
        return self.error(f"no whole reply within {took}", advice)


def retry_after(value: str | None) -> float:
    """Read the header Retry-After, seconds or a date; 0 where it says nothing."""
    try:
        return max(0.0, float(value or 0)) if math.isfinite(float(value or 0)) else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(value)).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _message(body: bytes) -> str:
    """Return a server's own words about an error."""
    text = body[:MAX_REPLY_BYTES].decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    return printable(said) or "no message"
