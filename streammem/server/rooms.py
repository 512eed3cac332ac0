"""The sessions and memories of one server: opened, found by name, closed when nobody asks."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import anyio
import anyio.to_thread

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch_options import WatchOptions
from streammem.memory.folder import DATABASE, is_memory
from streammem.models.protocols import StreamModel
from streammem.server import addresses
from streammem.server.clips import Clips
from streammem.server.counters import Counters
from streammem.server.inbox import Inbox
from streammem.server.limits import ServerConfig
from streammem.server.refused import Refused
from streammem.server.room import Plan, Room
from streammem.server.shared import share
from streammem.server.uploads import Uploads, check_video
from streammem.types import Event
from streammem.video import SourceOptions, VideoSource, open_with
from streammem.video.container import public_url

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
UPLOAD = "upload:"
STOP_S = 20.0  # for what is open to be closed and said
SWEEP_S = 5.0
TRUSTED = WatchOptions(stats_s=10.0)
RECONNECTING = SourceOptions(reconnect=True)

Opener = Callable[[Callable[[], bool]], VideoSource]


class Outlet(Protocol):
    """Where the events of the operator's own sources go besides; it never holds them up."""

    def send(self, event: Event, more: Mapping[str, object]) -> object: ...

    def close(self) -> object: ...


class _Source(NamedTuple):
    """What a session is to watch; ``release`` is called when it is not needed any more.

    ``file``: where it lies, if it is one video that clips may be cut from.
    """

    name: str
    open: Opener
    file: Path | None = None
    release: Callable[[], object] | None = None
    inbox: Inbox | None = None


@dataclass(eq=False)
class _Opened:
    room: Room
    stamp: tuple[float, ...] = ()
    task: asyncio.Task[None] | None = field(default=None)
    telling: asyncio.Task[None] | None = field(default=None)
    stays: bool = False  # however long nobody asks


class Rooms:
    """All that clients of one server may ask. Used in the event loop only.

    Args:
        model: shared by all sessions.
        session: options of every session.
        config: of the server.

    Attributes:
        outlet: opens, for each of the operator's own sources, where its events go besides.
    """

    def __init__(self, model: StreamModel, session: SessionConfig, config: ServerConfig) -> None:
        self.config, self.counters = config, Counters()
        self.model, self.scheduler = share(model, self.counters.batched)
        self.uploads = Uploads(config.uploads, config.limits)
        self.clips = Clips(self.uploads, config.limits)
        self.outlet: Callable[[str], Outlet] | None = None
        self._session = session
        self._sessions: dict[str, _Opened] = {}
        self._memories: dict[str, _Opened] = {}
        places = config.limits.sessions + config.limits.memories
        self._opening = asyncio.Lock()
        self._threads = anyio.CapacityLimiter(2 * places)  # those that end count too

    # -- sessions --

    async def open(
        self,
        source: str | None,
        options: WatchOptions,
        memory: str | None = None,
        *,
        source_options: SourceOptions = RECONNECTING,
    ) -> str:
        """Open a session on a source that a client names, and return its id.

        Args:
            source: a URL, ``upload:ID``, or None for pictures that are pushed.
            options: how it is watched.
            memory: name of the memory in which it is kept; None for none.
            source_options: how it is opened.

        Raises:
            Refused, ConfigError, SourceError, StoreError: why not.
        """
        self._check_place()
        if source is None:
            limits = self.config.limits
            inbox = Inbox(source_options.fps, limits.frames_waiting, source_options.max_side)
            pushed = _Source(inbox.name, lambda _: inbox, inbox=inbox)
            return await self._start(pushed, options, memory)
        return await self._start(await self._named(source, source_options), options, memory)

    async def open_trusted(
        self,
        source: str,
        options: WatchOptions = TRUSTED,
        *,
        source_options: SourceOptions = RECONNECTING,
        name: str | None = None,
    ) -> str:
        """Open a session on a source that the operator named: any that streammem reads.

        Args:
            source: see ``open_source``.
            options: how it is watched.
            source_options: how it is opened.
            name: what clients see; None shows it without folders and credentials.
        """
        shown = name or (public_url(source) if "://" in source else Path(source).name or source)
        file = Path(source) if "://" not in source and Path(source).is_file() else None
        opened = _Source(shown, lambda _: open_with(source, source_options), file)
        return await self._start(opened, options, None)

    async def open_own(self, sources: Sequence[str]) -> None:
        """Open sessions on the operator's own sources; they stay, however long nobody asks."""
        options = replace(TRUSTED, alerts=self.config.alerts)
        for source in sources:
            opened = self._sessions[await self.open_trusted(source, options)]
            opened.stays = True
            if self.outlet:
                telling = _pass_on(opened.room, self.outlet(source))
                opened.telling = asyncio.ensure_future(telling)

    def session(self, name: str) -> Room:
        """Return an open session's room.

        Raises:
            Refused: there is none of that id.
        """
        if name not in self._sessions:
            raise Refused(404, "no such session")
        room = self._sessions[name].room
        room.touch()
        return room

    def sessions(self) -> dict[str, Room]:
        """Return open sessions by id."""
        return {name: opened.room for name, opened in self._sessions.items()}

    async def close_session(self, name: str) -> None:
        """Close a session; what is open in it is closed and said first.

        Raises:
            Refused: there is none of that id.
        """
        self.session(name)
        await self._stop(self._sessions.pop(name))

    # -- memories --

    def memory_names(self) -> list[str]:
        """Return the names of the memories that may be asked."""
        folder = self.config.memories
        if folder is None:
            return []
        return sorted(p.name for p in folder.iterdir() if NAME.fullmatch(p.name) and is_memory(p))

    async def memory(self, name: str) -> Room:
        """Return a memory's room, opened read-only, and anew where it was written since.

        Raises:
            Refused: there is none of that name.
            StoreError: it cannot be opened.
        """
        path = self._memory_path(name)
        if not is_memory(path):
            raise Refused(404, "no such memory")
        async with self._opening:  # one request opens, the others find it open
            stamp = _stamp(path)
            opened = self._memories.get(name)
            if opened is None or opened.stamp != stamp:
                opened = await self._open_memory(name, path, stamp)
        opened.room.touch()
        return opened.room

    async def _open_memory(self, name: str, path: Path, stamp: tuple[float, ...]) -> _Opened:
        def session() -> Session:
            return Session(self.model, self._session, memory=path, read_only=True)

        plan = Plan(name, session)
        room = Room(f"/v1/memories/{name}", plan, self.config.limits, self.counters)
        opened = _Opened(room, stamp)
        await self._run(opened)
        older = [name] if name in self._memories else []
        if not older and len(self._memories) >= self.config.limits.memories:
            older = [min(self._memories, key=lambda n: self._memories[n].room.touched)]
        for gone in older:
            self._memories.pop(gone).room.retire()
        self._memories[name] = opened
        return opened

    # -- all of them --

    async def sweep(self) -> None:
        """Close what nobody asks, for ever."""
        idle_s = self.config.limits.idle_s
        while True:
            await asyncio.sleep(min(SWEEP_S, idle_s))
            for opened in (self._sessions, self._memories):
                for name in list(opened):  # looked at anew each time: stopping the last one waited
                    one = opened.get(name)
                    late = time.monotonic() - idle_s
                    if one and one.room.touched < late and not one.stays:
                        del opened[name]
                        await self._stop(one)
            self.uploads.expire(idle_s)

    async def close(self) -> None:
        """Close everything."""
        opened = [*self._sessions.values(), *self._memories.values()]
        self._sessions.clear()
        self._memories.clear()
        for one in opened:
            one.room.stop()
        for one in opened:
            await self._stop(one)
        self.uploads.close()
        await anyio.to_thread.run_sync(self.scheduler.close)

    # -- within --

    def _check_place(self) -> None:
        if len(self._sessions) >= self.config.limits.sessions:
            text = f"{len(self._sessions)} sessions are open; close one"
            raise Refused(429, text, retry_s=30)

    async def _start(self, source: _Source, options: WatchOptions, memory: str | None) -> str:
        try:
            self._check_place()  # again: what came before may have waited
            path = None if memory is None else self._memory_path(memory)
        except Refused:
            if source.release:
                source.release()
            raise

        def session() -> Session:
            return Session(self.model, self._session, memory=path, source=source.name)

        id_ = secrets.token_urlsafe(12)
        plan = Plan(
            source.name,
            session,
            source.open,
            options,
            source.inbox,
            source.release,
            source.file,
            self.scheduler,
        )
        room = Room(f"/v1/sessions/{id_}", plan, self.config.limits, self.counters)
        opened = self._sessions[id_] = _Opened(room)  # counts from now on
        try:
            await self._run(opened)
        except BaseException:
            self._sessions.pop(id_, None)
            raise
        return id_

    async def _run(self, opened: _Opened) -> None:
        """Start a room's thread and wait until it is open."""
        room = opened.room
        running = anyio.to_thread.run_sync(room.run, limiter=self._threads, abandon_on_cancel=True)
        opened.task = asyncio.ensure_future(running)
        try:
            await asyncio.shield(room.opened)
        except BaseException:
            room.stop()
            raise

    async def _stop(self, opened: _Opened) -> None:
        opened.room.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await opened.room.ended.wait()
                if opened.telling:
                    await opened.telling

    def _memory_path(self, name: str) -> Path:
        if self.config.memories is None:
            raise Refused(404, "this server has no memories; start it with --memories DIR")
        if not NAME.fullmatch(name):
            raise Refused(422, "a memory's name has letters, digits and . _ - only, 64 at most")
        return self.config.memories / name

    async def _named(self, source: str, options: SourceOptions) -> _Source:
        """Return a source that a client names."""
        if source.startswith(UPLOAD):
            upload = self.uploads.get(source.removeprefix(UPLOAD))
            upload.users += 1
            path = str(upload.path)
            shown = upload.title or source
            return _Source(shown, lambda _: open_with(path, options), upload.path, upload.leave)
        target = await anyio.to_thread.run_sync(addresses.check, source, self.config.allowed)
        if target.parts.scheme in addresses.LIVE:
            url = addresses.live_url(target)
            return _Source(public_url(source), lambda _: open_with(url, options))
        place = self.uploads.reserve(self.config.limits.upload_bytes)

        def opener(stop: Callable[[], bool]) -> VideoSource:
            addresses.fetch(target, place.path, place.num_bytes, stop)
            check_video(place.path)
            return open_with(str(place.path), options)

        name, remove = public_url(source), partial(self.uploads.remove, place.id)
        return _Source(name, opener, place.path, remove)


async def _pass_on(room: Room, outlet: Outlet) -> None:
    """Hand on a session's events until its source ends."""
    position, over = 0, False
    try:
        while not over:
            taken = await room.events.take(position, STOP_S)
            if taken.lost:
                room.lost(taken.lost)
            for event, more in zip(taken.events, taken.more, strict=True):
                outlet.send(event, more)
            position, over = taken.position, taken.over
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(outlet.close)


def _stamp(path: Path) -> tuple[float, ...]:
    """When a memory was last written to."""
    times = []
    for name in (DATABASE, f"{DATABASE}-wal"):
        with suppress(OSError):
            found = (path / name).stat()
            times.append(found.st_mtime if found.st_size else 0.0)
    return tuple(times)
