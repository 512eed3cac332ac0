"""The reader thread: it decodes a source a few frames ahead. Only values cross between threads.

What is done with the frames is decided in `watch.py`.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from streammem.captioning.scheduler import POLL_S, take
from streammem.engine.watch_options import Drop
from streammem.errors import SourceError
from streammem.types import Frame
from streammem.video import VideoSource

FRAMES_AHEAD = 8  # decoded frames that wait for perception
LIVE_FRAMES_AHEAD = 32  # of a source that does not wait: what comes while a question is read
# A source that is stopped while it waits for data is waited for so long: RTSP looks up within it
# (`video.cameras.POLL_S`). What does not, such as HTTP, is left to its time-out.
PATIENCE_S = 4.0


def open_aside(opening: Callable[[], VideoSource], stop: Callable[[], bool]) -> VideoSource | None:
    """Open a source in a thread of its own, which is not waited for once ``stop`` says so.

    Returns:
        The source; None if it was stopped before. Should it open after that, it is closed there.

    Raises:
        Exception: what opening it raises.
    """
    result: queue.Queue[VideoSource | BaseException | None] = queue.Queue(1)

    def run() -> None:
        opened: VideoSource | BaseException
        try:
            opened = opening()
        except BaseException as error:  # noqa: BLE001, carried to the caller with its traceback
            opened = error
        try:
            result.put_nowait(opened)
        except queue.Full:  # the caller has given up
            if not isinstance(opened, BaseException):
                opened.close()

    thread = threading.Thread(target=run, name="streammem-opener", daemon=True)
    thread.start()
    opened = None
    while opened is None:
        with suppress(queue.Empty):
            opened = take(result, thread)
        if opened is None and stop():
            with suppress(queue.Full):  # it may have opened meanwhile
                result.put_nowait(None)
                return None
    if isinstance(opened, BaseException):
        raise opened
    return opened


class Reader:
    """Iterates over a source in a thread of its own, a few frames ahead.

    Args:
        source: closed by that thread, even if it is no longer waited for.
        drop: see ``WatchOptions``.

    Attributes:
        broken: the source's own error, if it broke off; other exceptions reach the caller.
        stopped: whether the caller stopped it before the source ended.
        captured: frames that the source has given.
        captured_until: seconds, the time of the newest of them.
        dropped_full: frames dropped because too many waited.
        dropped_at_stop: frames that were not taken before it was stopped.
    """

    def __init__(self, source: VideoSource, drop: Drop = "never") -> None:
        self._source, self._drop = source, drop
        ahead = FRAMES_AHEAD if drop == "never" else LIVE_FRAMES_AHEAD
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._patience_s = PATIENCE_S
        self.broken: SourceError | None = None
        self.stopped = False
        self.captured = self.dropped_full = self.dropped_at_stop = 0
        self.captured_until = 0.0
        self._thread = threading.Thread(target=self._run, name="streammem-reader", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Frames that wait to be taken."""
        return self._queue.qsize()

    def frames(self, stop: Callable[[], bool] | None = None) -> Iterator[Frame | None]:
        """Yield frames until the source ends, breaks off, or ``stop`` says so.

        Whenever none has come for ``POLL_S``, yields None instead.
        """
        while True:
            if stop and stop():
                self.stopped = True
                return
            try:
                item = take(self._queue, self._thread)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, SourceError):
                self.broken = item
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def waiting_frame(self) -> Frame | None:
        """Take a frame that is there already; what is no frame stays for ``frames``."""
        with self._queue.mutex:
            if not self._queue.queue or not isinstance(self._queue.queue[0], Frame):
                return None
        with suppress(queue.Empty):  # the reader may have dropped it meanwhile
            item = self._queue.get_nowait()
            assert isinstance(item, Frame)  # only frames stand before frames
            return item
        return None

    def halt(self) -> None:
        """Ask the thread to end; what comes from now on is not taken."""
        self._stop.set()
        self._source.stop()

    def stop(self) -> None:
        """End the thread and close the source, or leave it to do so when its data comes.

        What it still gives then is neither captured nor dropped.
        """
        self.halt()
        self._thread.join(self._patience_s)
        self._patience_s = 0.0  # it may be stopped again
        with suppress(queue.Empty):
            while True:
                self.dropped_at_stop += isinstance(self._queue.get_nowait(), Frame)

    def _run(self) -> None:
        try:
            for frame in self._source:
                if not self._put(frame):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001, carried to the caller with its traceback
            self._put(error)
        finally:
            # Closed by the thread that reads: decoders crash when another frees them meanwhile.
            self._source.close()

    def _put(self, item: Frame | BaseException | None) -> bool:
        """Queue an item, or drop a frame where that is allowed; False once it is stopped."""
        drops, taken = isinstance(item, Frame) and self._drop != "never", False
        while not (taken or self._stop.is_set()):
            try:
                self._queue.put(item, timeout=0.0 if drops else POLL_S)
                taken = True
            except queue.Full:
                if drops and self._drop == "newest":
                    self.dropped_full, taken = self.dropped_full + 1, True
                elif drops:
                    with suppress(queue.Empty):
                        self._queue.get_nowait()
                        self.dropped_full += 1
        if isinstance(item, Frame) and self._patience_s:
            self.captured_until = item.time
            self.captured += 1
            self.dropped_at_stop += not taken
        return taken
