"""The sound of scenes, read once and in order of time, for models that listen.

    window = SoundWindow(pieces(source.sound_pass()), report)  # (second, samples), in time order
    scene = window.scene(12.0, 20.0)
    scene.read(0.0, 2.0)                                 # [32000] float32

What lies before the last second asked for is forgotten, so memory does not grow with the source.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from streammem.audio.recogniser import RATE
from streammem.errors import SourceError


class SoundWindow:
    """The sound of a source from some second on.

    Args:
        sound: the second at which samples begin, and the samples [N] float32 at RATE, mono; in
            order of time. A ``SourceError`` of it ends the sound.
        report: called once with the reason where the sound fails.
    """

    def __init__(
        self, sound: Iterator[tuple[float, np.ndarray]], report: Callable[[str], object]
    ) -> None:
        self._sound, self._report = sound, report
        self._pieces: deque[tuple[int, np.ndarray]] = deque()  # first sample, samples
        self._end = 0  # sample up to which it was read
        self._over = False

    def scene(self, start: float, end: float) -> "SceneSound":
        """Return the sound of [start, end) seconds."""
        return SceneSound(self, start, end)

    def read(self, start: float, end: float) -> np.ndarray:
        """Read [start, end) seconds; times of calls never go back.

        Returns:
            [N] float32, silence where sound is missing; shorter where it ends before, empty where
            there is none.
        """
        first, last = round(start * RATE), round(end * RATE)
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= first:
            self._pieces.popleft()
        while self._end < last and not self._over:
            try:
                at, samples = next(self._sound)
            except StopIteration:
                self._over = True
            except SourceError as error:
                self._over = True
                self._report(str(error).partition(";")[0])
            else:
                place = round(at * RATE)
                self._end = max(self._end, place + len(samples))
                if self._end > first:
                    self._pieces.append((place, samples))
        found = np.zeros(max(0, min(last, self._end) - first), np.float32)
        for place, samples in self._pieces:
            begin, stop = max(place, first), min(place + len(samples), first + len(found))
            if begin < stop:
                found[begin - first : stop - first] = samples[begin - place : stop - place]
        return found


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
