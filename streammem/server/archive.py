"""All memories of a server's folder at once: what each shows, and one question over all of them.

    archive = Archive(Path("house"), model, SessionConfig(), Limits(), counters)
    looks = await archive.look()                          # of each memory, read without a model
    found = await archive.do(lambda memories: find_all(memories, "a red car", 5))

Memories are read, never written, also while other processes write them; what was written since is
read anew. What has no header is no memory yet, and one that cannot be read takes no other down.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Query, Response
from fastapi import Path as PathParameter

from streammem.engine.session_config import SessionConfig
from streammem.errors import StoreError
from streammem.fleet.asking import Memories, ask_all, find_all, memories_in
from streammem.fleet.cameras import STATUS, read_status
from streammem.fleet.index import LIST
from streammem.memory.folder import WriteStamp, last_written
from streammem.memory.store import Store
from streammem.memory.upkeep import MemorySummary, caption_at, info, times
from streammem.models.protocols import StreamModel
from streammem.server.counters import Counters
from streammem.server.limits import Limits, ServerConfig
from streammem.server.queries import (
    check_question,
    private_sources,
    without_folders,
)
from streammem.server.refused import Refused
from streammem.server.schemas import Answers, ArchiveTimeline, CameraList, FoundInAll, replies
from streammem.server.wire import ArchiveQuestion, SearchRequest, event_json
from streammem.types import Answer, wall_clock
from streammem.video.address import without_addresses

T = TypeVar("T")
MAX_UNIX_S = 1e11
_FOLDERS = re.compile(r"(?<![\w/:.])/(?:[^/\s]+/)+")  # of a path in a message; none of a URL
UnixSeconds = Annotated[float | None, Query(ge=0, le=MAX_UNIX_S, description="Unix seconds")]
MAX_SPANS = 500  # of a memory on the timeline; neighbours closer than a part of it are one
MAX_LIST_BYTES = 64 << 20  # of what is read of an index's list


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a memory shows without being opened by a model: 32 bytes a scene, and its newest text.

    Attributes:
        path: its folder.
        stamp: of what was read.
        summary: what is in it, or why it cannot be read.
        times: [N, 4], see ``upkeep.times``.
        caption: of the newest scene.
    """

    path: Path
    stamp: WriteStamp
    summary: MemorySummary | str
    times: np.ndarray
    caption: str | None = None

    @property
    def has_clock(self) -> bool:
        """Whether any of its scenes knows its wall clock."""
        return bool(np.isfinite(self.times[:, 3]).any())

    def row_at(self, wall: float | None) -> int | None:
        """Return which row of ``times`` was seen at a Unix second; without one the newest.

        None where there is none. A memory without a clock gives its newest.
        """
        if wall is None or not self.has_clock:
            return len(self.times) - 1 if len(self.times) else None
        begins = self.times[:, 3]
        ends = begins + self.times[:, 2] - self.times[:, 1]
        rows = np.flatnonzero((begins <= wall) & (wall < ends))
        return int(rows[-1]) if len(rows) else None

    def spans(self, window: tuple[float, float] | None) -> list[tuple[float, float, int]]:
        """Return (start, end, scenes) of what it covers, in Unix seconds, or seconds of its stream.

        Args:
            window: [a, b) on that clock; None for all. Gaps below a part of it are left out.
        """
        rows = self.times
        if self.has_clock:
            rows = rows[np.isfinite(rows[:, 3])]
        begins = rows[:, 3] if self.has_clock else rows[:, 1]
        ends = begins + rows[:, 2] - rows[:, 1]
        if window:
            inside = (begins < window[1]) & (ends > window[0])
            begins, ends = begins[inside], ends[inside]
        if not len(begins):
            return []
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], np.maximum.accumulate(ends[order])
        first, last = window or (begins[0], ends[-1])
        least = max(0.001, (last - first) / MAX_SPANS)
        starts = np.flatnonzero(np.r_[True, begins[1:] - ends[:-1] > least])
        stops = np.r_[starts[1:], len(begins)]
        found = zip(begins[starts], ends[stops - 1], stops - starts, strict=True)
        return [(float(a), float(b), int(count)) for a, b, count in found]


class OpenArchive:
    """The memories of a folder, read for all clients of a server. Used in the event loop only.

    Args:
        folder: holds them; None for none.
        model: asked about all of them.
        config: of their sessions.
        limits: of questions.
        counters: of the server.
    """

    def __init__(
        self,
        folder: Path | None,
        model: StreamModel,
        config: SessionConfig,
        limits: Limits,
        counters: Counters,
    ) -> None:
        self._folder, self._limits, self._counters = folder, limits, counters
        self._open = lambda: Memories(folder or "", model, config)
        self._memories: Memories | None = None
        self._asking, self._looking = asyncio.Lock(), asyncio.Lock()
        self._num_waiting, self._touched = 0, 0.0
        self._looks: dict[str, Look] = {}

    def names(self) -> list[str]:
        """Return the names of the memories that there are."""
        return [path.name for path in memories_in(self._folder)] if self._folder else []

    async def do(self, work: Callable[[Memories], T]) -> T:
        """Do something with all memories, opened or opened anew where they were written.

        Raises:
            Refused: no memory can be opened, or too much waits already.
        """
        if self._num_waiting >= self._limits.questions_waiting:
            raise Refused(429, f"{self._num_waiting} requests wait already", retry_s=2)
        if not self._folder:
            raise Refused(404, "this server has no memories; start it with --archive DIR")

        def opened_and_done() -> T:
            memories = self._memories = self._memories or self._open()
            memories.refresh()
            if not memories.sessions:
                reason = "; ".join(memories.failed.values()) or "there is none"
                raise Refused(404, f"no memory can be asked: {_shown_reason(reason)}")
            return work(memories)

        self._num_waiting += 1
        try:
            async with self._asking:
                return await anyio.to_thread.run_sync(opened_and_done)
        finally:
            self._num_waiting -= 1
            self._touched = time.monotonic()

    async def ask(self, question: str) -> tuple[list[tuple[str, Answer]], Memories]:
        """Answer a question; see ``ask_all``. Sources are called as clients may know them."""

        def answered(memories: Memories) -> list[tuple[str, Answer]]:
            found = []
            for name, answer in ask_all(memories, question):
                names = private_sources(memories.sessions[name].memory)
                steps = tuple(replace(s, text=without_folders(s.text, names)) for s in answer.steps)
                text = without_folders(answer.text, names)
                found.append((name, replace(answer, text=text, steps=steps)))
            return found

        began = time.monotonic()
        answers = await self.do(answered)
        self._counters.answered(time.monotonic() - began)
        assert self._memories
        return answers, self._memories

    async def look(self) -> Mapping[str, Look]:
        """Return what each memory shows; those that were written since are read anew."""
        async with self._looking:
            paths = memories_in(self._folder) if self._folder else []
            self._looks = await anyio.to_thread.run_sync(_looks, paths, self._looks)
            return self._looks

    async def keyframe(self, name: str, segment: int) -> bytes:
        """Return a keyframe as a JPEG.

        Raises:
            Refused: no such memory or segment, or its picture is gone or damaged.
        """
        if not self._folder or name not in self.names():
            raise Refused(404, "no such memory")
        path, jpeg = self._folder / name, None

        def read() -> bytes | None:
            with Store.open(path, None, "r") as store:
                return store.keyframe(segment)

        with suppress(StoreError):
            jpeg = await anyio.to_thread.run_sync(read)
        if jpeg is None:
            raise Refused(404, "no such segment, or its picture is not kept any more")
        return jpeg

    async def close_idle(self, idle_s: float) -> None:
        """Close the memories where none was asked for so long; they are opened again."""
        if self._num_waiting == 0 and self._touched < time.monotonic() - idle_s:
            await self.close()

    async def close(self) -> None:
        """Close the memories."""
        async with self._asking:
            if self._memories:
                self._memories.close()
                self._memories = None


def _looks(paths: Iterable[Path], known: Mapping[str, Look]) -> dict[str, Look]:
    found = {}
    for path in paths:
        stamp, look = last_written(path), known.get(path.name)
        if look is None or look.stamp != stamp or isinstance(look.summary, str):
            nothing = np.empty((0, 4))
            try:
                with Store.open(path, None, "r") as store:
                    rows = times(store)
                    caption = caption_at(store, int(rows[-1, 0])) if len(rows) else None
                    look = Look(path, stamp, info(store), rows, caption)
            except StoreError as error:
                look = Look(path, stamp, str(error).replace(f"{path}", path.name), nothing)
        found[path.name] = look
    return found


def states_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the state of memories, by name, and the reason for it; empty where there is none.

    Of cameras that are watched now it is what ``watch --sources`` writes; of files, what ``index``
    notes. Both files may be missing, or be written at this moment.
    """
    states = dict[str, tuple[str, str]]()
    with suppress(OSError, ValueError):
        path = folder / LIST
        lines = path.read_bytes().split(b"\n") if path.stat().st_size < MAX_LIST_BYTES else []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                states[str(row["memory"])] = (str(row["state"]), str(row["reason"]))
    return states | read_status(folder / STATUS)


def archive_routes(archive: OpenArchive, config: ServerConfig) -> APIRouter:
    """Make the routes of all memories at once.

    Args:
        archive: of the server.
        config: of the server.
    """
    router = APIRouter(prefix="/archive")
    folder, prefix, longest = config.memories, config.prefix, config.limits.question_chars

    def url(name: str) -> str:
        return f"{prefix}/v1/archive/{quote(name, safe='')}"

    @router.get("", response_model=None, responses=replies(CameraList))
    async def cameras(
        at: UnixSeconds = None,
    ) -> dict[str, object]:
        """List cameras and files: state, and the scene that was seen last, or at a time."""
        looks = await archive.look()

        def described() -> list[dict[str, object]]:
            states = states_of(folder) if folder else {}
            named = {*looks, *(name for name, (state, _) in states.items() if state in UNSEEN)}
            return [
                _look_json(name, looks.get(name), states.get(name), at, prefix)
                for name in sorted(named - {""})
            ]

        return {"cameras": await anyio.to_thread.run_sync(described)}

    @router.get("/timeline", response_model=None, responses=replies(ArchiveTimeline))
    async def timeline(
        start: UnixSeconds = None,
        end: UnixSeconds = None,
    ) -> dict[str, object]:
        """Tell when each memory saw something, by the wall clock where it knows that."""
        window = _window(start, end)
        looks = await archive.look()
        rows = []
        for name, look in looks.items():
            clock = "wall" if look.has_clock else "stream"
            spans = look.spans(window if look.has_clock else None)
            rows.append({"memory": name, "clock": clock, "spans": spans})
        return {"rows": rows}

    @router.post("/questions", response_model=None, responses=replies(Answers))
    async def ask(asked: ArchiveQuestion) -> dict[str, object]:
        """Answer a question from each memory in which something fits it, best first."""
        check_question(asked.question, longest)
        answers, memories = await archive.ask(asked.question)
        return {
            "answers": [event_json(a, url(name), {"memory": name}) for name, a in answers],
            **_asked(memories),
        }

    @router.post("/find", response_model=None, responses=replies(FoundInAll))
    async def find(wanted: SearchRequest) -> dict[str, object]:
        """Find the moments of all memories that fit a description best."""
        check_question(wanted.query, longest)

        def found(memories: Memories) -> dict[str, object]:
            moments = find_all(memories, wanted.query, wanted.count)
            listed = [event_json(m, url(name), {"memory": name}) for name, m in moments]
            return {"moments": listed, **_asked(memories)}

        return await archive.do(found)

    @router.get("/{name}/keyframes/{segment}", responses={200: {"content": {"image/jpeg": {}}}})
    async def keyframe(
        name: Annotated[str, PathParameter(max_length=255)],
        segment: Annotated[int, PathParameter(ge=0, le=2**53)],
    ) -> Response:
        """Return the keyframe of a segment; the memory need not be opened by a model for it."""
        jpeg = await archive.keyframe(name, segment)
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "max-age=3600"})

    return router


def _window(start: float | None, end: float | None) -> tuple[float, float] | None:
    if start is None and end is None:
        return None
    window = (start or 0.0, MAX_UNIX_S if end is None else end)
    if not window[0] < window[1]:
        raise Refused(422, "start must be before end")
    return window


UNSEEN = ("opening", "watched", "down", "failed")  # of cameras that may have no memory yet


def _asked(memories: Memories) -> dict[str, object]:
    """Tell how many memories were asked, and which could not be opened."""
    return {"asked": len(memories.sessions), "failed": sorted(memories.failed)}


def _look_json(
    name: str,
    look: Look | None,
    state: tuple[str, str] | None,
    at: float | None,
    prefix: str,
) -> dict[str, Any]:
    """Describe a camera; the keys are those of ``schemas.Camera``."""
    quoted = quote(name, safe="")
    summary = look.summary if look else None
    kept, reason = state or ("kept", "")
    if isinstance(summary, str):
        kept, reason = "unreadable", summary
    seen = None
    if look and (row := look.row_at(at)) is not None:
        segment, start, end, wall = map(float, look.times[row])
        caption = look.caption
        if row < len(look.times) - 1:
            caption = None
            with suppress(StoreError), Store.open(look.path, None, "r") as store:
                caption = caption_at(store, int(segment))
        seen = {
            "segment": int(segment),
            "start": start,
            "end": end,
            "wall_start": wall_clock(wall) if np.isfinite(wall) else None,
            "caption": caption,
            "keyframe": f"{prefix}/v1/archive/{quoted}/keyframes/{int(segment)}",
        }
    written = max((time_ns for _, _, time_ns in look.stamp), default=None) if look else None
    return {
        "memory": name,
        "url": f"{prefix}/v1/memories/{quoted}",
        "state": kept,
        "reason": _shown_reason(reason) or None,
        "segments": summary.segments if isinstance(summary, MemorySummary) else 0,
        "written": wall_clock(written / 1e9) if written else None,
        "seen": seen,
    }


def _shown_reason(reason: str) -> str:
    """Return a reason as clients may read it: without folders and addresses."""
    return _FOLDERS.sub("", without_addresses(reason))
