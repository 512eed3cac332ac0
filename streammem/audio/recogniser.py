"""Recognises speech in the sound of a video file, with faster-whisper. No threads live here.

    recogniser = Recogniser(folder)                       # of a CTranslate2 Whisper model
    for note in recogniser.notes("film.mp4"):             # in order of time, on the file's clock
        print(note)

The sound is decoded piece by piece, so memory does not grow with the file.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np

from streammem.errors import ServedModelError, SourceError
from streammem.types import Note, Notice, clock

RATE = 16_000  # samples a second, Whisper's
PIECE_S = 60.0  # sound that is recognised at a time; it ends where the last seconds are quietest
_SEEK_S, _QUIET_S = 8.0, 0.2
_JITTER_S = 0.1  # a stamp this far from where its sound should be is a gap
MAX_GAP_S = 6 * 3600.0  # a longer one is a broken stamp
MADE_UP_SPEECH, MADE_UP_LOGPROB = 0.6, -1.0  # Whisper's own bounds: such text is made up


class Recogniser:
    """A Whisper model that turns sound into notes.

    Args:
        folder: of a model that CTranslate2 reads.
        language: ISO 639-1; None lets the model find it, in the first piece with speech.
        threads: of the CPU.
    """

    def __init__(self, folder: str | Path, language: str | None = None, threads: int = 1) -> None:
        from faster_whisper import WhisperModel

        self._model = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=threads,
            local_files_only=True,
        )  # fmt: skip
        self.language = language

    def notes(
        self, path: str | Path, stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[Note | Notice]:
        """Give what is said in a file, sentence by sentence, in order of time.

        Args:
            path: of the file.
            stopping: asked between sentences; ends the pass.

        Raises:
            SourceError: the file has no sound, or it cannot be decoded.
        """
        return notes_of(path, self.transcribe, stopping, PIECE_S)

    def transcribe(
        self, samples: np.ndarray, stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[Note]:
        """Give what is said in a piece of sound, in seconds from its start.

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


def notes_of(
    path: str | Path,
    transcribe: Callable[[np.ndarray, Callable[[], bool]], Iterator[Note | Notice]],
    stopping: Callable[[], bool],
    piece_s: float,
) -> Iterator[Note | Notice]:
    """Give what is said in a file, piece by piece of its sound.

    Args:
        path: of the file.
        transcribe: gives what is said in samples, in seconds from their start.
        stopping: asked between pieces; ends the pass.
        piece_s: seconds of a piece at most.

    Raises:
        SourceError: the file has no sound, or it cannot be decoded.
        ServedModelError: of ``transcribe``; from when on there are no words is added.
    """
    for start, samples in pieces(path, piece_s):
        if stopping():
            return
        try:
            for item in transcribe(samples, stopping):
                yield item.shifted(start) if isinstance(item, Note) else item
        except ServedModelError as error:
            raise ServedModelError(f"{error}; no words from {clock(start)} on") from error


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


def pieces(path: str | Path, piece_s: float = PIECE_S) -> Iterator[tuple[float, np.ndarray]]:
    """Give the sound of a file in pieces.

    Args:
        path: of the file.
        piece_s: seconds of a piece at most.

    Yields:
        The second at which a piece begins, on the clock that players show, and its samples [N]
        float32 at RATE, mono. Where sound is missing there is silence.

    Raises:
        SourceError: no sound, or it cannot be decoded.
    """
    name, most = Path(path).name, int(piece_s * RATE)
    waiting, start, length = list[np.ndarray](), 0.0, 0
    for at, samples in _decoded(path, name):
        if not length:
            start = at
        gap = round((at - start) * RATE) - length
        if gap > _JITTER_S * RATE:
            if length and gap >= RATE:  # a pause: what was said before it is a piece
                yield start, np.concatenate(waiting)
                waiting, start, length = [], at, 0
            else:
                waiting.append(np.zeros(gap, np.float32))
                length += gap
        waiting.append(samples)
        length += len(samples)
        while length >= most:
            joined = np.concatenate(waiting)
            cut = _quietest(joined[:most])
            yield start, joined[:cut]
            waiting, start, length = [joined[cut:]], start + cut / RATE, len(joined) - cut
    if length:
        yield start, np.concatenate(waiting)


def _decoded(path: str | Path, name: str) -> Iterator[tuple[float, np.ndarray]]:
    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            if not container.streams.audio:
                raise SourceError(f"{name}: has no sound; leave out --speech")
            stream = container.streams.audio[0]
            zero = max(0, container.start_time or 0) / av.time_base
            resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue  # the gap that it leaves becomes silence
                for frame in frames:
                    at = frame.time - zero if frame.time is not None else None
                    for out in resampler.resample(frame):
                        samples = out.to_ndarray().reshape(-1)
                        if at is not None and -1 < at < MAX_GAP_S * 100 and len(samples):
                            yield at, samples
                            at += len(samples) / RATE
    except av.FFmpegError as error:
        raise SourceError(f"{name}: its sound cannot be read ({type(error).__name__})") from error


def _quietest(samples: np.ndarray) -> int:
    """Return where the quietest moment of the last seconds is; sound is cut there."""
    size = int(_QUIET_S * RATE)
    tail = samples[-int(min(_SEEK_S * RATE, len(samples) / 2)) :]
    count = len(tail) // size
    if not count:
        return len(samples)
    energy = np.square(tail[: count * size].reshape(count, size)).mean(axis=1)
    return int(len(samples) - len(tail) + energy.argmin() * size + size // 2)
