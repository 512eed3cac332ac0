"""Clips of the videos that sessions watch, where these are files; one is cut at a time."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread

from streammem.server.limits import Limits
from streammem.server.refused import Refused
from streammem.server.room import Room
from streammem.server.uploads import Upload, Uploads
from streammem.video.cut import cut

BLOCK = 1 << 16


class Clips:
    """Cuts clips into the uploads' folder and within their quota.

    Args:
        uploads: of the server.
        limits: clips that wait are bounded as questions are.
    """

    def __init__(self, uploads: Uploads, limits: Limits) -> None:
        self._uploads, self._most = uploads, limits.questions_waiting
        self._knife = anyio.CapacityLimiter(1)

    async def cut(self, room: Room, start: float, end: float) -> Upload:
        """Cut a clip; ``remove`` it when it was sent.

        Args:
            room: whose video.
            start: seconds in it.
            end: seconds in it.

        Raises:
            Refused: no video is at hand, or too much waits.
            ConfigError, SourceError: see ``video.cut``.
        """
        file = room.plan.file
        if file is None:
            raise Refused(404, "no video is at hand here, only captions and keyframes")
        if not file.is_file():
            raise Refused(410, "the video is not kept any more, only captions and keyframes")
        if self._knife.statistics().tasks_waiting >= self._most:
            raise Refused(429, "several clips are being cut already", retry_s=5)
        upload = self._uploads.reserve(file.stat().st_size)
        try:
            source = room.plan.source
            await anyio.to_thread.run_sync(
                _cut, file, start, end, upload, source, limiter=self._knife
            )
        except BaseException:
            self.remove(upload)
            raise
        return upload

    def remove(self, clip: Upload) -> None:
        """Remove a clip."""
        self._uploads.remove(clip.id)

    async def blocks(self, clip: Upload) -> AsyncIterator[bytes]:
        """Give a clip's content, and remove it, also if whoever reads leaves."""
        try:
            async with await anyio.open_file(clip.path, "rb") as file:
                while block := await file.read(BLOCK):
                    yield block
        finally:
            self.remove(clip)


def _cut(file: Path, start: float, end: float, clip: Upload, name: str) -> None:
    with clip.path.open("w+b") as out:
        cut(file, start, end, out, name)
        clip.num_bytes = out.seek(0, 2)
