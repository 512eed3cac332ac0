"""Turns sound into notes: faster-whisper, and how sound is cut for it. No threads live here.

    recogniser = Recogniser(folder)                       # of a CTranslate2 Whisper model
    for start, samples in pieces(sound):                  # in order of time, on the source's clock
        for note in recogniser.transcribe(samples):       # in seconds from the piece's start
            print(note)

What is recognised comes piece by piece, so memory does not grow with the source.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from streammem.errors import SourceError
from streammem.types import Note

RATE = 16_000  # samples a second, Whisper's
PAUSE_S = 1.0  # without sound: what was said before it is a piece of its own
PIECE_S = 60.0  # sound of a file that is recognised at a time; it ends where it is quietest
_SEEK_S, _QUIET_S = 8.0, 0.2
_JITTER_S = 0.1  # a stamp this far from where its sound should be is a gap, or an overlap
MADE_UP_SPEECH, MADE_UP_LOGPROB = 0.6, -1.0  # Whisper's own bounds: such text is made up
_OPEN: "WeakValueDictionary[tuple[str, int], Any]" = WeakValueDictionary()  # models in use


class Recogniser:
    """A Whisper model that turns the sound of one source into notes.

    Those of one folder share its weights, as the sessions of a server do.

    Args:
        folder: of a model that CTranslate2 reads.
        language: ISO 639-1; None lets the model find it, in the first piece with speech.
        threads: of the CPU.

    Attributes:
        piece_s: seconds of a file that are best recognised at a time.
    """

    piece_s = PIECE_S

    def __init__(self, folder: str | Path, language: str | None = None, threads: int = 1) -> None:
        from faster_whisper import WhisperModel

        model = _OPEN.get((str(folder), threads)) or WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=threads,
            local_files_only=True,
        )  # fmt: skip
        self._model, self.language = model, language
        _OPEN[str(folder), threads] = model

    def transcribe(
        self, samples: np.ndarray, stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[Note]:
        """Give what is said in a piece of sound, in seconds from its start; final text.

        Args:
            samples: [N] float32 at RATE, in [-1, 1].
            stopping: asked between sentences; ends the pass.
        """
        segments, info = self._model.transcribe(
            samples, language=self.language, vad_filter=True, beam_size=1,
            condition_on_previous_text=False, word_timestamps=True,
        )  # fmt: skip
        for segment in segments:
            if stopping():
                return
            text = " ".join(segment.text.split())
            silent = segment.no_speech_prob > MADE_UP_SPEECH
            if text and not (silent and segment.avg_logprob < MADE_UP_LOGPROB):
                self.language = self.language or info.language
                spoken = [(word.word, word.start) for word in segment.words or ()]
                start, end = float(segment.start), float(segment.end)
                yield Note(start, end, text, word_starts(text, spoken))


def word_starts(text: str, spoken: Sequence[tuple[str, float]]) -> tuple[float, ...]:
    """Return when each word of ``text.split()`` begins; empty where other words were spoken.

    Args:
        text: of a note, or of several.
        spoken: words as a recogniser cuts them, with or without spaces and marks, each with its
            start in seconds. They are compared with the text letter by letter.
    """
    letters = [(letter, at) for word, at in spoken for letter in _letters(word)]
    if not letters or "".join(letter for letter, _ in letters) != _letters(text):
        return ()
    starts, place = list[float](), 0
    for word in text.split():
        at = letters[min(place, len(letters) - 1)][1]
        starts.append(max([round(float(at), 3), *starts[-1:]]))
        place += len(_letters(word))
    return tuple(starts)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


class SoundLine:
    """Sound in order of time, without a break: silence where none came, none of it twice.

    What lies up to 0.1 s beside its place is jitter. Beyond that the stamps are followed, so that
    a sound card that is too fast or too slow never takes sound away from the pictures.

    Attributes:
        start: seconds at which it begins.
    """

    def __init__(self) -> None:
        self.start = 0.0
        self._chunks: list[np.ndarray] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def end(self) -> float:
        """Seconds at which it ends."""
        return self.start + self._length / RATE

    @property
    def samples(self) -> np.ndarray:
        """All of it, [N] float32."""
        self._chunks = [np.concatenate([np.zeros(0, np.float32), *self._chunks])]
        return self._chunks[0]

    def gap(self, time: float) -> float:
        """Return the seconds from the end to a time; 0 where there is nothing yet."""
        return time - self.end if self._length else 0.0

    def push(self, time: float, samples: np.ndarray) -> None:
        """Append samples that begin at a time; what lies before the end of the last ones goes."""
        if not self._length:
            self.start = max(time, self.start)
        gap_s = time - self.end
        if gap_s > _JITTER_S:
            self._append(np.zeros(round(gap_s * RATE), np.float32))
        elif gap_s < -_JITTER_S:
            samples = samples[round(-gap_s * RATE) :]
        self._append(samples)

    def take(self, count: int) -> tuple[float, np.ndarray]:
        """Take the first ``count`` samples; return when they begin, and them."""
        start, samples = self.start, self.samples
        self._chunks, self._length = [samples[count:]], len(samples[count:])
        self.start += len(samples[:count]) / RATE
        return start, samples[:count]

    def _append(self, samples: np.ndarray) -> None:
        self._chunks.append(samples)
        self._length += len(samples)


def pieces(
    sound: Iterable[tuple[float, np.ndarray]], piece_s: float = PIECE_S
) -> Iterator[tuple[float, np.ndarray]]:
    """Cut the sound of a file into pieces.

    Args:
        sound: the second at which samples begin, and the samples, in order of time.
        piece_s: seconds of a piece at most.

    Yields:
        The second at which a piece begins, and its samples [N] float32 at RATE, mono. Where less
        than PAUSE_S is missing there is silence.

    Raises:
        SourceError: of the sound, behind what came before.
    """
    line, most = SoundLine(), int(piece_s * RATE)
    try:
        for time, samples in sound:
            if line.gap(time) >= PAUSE_S:
                yield line.take(len(line))
            line.push(time, samples)
            while len(line) >= most:
                yield line.take(quietest(line.samples[:most]))
    except SourceError:
        if len(line):  # what came before it broke off
            yield line.take(len(line))
        raise
    if len(line):
        yield line.take(len(line))


def quietest(samples: np.ndarray, seek_s: float = _SEEK_S, moment_s: float = _QUIET_S) -> int:
    """Return the sample at the quietest moment of the last seconds, where sound may be cut.

    Args:
        samples: [N] float32 at RATE.
        seek_s: seconds of its end, and at most its second half.
        moment_s: seconds of a moment.
    """
    size = int(moment_s * RATE)
    tail = samples[-int(min(seek_s * RATE, len(samples) / 2)) :]
    count = len(tail) // size
    if not count:
        return len(samples)
    energy = np.square(tail[: count * size].reshape(count, size)).mean(axis=1)
    return int(len(samples) - len(tail) + energy.argmin() * size + size // 2)
