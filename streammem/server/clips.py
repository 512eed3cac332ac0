"""Clips of video files that sessions watch; one is cut at a time."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread

from streammem.server.limits import Limits
from streammem.server.refused import Refused
from streammem.server.session_host import SessionHost
from streammem.server.uploads import Upload, Uploads
from streammem.video.cut import cut

BLOCK = 1 << 16


class Clips:
    """Cuts clips into the uploads' folder and within their quota.

    Args:
        uploads: of the server.
        limits: ``questions_waiting`` also bounds the clips that wait.
    """

    def __init__(self, uploads: Uploads, limits: Limits) -> None:
        self._uploads, self._most = uploads, limits.questions_waiting
        self._knife = anyio.CapacityLimiter(1)

    async def cut(self, host: SessionHost, start: float, end: float) -> Upload:
        """Cut a clip; ``remove`` it once it was sent.

        Args:
            host: of the session that watches the video.
            start: seconds in the video.
            end: seconds in the video.

        Raises:
            Refused: the source is no file or is gone, or too many clips wait.
            ConfigError, SourceError: see ``video.cut``.
        """
        file = host.plan.file
        if file is None:
            raise Refused(404, "no video is at hand here, only captions and keyframes")
        if not file.is_file():
            raise Refused(410, "the video is not kept any more, only captions and keyframes")
        if self._knife.statistics().tasks_waiting >= self._most:
            raise Refused(429, "several clips are being cut already", retry_s=5)
        upload = self._uploads.reserve(file.stat().st_size)
        try:
            source = host.plan.source
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
        """Yield a clip's content and remove the clip, also if the reader stops early."""
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
