"""Videos that chat messages name: each is watched once, and asked from then on.

    async with sessions.videos.watched("file:///films/a.mp4") as host:
        answer = await host.answer("When does the dog swim?", alone=True)

A video is known by its content, so that it is watched once under whatever name it comes. What was
watched stays open as a session; the one that was asked longest ago makes place for another.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio.to_thread

from streammem.server import addresses
from streammem.server.limits import ServerConfig
from streammem.server.refused import Refused
from streammem.server.session_host import SessionHost
from streammem.server.uploads import Upload, Uploads, check_video
from streammem.video.address import public_url

if TYPE_CHECKING:
    from streammem.server.sessions import Sessions

UPLOAD = "upload:"
TOUCHED_S = 5.0  # between notes that a video which is being watched is still wanted
MOST_KNOWN = 1024  # addresses, and files, whose content is known
BLOCK = 1 << 20


class VideoFile(NamedTuple):
    """A video on disk.

    Attributes:
        path: of the file.
        name: as evidence calls it.
        upload: that holds it, if one does; ``owned`` if it was downloaded for this.
    """

    path: Path
    name: str
    upload: Upload | None = None
    owned: bool = False


@dataclass(eq=False)
class _Wanted:
    """A video that requests wait for, or ask.

    Attributes:
        task: opens it.
        users: requests that wait for it or ask it.
        id_: of its session; empty until that is known.
    """

    task: "asyncio.Task[str]"
    users: int = 0
    id_: str = ""


class ChatVideos:
    """The videos of one server's chat messages. Used in the event loop only.

    Args:
        sessions: that watch them.
        uploads: of the server; downloads lie there, too, and count against its quota.
        config: of the server.
    """

    def __init__(self, sessions: "Sessions", uploads: Uploads, config: ServerConfig) -> None:
        self._sessions, self._uploads, self._config = sessions, uploads, config
        self._limits = config.limits
        self._wanted: dict[str, _Wanted] = {}  # by address
        self._ids: dict[str, str] = {}  # of sessions, by content
        self._contents: OrderedDict[str, str] = OrderedDict()  # by address of the web
        self._files: OrderedDict[tuple[str, int, int], str] = OrderedDict()  # content, by file
        self._closed = False
        self._changed = asyncio.Event()  # of this change; the next has another
        self._opening = asyncio.Lock()  # one session is opened at a time
        self._asking = asyncio.Semaphore(self._limits.questions_waiting)

    @asynccontextmanager
    async def watched(self, url: str) -> AsyncIterator[SessionHost]:
        """Give the host of a session that has watched a video to its end.

        Args:
            url: http or https of an allowed host, a file below an allowed folder, or ``upload:ID``.

        Raises:
            Refused, SourceError: it may not be opened, is no video, or too many requests wait.
        """
        if sum(wanted.users for wanted in self._wanted.values()) >= self._limits.videos_waiting:
            raise Refused(429, "too many messages with videos wait already", retry_s=30)
        wanted = self._wanted.get(url)
        if wanted is None:
            wanted = self._wanted[url] = _Wanted(asyncio.ensure_future(self._open(url)))
            wanted.task.add_done_callback(partial(self._leave, url))
        wanted.users += 1
        try:
            # It goes on when its client leaves: a later try finds the video open.
            host = self._sessions.host(await asyncio.shield(wanted.task))
            while not host.events.over:
                host.touch()
                await host.events.take(host.events.count, TOUCHED_S)
            async with self._asking:
                yield host
        finally:
            wanted.users -= 1
            self._leave(url, wanted.task)
            self._wake()

    async def close(self) -> None:
        """End what is being opened; a download ends with its next block."""
        self._closed = True
        self._wake()
        tasks = [wanted.task for wanted in self._wanted.values()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        """Let those that wait for a place look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _leave(self, url: str, task: "asyncio.Task[str]") -> None:
        """Forget an address that no request waits for any more."""
        wanted = self._wanted.get(url)
        if task.done() and not task.cancelled():
            task.exception()  # the clients that it concerns may have left
        if wanted and wanted.task is task and task.done() and not wanted.users:
            del self._wanted[url]

    async def _open(self, url: str) -> str:
        # 1. Its file, and what is in it. An address is downloaded once while its video is open.
        if known := self._open_session(self._contents.get(url)):
            return self._noted(url, known)
        video = await self._file_of(url)
        try:
            content = await self._content_of(video.path)
            # 2. The session that has it open, or a new one once there is a place.
            if known := self._open_session(content):
                return self._noted(url, known, content)
            async with self._opening:
                while not self._has_place(content):
                    await self._changed.wait()
                if self._closed:
                    raise Refused(410, "the server ends")
                if known := self._open_session(content):
                    return self._noted(url, known, content)
                await self._make_place()
                upload, video = video.upload, video._replace(upload=None)  # now the session's
                release = partial(self._release, upload, owned=video.owned) if upload else None
                id_ = await self._sessions.open_video(video.name, video.path, release)
                self._ids[content] = id_
                return self._noted(url, id_, content)
        finally:
            if video.upload:
                self._release(video.upload, owned=video.owned)

    def _release(self, upload: Upload, *, owned: bool) -> None:
        if owned:
            self._uploads.remove(upload.id)
        else:
            upload.leave()

    def _noted(self, url: str, id_: str, content: str | None = None) -> str:
        """Note the session of an address, so that it is not closed before it is asked."""
        self._wanted[url].id_ = id_
        if content and not url.startswith((addresses.FILE, UPLOAD)):  # a file may change
            self._contents[url] = content
            while len(self._contents) > MOST_KNOWN:
                self._contents.popitem(last=False)
        return id_

    def _open_session(self, content: str | None) -> str | None:
        """Return the session that has a video open; None where none has, or where it failed."""
        id_ = self._ids.get(content or "")
        host = self._sessions.hosts().get(id_ or "")
        return id_ if host is not None and host.state not in ("failed", "closed") else None

    def _open_ids(self) -> list[str]:
        hosts = self._sessions.hosts()
        self._ids = {content: id_ for content, id_ in self._ids.items() if id_ in hosts}
        return list(self._ids.values())

    def _idle(self) -> list[str]:
        """Return the sessions of videos that no request waits for or asks."""
        used = {wanted.id_ for wanted in self._wanted.values() if wanted.users}
        return [id_ for id_ in self._open_ids() if id_ not in used]

    def _is_free(self) -> bool:
        return len(self._open_ids()) < self._limits.videos and self._sessions.has_place()

    def _has_place(self, content: str) -> bool:
        """Return whether a video is open, or another may be opened, or refused, without waiting."""
        known = self._open_session(content) is not None
        return (
            self._closed or known or self._is_free() or bool(self._idle()) or not self._open_ids()
        )

    async def _make_place(self) -> None:
        """Close the video that was asked longest ago, where every place is taken."""
        if not self._is_free() and (idle := self._idle()):
            hosts = self._sessions.hosts()
            with suppress(Refused):  # it was closed meanwhile
                await self._sessions.close_session(min(idle, key=lambda id_: hosts[id_].touched))

    async def _file_of(self, url: str) -> VideoFile:
        """Return a video's file; one of the web is downloaded from the address that was checked."""
        config = self._config
        if url.startswith(addresses.FILE):
            path = await anyio.to_thread.run_sync(addresses.check_allowed_file, url, config.files)
            await anyio.to_thread.run_sync(check_video, path)
            return VideoFile(path, path.name)
        if url.startswith(UPLOAD):
            upload = self._uploads.get(url.removeprefix(UPLOAD))
            upload.users += 1
            return VideoFile(upload.path, upload.title or url, upload)
        target = await anyio.to_thread.run_sync(addresses.check_url, url, config.allowed)
        if target.parts.scheme in addresses.LIVE:
            raise Refused(422, "video_url: a live source has no end; open a session on it")
        place = self._uploads.reserve(config.limits.upload_bytes)
        place.users += 1
        try:
            fetch = partial(
                addresses.fetch, target, place.path, place.num_bytes, lambda: self._closed
            )
            await anyio.to_thread.run_sync(fetch)
            place.num_bytes = place.path.stat().st_size
            await anyio.to_thread.run_sync(check_video, place.path)
        except BaseException:
            self._uploads.remove(place.id)
            raise
        return VideoFile(place.path, public_url(url), place, owned=True)

    async def _content_of(self, path: Path) -> str:
        """Return a digest of a file; one that has not changed is read once."""
        found = path.stat()
        key = (str(path), found.st_size, found.st_mtime_ns)
        if key not in self._files:
            self._files[key] = await anyio.to_thread.run_sync(_digest, path)
            while len(self._files) > MOST_KNOWN:
                self._files.popitem(last=False)
        return self._files[key]


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
