"""One session in a thread of its own; it and the event loop exchange values only.

Requests become jobs that run between two frames, or between two events while captions are awaited.
"""

import asyncio
import io
import logging
import queue
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from streammem.captioning.scheduler import LanguageScheduler
from streammem.engine.plans import FollowedPlan
from streammem.engine.session import Session
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchCallbacks, WatchOptions
from streammem.errors import StreammemError
from streammem.fleet.pool import LIVED_S, wait_after
from streammem.memory.entry import Entry
from streammem.output.render import NOTHING, wall_start
from streammem.server.counters import Counters
from streammem.server.events import EventLog
from streammem.server.inbox import Inbox
from streammem.server.limits import Limits
from streammem.server.queries import private_sources, without_folders
from streammem.server.refused import Refused
from streammem.types import Answer, Event, Frame, Notice, Segment
from streammem.types import Plan as GoalPlan
from streammem.video import VideoSource

log = logging.getLogger(__name__)
T = TypeVar("T")
HostState = Literal["opening", "watching", "over", "failed", "closed"]
JPEG_QUALITY = 80
WATCHED = WatchOptions()
PRUNED_EVERY = 64  # segments, about 2 MB
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What a room is to hold.

    Attributes:
        source: its name, as clients see it.
        open_session: called in the room's thread; likewise ``open_source``.
        scheduler: of the language model that the sessions share.
        open_source: given what tells whether to give up; None for a memory that is only asked.
        options: how the source is watched.
        inbox: the source, if pictures are pushed.
        release: called in the event loop once the source is over or, with ``holds_file``, once the
            session is closed: until then clips are cut from it.
        file: the source, if it is one video file.
        kept_bytes: on disk, that its memory may take; None for any number.
        kept_in: the memory's folder, of a camera that goes on from it: after a failure session and
            source are opened again.
    """

    source: str
    open_session: Callable[[], Session]
    open_source: Callable[[Callable[[], bool]], VideoSource] | None = None
    options: WatchOptions = WATCHED
    inbox: Inbox | None = None
    release: Callable[[], object] | None = None
    file: Path | None = None
    scheduler: LanguageScheduler | None = None
    kept_bytes: int | None = None
    kept_in: Path | None = None
    holds_file: bool = False


@dataclass(slots=True)
class Watched:
    """What the session's thread notes of its source, for others to read.

    Attributes:
        live: whether it is a live source.
        duration: seconds; None where it is unknown.
        time: seconds of the newest frame that was perceived, in the memory's time.
        frame: that frame.
    """

    live: bool = False
    duration: float | None = None
    time: float | None = None
    frame: Frame | None = None


class _Job(NamedTuple):
    work: Callable[[Session], Any]
    done: asyncio.Future[Any]


class _AbandonedError(Exception):
    """The client that asked has gone."""


class SessionHost:
    """A session that others may ask. All but ``run`` is for the event loop.

    Args:
        path: where clients find it, as in ``/v1/sessions/ID``.
        plan: what it holds.
        limits: of questions and events.
        counters: of the server.

    Attributes:
        events: what it has told.
        touched: monotonic second of the last request.
        title: what its clients call it; its source's name at first.
        goal: of the plan that it follows; None without one.
        alerts: what it waits for, from the next frame on.
        watched: how far it is.
    """

    def __init__(self, path: str, plan: SessionPlan, limits: Limits, counters: Counters) -> None:
        self.path, self.plan = path, plan
        self.state: HostState = "opening"
        self.events = EventLog(limits.events)
        self.touched = time.monotonic()
        self.title = plan.source
        self.alerts: tuple[str, ...] = plan.options.alerts
        self.watched = Watched()
        self.goal: str | None = None
        # Of the session's thread: the plan that is followed, what follows it in another session,
        # and how often in a row watching has failed.
        self._followed: FollowedPlan | None = None
        self._follow: Callable[[Session], FollowedPlan] | None = None
        self._num_failures = 0
        self._picture: tuple[Frame, bytes] | None = None  # the newest that was asked for
        self._limits, self._counters = limits, counters
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._num_waiting, self._stopping, self._released = 0, False, False
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.ended = asyncio.Event()

    # -- for the event loop --

    def touch(self) -> None:
        """Note that a client has used the session."""
        self.touched = time.monotonic()

    def lost(self, count: int) -> None:
        """Count events that a client lost."""
        self._counters.add("events_lost_total", count)

    def warn(self, text: str) -> None:
        """Tell those who follow the session what they should know."""
        self._publish(Notice(text))

    def retire(self) -> None:
        """Ask the thread of a memory to end once it has done what waits."""
        self._jobs.put(None)

    def stop(self) -> None:
        """Ask the thread to end: what is open is closed and said first."""
        self._stopping = True
        if self.plan.inbox:
            self.plan.inbox.stop()
        self._jobs.put(None)

    async def do(self, work: Callable[[Session], T]) -> T:
        """Let the room's thread do something with the session.

        Raises:
            Refused: too much waits already, or the session is closed.
        """
        self.touch()
        if self._stopping or self.state in ("failed", "closed"):
            raise Refused(410, "the session is closed")
        if self._num_waiting >= self._limits.questions_waiting:
            raise Refused(429, f"{self._num_waiting} requests wait already", retry_s=2)
        done: asyncio.Future[T] = self._loop.create_future()
        self._num_waiting += 1
        self._jobs.put(_Job(work, done))
        try:
            return await done
        finally:
            self._num_waiting -= 1
            self.touch()

    async def picture(self) -> bytes | None:
        """Return the newest frame as a JPEG; None before the first one."""
        frame = self.watched.frame
        if frame is None:
            return None
        if self._picture is None or self._picture[0] is not frame:
            self._picture = (frame, await asyncio.to_thread(_jpeg, frame))
        return self._picture[1]

    async def ask(
        self, question: str, pictures: Sequence[np.ndarray] = (), *, alone: bool = False
    ) -> AsyncGenerator[str | Answer]:
        """Yield an answer's pieces as they come, then the answer; see ``Session.ask``.

        Args:
            question: free text.
            pictures: that it is about.
            alone: without the turns before it.
        """
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        abandoned = False

        def on_text(piece: str) -> None:
            if abandoned:
                raise _AbandonedError
            if piece:  # it is empty while a model server is waited for
                self._tell(pieces.put_nowait, piece)

        def answered(session: Session) -> Answer:
            names = private_sources(session.memory)
            if alone:
                session.answerer.turns.clear()
            answer = session.ask(
                question, lambda piece: on_text(without_folders(piece, names)), pictures
            )
            steps = (replace(s, text=without_folders(s.text, names)) for s in answer.steps)
            text = without_folders(answer.text, names)
            return replace(answer, text=text, steps=tuple(steps))

        began = time.monotonic()
        asked = asyncio.ensure_future(self.do(answered))
        asked.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            answer = await asked
            self.events.add(answer)
            self._counters.answered(time.monotonic() - began)
            yield answer
        finally:
            abandoned = True
            asked.cancel()

    async def answer(
        self, question: str, pictures: Sequence[np.ndarray] = (), *, alone: bool = False
    ) -> Answer:
        """Return an answer as a whole; see ``ask``."""
        async with aclosing(self.ask(question, pictures, alone=alone)) as answering:
            async for said in answering:
                if isinstance(said, Answer):
                    return said
        raise AssertionError("an answer comes last")

    async def follow_plan(
        self, goal: str, steps: Sequence[str], *, alert_steps: bool = False
    ) -> GoalPlan:
        """Follow a plan in place of the one before: it is an event now and each time it changes.

        Raises:
            Refused: the source does not go on, or there are neither steps nor captions.
            ConfigError: see ``Session.follow``.
        """
        if self.plan.open_source is None:
            raise Refused(409, "a memory does not go on; ask for its plan, without follow")
        if not steps and not self.plan.options.captions:
            raise Refused(422, "this session makes no captions to guess from; give steps")

        follow = partial(
            FollowedPlan, goal=goal, steps=steps, alert_steps=alert_steps, from_memory=True
        )

        def start(session: Session) -> GoalPlan:
            self._followed, self._follow = follow(session), follow
            return self._followed.plan

        plan = await self.do(start)
        self.goal = plan.goal
        self._publish(plan)
        return plan

    async def end_plan(self) -> None:
        """Follow no plan any more."""

        def end(session: Session) -> None:
            self._followed = self._follow = None

        await self.do(end)
        self.goal = None

    # -- the thread --

    def run(self) -> None:
        """Hold the session until it is stopped."""
        state: HostState = "closed"
        try:
            while self._hold():
                pass
        except (StreammemError, Refused) as error:
            state = "failed"
            self._tell(self._fail, error)
        except Exception as error:
            log.exception("%s failed", self.path)
            state = "failed"
            self._tell(self._fail, RuntimeError(f"internal error: {type(error).__name__}"))
        finally:
            self._tell(self._end, state)

    def _hold(self) -> bool:
        """Open the session, and hold it until it ends; return whether to do so again."""
        began, is_again = time.monotonic(), self._num_failures > 0
        try:
            with self.plan.open_session() as session:
                session.answerer.file_of = self._file_of
                self._followed = self._follow(session) if self._follow else None
                self._converse(session)
            return False
        except (StreammemError, OSError) as error:
            folder, was_watched = self.plan.kept_in, is_again or self.watched.live
            if folder is None or not was_watched or self._stopping:
                raise
            lived = time.monotonic() - began >= LIVED_S
            self._num_failures = 1 if lived else self._num_failures + 1
            wait_s = wait_after(self._num_failures)
            self._tell(self._open, "opening")
            reason = str(error).replace(f"{folder}", folder.name)
            self._tell(self._publish, Notice(f"{reason}; opened again in {wait_s:.0f} s"))
        until = time.monotonic() + wait_s
        while not self._stopping and time.monotonic() < until:
            time.sleep(POLL_S)
        return not self._stopping

    def _file_of(self, entry: Entry) -> Path | None:
        # Only the file that was opened: other sources in a memory may have names of clients.
        file = self.plan.file if entry.source == self.plan.source else None
        return file if file and file.is_file() else None

    def _converse(self, session: Session) -> None:
        opener = self.plan.open_source
        source = opener(self._is_stopping) if opener else None
        if source is not None:
            session.source = session.source or self.plan.source
        self._tell(self._open, "watching" if source is not None else "over")
        if source is not None:
            self._watch(session, source)
            self._tell(self._open, "over")
        while not self._stopping and (job := self._jobs.get()) is not None:
            self._serve(job, session)

    def _watch(self, session: Session, source: VideoSource) -> None:
        def between() -> None:
            with suppress(queue.Empty):
                while (job := self._jobs.get_nowait()) is not None:
                    self._serve(job, session)

        def note(frame: Frame) -> None:
            self.watched.time = frame.time + session.time_offset
            self.watched.frame = frame

        kept_bytes = self.plan.kept_bytes
        self.watched.live, self.watched.duration = source.live, source.duration
        callbacks = WatchCallbacks(
            stop=self._is_stopping, on_idle=between, on_frame=note, alerts=lambda: self.alerts
        )
        try:
            for event in watch(
                session,
                source,
                self.plan.options,
                callbacks=callbacks,
                scheduler=self.plan.scheduler,
            ):
                plans = self._followed.after(event) if self._followed else []
                for each in (event, *plans):
                    self._tell(self._publish, each, wall_start(each, session.wall_zero))
                if kept_bytes and isinstance(event, Segment) and event.id % PRUNED_EVERY == 0:
                    session.memory.prune(budget_bytes=kept_bytes)
                between()
        except StreammemError as error:
            if self.plan.kept_in and source.live:
                raise
            self._tell(self._publish, Notice(str(error)))

    def _serve(self, job: _Job, session: Session) -> None:
        if job.done.cancelled():
            return
        try:
            done = job.work(session)
        except _AbandonedError:
            return
        except Exception as error:  # noqa: BLE001, carried to the client that asked
            self._tell(_settle, job.done, None, error)
        else:
            self._tell(_settle, job.done, done, None)

    def _is_stopping(self) -> bool:
        return self._stopping

    def _tell(self, call: Callable[..., object], *values: object) -> None:
        with suppress(RuntimeError):  # the loop has ended, and its clients with it
            self._loop.call_soon_threadsafe(call, *values)

    # -- told by the thread, in the event loop --

    def _open(self, state: HostState) -> None:
        self.state = state
        if not self.opened.done():
            self.opened.set_result(None)
        if state == "over":
            if not self.plan.holds_file:
                self._release()
            self.events.close()

    def _release(self) -> None:
        if self.plan.release and not self._released:
            self._released = True
            self.plan.release()

    def _publish(self, event: Event, more: Mapping[str, object] = NOTHING) -> None:
        self._counters.count_event(event)
        self.events.add(event, more)

    def _fail(self, error: Exception) -> None:
        if self.opened.done():
            self.events.add(Notice(str(error)))
        else:
            self.opened.set_exception(error)
            self.opened.exception()  # the client that opened it may have left

    def _end(self, state: HostState) -> None:
        self.state = state
        self._release()
        self.events.close()
        if not self.opened.done():
            self.opened.set_result(None)
        with suppress(queue.Empty):
            while True:
                if job := self._jobs.get_nowait():
                    _settle(job.done, None, Refused(410, "the session was closed"))
        self.ended.set()


def _jpeg(frame: Frame) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame.pixels).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _settle(done: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
