"""Watching: the one module with threads. A reader decodes, a speaker talks, perception stays here.

Only values cross threads: frames come in, prompts go out, texts come back. The session itself is
touched by the caller's thread alone.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

from streammem.errors import SourceError, TruncatedError
from streammem.model import VideoModel
from streammem.session import Session
from streammem.session_config import SessionConfig
from streammem.types import Caption, Event, Frame, Segment, Warning
from streammem.video import Reader as FileReader
from streammem.video import VideoSource, open_source

T = TypeVar("T")
FRAMES_AHEAD = 8  # decoded frames that wait for perception
SEGMENTS_AHEAD = 4  # segments that wait for the speaker before a file's perception does
POLL_S = 0.05
DEFAULT_FPS = 2.0
MAX_SIDE = 640  # pixels; more is thrown away by the encoder and by keyframes


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How a source is watched.

    Attributes:
        fps: frames a second that are perceived.
        start: seconds at which a file is entered.
        end: seconds at which it is left; None for its end.
        sparse: keyframes only, for skimming long files.
        reader: what decodes files.
        max_side: pixels to which the longer side is shrunk.
        speak: emit captions.
        stop: asked before each frame; once true the stream ends as if its source had: the open
            segment is closed and said.
        on_text: called in the speaker's thread with (segment, piece) as words are generated.
    """

    fps: float | None = DEFAULT_FPS
    start: float = 0.0
    end: float | None = None
    sparse: bool = False
    reader: FileReader = "pyav"
    max_side: int = MAX_SIDE
    speak: bool = True
    stop: Callable[[], bool] | None = None
    on_text: Callable[[Segment, str], None] | None = None


def watch(
    session: Session, source: object, options: WatchOptions = WatchOptions()
) -> Iterator[Event]:
    """Perceive a source and yield its events as they come: segments, each with its caption.

    Args:
        session: takes in the frames; on return it holds the whole stream.
        source: what ``open_source`` takes, or an open ``VideoSource``.
        options: see ``WatchOptions``.

    Returns:
        An iterator; close it (or break off) to stop: threads end and the source is closed. A
        source that breaks off gives what it had, then a ``Warning``.

    Raises:
        ConfigError, SourceError: at the call, before anything is yielded.
    """
    opened = cast(VideoSource, source) if _is_open(source) else open_for(source, options)
    if not session.source:
        session.source = opened.name
    return _events(session, opened, options)


def _events(session: Session, source: VideoSource, options: WatchOptions) -> Iterator[Event]:
    speaker = Speaker(session.model, session.config, options.on_text) if options.speak else None
    reader = Reader(source)
    try:
        for frame in reader.frames(options.stop):
            yield from _spoken(session, speaker, session.push(frame), SEGMENTS_AHEAD)
        end = None if reader.stopped else source.end
        yield from _spoken(session, speaker, session.flush(end), 0)
        if isinstance(reader.broken, TruncatedError):
            yield Warning(str(reader.broken))
        elif reader.broken:
            raise reader.broken
    finally:
        reader.stop()
        if speaker:
            speaker.stop()


def _spoken(
    session: Session, speaker: "Speaker | None", closed: tuple[Segment, ...], ahead: int
) -> Iterator[Event]:
    """Yield closed segments, and captions until at most ``ahead`` segments wait for theirs."""
    for segment in closed:
        if speaker:
            speaker.submit(segment, session)
        yield segment
    if speaker:
        yield from speaker.captions(session, ahead)


class Reader:
    """Iterates over a source in a thread of its own, a few frames ahead.

    Attributes:
        broken: the source's own error, if it broke off; other exceptions reach the caller.
        stopped: whether the caller stopped it before the source ended.
    """

    def __init__(self, source: VideoSource) -> None:
        self._source = source
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(FRAMES_AHEAD)
        self._stop = threading.Event()
        self.broken: SourceError | None = None
        self.stopped = False
        self._thread = threading.Thread(target=self._run, name="streammem-reader", daemon=True)
        self._thread.start()

    def frames(self, stop: Callable[[], bool] | None = None) -> Iterator[Frame]:
        """Yield frames until the source ends, breaks off, or ``stop`` says so."""
        while True:
            if stop and stop():
                self.stopped = True
                return
            try:
                item = _next(self._queue, self._thread)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, SourceError):
                self.broken = item
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        """End the thread and close the source."""
        self._stop.set()
        self._thread.join()

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
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                continue
        return False


class Speaker:
    """Generates captions in a thread of its own, in the order of the segments."""

    def __init__(
        self,
        model: VideoModel,
        config: SessionConfig,
        on_text: Callable[[Segment, str], None] | None,
    ) -> None:
        self._model, self._config, self._on_text = model, config, on_text
        self._jobs: queue.Queue[tuple[Segment, object] | None] = queue.Queue()
        self._said: queue.Queue[str | BaseException] = queue.Queue()
        self._waiting: deque[Segment] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streammem-speaker", daemon=True)
        self._thread.start()

    def submit(self, segment: Segment, session: Session) -> None:
        """Queue a segment; at most ``SEGMENTS_AHEAD`` + those of one push wait."""
        self._waiting.append(segment)
        self._jobs.put((segment, session.tokens(segment.id)))

    def captions(self, session: Session, ahead: int) -> Iterator[Caption]:
        """Yield captions that are ready; wait for them while more than ``ahead`` are due."""
        while self._waiting and (len(self._waiting) > ahead or not self._said.empty()):
            said = self._awaited()
            if isinstance(said, BaseException):
                raise said
            yield session.add_caption(self._waiting.popleft(), said)

    def _awaited(self) -> str | BaseException:
        while True:
            with suppress(queue.Empty):
                return _next(self._said, self._thread)

    def stop(self) -> None:
        """End the thread, between two words if it is speaking."""
        self._stop.set()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None and not self._stop.is_set():
                self._said.put(self._say(*job))
        except BaseException as error:  # noqa: BLE001, carried to the caller with its traceback
            self._said.put(error)

    def _say(self, segment: Segment, tokens: object) -> str:
        prompt = self._model.caption_prompt(tokens, self._config.instruction)  # type: ignore[arg-type]
        pieces = []
        for piece in self._model.stream(prompt, self._config.caption or self._model.decoding):
            if self._stop.is_set():
                break
            pieces.append(piece)
            if self._on_text:
                self._on_text(segment, piece)
        return "".join(pieces).strip()


def _next(items: "queue.Queue[T]", thread: threading.Thread) -> T:
    """Take what a thread has put into its queue.

    Raises:
        queue.Empty: nothing came for ``POLL_S`` seconds.
        RuntimeError: the thread is dead without a word, and nothing will ever come.
    """
    alive = thread.is_alive()  # asked first: what it put before it died is still there
    try:
        return items.get(timeout=POLL_S if alive else 0)
    except queue.Empty:
        if alive:
            raise
        raise RuntimeError(f"the thread {thread.name} died without an error") from None


def _is_open(source: object) -> bool:
    return hasattr(source, "close") and hasattr(source, "end")


def open_for(source: object, options: WatchOptions) -> VideoSource:
    """Open a source with the sampling that the options ask for."""
    return open_source(
        source,  # type: ignore[arg-type]
        fps=options.fps,
        start=options.start,
        end=options.end,
        max_side=options.max_side,
        sparse=options.sparse,
        reader=options.reader,
    )
