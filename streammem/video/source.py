"""One protocol for all video sources, and the one place that opens them.

How each kind is read stands in its own module.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from streammem.errors import ConfigError
from streammem.types import Frame
from streammem.video import cameras
from streammem.video.container import check_file, open_container, public_url
from streammem.video.decord_file import DecordSource
from streammem.video.file import FileSource
from streammem.video.frames import PushedSource
from streammem.video.growing import GrowingFolder
from streammem.video.pictures import SUFFIXES, open_folder, open_picture
from streammem.video.sampling import Sampling
from streammem.video.single_pass import SinglePass

Spec = str | os.PathLike[str] | Iterable
Reader = Literal["pyav", "decord"]


class VideoSource(Protocol):
    """Frames of a video, once, in order, sampled; the source is a context manager.

    A source that may wait for its next frame also has ``stop``, ``live`` and ``reconnect`` (see
    ``SinglePass``), and may have ``notices`` and ``wall_zero`` (see ``LiveSource``).

    Attributes:
        name: what evidence calls it: path or URL without credentials.
        duration: seconds, if known beforehand.
        end: seconds; None until all frames were given, then the last decoded frame's time + its
            duration, at most the sampling's end.
    """

    name: str
    duration: float | None
    end: float | None

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:
        """Release the source; may be repeated, and by no other thread than the one that reads."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_source(  # noqa: PLR0913, the options of one call, each independent
    spec: Spec,
    *,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    max_side: int | None = None,
    sparse: bool = False,
    reader: Reader = "pyav",
    reconnect: bool = False,
) -> VideoSource:
    """Open a video file, picture, folder of pictures, camera, pipe, or an iterable of frames.

    Args:
        spec: path, URL (http, https, rtsp, rtsps, rtsp+udp), ``webcam:N``, ``screen:``, ``-`` or
            a FIFO, ``growing:FOLDER`` to which files are added, or iterable of [H, W, 3] uint8
            RGB arrays or `Frame`s.
        fps: samples a second: sample k is the first frame at or after ``start + k / fps``, given
            with its own time; each frame at most once. None gives every frame. For a folder and
            for arrays it is their own rate instead (a folder's default is one picture a second).
        start: seconds from the first frame, >= 0.
        end: seconds, > start; frames at or after it are left out.
        max_side: pixels to which the longer side is shrunk, never enlarged.
        sparse: keyframes only, the first of each 1 / fps seconds: about ten times cheaper.
        reader: ``pyav``, or ``decord`` (files only; needs the extra of that name).
        reconnect: a live source that is lost is awaited, instead of ending with it.

    Returns:
        The source, to be read once.

    Raises:
        ConfigError: an option or kind of spec that cannot be meant; nothing was opened.
        SourceError: it cannot be opened, or holds no picture.
        BackboneError: decord is asked for and not installed.
    """
    sampling = Sampling(fps=fps, start=start, end=end, max_side=max_side, sparse=sparse)
    if reader not in _READERS:
        raise ConfigError(f"no reader {reader!r}; choose one of {', '.join(_READERS)}")
    kind = kind_of(spec)
    if reader != "pyav" and kind != "file":
        raise ConfigError(f"the reader {reader} reads video files only; leave it out")
    opened = _OPENERS[kind](spec, sampling, reader)
    if reconnect and isinstance(opened, SinglePass):
        opened.reconnect = True
    return opened


def kind_of(spec: Spec) -> str:
    """Return the key of the opener for a spec: ``frames``, ``folder``, ... or a scheme with colon.

    Raises:
        ConfigError: neither path, known URL nor iterable.
    """
    if not isinstance(spec, str | os.PathLike):
        if isinstance(spec, Iterable) and not isinstance(spec, bytes):
            return "frames"
        kind = type(spec).__name__
        raise ConfigError(f"a source cannot be a {kind}; give a path, a URL or frames")
    text = os.fspath(spec)
    if text == "-" or cameras.is_fifo(text):
        return "pipe"
    scheme, _, rest = text.partition(":")
    scheme = scheme.lower() + ":"
    if scheme in _OPENERS:
        return scheme
    if rest.startswith("//"):
        known = ", ".join(key for key in _OPENERS if key.endswith(":"))
        raise ConfigError(f"no source is read from {scheme}//; known are paths, {known}")
    if os.path.isdir(text):
        return "folder"
    return "picture" if Path(text).suffix.lower() in SUFFIXES else "file"


def _open_frames(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    return PushedSource(spec, sampling)


def _open_folder(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    return open_folder(Path(spec), sampling)


def _open_picture(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    check_file(os.fspath(spec))
    return open_picture(Path(spec), sampling)


def _open_file(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    path = os.fspath(spec)
    check_file(path)
    return _READERS[reader](path, path, sampling)


def _open_pipe(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    return cameras.open_pipe(os.fspath(spec), sampling)


def _open_rtsp(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    return cameras.open_rtsp(spec, sampling)


def _open_webcam(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    return cameras.open_webcam(spec, sampling)


def _open_screen(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    return cameras.open_screen(spec, sampling)


def _open_growing(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    return GrowingFolder(Path(spec.partition(":")[2]), sampling)


def _open_url(spec: Any, sampling: Sampling, reader: str) -> VideoSource:
    # What is behind it shows once it is open, and a silent server is waited for once.
    name = public_url(spec)
    opened = open_container(spec, name, remote=True)
    if kind := cameras.endless_format(opened[0]):
        return cameras.open_stream(spec, kind, sampling, cameras.Connection(*opened))
    return FileSource(spec, name, sampling, remote=True, opened=opened)


_READERS: dict[str, Callable[[str, str, Sampling], VideoSource]] = {
    "pyav": FileSource,
    "decord": DecordSource,
}
# Kind of spec to opener; a key with a colon is a scheme.
_OPENERS: dict[str, Callable[[Any, Sampling, str], VideoSource]] = {
    "frames": _open_frames,
    "folder": _open_folder,
    "picture": _open_picture,
    "file": _open_file,
    "http:": _open_url,
    "https:": _open_url,
    "rtsp:": _open_rtsp,
    "rtsps:": _open_rtsp,
    "rtsp+udp:": _open_rtsp,
    "webcam:": _open_webcam,
    "screen:": _open_screen,
    "growing:": _open_growing,
    "pipe": _open_pipe,
}
