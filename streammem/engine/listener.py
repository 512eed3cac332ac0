"""The listener's thread: it makes the notes of a source beside its perception.

    listener = Listener("film.mp4", recogniser("whisper-base"), sound)
    listener.ready()          # notes that are final by now, and how far it is; never waits
    listener.close()

Perception never waits for it: a note joins its scene when it is there. Sound that comes beside the
pictures of a live source is taken by ``push``; what cannot keep up with it is skipped and counted.
"""

import logging
import queue
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import sleep

import numpy as np

from streammem.audio.recogniser import RATE, pieces
from streammem.audio.track import MAX_FAULTS
from streammem.audio.utterances import Utterances, silero
from streammem.errors import ServedModelError, StreammemError
from streammem.models.transcription import Recognises
from streammem.types import Note, Notice, clock

log = logging.getLogger(__name__)

BEHIND_S = 30.0  # sound of a live source that may wait; beyond that it is skipped
KEPT_S = 4.0  # but for its newest
PIPE_BEHIND_S = 600.0  # of a pipe, where only the oldest goes: 38 MB
TAKEN_S = 24.0  # of what waits, at a time: Whisper reads half a minute at the price of a second
IDLE_S = 3.0  # without sound, after which what is said counts as ended
_WAIT_S, _ASK_AGAIN_S = 0.2, 0.05
MOST_WAITING = 1000  # results of a worker that is ahead of the pictures
AHEAD_S = 120.0  # of a file's sound that waits for the slowest of its listeners: 8 MB

CueSource = Callable[[Callable[[], bool], Callable[[], bool]], Iterator[Note | str | float]]
"""Gives the cues of a text track, about in order of time, how far it is, and what is wrong with it.

It is given functions that return whether to give up, and whether the pictures have ended.
"""


class SharedSound:
    """The sound of a source, decoded once for several listeners, each in a thread of its own.

    One that is AHEAD_S before the slowest waits for it.

    Args:
        sound: see ``VideoSource.sound_pass``. Where it fails one of them is told, the others end.
        count: of listeners, which are numbered from 0.
    """

    def __init__(self, sound: Iterator[tuple[float, np.ndarray]], count: int) -> None:
        self._sound = sound
        self._came = threading.Condition()  # guards all below
        self._pieces: deque[tuple[float, np.ndarray]] = deque()  # that some have not taken yet
        self._first = 0  # number of the oldest of them
        self._next: dict[int, int] = dict.fromkeys(range(count), 0)  # piece, by listener
        self._decoding = self._over = False

    def sound(self, number: int) -> Iterator[tuple[float, np.ndarray]]:
        """Give all of it to a listener, until it leaves."""
        while True:
            with self._came:
                while (piece := self._waiting(number)) is None and self._must_wait(number):
                    self._came.wait(_WAIT_S)
                decodes = piece is None and number in self._next and not self._over
                self._decoding |= decodes
            if decodes:
                piece = self._decoded()
            if piece is None:
                return
            if decodes and len(piece[1]):
                continue  # it waits for all of them now
            yield piece

    def leave(self, number: int) -> None:
        """Give a listener nothing more; the others do not wait for it."""
        with self._came:
            self._next.pop(number, None)
            self._forget()
            self._came.notify_all()

    def _waiting(self, number: int) -> tuple[float, np.ndarray] | None:
        """Take the next piece that was decoded; None where a listener has had all."""
        place = self._next.get(number, self._first + len(self._pieces)) - self._first
        if place >= len(self._pieces):
            return None
        piece = self._pieces[place]
        self._next[number] += 1
        self._forget()
        return piece

    def _must_wait(self, number: int) -> bool:
        if number not in self._next or self._over:
            return False
        held = self._pieces
        return self._decoding or (bool(held) and held[-1][0] - held[0][0] >= AHEAD_S)

    def _decoded(self) -> tuple[float, np.ndarray] | None:
        """Decode the next piece for all; None at the end."""
        piece = None
        try:
            piece = next(self._sound, None)
        finally:
            with self._came:
                self._decoding, self._over = False, piece is None
                if piece is not None and len(piece[1]):
                    self._pieces.append(piece)
                self._came.notify_all()
        return piece

    def _forget(self) -> None:
        oldest = min(self._next.values(), default=self._first + len(self._pieces))
        while self._first < oldest:
            self._pieces.popleft()
            self._first += 1
        self._came.notify_all()


class NoteWorker(ABC):
    """Makes the notes of a source in a thread of its own.

    Args:
        what: is made, for messages: with the source's name.

    Attributes:
        sound_s: seconds of sound that were pushed.
        skipped_s: of these, seconds that were not recognised, as recognition had fallen behind.
        lag_s: seconds of sound that had come after the end of the last note of pushed sound.
        most_waiting: results that may wait, beyond which the thread does; 0 for any number.
    """

    most_waiting = 0

    def __init__(self, what: str) -> None:
        self._what, self._stop = what, False
        self.sound_s = self.skipped_s = self.lag_s = 0.0
        self._results: queue.Queue[Note | Notice | float] = queue.Queue(self.most_waiting)
        self._thread = threading.Thread(target=self._run, name="streammem-listener", daemon=True)
        self._thread.start()

    @abstractmethod
    def _items(self) -> Iterator[Note | Notice | float]:
        """Give what ``ready`` returns; runs in the thread."""

    @property
    def finished(self) -> bool:
        """Whether nothing comes any more."""
        return not self._thread.is_alive() and self._results.empty()

    def push(self, time: float, samples: np.ndarray) -> None:  # noqa: B027, most make notes of none
        """Take the sound that came beside the pictures; any thread may. It never blocks for long.

        Args:
            time: seconds on the source's clock at which it begins.
            samples: [N] float32 at RATE, mono.
        """

    def end(self) -> None:  # noqa: B027, likewise
        """Note that no more comes; what waits is still worked on."""

    def ready(self, wait_s: float = 0.0) -> list[Note | Notice | float]:
        """Return what has come, in order of time; wait for the first of it at most ``wait_s``.

        Returns:
            Notes, notices, and seconds: no note that begins before them comes any more.
        """
        found = list[Note | Notice | float]()
        with suppress(queue.Empty):
            if wait_s:
                found.append(self._results.get(timeout=wait_s))
            while not self.most_waiting or len(found) < self.most_waiting:
                found.append(self._results.get_nowait())
        return found

    def close(self) -> None:
        """End the thread; it may take as long as the note that is being made."""
        self._stop = True
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            for item in self._items():
                self._put(item)
                if self._stop:
                    return
        except StreammemError as error:
            is_failure = isinstance(error, ServedModelError)
            self._put(Notice(str(error), is_failure=is_failure))
        except Exception as error:  # noqa: BLE001, words that fail must not end the watching
            text = f"{self._what} not recognised any more"
            self._put(Notice(f"{text} ({type(error).__name__}: {error})"))
        finally:
            self.end()

    def _put(self, item: Note | Notice | float) -> None:
        while not self._stop:
            with suppress(queue.Full):
                self._results.put(item, timeout=_WAIT_S)
                return


class CueReader(NoteWorker):
    """Reads the subtitles of a source that lie behind a network.

    Args:
        name: of the source, for messages.
        cues: see ``CueSource``.
    """

    most_waiting = MOST_WAITING

    def __init__(self, name: str, cues: CueSource) -> None:
        self._cues, self._num_faults, self._ended = cues, 0, False
        super().__init__(f"{name}: its subtitles are")

    def end(self) -> None:
        self._ended = True

    def _items(self) -> Iterator[Note | Notice | float]:
        for item in self._cues(lambda: self._stop, lambda: self._ended):
            if isinstance(item, Note):
                yield item.start
            if not isinstance(item, str):
                yield item
                continue
            self._num_faults += 1
            if self._num_faults <= MAX_FAULTS:
                yield Notice(item, is_failure=False)


class Listener(NoteWorker):
    """Recognises what is said in a source, in a thread of its own.

    Args:
        name: of the source, for messages.
        opener: opens the recogniser, in the thread.
        sound: see ``VideoSource.sound_pass``; None where it is pushed.
        behind_s: seconds of pushed sound that may wait.
        kept_s: of these, the newest that stay where more would wait; None drops the oldest only.
        events: it listens for sound events: pushed sound is read evenly, not by utterance.
        on_end: called once nothing more is read of ``sound``; perhaps twice.
    """

    def __init__(
        self,
        name: str,
        opener: Callable[[], Recognises],
        sound: Iterator[tuple[float, np.ndarray]] | None = None,
        behind_s: float = BEHIND_S,
        kept_s: float | None = KEPT_S,
        *,
        events: bool = False,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._opener, self._sound, self._events = opener, sound, events
        if sound is not None:
            self.most_waiting = MOST_WAITING  # what is recognised of a file waits for its pictures
        self._on_end = on_end
        self._behind_s, self._kept_s = behind_s, behind_s if kept_s is None else kept_s
        self._failure = ""  # of a transcription server, since the last note
        self._came = threading.Condition()  # guards the next four
        self._waiting: deque[tuple[float, np.ndarray]] = deque()
        self._waiting_s = self._newest = 0.0
        self._ended = False
        super().__init__(f"{name}: {'sound events are' if events else 'speech is'}")

    def push(self, time: float, samples: np.ndarray) -> None:
        with self._came:
            if self._ended or self._stop:
                return
            self._waiting.append((time, samples))
            self._waiting_s += len(samples) / RATE
            self.sound_s += len(samples) / RATE
            self._newest = time + len(samples) / RATE
            if self._waiting_s > self._behind_s:
                self._skip()
            self._came.notify()

    def end(self) -> None:
        with self._came:
            self._ended = True
            self._came.notify()

    def close(self) -> None:
        with self._came:
            self._stop = True
            self._waiting.clear()
            self._came.notify()
        self._on_end()
        super().close()

    def _skip(self) -> None:
        if not self.skipped_s:
            text = f"{self._what} recognised too slowly here; some sound is skipped, see stats"
            self._results.put(Notice(text, is_failure=False))
            log.info("%s", text)
        while self._waiting and self._waiting_s > self._kept_s:
            skipped_s = len(self._waiting.popleft()[1]) / RATE
            self._waiting_s -= skipped_s
            self.skipped_s += skipped_s

    def _items(self) -> Iterator[Note | Notice | float]:
        try:
            recogniser, sound = self._opener(), self._sound
            if sound is None and not self._events:
                cut = self._utterances()
            else:
                sound = self._pushed() if sound is None else self._awaited(sound)
                cut = pieces(sound, recogniser.piece_s)
            for start, samples in cut:
                yield from self._recognised(recogniser, start, samples)
                yield start + len(samples) / RATE
        finally:
            self._on_end()
            self._waiting.clear()

    def _recognised(
        self, recogniser: Recognises, start: float, samples: np.ndarray
    ) -> Iterator[Note | Notice]:
        """Give what is recognised in a piece, by the source's clock.

        A server that fails takes an utterance from a live source, which is watched for days, and
        is told of once; of a file it is an error.
        """
        try:
            for item in recogniser.transcribe(samples, lambda: self._stop):
                if isinstance(item, Note):
                    item = item.shifted(start)
                    self.lag_s = max(0.0, self._newest - item.end)
                yield item
            self._failure = ""
        except ServedModelError as error:
            if self._sound is not None:
                raise ServedModelError(f"{error}; no words from {clock(start)} on") from error
            # Without its numbers: one may be how long the server is not to be asked.
            failure, self._failure = self._failure, re.sub(r"\d+", "", str(error))
            if self._failure != failure:
                yield Notice(str(error))

    def _utterances(self) -> Iterator[tuple[float, np.ndarray]]:
        """Give what was pushed, utterance by utterance, until no more comes."""
        utterances, idle_s, until = Utterances(silero()), 0.0, 0.0
        while not self._stop:
            taken, ended = self._take()
            for time, samples in taken:
                utterances.push(time, samples)
            idle_s = 0.0 if taken else idle_s + _WAIT_S
            if idle_s >= IDLE_S or (ended and not taken):
                utterances.flush()
            yield from utterances.ready()
            if utterances.until >= until + 1:
                until = utterances.until
                self._results.put(until)
            if ended and not taken:
                return

    def _awaited(
        self, sound: Iterator[tuple[float, np.ndarray]]
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Give a pass; wait where the pictures have not come so far."""
        for time, samples in sound:
            if self._stop:
                return
            if len(samples):
                yield time, samples
            else:
                sleep(_ASK_AGAIN_S)

    def _pushed(self) -> Iterator[tuple[float, np.ndarray]]:
        """Give what was pushed, as it came, until no more comes."""
        ended = False
        while not (self._stop or ended):
            taken, ended = self._take()
            yield from taken
            ended &= not taken

    def _take(self) -> tuple[list[tuple[float, np.ndarray]], bool]:
        """Take the oldest of what waits, and whether no more comes; wait a moment for some."""
        taken, taken_s = list[tuple[float, np.ndarray]](), 0.0
        with self._came:
            if not self._waiting and not self._ended:
                self._came.wait(_WAIT_S)
            while self._waiting and taken_s < TAKEN_S:
                taken.append(self._waiting.popleft())
                taken_s += len(taken[-1][1]) / RATE
            self._waiting_s = max(0.0, self._waiting_s - taken_s)
            return taken, self._ended
