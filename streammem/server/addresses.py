"""Checks which addresses a client may make the server open, and downloads from them.

A name is resolved once, all its addresses are checked, and the connection is made to one of these:
a later change of the name's addresses has no effect. Redirects are refused. A file must lie below
a folder that the operator names.
"""

import http.client
import ipaddress
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import SplitResult, unquote

from streammem.errors import ConfigError, SourceError
from streammem.server.refused import Refused
from streammem.video.address import split_address
from streammem.video.fetching import (
    Resolve,
    Target,
    connection_to,
    ip_address,
    is_public,
    resolve,
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
FILE = "file://"
PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}
LIVE = ("rtsp", "rtsps")
DOWNLOAD_S = 600.0
BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Allowed:
    """The hosts and networks that clients may name in a source.

    Attributes:
        hosts: patterns of host names with public addresses, as in ``*.example.com``; ``*`` is any.
        networks: addresses that are allowed although they are not public.
    """

    hosts: tuple[str, ...] = ()
    networks: tuple[Network, ...] = field(default=())

    @classmethod
    def of(cls, patterns: list[str]) -> "Allowed":
        """Read patterns: host names with ``*``, addresses, networks such as ``192.168.1.0/24``."""
        hosts, networks = [], []
        for pattern in patterns:
            try:
                networks.append(ipaddress.ip_network(pattern))
            except ValueError:
                if not pattern or set(pattern) & set("/:@ []"):
                    raise ConfigError(
                        f"--allow-source {pattern}: give a host name, an address, or a network "
                        "such as 192.168.1.0/24"
                    ) from None
                hosts.append(pattern.lower())
        return cls(tuple(hosts), tuple(networks))


def check_url(url: str, allowed: Allowed, resolve: Resolve = resolve) -> Target:
    """Check a URL that a client gave.

    Args:
        url: http, https, rtsp or rtsps.
        allowed: hosts and networks allowed by the operator.
        resolve: returns a host's addresses.

    Raises:
        Refused: not such a URL, or not allowed; with the reason.
        SourceError: the host has no address.
    """
    parts, host, port = _split(url)
    is_named = any(fnmatchcase(host, pattern) for pattern in allowed.hosts)
    # FFmpeg follows redirects of RTSP, so a wildcard for all the world does not cover it.
    trusted = any(fnmatchcase(host, p) for p in allowed.hosts if p.strip("*."))
    literal = ip_address(host)
    if literal is None and not is_named:
        raise Refused(403, f"{host} is not an allowed source; the operator may add it")
    addresses = [str(literal)] if literal else resolve(host, port)
    for text in addresses:
        address = ip_address(text)
        listed = address is not None and any(address in network for network in allowed.networks)
        if not listed and not (address is not None and is_named and is_public(address)):
            raise Refused(403, f"{host}: its address {text} is not an allowed source")
        if parts.scheme in LIVE and not (listed or trusted):
            raise Refused(403, f"{host}: a live source must be allowed by name or address")
    return Target(parts, host, port, addresses[0])


def check_allowed_file(url: str, folders: tuple[Path, ...]) -> Path:
    """Check a file that a client named.

    Args:
        url: ``file:///path``; as some clients do not quote what stands in a path, it is also read
            as it is.
        folders: that the operator allows.

    Returns:
        The file's real path, without links.

    Raises:
        Refused: no file below one of the folders. What lies elsewhere is not told.
    """
    if not folders:
        raise Refused(403, "no files are opened here; the operator may allow a folder of them")
    text = url[len(FILE) :].removeprefix("localhost")
    roots = [folder.resolve() for folder in folders]
    for name in dict.fromkeys((text, unquote(text))):
        try:
            path = Path(name).resolve(strict=True)
            inside = name.startswith("/") and any(path.is_relative_to(root) for root in roots)
            if inside and path.is_file():
                return path
        except (OSError, ValueError, RuntimeError):  # missing, a null byte, links in a circle
            continue
    raise Refused(403, "no such file below the folders that the operator allows")


def is_loopback(host: str) -> bool:
    """Return whether a host is ``localhost`` or a loopback address."""
    address = ip_address(host.strip("[]"))
    return host == "localhost" if address is None else address.is_loopback


def live_url(target: Target) -> str:
    """Return the URL of a live source with the checked address in place of the name."""
    user, at, _ = target.parts.netloc.rpartition("@")
    address = f"[{target.address}]" if ":" in target.address else target.address
    return target.parts._replace(netloc=f"{user}{at}{address}:{target.port}").geturl()


def fetch(
    target: Target,
    path: Path,
    most_bytes: int,
    stop: Callable[[], bool] = lambda: False,
    context: ssl.SSLContext | None = None,
) -> None:
    """Download a URL from its checked address into a file; redirects are refused.

    Args:
        target: of http or https.
        path: to write to.
        most_bytes: to accept.
        stop: polled between blocks; the download ends once it returns True.
        context: of TLS; the system's by default.

    Raises:
        SourceError: the request fails, breaks off, takes too long, or its content is too large.
    """
    name = f"{target.parts.scheme}://{target.host}{target.parts.path}"
    connection = connection_to(target, context)
    deadline = time.monotonic() + DOWNLOAD_S
    try:
        query = f"?{target.parts.query}" if target.parts.query else ""
        connection.request("GET", (target.parts.path or "/") + query)
        reply = connection.getresponse()
        if reply.status != 200:
            moved = " (redirects are not followed)" if 300 <= reply.status < 400 else ""
            raise SourceError(f"{name}: answered {reply.status}{moved}; check the URL")
        announced, came = reply.length or 0, 0
        left = most_bytes - announced
        with path.open("wb") as file:
            while left >= 0 and (block := reply.read1(BLOCK)):  # what has come
                file.write(block)
                came += len(block)
                left = min(left, most_bytes - came)
                if stop() or time.monotonic() > deadline:
                    raise SourceError(f"{name}: the download was given up; it took too long")
        if left >= 0 and came < announced:
            raise SourceError(
                f"{name}: broke off {announced - came} bytes before its end; try again"
            )
        if left < 0:
            raise SourceError(f"{name}: larger than {most_bytes} bytes; give a smaller file")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{name}: cannot be fetched ({type(error).__name__})") from error
    finally:
        connection.close()


def _split(url: str) -> tuple[SplitResult, str, int]:
    if url.partition("://")[0].lower() not in PORTS or "://" not in url:
        known = ", ".join(PORTS)
        text = f"a source must be an upload or a URL of {known}; paths are not opened"
        raise Refused(422, text)
    try:
        parts = split_address(url)
    except ConfigError as error:
        raise Refused(422, str(error)) from None
    if " " in url:
        raise Refused(422, "the URL has spaces; write each as %20")
    host = str(parts.hostname).lower().rstrip(".")
    return parts, host, parts.port or PORTS[parts.scheme]
