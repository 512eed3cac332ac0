"""How each kind of live source is opened: network cameras, web cameras, the screen, pipes.

Nothing here decodes or waits; `live_source.py` does.
"""

import io
import logging
import math
import os
import select
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from streammem.errors import ConfigError, SourceError, TruncatedError
from streammem.types import Frame
from streammem.video.address import public_url, split_address
from streammem.video.container import (
    OPEN_TIMEOUT_S,
    READ_TIMEOUT_S,
    REMOTE_OPTIONS,
    NoVideoError,
    UnreadError,
    choose_stream,
    error_text,
    open_container,
    open_media,
)
from streammem.video.file import FileSource, LostPicturesError, open_recordings
from streammem.video.live_source import STALL_S, WAIT_SLICE_S, Connection, Feed, LiveSource
from streammem.video.motion_jpeg import open_by_content
from streammem.video.sound import file_sound
from streammem.video.source import Sampling, VideoSource

log = logging.getLogger(__name__)

# An RTSP read gives up so often, to look whether it is to stop. Giving up in the middle of a packet
# costs the connection, so it is no time between the pictures of a slow camera, nor a part of one.
POLL_S = 3.7
DEVICE_FPS = 15  # frames a second of a screen; web cameras choose theirs
# What is watched over HTTP if it states no duration; anything else is a file.
# A file whose server cannot send parts of it is fetched whole; a larger one is refused.
FETCHED_BYTES, FETCHED_BLOCK = 1 << 30, 1 << 18
# Where a codec changes FFmpeg loses the packet before the last; what refers to it looks wrong.
HELD_BACK = 2
JPEG_FORMATS = {"mpjpeg", "mjpeg", "jpeg_pipe"}
ENDLESS_FORMATS = {*JPEG_FORMATS, "hls", "mpegts", "flv"}

_RTSP = {
    "protocol_whitelist": "rtsp,rtp,udp,tcp,tls,crypto",
    "flags": "low_delay",
    # Stamps of the camera's first minutes are not held back to guess a frame rate from.
    "analyzeduration": "500000",
    # Nor is a camera of one picture in 10 s waited for: its first pictures are enough.
    "probesize": "100000",
}
_RTMP = {"protocol_whitelist": "rtmp,rtmps,tcp,tls,crypto", "rtmp_live": "live"}
# What comes while perception is busy waits in 5 MB of FFmpeg's; beyond that the oldest goes, and
# what is damaged by it is left out as that of any stream.
_UDP = {"protocol_whitelist": "udp", "overrun_nonfatal": "1"}
_RTSP_TRANSPORTS = {"rtsp": "tcp", "rtsps": "tcp", "rtsp+udp": "udp"}


def open_rtsp(url: str, sampling: Sampling) -> LiveSource:
    """Open ``rtsp://`` and ``rtsps://`` over TCP, ``rtsp+udp://`` over UDP.

    Raises:
        SourceError: it cannot be opened, or has no video.
    """
    name = public_url(url)
    scheme, _, rest = url.partition(":")
    options = _RTSP | {"rtsp_transport": _RTSP_TRANSPORTS[scheme.lower()]}
    spec = f"{scheme.partition('+')[0]}:{rest}"
    address = _Address(spec, name, None, options, POLL_S)
    return LiveSource(Feed(name, address.open, resumes=True), sampling)


def open_rtmp(url: str, sampling: Sampling) -> LiveSource:
    """Open ``rtmp://`` and ``rtmps://``: a stream that a server plays.

    Raises:
        SourceError: it cannot be opened, or has no video.
    """
    name = public_url(url)
    address = _Address(url, name, "flv", _RTMP, STALL_S)
    return LiveSource(Feed(name, address.open), sampling)


def open_udp(url: str, sampling: Sampling) -> LiveSource:
    """Open ``udp://``: MPEG-TS that is sent to an address and port of this computer, or to a group.

    Raises:
        ConfigError: it names no port.
        SourceError: nothing comes there, or it has no video.
    """
    name = public_url(url)
    if split_address(url).port is None:
        raise ConfigError(f"{name}: names no port; write udp://0.0.0.0:5000, or udp://GROUP:PORT")
    address = _Address(url, name, "mpegts", _UDP, STALL_S)
    return LiveSource(Feed(name, address.open), sampling)


def open_url(url: str, sampling: Sampling) -> VideoSource:
    """Open ``http://`` and ``https://``: a file, or a live stream.

    Raises:
        SourceError: it cannot be opened, or has no video.
    """
    name = public_url(url)
    # What is behind it shows once it is open, and a silent server is waited for once.
    try:
        opened = open_container(url, name, remote=True)
    except NoVideoError as error:
        return _open_motion_jpeg(url, name, sampling, error)
    is_playlist = opened[0].format.name == "hls"
    if kind := endless_format(opened[0]):
        live = open_stream(url, kind, sampling, Connection(*opened))
        live.playlist = url if is_playlist else None
        return live
    try:
        if opened[0].format.name == "mpegts":
            return TransportSource(url, name, sampling, opened)
        source = FileSource(url, name, sampling, remote=True, opened=opened)
        source.playlist = url if is_playlist else None
        return source
    except UnreadError as error:
        # An MP4 whose index stands at its end, from a server that sends files from their beginning
        # only; or a file that breaks off.
        log.info("%s; fetching it whole", error)
        return FetchedSource(url, name, sampling)


class TransportSource(FileSource):
    """An MPEG-TS file of a server.

    Where it cannot be decoded another codec may have taken over, which a demuxer does not notice:
    the file is fetched whole, and read on as one of this computer.

    Raises:
        SourceError: it cannot be opened, or holds no picture.
    """

    gives_up = True

    def __init__(
        self,
        url: str,
        name: str,
        sampling: Sampling,
        opened: tuple[InputContainer, VideoStream] | None = None,
    ) -> None:
        self._url = url
        self._copy: Path | None = None
        self._whole: VideoSource | None = None
        super().__init__(url, name, sampling, remote=True, opened=opened)

    def _frames(self) -> Iterator[Frame]:
        given_until, damage, held = -math.inf, None, deque[Frame]()
        try:
            for frame in super()._frames():
                held.append(frame)
                if len(held) > HELD_BACK:
                    given_until = held[0].time
                    yield held.popleft()
            yield from held
            return
        except LostPicturesError:
            self.end = self._shown_until
        except TruncatedError as error:
            if self._reader.shortfall() is not None:  # the connection broke
                yield from held
                raise
            damage = error
        log.info("%s: not all of it can be decoded; fetching it whole", self.name)
        self._copy = _empty_copy()
        try:
            _fetch(self._url, self.name, self._copy, "its pictures may change their codec")
            self._whole = open_recordings(str(self._copy), self.name, self._sampling)
        except SourceError as error:
            if damage:
                yield from held
            raise damage or TruncatedError(str(error)) from None
        try:
            for frame in self._whole:
                if frame.time > given_until:
                    yield frame
        finally:
            self.end, self.was_cut = self._whole.end, self._whole.was_cut

    def _release(self) -> None:
        super()._release()
        if self._whole:
            self._whole.close()
        if self._copy:
            self._copy.unlink(missing_ok=True)


class FetchedSource(FileSource):
    """A file of a server that cannot send parts of it: fetched whole first, and removed at the end.

    Raises:
        SourceError: larger than FETCHED_BYTES, no room for it, or no video.
    """

    def __init__(self, url: str, name: str, sampling: Sampling) -> None:
        self._copy = _empty_copy()
        try:
            _fetch(url, name, self._copy, "its server sends no parts of files")
            super().__init__(str(self._copy), name, sampling)
        except BaseException:
            self._copy.unlink(missing_ok=True)
            raise

    def sound_pass(
        self, *, first_channel: bool = False
    ) -> Iterator[tuple[float, np.ndarray]] | None:
        return _of_open_file(self._copy.open("rb"), self.name, first_channel=first_channel)

    def text_pass(self) -> Callable[[], InputContainer] | None:
        if not self._reader.has_texts:
            return None
        return partial(open_media, str(self._copy), remote=False)

    def _release(self) -> None:
        super()._release()
        self._copy.unlink(missing_ok=True)


def _of_open_file(
    file: IO[bytes], name: str, *, first_channel: bool
) -> Iterator[tuple[float, np.ndarray]]:
    with file:
        yield from file_sound(file, name, first_channel=first_channel)


def _empty_copy() -> Path:
    """Make the file that a video is fetched into."""
    descriptor, path = tempfile.mkstemp(prefix="streammem-")
    os.close(descriptor)
    return Path(path)


def _fetch(url: str, name: str, path: Path, why: str) -> None:
    """Write what is behind a URL to a file; FFmpeg connects, as it knows how to log in.

    Raises:
        SourceError: larger than FETCHED_BYTES, no room for it, or it breaks off.
    """
    options = REMOTE_OPTIONS | {"raw_packet_size": str(FETCHED_BLOCK)}
    too_large = (
        f"{name}: {why}, and it is larger than "
        f"{FETCHED_BYTES >> 20} MiB; fetch it first, and give the file"
    )
    left = FETCHED_BYTES
    try:
        timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
        with (
            av.open(url, format="data", options=options, timeout=timeout) as container,
            path.open("wb") as file,
        ):
            if container.size > left:
                raise SourceError(too_large)
            for packet in container.demux():
                left -= packet.size
                if left < 0:
                    raise SourceError(too_large)
                file.write(bytes(packet))
    except av.FFmpegError as error:
        text = f"{why}, and its server broke off ({error_text(error)})"
        raise SourceError(f"{name}: {text}") from None
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        text = (error.strerror or "cannot be written").lower()
        raise SourceError(
            f"{name}: must be fetched whole first, into {path.parent}: {text}"
        ) from None


def endless_format(container: InputContainer) -> str | None:
    """Return the format of what is a live stream over HTTP; None for a file."""
    kind = container.format.name.split(",")[0]
    # What states its size is a file, even if its server cannot seek in it.
    is_whole = container.duration is not None or (kind != "hls" and container.size > 0)
    return kind if kind in ENDLESS_FORMATS and not is_whole else None


def open_stream(url: str, kind: str, sampling: Sampling, first: Connection) -> LiveSource:
    """Open a live stream over HTTP: motion JPEG, HLS, MPEG-TS, FLV.

    Args:
        url: with credentials, if it needs them.
        kind: from ``endless_format``.
        sampling: what is wanted.
        first: the connection by which the kind was found.
    """
    name = public_url(url)
    # FFmpeg itself connects again for what states its size only: never here, where that would
    # hide an outage from the stream's time.
    if kind in JPEG_FORMATS:
        by_content = partial(open_by_content, url, name)
        # FFmpeg's own way first: it is connected, and most cameras state their parts correctly.
        feed = Feed(name, by_content, has_sound=False, otherwise=by_content)
        return LiveSource(feed, sampling, opened=first)
    address = _Address(url, name, kind, REMOTE_OPTIONS, STALL_S)
    return LiveSource(Feed(name, address.open), sampling, opened=first)


def _open_motion_jpeg(url: str, name: str, sampling: Sampling, refused: SourceError) -> LiveSource:
    """Open what FFmpeg takes for no video; it may be motion JPEG without the usual headers."""
    try:
        feed = Feed(name, partial(open_by_content, url, name), has_sound=False)
        return LiveSource(feed, sampling)
    except SourceError:
        raise refused from None


def open_webcam(spec: str, sampling: Sampling, platform: str = sys.platform) -> LiveSource:
    """Open ``webcam:N``, ``webcam:`` for the first one, or ``webcam:NAME``.

    Raises:
        SourceError: there is none, or this system's cameras cannot be read.
    """
    which = spec.partition(":")[2] or "0"
    kind, device = _webcam(which, platform)
    opener = _Address(device, spec, kind, {}, STALL_S).open
    return LiveSource(Feed(spec, opener, has_sound=False), sampling)


def open_screen(spec: str, sampling: Sampling, platform: str = sys.platform) -> LiveSource:
    """Open ``screen:``, or ``screen:WHICH`` as the system names it (X11: ``screen::0.1``).

    Raises:
        SourceError: there is none, or this system's screen cannot be read.
    """
    kind, device = _screen(spec.partition(":")[2], platform)
    options = {"framerate": str(DEVICE_FPS)}
    opener = _Address(device, spec, kind, options, STALL_S).open
    return LiveSource(Feed(spec, opener, has_sound=False), sampling)


def open_pipe(spec: str, sampling: Sampling) -> LiveSource:
    """Open standard input (``-``) or a FIFO; what comes is read without loss, as fast as it comes.

    Raises:
        SourceError: what comes is no video, or one that must be sought in, such as most MP4.
    """
    name = "standard input" if spec == "-" else spec
    opener = partial(_open_pipe, spec, name)
    return LiveSource(Feed(name, opener, live=False, again=spec != "-"), sampling)


class Pipe(io.RawIOBase):
    """Standard input or a FIFO as a file whose reads can be given up.

    Args:
        spec: ``-`` or a path.
        stopping: returns whether to give up.
    """

    def __init__(self, spec: str, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        # Opened without waiting for the one who writes; that is what the first read does.
        self._fd = os.dup(0) if spec == "-" else os.open(spec, os.O_RDONLY | os.O_NONBLOCK)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Return what is there, as soon as anything is; nothing at the end."""
        while not self._stopping():
            if select.select([self._fd], [], [], WAIT_SLICE_S)[0]:
                return os.read(self._fd, size if size >= 0 else 1 << 16)
        return b""

    def close(self) -> None:
        """Release it; may be repeated."""
        if not self.closed:
            os.close(self._fd)
        super().close()


class _Address(NamedTuple):
    """What FFmpeg needs to connect."""

    spec: str
    name: str
    kind: str | None
    options: dict[str, str]
    read_timeout_s: float

    def open(self, stopping: Callable[[], bool]) -> Connection:
        timeout = (OPEN_TIMEOUT_S, self.read_timeout_s)
        options = dict(self.options)  # PyAV takes out of it what it used
        try:
            container = av.open(self.spec, format=self.kind, options=options, timeout=timeout)
        except (av.FFmpegError, ValueError) as error:
            text = _advice(error, self.kind)
            if self.spec.lower().startswith("udp:"):
                text = _udp_advice(error)
            raise SourceError(f"{self.name}: {text}") from None
        return Connection(container, choose_stream(container, self.name))


def _open_pipe(spec: str, name: str, stopping: Callable[[], bool]) -> Connection:
    try:
        pipe = Pipe(spec, stopping)
    except OSError as error:
        raise SourceError(f"{name}: {(error.strerror or 'unreadable').lower()}") from None
    try:
        container = av.open(cast(IO[bytes], pipe), "r")
        return Connection(container, choose_stream(container, name), pipe)
    except SourceError:
        pipe.close()
        raise
    except (av.FFmpegError, ValueError) as error:
        pipe.close()
        raise SourceError(
            f"{name}: is no video that can be read as it comes ({error_text(error)}); "
            "send MPEG-TS or Matroska, as ffmpeg -f mpegts does"
        ) from None


def _advice(error: Exception, kind: str | None) -> str:
    reason = error_text(error)
    if isinstance(error, (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)):
        return f"refused us ({reason}); write the URL as scheme://user:password@host/..."
    if isinstance(error, ValueError) and not isinstance(error, av.FFmpegError):
        return f"this FFmpeg cannot read {kind} devices; install an av package that can"
    return f"cannot be opened ({reason}); check that it is on, its address and the rights"


def _udp_advice(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return "nothing comes there; check that it is sent, to this address and port"
    reason = error_text(error)
    return f"cannot be received ({reason}); give an address of this computer, and a free port"


def _webcam(which: str, platform: str) -> tuple[str, str]:
    """Return the device's FFmpeg format and name."""
    if platform == "darwin":
        return "avfoundation", f"{which}:none"
    if platform == "win32":
        return "dshow", f"video={_nth_camera(int(which)) if which.isdigit() else which}"
    return "v4l2", f"/dev/video{which}" if which.isdigit() else which


def _nth_camera(number: int) -> str:
    """DirectShow knows cameras by name only."""
    found = [d for d in av.device.enumerate_input_devices("dshow") if "video" in d.media_types]
    if number >= len(found):
        raise SourceError(f"webcam:{number}: there are {len(found)} cameras; number 0 is the first")
    return str(found[number].description)


def _screen(which: str, platform: str) -> tuple[str, str]:
    if platform == "darwin":
        return "avfoundation", f"Capture screen {which or 0}:none"
    if platform == "win32":
        return "gdigrab", which or "desktop"
    display = which or os.environ.get("DISPLAY", "")
    if not display:
        raise SourceError("screen: no X11 display (DISPLAY is not set); name one, as screen::0")
    return "x11grab", display
