"""Videos uploaded by clients: bounded in size, checked by content, removed when idle."""

import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
import av

from streammem.errors import SourceError
from streammem.server.limits import Limits
from streammem.server.refused import Refused
from streammem.types import encodable

# Bytes from which the container is recognised. Playlists and lists of files are not accepted: they
# name other places.
HEAD_BYTES = 1024
# Bytes of a packet of an MPEG transport stream, which begins with 0x47: 192 on Blu-ray, 204 with
# error correction.
_PACKETS = (188, 192, 204)
_NUM_PACKETS = 4  # of which this is seen, or three where the file ends


@dataclass(eq=False)
class Upload:
    """A video on disk, under a random file name.

    Attributes:
        id: by which clients name it.
        path: of the file.
        num_bytes: its size, or what is reserved for it.
        touched: monotonic second of its last use.
        users: number of sessions that need it.
        title: its owner's name for it, shown in evidence; never part of a path.
    """

    id: str
    path: Path
    num_bytes: int = 0
    touched: float = 0.0
    users: int = 0
    title: str = ""

    def leave(self) -> None:
        """Note that a session does not need it any more."""
        self.users -= 1
        self.touched = time.monotonic()


class Uploads:
    """The videos of one server, in one folder.

    Args:
        folder: for the files; None makes a temporary one. Only files made here are removed.
        limits: of one video and of all together.
    """

    def __init__(self, folder: Path | None, limits: Limits) -> None:
        self._own = tempfile.mkdtemp(prefix="streammem-") if folder is None else None
        self.folder, self._limits = Path(self._own or str(folder)), limits
        self._kept: dict[str, Upload] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes in use, including those reserved for uploads in progress."""
        return sum(upload.num_bytes for upload in list(self._kept.values()))

    @property
    def free_bytes(self) -> int:
        """Bytes that one more video may have."""
        return min(self._limits.upload_bytes, self._limits.quota_bytes - self.used_bytes)

    def reserve(self, most_bytes: int = 0) -> Upload:
        """Reserve space for a video.

        Args:
            most_bytes: to reserve; less where less is free.

        Raises:
            Refused: the quota is used up.
        """
        if self.free_bytes <= 0:
            raise Refused(413, "no room for uploads is left; delete some")
        name = secrets.token_urlsafe(16)
        path = self.folder / f"streammem-{name}"
        upload = Upload(name, path, min(most_bytes, self.free_bytes), time.monotonic())
        self._kept[name] = upload
        return upload

    async def receive(self, blocks: AsyncIterator[bytes]) -> Upload:
        """Write a video as it arrives; it is removed if it is refused.

        Raises:
            Refused: too large, no video, or idle in between for so long that it was removed.
        """
        upload = self.reserve()
        try:
            with upload.path.open("wb") as file:
                async for block in blocks:
                    self.get(upload.id)  # it is not idle; one that was removed is refused
                    left = self._limits.upload_bytes - upload.num_bytes
                    if len(block) > min(left, self.free_bytes):
                        raise Refused(413, "the video is larger than uploads may be")
                    file.write(block)
                    upload.num_bytes += len(block)
            await anyio.to_thread.run_sync(check_video, upload.path)
        except OSError as error:
            self.remove(upload.id)
            if error.errno == errno.ENOSPC:
                raise Refused(507, "the server's disk is full; try later") from error
            raise
        except BaseException:
            self.remove(upload.id)
            raise
        return upload

    def adopt(self, path: Path) -> Upload:
        """Keep a video that is a file here: as a link, or as a copy where that cannot be.

        Raises:
            Refused: too large, no video, or it cannot be written.
        """
        check_video(path)
        num_bytes = path.stat().st_size
        if num_bytes > self.free_bytes:
            raise Refused(413, "the video is larger than uploads may be")
        upload = self.reserve(num_bytes)
        upload.title = encodable(path.name)
        try:
            try:
                os.link(path, upload.path)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, upload.path)
        except OSError as error:
            self.remove(upload.id)
            raise Refused(507, f"the video cannot be kept: {error.strerror}") from error
        return upload

    def get(self, name: str) -> Upload:
        """Return an upload.

        Raises:
            Refused: there is none of that id.
        """
        if name not in self._kept:
            raise Refused(404, "no such upload")
        self._kept[name].touched = time.monotonic()
        return self._kept[name]

    def remove(self, name: str) -> None:
        """Remove an upload, if it exists; sessions that read it continue to its end."""
        if upload := self._kept.pop(name, None):
            upload.path.unlink(missing_ok=True)

    def expire(self, idle_s: float) -> None:
        """Remove uploads that no session reads and that were not used for ``idle_s`` seconds."""
        now = time.monotonic()
        for upload in list(self._kept.values()):
            if not upload.users and now - upload.touched > idle_s:
                self.remove(upload.id)

    def close(self) -> None:
        """Remove everything."""
        for name in list(self._kept):
            self.remove(name)
        if self._own:
            shutil.rmtree(self._own, ignore_errors=True)


def check_video(path: Path) -> None:
    """Check that a file is a video in a single container.

    Raises:
        Refused: it is not.
    """
    with path.open("rb") as file:
        kind = container_of(file.read(HEAD_BYTES))
    if kind is None:
        raise Refused(415, "not a video: MP4, MOV, Matroska, WebM, AVI and MPEG-TS are taken")
    try:
        options = {"protocol_whitelist": "file"}
        with av.open(str(path), format=kind, options=options) as container:
            if not container.streams.video:
                raise Refused(415, "the file holds no video")
    except (av.FFmpegError, ValueError, SourceError) as error:
        raise Refused(415, f"the file cannot be read as {kind}; it may be damaged") from error


def container_of(head: bytes) -> str | None:
    """Recognise a container by a file's first kilobyte: FFmpeg's name of it, None if unknown."""
    if head[4:8] == b"ftyp" or head[4:8] in (b"moov", b"mdat", b"wide"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    # A recording may begin within a packet.
    for size in _PACKETS:
        for first in range(size):
            signs = head[first::size][:_NUM_PACKETS]
            if len(signs) > 2 and set(signs) == {0x47}:
                return "mpegts"
    return None
