"""The threads: a reader that decodes, a speaker that talks. Only values cross between them.

What is done with frames and words is decided in `live.py`.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

import torch

from streammem.captioning.captioner import candidates_of
from streammem.engine.long_scenes import Span
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch_options import Drop
from streammem.errors import SourceError
from streammem.models.backbones.language import Replies, Reply
from streammem.models.backbones.sampling import GenerationConfig
from streammem.models.tiny.model import StreamModel
from streammem.types import Frame, Segment
from streammem.video import VideoSource

T = TypeVar("T")
FRAMES_AHEAD = 8  # decoded frames that wait for perception
LIVE_FRAMES_AHEAD = 32  # of a source that does not wait: what comes while a question is read
# Captions said at once. Eight take 0.41 of their time one by one, sixteen 0.34: more would rather
# make Ctrl-C wait longer, for all that wait are said then.
TOGETHER = 8
REPLIES_TOGETHER = 16  # the candidates of a caption share its prompt, and are a batch themselves
POLL_S = 0.05
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
        except queue.Full:  # nobody waits any more
            if not isinstance(opened, BaseException):
                opened.close()

    thread = threading.Thread(target=run, name="streammem-opener", daemon=True)
    thread.start()
    opened = None
    while opened is None:
        with suppress(queue.Empty):
            opened = _next(result, thread)
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
        dropped_at_stop: frames that nobody took before it was stopped.
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
                item = _next(self._queue, self._thread)
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
        is_frame = isinstance(item, Frame)
        taken = self._hand_over(item, drops=is_frame and self._drop != "never")
        if isinstance(item, Frame) and self._patience_s:
            self.captured_until = item.time
            self.captured += 1
            self.dropped_at_stop += not taken
        return taken

    def _hand_over(self, item: Frame | BaseException | None, *, drops: bool) -> bool:
        """Queue an item, or drop one where that is allowed; not once the reader is stopped."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.0 if drops else POLL_S)
                return True
            except queue.Full:
                if drops and self._drop == "newest":
                    self.dropped_full += 1
                    return True
                if drops:
                    with suppress(queue.Empty):
                        self._queue.get_nowait()
                        self.dropped_full += 1
        return False


class Said(NamedTuple):
    """What was said of a stretch, and the monotonic second of the first word."""

    span: Span
    replies: Replies
    began: float


class Speaker:
    """Generates captions in a thread of its own, in the order in which they are asked for.

    Args:
        model: what speaks.
        config: how captions are asked for and decoded.
        on_text: called in that thread with each piece of a caption.
        warm: open the language model at once, and not for the first caption.
        together: stretches at most that are said at once, of those that wait already, by a model
            to which that matters; 1 where somebody hears the words as they come.

    Attributes:
        silence: a lock; whoever holds it keeps the speaker from its next word.
        together: as above; 1 until the first caption was said.
        cpu_s: seconds that its thread has computed.
        num_skipped: captions that were given up before they were begun.
    """

    def __init__(
        self,
        model: StreamModel,
        config: SessionConfig,
        on_text: Callable[[Segment, str], None] | None,
        *,
        warm: bool = False,
        together: int = 1,
    ) -> None:
        self._model, self._config, self._on_text = model, config, on_text
        self._decoding = config.caption or model.decoding
        self._candidates = candidates_of(model, config)
        self._warm, self.together = warm, 1
        self._most = most_together(together, self._candidates)
        self._jobs: queue.Queue[Span | None] = queue.Queue()
        self._said: queue.Queue[Said | BaseException] = queue.Queue()
        self._waiting: deque[Span] = deque()
        self._stop = threading.Event()
        self.silence = threading.Lock()
        self.cpu_s, self.num_skipped = 0.0, 0
        self._thread = threading.Thread(target=self._run, name="streammem-speaker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Stretches that were submitted, and whose captions were not given yet."""
        return len(self._waiting)

    def submit(self, span: Span) -> None:
        """Queue a stretch."""
        self._waiting.append(span)
        self._jobs.put(span)

    def skip(self, most: int) -> None:
        """Give up the oldest stretches that are not begun, until only ``most`` are to be said.

        The one that is being said, or that an idle speaker is about to begin, is among them.
        """
        while len(self._waiting) - self._said.qsize() > most:
            try:
                span = self._jobs.get_nowait()
            except queue.Empty:  # it has been begun meanwhile
                return
            if span is not None:
                self._waiting.remove(span)
                self.num_skipped += 1

    def said(self, ahead: int | None) -> Iterator[Said | None]:
        """Yield what was said; wait for it while more than ``ahead`` are due, if that is given.

        While it waits, it yields None every ``POLL_S`` seconds.
        """
        while self._waiting and (
            (ahead is not None and len(self._waiting) > ahead) or not self._said.empty()
        ):
            try:
                said = _next(self._said, self._thread)
            except queue.Empty:
                yield None
                continue
            if isinstance(said, BaseException):
                raise said
            self._waiting.popleft()
            yield said

    def stop(self) -> None:
        """End the thread, between two words if it is speaking."""
        self._stop.set()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._warm:
                self._warm_up()
            while (spans := self._taken()) and not self._stop.is_set():
                aloud = len(spans) == self._candidates == 1
                for said in [self._say(spans[0])] if aloud else self._say_together(spans):
                    self.cpu_s = time.thread_time()
                    self.together = self._most if self._saves_together() else 1
                    self._said.put(said)
        except BaseException as error:  # noqa: BLE001, carried to the caller with its traceback
            self._said.put(error)

    def _taken(self) -> list[Span]:
        """Take the oldest stretch as soon as there is one, and what waits behind it."""
        taken = [self._jobs.get()]
        with suppress(queue.Empty):
            while len(taken) < self.together:
                taken.append(self._jobs.get_nowait())
        return [span for span in taken if span is not None]

    def _saves_together(self) -> bool:
        if self._most == 1 or self._decoding.num_beams > 1:
            return False
        return self._model.speaks_together

    def _warm_up(self) -> None:
        """Say a word that nobody hears: the first takes seconds, in which a scene would wait."""
        with self.silence:
            blank = torch.zeros(self._model.token_shape)
            prompt = self._model.caption_prompt(blank, self._config.instruction)
            for _ in self._model.stream(prompt, GenerationConfig(max_new_tokens=1)):
                pass

    def _say(self, span: Span) -> Said:
        began = 0.0
        with self.silence:
            prompt = self._model.caption_prompt(span.tokens, self._config.instruction)
            words = self._model.stream(prompt, self._decoding)
        pieces: list[str] = []
        while not self._stop.is_set():
            with self.silence:
                piece = next(words, None)
            began = began or time.monotonic()
            if piece is None:
                break
            pieces.append(piece)
            if self._on_text:
                self._on_text(span.segment, piece)
        reply = Reply("".join(pieces).strip(), [], [])
        return Said(span, (reply,), began or time.monotonic())

    def _say_together(self, spans: list[Span]) -> Iterator[Said]:
        began, tokens = 0.0, [span.tokens for span in spans]
        instruction, count = self._config.instruction, self._candidates
        with self.silence:
            said = self._model.captions_stepwise(tokens, self._decoding, instruction, count)
        while spans and not self._stop.is_set():
            with self.silence:
                replies = next(said)
            began = began or time.monotonic()
            if replies is not None:
                yield Said(spans.pop(0), replies, began)


def most_together(captions: int, candidates: int) -> int:
    """Return how many of ``captions`` are said at once where each is one of several candidates."""
    return max(1, min(captions, REPLIES_TOGETHER // candidates))


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
