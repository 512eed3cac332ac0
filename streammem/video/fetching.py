"""Fetches small files over http and https, from servers that may be hostile: playlists, subtitles.

    found = fetch_small("https://host/live.m3u8", "live", 4 << 20, home="host")
    found.url, found.content        # where it lay in the end, and its bytes

Pictures and sound are FFmpeg's. A name is resolved once, and the connection is made to an address
that was checked: a later change of the name's addresses has no effect. Only the host that the user
named may be on a private network; what its replies name beyond that must be public.
"""

import base64
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from streammem.errors import ConfigError, SourceError
from streammem.video.address import split_address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
CONNECT_S = 15.0  # also without any data
WHOLE_S = 60.0  # for one file
MAX_REDIRECTS = 5
_BLOCK = 1 << 16
_PORTS = {"http": 80, "https": 443}
_MOVED = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # "global", yet leads to any IPv4 address


class Target(NamedTuple):
    """A URL that was checked.

    Attributes:
        parts: of the URL.
        host: as the URL names it.
        port: to connect to.
        address: of the host, checked.
    """

    parts: SplitResult
    host: str
    port: int
    address: str


class Fetched(NamedTuple):
    """A file that was fetched.

    Attributes:
        url: where it lay, once all redirects were followed; what it names is relative to it.
        content: its bytes.
    """

    url: str
    content: bytes


Resolve = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    Raises:
        SourceError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceError(f"{host}: the name cannot be resolved; check it") from error
    return [str(item[4][0]).partition("%")[0] for item in found]


def fetch_small(
    url: str,
    name: str,
    most_bytes: int,
    home: str,
    stopping: Callable[[], bool] = lambda: False,
    resolve: Resolve = resolve,
) -> Fetched:
    """Return what is behind a URL.

    Args:
        url: http or https; a user and password in it are sent as HTTP's basic authentication.
        name: what messages call it: without credentials.
        most_bytes: that are taken.
        home: the host that the user named, which may have any address.
        stopping: returns whether to give up; polled between blocks.
        resolve: returns a host's addresses; the system's by default.

    Raises:
        SourceError: it cannot be fetched, is larger, takes longer than WHOLE_S, or it or a redirect
            of it leads to another host without a public address.
    """
    until = time.monotonic() + WHOLE_S
    for _ in range(MAX_REDIRECTS + 1):
        connection = connection_to(_checked(url, name, home, resolve))
        try:
            parts = urlsplit(url)
            query = f"?{parts.query}" if parts.query else ""
            connection.request("GET", (parts.path or "/") + query, headers=_headers(parts))
            reply = connection.getresponse()
            if reply.status in _MOVED and (place := reply.headers.get("Location")):
                url = urljoin(url, place)
                continue
            if reply.status != 200:
                raise SourceError(f"{name} cannot be fetched (answered {reply.status})")
            content = bytearray()
            while block := reply.read1(_BLOCK):
                content += block
                if len(content) > most_bytes:
                    raise SourceError(f"{name} is larger than {most_bytes} bytes")
                if stopping() or time.monotonic() > until:
                    raise SourceError(f"{name} cannot be fetched (it takes too long)")
            if reply.length:
                raise SourceError(f"{name} cannot be fetched (it breaks off)")
            return Fetched(url, bytes(content))
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{name} cannot be fetched ({type(error).__name__})") from error
        finally:
            connection.close()
    raise SourceError(f"{name} cannot be fetched (more than {MAX_REDIRECTS} redirects)")


def host_of(url: str) -> str:
    """Return the host that a URL names, in lower case.

    Raises:
        ConfigError: see ``split_address``.
    """
    return str(split_address(url).hostname).lower().rstrip(".")


def is_public(address: Address) -> bool:
    """Return whether an address is public, also if it is wrapped in an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address.sixtofour or address.teredo or address in _NAT64:
            return False
    return address.is_global and not address.is_multicast


def ip_address(text: str) -> Address | None:
    """Return the address that a text is; None if it is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def connection_to(
    target: Target, context: ssl.SSLContext | None = None
) -> http.client.HTTPConnection:
    """Return a connection to the checked address of a host, which is made at its first request."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=CONNECT_S)

    def connect() -> None:
        sock = socket.create_connection((target.address, target.port), CONNECT_S)
        if target.parts.scheme == "https":
            secure = context or ssl.create_default_context()
            sock = secure.wrap_socket(sock, server_hostname=target.host)
        connection.sock = sock

    connection.connect = connect  # type: ignore[method-assign]
    return connection


def _checked(url: str, name: str, home: str, resolve: Resolve) -> Target:
    try:
        host, parts = host_of(url), split_address(url)
    except ConfigError:
        raise SourceError(f"{name} lies at an address that cannot be read") from None
    if parts.scheme not in _PORTS:
        raise SourceError(f"{name} lies at an address that is not http or https")
    port = parts.port or _PORTS[parts.scheme]
    literal = ip_address(host)
    addresses = [str(literal)] if literal else resolve(host, port)
    found = [ip_address(each) for each in addresses]
    if host != home and not all(each is not None and is_public(each) for each in found):
        raise SourceError(f"{name} lies on a private network that was not named; not followed")
    return Target(parts, host, port, addresses[0])


def _headers(parts: SplitResult) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity", "Connection": "close"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    return headers
