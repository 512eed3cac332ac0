"""The sound of scenes, read once and in order of time, for models that listen.

    window = SoundWindow(source.sound_pass(), report)    # (second, samples), in order of time
    scene = window.scene(12.0, 20.0)
    scene.read(0.0, 2.0)                                 # [32000] float32

    came = LiveSound()                                   # of a source whose sound comes by itself
    source.on_sound = came.push
    window = SoundWindow(came, report, LONGEST_S)

What lies before the last second asked for is forgotten, so memory does not grow with the source.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from streammem.audio.recogniser import PAUSE_S, RATE, SoundLine
from streammem.errors import SourceError

HELD_S = 600.0  # of live sound that waits for its scene to close: 38 MB
LONGEST_S = 540.0  # of a live scene; of a longer one the end is heard


class LiveSound:
    """The sound of a live source as it comes, until it is read; at most the newest HELD_S of it."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, np.ndarray]] = deque()

    def push(self, time: float, samples: np.ndarray) -> None:
        """Take the samples [N] that begin at a second; another thread than the reading one may."""
        self._waiting.append((time, samples))
        with suppress(IndexError):  # what is the oldest may be read meanwhile
            while self._waiting[0][0] < time - HELD_S:
                self._waiting.popleft()

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Give what has come; an empty piece where nothing has."""
        while True:
            piece = 0.0, np.zeros(0, np.float32)
            with suppress(IndexError):
                piece = self._waiting.popleft()
            yield piece


class SoundWindow:
    """The sound of a source from some second on.

    Args:
        sound: the second at which samples begin, and the samples [N] float32 at RATE, mono; in
            order of time. An empty piece means that nothing more has come so far, which is not
            waited for. A ``SourceError`` of it ends the sound.
        report: called once with the reason where the sound fails.
        longest_s: seconds of a scene that are heard, its last ones; None for all.
    """

    def __init__(
        self,
        sound: Iterable[tuple[float, np.ndarray]],
        report: Callable[[str], object],
        longest_s: float | None = None,
    ) -> None:
        self._sound, self._report, self._longest_s = iter(sound), report, longest_s
        self._lines: deque[SoundLine] = deque()  # each without a break
        self._over = False

    def scene(self, start: float, end: float) -> "SceneSound":
        """Return the sound of [start, end) seconds, or of as much of its end as is heard."""
        if self._longest_s is not None:
            start = max(start, end - self._longest_s)
        return SceneSound(self, start, end)

    def read(self, start: float, end: float) -> np.ndarray:
        """Read [start, end) seconds; times of calls never go back.

        Returns:
            [N] float32, silence where some is missing between; up to where it ends, whatever
            follows behind ``end``, so empty where there is none.
        """
        first, last = round(start * RATE), round(end * RATE)
        lines = self._lines
        # 1. Take in what comes before the end, and forget what lies before the start.
        while not self._over and not (lines and round(lines[-1].end * RATE) >= last):
            try:
                time, samples = next(self._sound)
            except StopIteration:
                self._over = True
            except SourceError as error:
                self._over = True
                self._report(str(error).partition(";")[0])
            else:
                if not len(samples):
                    break
                if not lines or lines[-1].gap(time) >= PAUSE_S:
                    lines.append(SoundLine())
                lines[-1].push(time, samples)
                _forget(lines, first)
        _forget(lines, first)
        # 2. Lay it out.
        found, until = np.zeros(max(0, last - first), np.float32), first
        for line in lines:
            place, samples = round(line.start * RATE), line.samples
            begin, stop = max(place, first), min(place + len(samples), last)
            if begin < stop:
                found[begin - first : stop - first] = samples[begin - place : stop - place]
                until = max(until, stop)
        return found[: until - first]


def _forget(lines: deque[SoundLine], first: int) -> None:
    """Drop what lies before a sample; where the sound has come to stays known."""
    while len(lines) > 1 and round(lines[0].end * RATE) <= first:
        lines.popleft()
    if lines and (early := first - round(lines[0].start * RATE)) > RATE:
        lines[0].take(min(early, len(lines[0])))


@dataclass(frozen=True, slots=True)
class SceneSound:
    """The sound of a scene.

    Attributes:
        window: that it is read from.
        start: seconds.
        end: seconds.
    """

    window: SoundWindow
    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start

    def read(self, after: float, seconds: float) -> np.ndarray:
        """Read so many seconds, ``after`` seconds from the start; nothing beyond the end.

        Returns:
            [N] float32 at RATE, see ``SoundWindow.read``.
        """
        start = self.start + after
        return self.window.read(start, min(start + seconds, self.end))
