"""The kinds of source, one row each; opening, help, the docs' table and exit codes follow them.

    >>> kind_of("rtsp://camera/1").name
    'rtsp'
    >>> with open_source("kitchen.mp4", fps=2) as source:
    ...     times = [frame.time for frame in source]

What decodes is imported when a source is opened, so that help needs none of it.
"""

import logging
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from streammem.errors import ConfigError
from streammem.video.address import check_no_address, split_address
from streammem.video.source import Decoder, SourceOptions, VideoSource

log = logging.getLogger(__name__)

Spec = str | os.PathLike[str] | Iterable[Any]
PICTURE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jp2", ".j2k", ".heic", ".heif", ".hif"),
}


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of source.

    Attributes:
        name: one word.
        opener: ``module:callable`` below ``streammem.video``; it takes a spec of this kind
            (a path as a string) and ``SourceOptions``, and returns a ``VideoSource`` or raises
            ``SourceError``.
        help: how a spec is written; empty for what only a program can give.
        finite: whether its end is known from the start, so that breaking off is a failure (exit
            code 1). Of HTTP nothing is known before it is open.
        schemes: a spec that begins with one of them and a colon is of this kind.
        reads: whether another spec is of this kind.
        decoders: of its video.
        remarks: for the docs' table.
    """

    name: str
    opener: str
    help: str
    finite: bool = False
    schemes: tuple[str, ...] = ()
    reads: Callable[[Any], bool] = lambda spec: False
    decoders: tuple[Decoder, ...] = ("pyav",)
    remarks: str = ""

    def open(self, spec: str | Iterable[Any], options: SourceOptions) -> VideoSource:
        """Open a spec of this kind.

        Raises:
            ConfigError: it cannot be decoded by the reader that is asked for.
            SourceError: it cannot be opened.
        """
        if options.reader not in self.decoders:
            raise ConfigError(f"the reader {options.reader} reads video files only; leave it out")
        module, _, name = self.opener.partition(":")
        opener = getattr(import_module(f"streammem.video.{module}"), name)
        opened: VideoSource = opener(spec, options)
        opened.finite, opened.reconnect = self.finite, options.reconnect
        opened.path = str(spec) if self.name == "file" else None
        log.info("%s: opened (%s)", opened.name, self.name)
        return opened


def _is_picture(spec: Any) -> bool:
    return Path(spec).suffix.lower() in PICTURE_SUFFIXES


def _is_pipe(spec: Any) -> bool:
    try:
        return bool(spec == "-") or stat.S_ISFIFO(os.stat(spec).st_mode)
    except (OSError, ValueError):
        return False


def _is_object(spec: Any) -> bool:
    return not isinstance(spec, str)


# The more general of two kinds stands first: specs are compared from the last row to the first.
SOURCES: tuple[SourceKind, ...] = (
    SourceKind(
        "file",
        "file:open_file",
        "video file",
        finite=True,
        reads=lambda path: True,
        decoders=("pyav", "decord"),
        remarks="recordings pasted into one file are all read",
    ),
    SourceKind("picture", "pictures:open_picture", "picture", finite=True, reads=_is_picture),
    SourceKind(
        "folder",
        "pictures:open_folder",
        "folder of pictures",
        finite=True,
        reads=os.path.isdir,
        remarks="in natural order, one a second or `--fps`",
    ),
    SourceKind(
        "http",
        "cameras:open_url",
        "URL (http, https)",
        schemes=("http", "https"),
        remarks="motion JPEG, HLS, MPEG-TS, FLV, or a file; see below",
    ),
    SourceKind(
        "rtsp",
        "cameras:open_rtsp",
        "camera (rtsp, rtsps, rtsp+udp)",
        schemes=("rtsp", "rtsps", "rtsp+udp"),
        remarks="over TCP; `rtsp+udp` only where you have a reason",
    ),
    SourceKind(
        "rtmp",
        "cameras:open_rtmp",
        "stream (rtmp, rtmps)",
        schemes=("rtmp", "rtmps"),
        remarks="that a server plays; streams are not received from one who publishes",
    ),
    SourceKind(
        "udp",
        "cameras:open_udp",
        "udp://ADDRESS:PORT",
        schemes=("udp",),
        remarks="MPEG-TS that is sent to this computer (`udp://0.0.0.0:5000`) or to a group",
    ),
    SourceKind(
        "webcam",
        "cameras:open_webcam",
        "webcam:N",
        schemes=("webcam",),
        remarks="or `webcam:NAME`; V4L2 on Linux, AVFoundation on macOS, DirectShow on Windows",
    ),
    SourceKind(
        "screen",
        "cameras:open_screen",
        "screen:",
        schemes=("screen",),
        remarks="or `screen::0.1`; X11, AVFoundation, GDI",
    ),
    SourceKind(
        "growing",
        "growing:open_growing",
        "growing:FOLDER",
        schemes=("growing",),
        remarks="pictures or videos, each read once, when it was not written to for 2 s, whatever "
        "its date; what is added later is read on",
    ),
    SourceKind(
        "concat",
        "concat:ConcatSource",
        "concat:LIST",
        finite=True,
        schemes=("concat",),
        decoders=("pyav", "decord"),
        remarks="video files, one path a line, played as one film",
    ),
    SourceKind(
        "pipe",
        "cameras:open_pipe",
        "a FIFO, or - for standard input",
        reads=_is_pipe,
        remarks="MPEG-TS or Matroska; read without loss",
    ),
    SourceKind(
        "frames",
        "frames:PushedSource",
        "",
        finite=True,
        reads=_is_object,
        remarks="any iterable of arrays or `Frame`s",
    ),
)


def open_source(
    spec: Spec,
    *,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    max_side: int | None = None,
    sparse: bool = False,
    reader: Decoder = "pyav",
    reconnect: bool = False,
) -> VideoSource:
    """Open a video file, picture, folder of pictures, camera, pipe, or an iterable of frames.

    Args:
        spec: path, URL (http, https, rtsp, rtsps, rtsp+udp, rtmp, rtmps, udp), ``webcam:N``,
            ``screen:``, ``-`` or a FIFO, ``growing:FOLDER`` to which files are added,
            ``concat:LIST`` of videos, or iterable of [H, W, 3] uint8 RGB arrays or `Frame`s.
        fps: samples a second: sample k is the first frame at or after ``start + k / fps``, given
            with its own time; each frame at most once. None gives every frame. For a folder and
            for arrays it is their own rate instead (a folder's default is one picture a second).
        start: seconds, >= 0; of a file on its own clock, as players show it. Of files and pictures,
            one that stays on screen then is given, from there on.
        end: seconds, > start; frames at or after it are left out.
        max_side: pixels to which the longer side is shrunk, never enlarged.
        sparse: keyframes only, the first of each 1 / fps seconds: about ten times cheaper.
        reader: ``pyav``, or ``decord`` (files only; needs the extra of that name).
        reconnect: a live source that is lost is opened again, instead of ending.

    Returns:
        The source, to be read once.

    Raises:
        ConfigError: an option or spec that means nothing; nothing was opened.
        SourceError: it cannot be opened, or holds no picture.
        BackboneError: decord is asked for and not installed.
    """
    options = SourceOptions(
        fps=fps,
        start=start,
        end=end,
        max_side=max_side,
        sparse=sparse,
        reader=reader,
        reconnect=reconnect,
    )
    return open_with(spec, options)


def open_with(spec: Spec, options: SourceOptions) -> VideoSource:
    """Open a source; see ``open_source``."""
    spec = _as_text(spec)
    return kind_of(spec).open(spec, options)


def kind_of(spec: Spec) -> SourceKind:
    """Return the kind of a spec; nothing is opened.

    Raises:
        ConfigError: neither path, known URL nor iterable, or an address that cannot be read.
    """
    if not isinstance(spec, str | os.PathLike | Iterable) or isinstance(spec, bytes):
        name = type(spec).__name__
        raise ConfigError(f"a source cannot be a {name}; give a path, a URL or frames")
    spec = _as_text(spec)
    scheme, _, rest = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    known = [name for kind in SOURCES for name in kind.schemes]
    if rest.startswith("//") and scheme.lower() not in known:
        names = ", ".join(f"{name}:" for name in known)
        raise ConfigError(f"no source is read from {scheme.lower()}://; known are paths, {names}")
    rows = reversed(SOURCES)
    found = next(kind for kind in rows if scheme.lower() in kind.schemes or kind.reads(spec))
    # Before anything names it: of an address that cannot be read, no part may be shown.
    if found.name == "udp" and rest.lstrip("/@").startswith(":"):
        raise ConfigError("udp: names no address; write udp://0.0.0.0:5000, or udp://GROUP:PORT")
    if found.name in ("http", "rtsp", "rtmp", "udp"):
        split_address(str(spec))
    elif isinstance(spec, str) and found.name not in ("webcam", "screen"):
        check_no_address(spec)
    return found


def _as_text(spec: Spec) -> str | Iterable[Any]:
    return os.fspath(spec) if isinstance(spec, os.PathLike) else spec


def sources_help() -> str:
    """List how sources are written, for ``--help``."""
    return ", ".join(kind.help for kind in SOURCES if kind.help)


def sources_table() -> str:
    """Return the docs' table of sources, in Markdown."""
    rows = ["| source | kind | what breaks off | remarks |", "| --- | --- | --- | --- |"]
    for kind in SOURCES:
        end = "fails (exit code 1)" if kind.finite else "is reported"
        rows.append(
            f"| {kind.help or 'frames, from Python'} | {kind.name} | {end} | {kind.remarks} |"
        )
    return "\n".join(rows) + "\n"
