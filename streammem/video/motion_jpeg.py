"""Motion JPEG over HTTP, read by its content: where each picture begins and ends, it says itself.

Cameras state types and lengths of parts that are wrong, or none, and FFmpeg relies on them.
``JpegStream`` takes the bytes from FFmpeg, which connects, and returns them as parts that are
stated correctly:

    --frame  Content-Type: image/jpg  Content-Length: 9999  <picture>  ->  ... image/jpeg, 8123 ...
"""

import io
import re
from collections.abc import Callable
from typing import IO, cast

import av

from streammem.errors import SourceError
from streammem.video.container import OPEN_TIMEOUT_S, REMOTE_OPTIONS, choose_stream, error_text
from streammem.video.live_source import STALL_S, Connection

BLOCK = 1 << 16
MAX_BYTES = 64 << 20  # of one picture
LOOKED_AT = 1 << 18  # bytes without any beginning of a picture: it is something else

_BEGIN = b"\xff\xd8\xff"
_PART = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n"
# In compressed data FF is followed by 00, or by a restart marker; anything else ends the data.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_TYPE = re.compile(rb"content-type:\s*([\w.+-]+/[\w.+-]+)", re.I)


class NoJpegError(SourceError):
    """What comes is no motion JPEG."""


class JpegStream(io.RawIOBase):
    """The pictures of a connection as a file that FFmpeg's ``mpjpeg`` reads.

    Args:
        url: with credentials, if it needs them.
        name: what messages call it.
        stopping: returns whether to give up.

    Raises:
        av.FFmpegError: it cannot be opened.
    """

    def __init__(self, url: str, name: str, stopping: Callable[[], bool]) -> None:
        self._name, self._stopping = name, stopping
        options = REMOTE_OPTIONS | {"raw_packet_size": str(BLOCK)}
        timeout = (OPEN_TIMEOUT_S, STALL_S)
        self._inner = av.open(url, format="data", options=options, timeout=timeout)
        self._packets = self._inner.demux()
        self._pending, self._parts = bytearray(), bytearray()
        self._types: set[str] = set()  # of parts, until the first picture
        self._num_skipped = self._num_given = 0
        self._has_ends = False  # whether pictures of this camera have end markers

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Return parts as soon as a picture is complete; nothing at the end.

        Raises:
            NoJpegError: no picture begins in the first LOOKED_AT bytes, or at all.
        """
        while not self._parts and not self._stopping():
            packet = next(self._packets, None)
            if packet is None or not packet.size:
                if not self._num_given:
                    raise NoJpegError(self._reason())
                return b""
            self._pending += bytes(packet)
            while (picture := self._cut()) is not None:
                self._num_given += 1
                self._parts += _PART % (len(picture), picture)
            if not self._num_given and self._num_skipped > LOOKED_AT:
                raise NoJpegError(self._reason())
        wanted = len(self._parts) if size < 0 else size
        given, self._parts = bytes(self._parts[:wanted]), self._parts[wanted:]
        return given

    def close(self) -> None:
        """Release the connection; may be repeated."""
        if not self.closed:
            self._inner.close()
        super().close()

    def _cut(self) -> bytes | None:
        """Take the next whole picture out of what came; None if more is needed."""
        data = self._pending
        begin = data.find(_BEGIN)
        skipped = begin if begin >= 0 else max(0, len(data) - len(_BEGIN) + 1)
        if skipped:
            if not self._num_given:
                self._types |= {kind.decode().lower() for kind in _TYPE.findall(data[:skipped])}
            self._num_skipped += skipped
            del data[:skipped]
        if begin < 0:
            return None
        end, whole = _end_of(data)
        if end is None:
            if len(data) > MAX_BYTES:
                del data[: len(_BEGIN)]
            return None
        picture = bytes(data[:end])
        del data[:end]
        self._has_ends = self._has_ends or whole
        if whole:
            return picture
        # Some cameras leave the end marker out. Where they do not, this one broke off.
        return self._cut() if self._has_ends else picture + b"\xff\xd9"

    def _reason(self) -> str:
        kinds = ", ".join(sorted(self._types - {"image/jpeg", "image/jpg"}))
        sent = f"sends {kinds}" if kinds else "sends something else"
        return (
            f"{self._name}: {sent}, not the JPEG pictures that its form promises; choose another "
            "stream of this camera"
        )


def _end_of(data: bytearray) -> tuple[int | None, bool]:
    """Return where the picture at the beginning ends, and whether with its end marker.

    None if it is not there yet. The lengths of headers are followed, so that a thumbnail within
    them is not taken for a picture.
    """
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # no header here: damage; the next picture shows where it ends
            following = data.find(_BEGIN, at)
            return (following, False) if following >= 0 else (None, False)
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker == 0xD9:
            return at + 2, True
        elif marker == 0xD8:
            return at, False
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
            if marker == 0xDA:
                found = _MARKER.search(data, at)
                if found is None:
                    return None, False
                at = found.start()
    if data[at : at + 2] == b"\xff\xd9":
        return at + 2, True
    return None, False


def open_by_content(url: str, name: str, stopping: Callable[[], bool]) -> Connection:
    """Connect to motion JPEG whose parts may be stated wrongly.

    Raises:
        NoJpegError: no JPEG comes; the message says what does.
        SourceError: it cannot be opened.
    """
    try:
        stream = JpegStream(url, name, stopping)
    except (av.FFmpegError, ValueError) as error:
        raise SourceError(f"{name}: cannot be opened ({error_text(error)})") from None
    try:
        # One picture is enough to begin with: a slow camera takes minutes to send twenty.
        options = {"fpsprobesize": "0"}
        container = av.open(cast(IO[bytes], stream), "r", format="mpjpeg", options=options)
        return Connection(container, choose_stream(container, name), stream)
    except SourceError:
        stream.close()
        raise
    except (av.FFmpegError, ValueError) as error:
        stream.close()
        raise SourceError(f"{name}: no picture came ({error_text(error)})") from None
