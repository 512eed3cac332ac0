"""Many live sources watched by one process: a thread each, one model, one stream of events.

    watched = watch_together({"door": open_door, "hall": open_hall}, is_stopping)
    for news in watched:                  # News, in the order in which it comes
        print(news.camera, news.event)

One that fails takes no other down: it is opened again after a wait that doubles, and goes on from
its memory. How cameras are opened is the caller's; `read_cameras` reads which there are.
"""

import json
import logging
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from streammem.config import read_toml
from streammem.errors import ConfigError, StreammemError
from streammem.fleet.pool import LIVED_S, IsStopping, wait_after
from streammem.output.render import prometheus
from streammem.types import Event, Notice, Stats

log = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
AHEAD = 64  # events that are not taken, before the cameras wait; then frames are dropped
POLL_S = 0.1
STATUS = "cameras.json"  # in the folder of the cameras' memories: how they are
STATUS_EVERY_S, STATUS_LASTS_S, MAX_STATUS_BYTES = 10.0, 150.0, 4 << 20

CameraState = Literal["opening", "watched", "down", "ended", "failed"]
# Yields events, and the Unix seconds at 0 of the memory's timeline where they are known.
WatchCamera = Callable[[IsStopping], Generator[tuple[Event, float | None], None, None]]


@dataclass(frozen=True, slots=True)
class News:
    """What comes of one camera: an event, or a change of its state.

    Attributes:
        camera: its name.
        event: None for a change of state.
        wall_zero: Unix seconds at 0 of its timeline; None where they are not known.
        state: ``watched`` from its first event on; ``down`` until it is opened again; ``ended``;
            ``failed`` for good.
        reason: of ``down`` and ``failed``.
        wait_s: until it is opened again.
    """

    camera: str
    event: Event | None = None
    wall_zero: float | None = None
    state: CameraState = "watched"
    reason: str = ""
    wait_s: float = 0.0


class EndedEarlyError(StreammemError):
    """A source whose end is known from the start broke off: it is not opened again."""


def read_cameras(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file of cameras.

    Args:
        path: TOML; a table ``[cameras.NAME]`` with ``source`` and options for each, and options
            of all of them above.

    Returns:
        The options of each camera by its name, those of all filled in.

    Raises:
        ConfigError: it cannot be read, holds no cameras, or one without a source.
    """
    shared = read_toml(path)
    tables = shared.pop("cameras", None)
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f'{path}: names no cameras; write [cameras.door] and source = "..."')
    cameras = {}
    for name, own in tables.items():
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: {name!r}: a camera's name is the name of its memory's folder: letters, "
                "digits, dots, dashes"
            )
        if not isinstance(own, dict) or not isinstance(own.get("source"), str):
            raise ConfigError(
                f'{path}: [cameras.{name}] has no source; write source = "rtsp://..."'
            )
        cameras[name] = {**shared, **own}
    return cameras


def watch_together(cameras: Mapping[str, WatchCamera], is_stopping: IsStopping) -> Iterator[News]:
    """Watch cameras at the same time, and yield what comes of them until all have ended.

    A camera whose events are not taken waits; its reader then drops frames and counts them.

    Args:
        cameras: what watches each, called in a thread of its own, again after a failure. A
            ``ConfigError`` or an ``EndedEarlyError`` ends it.
        is_stopping: once it holds, cameras end what they have open and are not opened again. It is
            asked in the caller's thread.
    """
    news: queue.Queue[News] = queue.Queue(AHEAD)
    stop, abandoned = threading.Event(), threading.Event()

    def put(item: News) -> bool:
        while not abandoned.is_set():
            with suppress(queue.Full):
                news.put(item, timeout=POLL_S)
                return True
        return False

    threads = [
        threading.Thread(
            target=_keep_watching, args=(name, watch, put, stop), name=f"camera-{name}", daemon=True
        )
        for name, watch in cameras.items()
    ]
    for thread in threads:
        thread.start()
    try:
        while True:
            alive = any(thread.is_alive() for thread in threads)  # asked first
            if is_stopping():
                stop.set()
            try:
                yield news.get(timeout=POLL_S if alive else 0)
            except queue.Empty:
                if not alive:
                    return
    finally:
        stop.set()
        abandoned.set()
        for thread in threads:
            thread.join()


def _keep_watching(
    name: str, watch: WatchCamera, put: Callable[[News], bool], stop: threading.Event
) -> None:
    """Watch one camera, again after each failure, until it ends; the body of its thread.

    Args:
        name: of the camera.
        watch: see ``watch_together``.
        put: takes news, waiting while too many are not taken; returns whether they are wanted.
        stop: once set it is not opened again.
    """
    num_failures = 0
    while True:
        began, reason, events = time.monotonic(), "", watch(stop.is_set)
        try:
            for number, (event, wall_zero) in enumerate(events):
                if not number:
                    put(News(name))
                if not put(News(name, event, wall_zero)):
                    events.close()
                    return
            put(News(name, state="ended"))
            return
        except (ConfigError, EndedEarlyError) as error:
            put(News(name, state="failed", reason=_line(error)))
            return
        except (StreammemError, OSError) as error:
            reason = _line(error)
        except Exception as error:  # a fault of ours takes no other camera down
            log.exception("%s failed", name)
            reason = f"{type(error).__name__}: {error}"
        num_failures = 1 if time.monotonic() - began >= LIVED_S else num_failures + 1
        wait_s = wait_after(num_failures)
        put(News(name, state="down", reason=reason, wait_s=0.0 if stop.is_set() else wait_s))
        if stop.wait(wait_s):
            return


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# -- how they are --


@dataclass(slots=True)
class Status:
    """How one camera is.

    Attributes:
        state: see ``News``.
        reason: why it is, or was last, down; empty where it never was.
        stats: the newest counters of its source since it was opened.
        num_failures: times that it went down.
        num_restarts: times that its worker's process died.
    """

    state: CameraState = "opening"
    reason: str = ""
    stats: Stats | None = None
    num_failures: int = 0
    num_restarts: int = 0


class Board:
    """How all cameras are, from the news of them.

    Args:
        names: of the cameras.

    Attributes:
        cameras: the status of each.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.cameras = {name: Status() for name in names}
        self._notice: dict[str, str] = {}

    def take(self, news: News) -> bool:
        """Note news; return whether the camera's state has changed."""
        status = self.cameras[news.camera]
        before = status.state
        if news.event is None:
            if news.state in ("down", "failed"):
                status.stats = None  # those of what is opened next begin anew
            self._change(status, news.state, news.reason)
        elif isinstance(news.event, Notice):
            self._notice[news.camera] = news.event.message
        elif isinstance(news.event, Stats):
            # A source that reconnects by itself tells so in notices; that it gives nothing is what
            # its counters show.
            known, status.stats = status.stats, news.event
            if known is not None and news.event.captured == known.captured:
                reason = self._notice.get(news.camera, "it gives no frames")
                self._change(status, "down", reason)
            elif news.event.captured:
                self._change(status, "watched")
        return status.state != before

    def died(self, names: Iterable[str], reason: str) -> None:
        """Note that the process that watches some of them has died."""
        for name in names:
            status = self.cameras[name]
            if status.state not in ("ended", "failed"):
                status.num_restarts += 1
                status.stats = None
                self._change(status, "down", f"its process died ({reason})")

    def summary(self) -> list[str]:
        """Return a line for all cameras, and one for each that is or was down, with the reason."""
        states = Counter(status.state for status in self.cameras.values())
        parts = [f"{count} {state}" for state, count in sorted(states.items())]
        lines = [f"{len(self.cameras)} cameras: {', '.join(parts)}"]
        for name, status in self.cameras.items():
            if status.reason:
                often = f", down {status.num_failures} times" if status.num_failures > 1 else ""
                lines.append(f"{name}: {status.state}{often}: {status.reason}")
        return lines

    @property
    def all_well(self) -> bool:
        """Whether no camera is down or has failed."""
        return all(s.state not in ("down", "failed") for s in self.cameras.values())

    def states(self) -> dict[str, tuple[CameraState, str]]:
        """Return the state of each camera, and the reason why it is, or was last, down."""
        return {name: (status.state, status.reason) for name, status in self.cameras.items()}

    def prometheus(self) -> str:
        """Return the counters of all cameras in Prometheus' text form."""
        # Read once each: another thread takes news meanwhile.
        known = {n: stats for n, s in self.cameras.items() if (stats := s.stats) is not None}
        text = prometheus(known) if known else ""
        for name, kind, value_of in (
            ("camera_up", "gauge", lambda s: int(s.state == "watched")),
            ("camera_failures_total", "counter", lambda s: s.num_failures),
            ("camera_restarts_total", "counter", lambda s: s.num_restarts),
        ):
            text += f"# TYPE streammem_{name} {kind}\n"
            for camera, status in self.cameras.items():
                text += f'streammem_{name}{{source="{camera}"}} {value_of(status)}\n'
        return text

    def _change(self, status: Status, state: CameraState, reason: str = "") -> None:
        if state in ("down", "failed") and status.state != state:
            status.num_failures += 1
        status.state, status.reason = state, reason or status.reason


def status_text(states: Mapping[str, tuple[CameraState, str]]) -> str:
    """Return the states of cameras as `read_status` reads them, with the time of now."""
    cameras = {name: {"state": state, "reason": why} for name, (state, why) in states.items()}
    return json.dumps({"written": time.time(), "cameras": cameras}) + "\n"


def read_status(path: Path) -> dict[str, tuple[str, str]]:
    """Read how cameras are from what ``status_text`` gave: state and reason, by name.

    Args:
        path: of the file; it may be missing, damaged, or of a process that is gone.

    Returns:
        Nothing where it was not written for ``STATUS_LASTS_S``.
    """
    try:
        content = json.loads(path.read_bytes()[:MAX_STATUS_BYTES])
        if not 0 <= time.time() - content["written"] < STATUS_LASTS_S:
            return {}
        return {
            str(name): (str(camera["state"]), str(camera["reason"]))
            for name, camera in content["cameras"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
