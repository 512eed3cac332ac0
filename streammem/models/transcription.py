"""Recognisers by name: models that faster-whisper reads, and transcription servers.

    open_recogniser = recogniser("whisper-base", language="en")      # what is missing is told now
    recogniser("faster-whisper:small")                               # of the hub, fetched before
    recogniser("openai:http://localhost:8000/v1#whisper-1")          # a server
    for note in open_recogniser().transcribe(samples):               # in the thread that uses it
        print(note)

A server's replies are not trusted: their size, their times and their letters are checked.
"""

import importlib.util
import io
import math
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from streammem.audio.recogniser import (
    MADE_UP_LOGPROB,
    MADE_UP_SPEECH,
    RATE,
    Recogniser,
    word_starts,
)
from streammem.audio.subtitles import split_long
from streammem.audio.track import HUB, OPENAI, WHISPER, Budget, repository
from streammem.config import override
from streammem.errors import BackboneError, install_command
from streammem.models.backbones.weights import weights_path
from streammem.models.vlm import hub
from streammem.models.vlm.served import openai_address
from streammem.models.vlm.server import (
    RefusedByServer,
    Server,
    ServerOptions,
    Spend,
    printable,
    speech_key_name,
)
from streammem.types import Note, Notice

SERVED_PIECE_S = 30.0  # what Whisper reads at a time
QUIET = 0.003  # of full scale; sound without a louder sample is not sent
MAX_CHARS_S, MAX_CHARS = 50, 200  # of text: a second, and besides; the quickest talk has 30
_OUTSIDE_S = 0.5  # so far beyond a piece its times may be rounded
WHISPER_FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json",
                 "vocabulary.*")  # fmt: skip
_FORMATS = (
    (("response_format", "verbose_json"), ("timestamp_granularities[]", "segment"),
     ("timestamp_granularities[]", "word")),
    (("response_format", "verbose_json"),),
    (("response_format", "json"),),
)  # fmt: skip


class Recognises(Protocol):
    """What turns the sound of one source into notes.

    Attributes:
        piece_s: seconds of a file that are best recognised at a time.
    """

    @property
    def piece_s(self) -> float: ...

    def transcribe(
        self, samples: np.ndarray, stopping: Callable[[], bool] = ...
    ) -> Iterator[Note | Notice]:
        """Give what is said in a piece of sound, in seconds from its start; final text.

        Args:
            samples: [N] float32 at RATE, in [-1, 1]; at most ``piece_s``.
            stopping: asked meanwhile; ends the pass.

        Raises:
            ServedModelError: a server fails.
        """
        ...


def recogniser(
    name: str, language: str | None = None, spend: Budget | None = None
) -> Callable[[], Recognises]:
    """Return what opens a recogniser; whether it can be opened is checked at once.

    Args:
        name: as ``SpeechOptions.recogniser`` gives it.
        language: ISO 639-1; None lets the recogniser find it.
        spend: the budget of what a server is asked; None for none.

    Raises:
        ConfigError: an address or an option of a server that cannot be meant.
        BackboneError: faster-whisper is not installed, or the weights are not here.
        ServedModelError: the server is not there, or refuses the key.
    """
    if name.startswith(OPENAI):
        served = ServedRecogniser(name.removeprefix(OPENAI), language, spend)
        return lambda: served
    folder = model_folder(name)
    return lambda: Recogniser(folder, language)


def model_folder(name: str) -> Path:
    """Return the folder of a recogniser's weights.

    Args:
        name: ``whisper-base``, a folder, or a model of the hub as ``audio.track.repository`` takes
            it.

    Raises:
        BackboneError: faster-whisper is not installed, or the weights are not here.
    """
    if importlib.util.find_spec("faster_whisper") is None:
        raise BackboneError(f"faster-whisper is not installed; run: {install_command('speech')}")
    if name == WHISPER:
        return weights_path(WHISPER)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    files = [
        try_to_load_from_cache(repository(name), file) for file in ("config.json", "model.bin")
    ]
    if not all(isinstance(file, str) for file in files):
        short = name.removeprefix(HUB)
        raise BackboneError(
            f"{short}: not on this computer; run: streammem models pull {HUB}{short}, or copy its "
            "files here and give their folder"
        )
    return Path(str(files[0])).parent


def pull_recogniser(name: str) -> Path:
    """Fetch a model that faster-whisper reads from the hub; see ``hub.pull_files``."""
    return hub.pull_files(repository(name), files=WHISPER_FILES)


class ServedRecogniser:
    """A transcription server of OpenAI's form: ``/audio/transcriptions``.

    Times of words and sentences are asked for. A server that does not give them gives notes as long
    as the piece of sound that was sent, at most SERVED_PIECE_S.

    Args:
        name: ``URL#NAME``, with ``?option=value&...`` of ``ServerOptions`` behind it; without
            ``#NAME`` the only model that the server lists.
        language: ISO 639-1; None lets the server find it.
        spend: see ``recogniser``.

    Raises:
        ConfigError, ServedModelError: see ``recogniser``.
    """

    piece_s = SERVED_PIECE_S

    def __init__(self, name: str, language: str | None = None, spend: Budget | None = None) -> None:
        from streammem.models.registry import split_name

        _, rest, options = split_name(OPENAI + name)
        url, self._model = openai_address("openai", rest)
        advice = "start the server, or correct the address; it ends in /v1 mostly"
        self._server = Server(
            url, "the transcription server", advice, override(ServerOptions(), options, f"{url}: "),
            spend or Spend(), key_name=speech_key_name(), less="",
        )  # fmt: skip
        self.language = language
        self._formats = list(_FORMATS)  # the first one is asked for; what is refused goes
        listed = self._server.get("/models")  # also tells whether it is there
        if not self._model:
            self._model = self._only_model(listed)

    def _only_model(self, listed: Any) -> str:
        rows = listed.get("data") if isinstance(listed, dict) else None
        names = [row.get("id") for row in rows or () if isinstance(row, dict)]
        if len(names) != 1 or not isinstance(names[0], str):
            some = ", ".join(printable(name, 60) for name in names[:5])
            raise self._server.error(
                "which model is to listen is not clear",
                f"name one behind a #{some and f', of {some}'}",
            )
        return names[0]

    def transcribe(
        self, samples: np.ndarray, stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[Note | Notice]:
        """Give what is said in a piece of sound.

        Args:
            samples: [N] float32 at RATE, in [-1, 1].
            stopping: asked before the request.

        Yields:
            Notes, in seconds from the piece's start and within it; what is wrong with a reply.

        Raises:
            ServedModelError: the server fails.
        """
        if stopping() or not len(samples) or float(np.abs(samples).max()) < QUIET:
            return
        reply, length = self._asked(samples), len(samples) / RATE
        text = reply.get("text")
        if not isinstance(text, str):
            raise self._server.error(
                "its reply holds no text", "is it a transcription server? See its own log"
            )
        most = int(MAX_CHARS + MAX_CHARS_S * length)
        segments, faults = _segments(reply, length, most)
        if segments is None:
            clean = printable(text, most)
            faults = _too_much(len(text) - most)
            segments = [(0.0, length, clean)] if clean else []
        yield from (Notice(f"{self._server.where}: {fault}") for fault in faults)
        yield from _timed(segments, _words(reply, length))

    def _asked(self, samples: np.ndarray) -> Mapping[str, Any]:
        """Ask in the richest form that the server takes."""
        fields = [("model", self._model), ("temperature", "0")]
        fields += [("language", self.language)] if self.language else []
        sound = wav(samples)
        while True:
            try:
                return self._server.post_file(
                    "/audio/transcriptions", [*fields, *self._formats[0]], "sound.wav", sound
                )
            except RefusedByServer as refused:
                if refused.status in (401, 403):
                    raise self._server.key_refused(refused) from None
                if refused.status not in (400, 415, 422) or len(self._formats) == 1:
                    advice = "correct the address or the model's name, or see the server's own log"
                    raise self._server.error(f"refuses the sound ({refused})", advice) from None
                self._formats.pop(0)


def wav(samples: np.ndarray) -> bytes:
    """Return samples [N] float32 at RATE as a WAV file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def _segments(
    reply: Mapping[str, Any], length: float, most: int
) -> tuple[list[tuple[float, float, str]] | None, list[str]]:
    """Return (start, end, text) of each sentence, and faults; None where the reply has no times."""
    rows = reply.get("segments")
    if not isinstance(rows, list) or not rows:
        return None, []
    kept, num_outside, total = list[tuple[float, float, str]](), 0, 0
    for row in rows:
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or _made_up(row):
            continue
        start, end = _number(row.get("start")), _number(row.get("end"))
        if not -_OUTSIDE_S <= start <= end <= length + _OUTSIDE_S:  # NaN fails, too
            num_outside += 1
            continue
        room, total = most - total, total + len(text)
        if room > 0 and (clean := printable(text, room)):
            start, end = (min(max(at, 0.0), length) for at in (start, end))
            kept.append((start, end, clean))
    faults = _too_much(total - most)
    if num_outside:
        faults.append(f"{num_outside} of {len(rows)} sentences have times outside the sound")
    return sorted(kept, key=lambda row: row[:2]), faults


def _too_much(chars: int) -> list[str]:
    fault = f"its text is too long for the sound; {chars} letters are left out"
    return [fault] if chars > 0 else []


def _made_up(row: Mapping[str, Any]) -> bool:
    silent, likely = _number(row.get("no_speech_prob")), _number(row.get("avg_logprob"))
    return silent > MADE_UP_SPEECH and likely < MADE_UP_LOGPROB  # False where either is not given


def _words(reply: Mapping[str, Any], length: float) -> list[tuple[str, float]]:
    """Return the words with their starts, of the reply or of its sentences."""
    segments, rows = reply.get("segments"), reply.get("words")
    if not isinstance(rows, list) or not rows:
        sentences = segments if isinstance(segments, list) else []
        inner = [row.get("words") for row in sentences if isinstance(row, dict)]
        rows = [word for words in inner if isinstance(words, list) for word in words]
    found = [(row.get("word"), _number(row.get("start"))) for row in rows if isinstance(row, dict)]
    return [
        (word, min(max(0.0, at), length))
        for word, at in found
        if isinstance(word, str) and -_OUTSIDE_S <= at <= length + _OUTSIDE_S
    ]


def _timed(
    segments: Sequence[tuple[float, float, str]], words: Sequence[tuple[str, float]]
) -> Iterator[Note]:
    """Make notes; with the times of words, where these are the words of the sentences."""
    starts = word_starts(" ".join(text for *_, text in segments), words)
    for start, end, text in segments:
        count = len(text.split())
        own, starts = starts[:count], starts[count:]
        parts = split_long(start, end, text)
        yield from parts if len(parts) > 1 else [Note(start, end, text, own)]


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e9 else math.nan  # type: ignore[arg-type]
