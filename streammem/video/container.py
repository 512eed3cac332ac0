"""Opens media through PyAV, safely; a failure is one line with its reason.

Nothing here decodes. A local file cannot open the network, and a remote one cannot read local
files: either may be a playlist that names others.
"""

import os

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from streammem.errors import SourceError
from streammem.video.pixels import check_size

OPEN_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 20.0  # without any data. A camera may send 1 frame in 10 s
# One thread: perception owns one core and the language model the other. Measured on two busy
# cores, ten minutes of 640x360 H.264 at 1 fps: 8.6 s of CPU with one thread, 11.4 s with frame
# threads on both cores, and the same wall time.
DECODE_THREADS = 1

REMOTE_OPTIONS = {
    "protocol_whitelist": "http,https,httpproxy,tls,tcp,crypto",
    "rw_timeout": str(int(READ_TIMEOUT_S * 1e6)),
    "reconnect": "1",  # a dropped connection goes on where it broke
    "reconnect_delay_max": "4",
}
LOCAL_OPTIONS = {"protocol_whitelist": "file,subfile"}
# Streams that lie beside the video: a cover, previews of its chapters, parts of a picture.
_BESIDE = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_VARIANT = "variant_bitrate"  # in an HLS stream's metadata: bits/s of the variant that holds it
_STILL_CODECS = {"png", "mjpeg", "bmp", "webp"}  # of previews, where another stream is beside
_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}  # demuxers that paint text as pictures


class NoVideoError(SourceError):
    """Something is there, but nothing that FFmpeg takes for a video."""


def open_container(
    spec: str, name: str, *, remote: bool, span: tuple[int, int] | None = None
) -> tuple[InputContainer, VideoStream]:
    """Open a file or URL and choose its video stream.

    Args:
        spec: a path or URL, as FFmpeg is to see it.
        name: what messages call it: without credentials.
        remote: whether ``spec`` is a URL.
        span: the bytes [start, stop) of a file that are meant; None for all.

    Returns:
        The container and its video stream, whose decoder is set to DECODE_THREADS.

    Raises:
        SourceError: it cannot be opened or has no video.
    """
    try:
        if remote:
            timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
            container = av.open(spec, options=dict(REMOTE_OPTIONS), timeout=timeout)
        else:
            container = av.open(local_url(spec, span), options=dict(LOCAL_OPTIONS))
    except (av.FFmpegError, ValueError) as error:
        kind = NoVideoError if isinstance(error, av.error.InvalidDataError) else SourceError
        raise kind(f"{name}: {_reason(error, None if remote or span else spec)}") from None
    return container, choose_stream(container, name)


def local_url(path: str | os.PathLike[str], span: tuple[int, int] | None = None) -> str:
    """Return how FFmpeg is to be given a local file, or the bytes [start, stop) of it."""
    # The prefix keeps a name such as "concat:a|b" or "-" from meaning anything else.
    part = "subfile,,start,{},end,{},,:".format(*span) if span else ""
    return f"{part}file:{os.fspath(path)}"


def choose_stream(container: InputContainer, name: str) -> VideoStream:
    """Choose a container's main video stream and set up its decoder; closes it if there is none.

    The other video streams are not read any more.

    Args:
        container: just opened.
        name: what messages call it.

    Raises:
        SourceError: it has no video.
    """
    try:
        stream = _video_stream(container, name)
    except SourceError:
        container.close()
        raise
    for other in container.streams.video:
        if other is not stream:
            other.discard = Discard.all
    if container.format.name == "hls":  # a variant is fetched as long as anything of it is read
        for sound in container.streams.audio:
            if sound.metadata.get(_VARIANT) != stream.metadata.get(_VARIANT):
                sound.discard = Discard.all
    stream.codec_context.thread_type = "SLICE"
    stream.codec_context.thread_count = DECODE_THREADS
    return stream


def error_text(error: Exception) -> str:
    """Describe a failure of PyAV without the address that it may carry."""
    if isinstance(error, av.error.ExitError):
        return "timed out"
    return (getattr(error, "strerror", None) or type(error).__name__).rstrip(".").lower()


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    if container.format.name in _TEXT_FORMATS:
        raise SourceError(f"{name}: is text, not video; give a video file")
    streams = [s for s in container.streams.video if not s.disposition & _BESIDE]
    if not streams:
        kind = "has sound but no video" if container.streams.audio else "has no video"
        raise SourceError(f"{name}: {kind}; give a file with a video track")
    longest_s = max(_length(stream) or 0.0 for stream in streams)
    stream = max(streams, key=lambda stream: _merits(stream, longest_s))
    context = stream.codec_context
    if context is None:
        raise SourceError(f"{name}: no decoder for its video; convert it to H.264")
    if stream.time_base is None:
        raise SourceError(f"{name}: its video has no time base; convert it to MP4")
    if context.width or context.height:
        check_size(name, context.width, context.height)
    return stream


def _merits(stream: VideoStream, longest_s: float) -> tuple[bool, bool, bool, int, int]:
    """Return what makes a stream the main one: it lasts, is marked, is large; the first of equals.

    A cover, a preview or the still picture before a sequence is a stream of one picture.
    """
    length_s = _length(stream)
    lasts = stream.frames != 1 and (length_s is None or length_s >= longest_s / 2)
    is_default = bool(stream.disposition & Disposition.default)
    context = stream.codec_context
    area = context.width * context.height if context else 0
    is_film = context is not None and context.name not in _STILL_CODECS
    return lasts, is_film, is_default, area, int(stream.metadata.get(_VARIANT, 0))


def _length(stream: VideoStream) -> float | None:
    """Return the seconds that a stream states, if it does."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska states a track's length as a tag, which other programs may have written.
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _reason(error: Exception, path: str | None) -> str:
    if path is not None and _is_mp4(path):
        return (
            "an MP4 or MOV without its index (moov): it looks truncated or unfinished; "
            "let the recording finish, fetch it again, or repair it"
        )
    if isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return "is no video that FFmpeg can read; check that it is complete and not another format"
    return f"cannot be opened ({error_text(error)}); check the address and the rights"


def _is_mp4(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free")
    except OSError:
        return False


def check_file(path: str) -> None:
    """Refuse a path that is no file with something in it.

    Raises:
        SourceError: missing, empty, unreadable or not a regular file.
    """
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SourceError(f"{path}: {reason.lower()}; check the path") from None
    if not os.path.isfile(path):
        raise SourceError(f"{path}: is not a file; give a video, a picture or a folder of pictures")
    if size == 0:
        raise SourceError(f"{path}: is empty (0 bytes); fetch or record it again")
