"""The sessions and memories of one server: opens them, finds them by name, closes idle ones.

sessions = Sessions(load("streammem-tiny"), SessionConfig(), ServerConfig())
name = await sessions.open_trusted("film.mp4")  # in an event loop
answer = await sessions.host(name).answer("What is red?")
await sessions.close_session(name)
await sessions.close()
"""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import anyio
import anyio.to_thread

from streammem.audio.track import SpeechOptions
from streammem.captioning.shared import share_model
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch_options import WatchOptions
from streammem.errors import StoreError
from streammem.memory.folder import WriteStamp, last_written, remove, rename
from streammem.memory.store import Store
from streammem.memory.upkeep import MemorySummary, info
from streammem.models.protocols import StreamModel
from streammem.server import addresses
from streammem.server.archive import OpenArchive
from streammem.server.chat_videos import UPLOAD, ChatVideos
from streammem.server.clips import Clips
from streammem.server.counters import Counters
from streammem.server.inbox import Inbox
from streammem.server.limits import ServerConfig
from streammem.server.refused import Refused
from streammem.server.session_host import SessionHost, SessionPlan
from streammem.server.uploads import Uploads, check_video
from streammem.types import Event, encodable
from streammem.video import SourceOptions, VideoSource, kind_of, open_with
from streammem.video.address import public_name, public_url

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STOP_S = 20.0  # for a session to close its open segment and send the last events
SWEEP_S = 5.0
TRUSTED = WatchOptions(stats_s=10.0)
RECONNECTING = SourceOptions(reconnect=True)

CAMERAS = ("rtsp", "rtmp", "udp", "webcam", "screen", "http")
VIDEO_FILES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".wmv",
)  # fmt: skip

Opener = Callable[[Callable[[], bool]], VideoSource]


class Outlet(Protocol):
    """Receives the events of one of the operator's sources, for example for MQTT.

    ``send`` must not block.
    """

    def send(self, event: Event, more: Mapping[str, object]) -> object: ...

    def close(self) -> object: ...


class _WatchedSource(NamedTuple):
    """A source that a session is to watch.

    Attributes:
        name: as clients see it.
        open: opens it; its argument returns True once opening should be given up.
        file: path, if the source is one video file, from which clips can be cut.
        release: called once the session no longer needs the source; see ``SessionPlan``.
        inbox: the source itself, if clients push the frames.
        holds_file: see ``SessionPlan``.
    """

    name: str
    open: Opener
    file: Path | None = None
    release: Callable[[], object] | None = None
    inbox: Inbox | None = None
    holds_file: bool = False


@dataclass(eq=False)
class _Opened:
    """An open session or memory, with its tasks.

    ``stamp`` is when a memory was last written; a ``permanent`` session is never closed as idle.
    """

    host: SessionHost
    stamp: WriteStamp = ()
    task: asyncio.Task[None] | None = field(default=None)
    forwarding: asyncio.Task[None] | None = field(default=None)
    permanent: bool = False


class Sessions:
    """The open sessions and memories of one server. Used in the event loop only.

    Args:
        model: shared by all sessions.
        session: options of every session.
        config: of the server.

    Attributes:
        outlet: returns the ``Outlet`` for one of the operator's sources; None for none.
    """

    def __init__(self, model: StreamModel, session: SessionConfig, config: ServerConfig) -> None:
        self.config, self.counters = config, Counters()
        self.model, self.scheduler = share_model(model, self.counters.batched)
        self.uploads = Uploads(config.uploads, config.limits)
        self.clips = Clips(self.uploads, config.limits)
        self.videos = ChatVideos(self, self.uploads, config)
        self.outlet: Callable[[str], Outlet] | None = None
        self._session = session
        self.archive = OpenArchive(
            config.memories, self.model, session, config.limits, self.counters
        )
        self._sessions: dict[str, _Opened] = {}
        self._memories: dict[str, _Opened] = {}
        self._summaries: dict[str, tuple[WriteStamp, MemorySummary | str]] = {}
        places = config.limits.sessions + config.limits.memories
        self._opening = asyncio.Lock()
        self._threads = anyio.CapacityLimiter(2 * places)  # twice: ending sessions hold theirs

    # -- sessions --

    async def open(
        self,
        source: str | None,
        options: WatchOptions,
        memory: str | None = None,
        *,
        source_options: SourceOptions = RECONNECTING,
        speech: SpeechOptions | None = None,
    ) -> str:
        """Open a session on a source named by a client, and return its id.

        Args:
            source: a URL, ``upload:ID``, or None for frames that the client pushes.
            options: how it is watched.
            memory: name of the memory to write to; None for none.
            source_options: how it is opened.
            speech: where its words come from; None takes the server's.

        Raises:
            Refused, ConfigError, SourceError, StoreError: it cannot be opened.
        """
        self._check_place()
        options = replace(options, speech=speech or self.config.speech)
        if source is None:
            inbox = Inbox(source_options, self.config.limits.frames_waiting)
            pushed = _WatchedSource(inbox.name, lambda _: inbox, inbox=inbox)
            return await self._start(pushed, options, memory)
        return await self._start(await self._named(source, source_options), options, memory)

    async def open_trusted(
        self,
        source: str,
        options: WatchOptions = TRUSTED,
        *,
        source_options: SourceOptions = RECONNECTING,
        name: str | None = None,
        id_: str | None = None,
        keep_in: Path | None = None,
    ) -> str:
        """Open a session on a source named by the operator, who may name any.

        Args:
            source: see ``open_source``.
            options: how it is watched.
            source_options: how it is opened.
            name: shown to clients; None shows the source without folders and credentials.
            id_: of the session; None makes one that cannot be guessed.
            keep_in: folder of the memory that it goes on from; None keeps it in RAM.

        Raises:
            ConfigError, SourceError, StoreError: it cannot be opened.
        """
        shown = name or (public_url(source) if "://" in source else Path(source).name or source)
        shown = encodable(shown)
        file = Path(source) if "://" not in source and Path(source).is_file() else None
        opened = _WatchedSource(shown, lambda _: open_with(source, source_options), file)
        options = replace(options, speech=self.config.speech)
        return await self._start(opened, options, keep_in, id_)

    async def open_video(
        self, name: str, path: Path, release: Callable[[], object] | None = None
    ) -> str:
        """Open a session on a video file that a chat message named; scenes are not described.

        Args:
            name: shown to clients.
            path: of the file, which was checked.
            release: called once the file is not needed any more.

        Raises:
            Refused: too many sessions are open, or it is longer than videos of messages may be.
            SourceError: it cannot be opened.
        """
        longest = self.config.limits.video_s

        def opener(stop: Callable[[], bool]) -> VideoSource:
            source = open_with(str(path), SourceOptions())
            if source.duration is not None and source.duration > longest:
                source.close()
                shown = f"{source.duration:.0f} s; a video of a message may have {longest:.0f} s"
                raise Refused(413, f"video_url: {shown}; open a session on it")
            return source

        video = _WatchedSource(encodable(name), opener, path, release)
        options = WatchOptions(captions=False, speech=self.config.speech)
        return await self._start(video, options, None)

    def has_place(self) -> bool:
        """Return whether one more session may be opened."""
        return len(self._sessions) < self.config.limits.sessions

    async def open_own(self, sources: Sequence[str]) -> None:
        """Open sessions on the operator's sources; they are never closed as idle.

        Their ids are made of their names, so that their addresses outlive a restart. So does the
        past of cameras where there is a folder for it; one whose memory cannot be written, as
        another process writes it, is kept in RAM and says so.
        """
        confirm = self.config.confirm_alerts
        options = replace(TRUSTED, alerts=self.config.alerts, confirm_alerts=confirm)
        for number, source in enumerate(sources):
            stable = _stable_id(source, sources[:number].count(source))
            keep_in = self.config.keep_in if is_camera(source) else None
            memory = keep_in / stable if keep_in else None
            unkept: StoreError | None = None
            try:
                await self.open_trusted(source, options, id_=stable, keep_in=memory)
            except StoreError as error:
                unkept = error
                await self.open_trusted(source, options, id_=stable)
            opened = self._sessions[stable]
            if unkept:
                text = f"what is seen is kept until the server ends, no longer: {unkept}"
                opened.host.warn(text.replace(f"{memory}", stable))
            opened.permanent = True
            if self.outlet:
                forwarding = _forward_events(opened.host, self.outlet(source))
                opened.forwarding = asyncio.ensure_future(forwarding)

    def host(self, name: str) -> SessionHost:
        """Return the host of an open session.

        Raises:
            Refused: there is none of that id.
        """
        if name not in self._sessions:
            raise Refused(404, "no such session")
        host = self._sessions[name].host
        host.touch()
        return host

    def hosts(self) -> dict[str, SessionHost]:
        """Return the hosts of open sessions by id."""
        return {name: opened.host for name, opened in self._sessions.items()}

    def own(self) -> list[str]:
        """Return the ids of the sessions on the operator's sources."""
        return [name for name, opened in self._sessions.items() if opened.permanent]

    async def close_session(self, name: str) -> None:
        """Close a session; its open segment is closed and its events sent first.

        Raises:
            Refused: there is none of that id.
        """
        self.host(name)
        await self._stop(self._sessions.pop(name))
        log.info("session %s closed by its client", name[:6])

    # -- memories --

    def memory_names(self) -> list[str]:
        """Return the names of the memories in the server's folder."""
        return self.archive.names()

    async def memory_summaries(self) -> dict[str, MemorySummary | str]:
        """Return what is in each memory, or why it cannot be read, by name."""
        return {name: await self.memory_summary(name) for name in self.memory_names()}

    async def memory_summary(self, name: str) -> MemorySummary | str:
        """Return what is in a memory, or why it cannot be read.

        Raises:
            Refused: there is none of that name.
        """
        path = self._known_path(name)
        stamp = last_written(path)
        known = self._summaries.get(name)
        if known is None or known[0] != stamp:
            found = await anyio.to_thread.run_sync(_summary_of, path)
            known = self._summaries[name] = (stamp, found)
        return known[1]

    async def rename_memory(self, name: str, new: str) -> None:
        """Give a memory another name.

        Raises:
            Refused: there is none of that name, or the new one is not allowed.
            StoreError: see ``folder.rename``.
        """
        self._new_path(new)
        await self._change_memory(name, lambda path: rename(path, new))

    async def remove_memory(self, name: str) -> None:
        """Remove a memory for good.

        Raises:
            Refused: there is none of that name.
            StoreError: it is being written.
        """
        await self._change_memory(name, remove)

    async def _change_memory(self, name: str, change: Callable[[Path], None]) -> None:
        path = self._known_path(name)
        self._check_writable()
        async with self._opening:
            await anyio.to_thread.run_sync(change, path)
            if opened := self._memories.pop(name, None):
                opened.host.retire()
            self._summaries.pop(name, None)

    async def memory(self, name: str) -> SessionHost:
        """Return the host of a memory, opened read-only; reopened if it was written since.

        Raises:
            Refused: there is none of that name.
            StoreError: it cannot be opened.
        """
        path = self._known_path(name)
        async with self._opening:  # one request opens it; concurrent ones then find it open
            stamp = last_written(path)
            opened = self._memories.get(name)
            if opened is None or opened.stamp != stamp:
                # 1. Open it beside the old one, which goes on answering meanwhile.
                open_session = partial(
                    Session, self.model, self._session, memory=path, read_only=True
                )
                url = self.memory_url(name)
                plan = SessionPlan(name, open_session)
                opened = _Opened(SessionHost(url, plan, self.config.limits, self.counters), stamp)
                await self._run(opened)
                # 2. Retire the old one, or the one that was used longest ago if all places are
                # taken. It still answers the requests that it has.
                retired = [name] if name in self._memories else []
                if not retired and len(self._memories) >= self.config.limits.memories:
                    retired = [min(self._memories, key=lambda n: self._memories[n].host.touched)]
                for old in retired:
                    self._memories.pop(old).host.retire()
                self._memories[name] = opened
                log.info("memory %s opened", name)
        opened.host.touch()
        return opened.host

    # -- all of them --

    async def sweep(self) -> None:
        """Close idle sessions and memories, and remove idle uploads; runs until cancelled."""
        idle_s = self.config.limits.idle_s
        while True:
            await asyncio.sleep(min(SWEEP_S, idle_s))
            for close in (self._close_idle, self.archive.close_idle, self._remove_idle):
                try:
                    await close(idle_s)
                except Exception:  # what fails once is no reason to keep everything for ever
                    log.exception("what is idle could not be closed")

    async def _close_idle(self, idle_s: float) -> None:
        for opened in (self._sessions, self._memories):
            for name in list(opened):
                one = opened.get(name)  # stopping another waited: this one may have gone
                oldest = time.monotonic() - idle_s
                if one and one.host.touched < oldest and not one.permanent:
                    del opened[name]
                    await self._stop(one)
                    shown = one.host.plan.source
                    log.info("%s closed after %.0f s without requests", shown, idle_s)

    async def _remove_idle(self, idle_s: float) -> None:
        self.uploads.expire(idle_s)

    async def close(self) -> None:
        """Close everything."""
        await self.videos.close()
        opened = [*self._sessions.values(), *self._memories.values()]
        self._sessions.clear()
        self._memories.clear()
        for one in opened:
            one.host.stop()
        for one in opened:
            await self._stop(one)
        await self.archive.close()
        self.uploads.close()
        await anyio.to_thread.run_sync(self.scheduler.close)

    def _check_place(self) -> None:
        if not self.has_place():
            text = f"{len(self._sessions)} sessions are open; close one"
            raise Refused(429, text, retry_s=30)

    async def _start(
        self,
        source: _WatchedSource,
        options: WatchOptions,
        memory: str | Path | None,
        id_: str | None = None,
    ) -> str:
        try:
            self._check_place()  # again: preparing the source may have waited
            path = self._new_path(memory) if isinstance(memory, str) else memory
        except Refused:
            if source.release:
                source.release()
            raise

        open_session = partial(Session, self.model, self._session, memory=path, source=source.name)
        id_ = id_ or secrets.token_urlsafe(12)
        options = replace(options, speech=replace(options.speech, where_possible=True))
        plan = SessionPlan(
            source.name,
            open_session,
            source.open,
            options,
            source.inbox,
            source.release,
            source.file,
            self.scheduler,
            self.config.limits.kept_bytes if isinstance(memory, Path) else None,
            memory if isinstance(memory, Path) else None,
            source.holds_file,
        )
        url = f"{self.config.prefix}/v1/sessions/{id_}"
        host = SessionHost(url, plan, self.config.limits, self.counters)
        opened = self._sessions[id_] = _Opened(host)  # counts from now on
        try:
            await self._run(opened)
        except BaseException:
            self._sessions.pop(id_, None)
            raise
        # Ids are what protects a session: the log has a part of it only.
        log.info("session %s opened on %s", id_[:6], source.name)
        return id_

    async def _run(self, opened: _Opened) -> None:
        """Start a host's thread and wait until its session is open."""
        host = opened.host
        running = anyio.to_thread.run_sync(host.run, limiter=self._threads, abandon_on_cancel=True)
        opened.task = asyncio.ensure_future(running)
        try:
            await asyncio.shield(host.opened)
        except BaseException:
            host.stop()
            raise

    async def _stop(self, opened: _Opened) -> None:
        opened.host.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await opened.host.ended.wait()
                if opened.forwarding:
                    await opened.forwarding

    def memory_url(self, name: str) -> str:
        """Return the path of a memory."""
        return f"{self.config.prefix}/v1/memories/{quote(name, safe='')}"

    def _known_path(self, name: str) -> Path:
        """Return the folder of a memory that is there: a name is one of a list, no path."""
        if self.config.memories is None:
            raise Refused(404, "this server has no memories; start it with --memories DIR")
        if name not in self.memory_names():
            raise Refused(404, "no such memory")
        return self.config.memories / name

    def _check_writable(self) -> None:
        if self.config.read_only:
            raise Refused(403, "this server only reads its memories (--archive)")

    def _new_path(self, name: str) -> Path:
        """Return where a memory is written that a client names."""
        if self.config.memories is None:
            raise Refused(404, "this server has no memories; start it with --memories DIR")
        self._check_writable()
        if not NAME.fullmatch(name):
            raise Refused(422, "a memory's name has letters, digits and . _ - only, 64 at most")
        return self.config.memories / name

    async def _named(self, source: str, options: SourceOptions) -> _WatchedSource:
        """Check a source named by a client: an upload, a file, a live URL, or one to download."""
        if source.startswith(UPLOAD):
            upload = self.uploads.get(source.removeprefix(UPLOAD))
            upload.users += 1
            path, shown = upload.path, upload.title or source
            return _WatchedSource(
                shown,
                lambda _: open_with(str(path), options),
                path,
                upload.leave,
                holds_file=True,
            )
        if source.startswith(addresses.FILE):
            file = await anyio.to_thread.run_sync(
                addresses.check_allowed_file, source, self.config.files
            )
            await anyio.to_thread.run_sync(check_video, file)
            return _WatchedSource(file.name, lambda _: open_with(str(file), options), file)
        target = await anyio.to_thread.run_sync(addresses.check_url, source, self.config.allowed)
        if target.parts.scheme in addresses.LIVE:
            url = addresses.live_url(target)
            return _WatchedSource(public_url(source), lambda _: open_with(url, options))
        # A file of the web is downloaded first, from the address that was checked.
        place = self.uploads.reserve(self.config.limits.upload_bytes)
        place.users += 1  # it is removed with its session, not as idle

        def opener(stop: Callable[[], bool]) -> VideoSource:
            addresses.fetch(target, place.path, place.num_bytes, stop)
            place.num_bytes = place.path.stat().st_size
            check_video(place.path)
            return open_with(str(place.path), options)

        name, remove = public_url(source), partial(self.uploads.remove, place.id)
        return _WatchedSource(name, opener, place.path, remove)


async def _forward_events(host: SessionHost, outlet: Outlet) -> None:
    """Send a session's events to an outlet until its source ends."""
    position, over = 0, False
    try:
        while not over:
            taken = await host.events.take(position, STOP_S)
            if taken.lost:
                host.lost(taken.lost)
            for event, more in zip(taken.events, taken.more, strict=True):
                outlet.send(event, more)
            position, over = taken.position, taken.over
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(outlet.close)


def is_camera(source: str) -> bool:
    """Return whether a source surely goes on, so that a memory of it may go on, too.

    A file would be seen again from its beginning, also one of the web.
    """
    kind = kind_of(source).name
    path = urlsplit(source).path if kind == "http" else ""
    return kind in CAMERAS and not path.lower().endswith(VIDEO_FILES)


def _stable_id(source: str, earlier: int) -> str:
    """Return the id of one of the operator's sources, of which ``earlier`` were named before."""
    shown = public_name(source)
    tail = shown.rstrip("/").rpartition("/")[2].partition(".")[0]
    slug = "-".join(re.findall(r"[A-Za-z0-9]+", tail)).lower()[:32]
    digest = hashlib.blake2b(f"{shown} {earlier}".encode(), digest_size=4).hexdigest()
    return f"{slug or 'source'}-{digest}"


def _summary_of(path: Path) -> MemorySummary | str:
    try:
        store = Store.open(path, None, "r")
        try:
            return info(store)
        finally:
            store.close()
    except StoreError as error:
        return str(error).replace(f"{path}", path.name)
