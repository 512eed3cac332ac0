"""Cuts sound that goes on into utterances, at the pauses that a voice detector finds.

    utterances = Utterances(silero())
    utterances.push(time, samples)
    for start, samples in utterances.ready():
        ...

An utterance ends with a pause, or after MAX_UTTERANCE_S at the quietest moment of its last second.
What is recognised of it is final; nothing is recognised twice.
"""

from collections.abc import Callable, Iterator

import numpy as np

from streammem.audio.recogniser import PAUSE_S, RATE, SoundLine, quietest

WINDOW = 512  # samples for which Silero gives one probability
END_S = 0.4  # without speech, after which an utterance has ended
MAX_UTTERANCE_S = 4.0  # of speech without such a pause
_ENTER, _LEAVE = 0.5, 0.35  # probabilities of speech; Silero's own
_FEWEST = 3  # windows of speech in an utterance; fewer are a click
_BEFORE, _AFTER = 10, 6  # windows beside the speech that belong to an utterance
_CONTEXT = 16  # windows that the detector hears again before new ones
_CUT_S, _MOMENT_S = 1.0, 0.1  # the last of a long utterance, and how much of it is compared

Detector = Callable[[np.ndarray], np.ndarray]


def silero() -> Detector:
    """Return Silero's voice detector, which comes with faster-whisper.

    Returns:
        A function of [N * WINDOW] float32 samples at RATE that gives [N] probabilities of speech.
    """
    from faster_whisper.vad import get_vad_model

    detector: Detector = get_vad_model()
    return detector


class Utterances:
    """Cuts sound into utterances.

    Sound without speech is forgotten but for its last 0.3 s, and what waits is given once it holds
    MAX_UTTERANCE_S of speech, so memory is bounded by what is pushed at a time.

    Args:
        detector: see ``silero``.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector, self._line = detector, SoundLine()
        self._voiced = np.zeros(0, np.float32)  # probability of each whole window of the line
        self._closed: list[tuple[float, np.ndarray]] = []  # before a gap

    @property
    def until(self) -> float:
        """Seconds before which all speech has been given."""
        return self._closed[0][0] if self._closed else self._line.start

    def push(self, time: float, samples: np.ndarray) -> None:
        """Take in the samples that begin at a time."""
        if self._line.gap(time) >= PAUSE_S:
            self.flush()
        self._line.push(time, samples)

    def flush(self) -> None:
        """End the utterance that is under way."""
        self._closed += self._cut()
        self._hear()
        if self._speech() is not None:
            self._closed.append(self._line.take(len(self._line)))
        self._drop(len(self._line))

    def ready(self) -> Iterator[tuple[float, np.ndarray]]:
        """Give the utterances that have ended: when each begins, and its samples."""
        while self._closed:
            yield self._closed.pop(0)
        yield from self._cut()

    def _cut(self) -> Iterator[tuple[float, np.ndarray]]:
        self._hear()
        while (speech := self._speech()) is not None:
            first, last, count = *speech, len(self._voiced)
            if (count - 1 - last) * WINDOW >= END_S * RATE:
                stop = (last + 1 + _AFTER) * WINDOW
            elif (count - first) * WINDOW >= MAX_UTTERANCE_S * RATE:
                begin = first * WINDOW
                stop = begin + quietest(
                    self._line.samples[begin : count * WINDOW], _CUT_S, _MOMENT_S
                )
                stop -= stop % WINDOW
            else:
                return
            self._drop(max(0, first - _BEFORE) * WINDOW)
            stop -= max(0, first - _BEFORE) * WINDOW
            self._voiced = self._voiced[stop // WINDOW :]
            yield self._line.take(stop)
        self._drop((len(self._voiced) - _BEFORE) * WINDOW)

    def _hear(self) -> None:
        """Have the detector hear the windows that are new."""
        known, count = len(self._voiced), len(self._line) // WINDOW
        if count > known:
            context = min(known, _CONTEXT)
            samples = self._line.samples[(known - context) * WINDOW : count * WINDOW]
            self._voiced = np.append(self._voiced, self._detector(samples)[context:])

    def _speech(self) -> tuple[int, int] | None:
        """Return the first and the last window with speech; forget clicks. None without speech."""
        voiced = np.flatnonzero(self._voiced >= _ENTER)
        if len(voiced) < _FEWEST:
            return None
        return int(voiced[0]), int(np.flatnonzero(self._voiced >= _LEAVE)[-1])

    def _drop(self, count: int) -> None:
        """Forget the first samples."""
        if count > 0:
            self._line.take(count)
            self._voiced = self._voiced[count // WINDOW :]
