"""Clips of video files that sessions watch; one is cut at a time."""

import hashlib
from pathlib import Path

import anyio
import anyio.to_thread
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from streammem.server.limits import Limits
from streammem.server.refused import Refused
from streammem.server.session_host import SessionHost
from streammem.server.uploads import Upload, Uploads
from streammem.video.cut import cut


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

    async def reply(self, host: SessionHost, start: float, end: float) -> FileResponse:
        """Cut a clip and reply with it, or with the range of it that is asked for; see ``cut``."""
        clip = await self.cut(host, start, end)
        # Cut again, the same span of the same file is the same: a player that asks for one range
        # after the other may join them.
        stamp = f"{host.path} {start} {end} {clip.num_bytes}"
        tag = hashlib.blake2b(stamp.encode(), digest_size=12).hexdigest()
        return _ClipResponse(self, clip, {"etag": f'"{tag}"', "accept-ranges": "bytes"})


class _ClipResponse(FileResponse):
    """A clip that is removed once it was sent, also if the reader stops early."""

    def __init__(self, clips: Clips, clip: Upload, headers: dict[str, str]) -> None:
        super().__init__(clip.path, headers=headers, media_type="video/mp4")
        self._clips, self._clip = clips, clip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._clips.remove(self._clip)


def _cut(file: Path, start: float, end: float, clip: Upload, name: str) -> None:
    with clip.path.open("w+b") as out:
        cut(file, start, end, out, name)
        clip.num_bytes = out.seek(0, 2)
