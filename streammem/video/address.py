"""Addresses of sources and brokers: which are clear, and what of them may be shown.

    >>> public_url("rtsp://admin:secret@camera/live?key=1")
    'rtsp://camera/live'

Nothing here connects. An address that cannot be read is never repeated: where its password ends is
not known, so any part of it may be the password.
"""

import os
import re
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from streammem.errors import ConfigError
from streammem.types import encodable

FORM = (
    "scheme://user:password@host/path, and in a user or password write / # ? as %2F %23 %3F, "
    "and @ as %40"
)
ADVICE = f"the address cannot be read; write it as {FORM}"
# Recorders take a user and a password within the path: /user=admin_password=..., /user:password/.
_SECRET = re.compile(
    r"(?:user|usr|login|pass|pwd|psw|token|secret|auth|key|sign)[a-z]*=|(?<![^/])[a-z]\w*:", re.I
)
_URL = re.compile(r"[^\s'\"]*://[^\s'\"]*")
_HIDDEN = "..."


def split_address(url: str) -> SplitResult:
    """Split an address whose parts are clear.

    A password with an unencoded / # or ? ends the host's part early. The rest of it then passes
    for a path, which an ``@`` gives away:

        rtsp://admin:12/34@camera/live      host "admin", port 12, path "/34@camera/live"

    Raises:
        ConfigError: no host, a port that is none, or an ``@`` that may belong to a password; the
            message does not repeat the address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or " " in parts.netloc or any(sign < " " or sign == "\x7f" for sign in url):
        raise ConfigError(ADVICE)
    later = url.partition("://")[2].partition(parts.netloc)[2]
    outside_brackets = re.sub(r"\[[^]]*\]", "", parts.netloc)
    is_web = parts.scheme.lower() in ("http", "https")
    if "@" in later and (not is_web or set(outside_brackets) & set(":@")):
        raise ConfigError(ADVICE)
    return parts


def public_url(url: str) -> str:
    """Strip from a URL what may be a secret: user, password, query, fragment, keys in the path.

    Raises:
        ConfigError: see ``split_address``.
    """
    parts = split_address(url)
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    path = parts.path
    if secret := _SECRET.search(unquote(path)):
        path = unquote(path)[: secret.start()] + _HIDDEN
    netloc = f"{host}:{parts.port}" if parts.port else host
    return urlunsplit((parts.scheme, netloc, path, "", ""))


def check_no_address(path: str) -> None:
    """Refuse what is no path but an address without its scheme, such as ``user:password@host``.

    Raises:
        ConfigError: there is no such path, and it has the form of an address.
    """
    is_address = "@" in path.partition(":")[2] or "://" in path
    if is_address and not os.path.lexists(path):
        raise ConfigError(f"there is no such file; if it is an address, write it as {FORM}")


def public_name(spec: str) -> str:
    """Return what messages may call a source, however it was written."""
    try:
        if "://" in spec:
            return public_url(spec)
        check_no_address(spec)
    except ConfigError:
        return "the source"
    return encodable(spec)


def without_addresses(text: str) -> str:
    """Return a message in which each address is replaced by what may be shown of it."""
    return _URL.sub(lambda found: public_name(found[0]), text)
