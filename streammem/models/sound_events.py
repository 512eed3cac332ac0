"""Sound events, "applause" or "a dog barks", by ImageBind's branches of sound and text.

    open_events = sound_events("imagebind")          # the folder of its file and its vocabulary
    for note in open_events().transcribe(samples):   # Note(4.0, 8.0, "applause", kind="sound")
        print(note)

Two seconds at a time are compared with the names in EVENTS. That a name is likely enough is decided
by a threshold that was not fitted on recordings: see docs/guide/speech.md.
"""

import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from streammem.audio.recogniser import RATE
from streammem.errors import BackboneError, CheckpointError
from streammem.models.backbones.imagebind import (
    CLIP_S,
    ImageBindAudio,
    ImageBindText,
    audio_config,
    spectrogram,
    text_config,
)
from streammem.models.backbones.torch_files import filled, read_torch
from streammem.models.once import PartLock, opening
from streammem.types import Note

B = TypeVar("B", ImageBindAudio, ImageBindText)

WEIGHTS, VOCABULARY = "imagebind_huge.pth", "bpe_simple_vocab_16e6.txt.gz"
PIECE_S = 10.0  # of sound that is read at a time, live too: an event is known within this delay
THRESHOLD = 0.5  # of the likelihood of a name among all; not fitted on recordings
QUIET = 0.003  # of full scale; sound without a louder sample is not read
LEAST_S = 0.5  # of sound; a shorter rest is not read
MERGES = 49_152 - 256 - 2  # of the published vocabulary; what its file has behind is not used
EVENTS = (
    "applause", "cheering", "laughter", "a crowd talks", "a person screams", "a person shouts",
    "a person whispers", "a baby cries", "a child laughs", "a person sings", "a person whistles",
    "a person coughs", "a person sneezes", "a person snores", "footsteps", "clapping hands",
    "a dog barks", "a dog howls", "a cat meows", "birds sing", "a rooster crows", "a cow moos",
    "a horse neighs", "a sheep bleats", "insects buzz", "frogs croak",
    "music", "a piano", "a guitar", "a violin", "drums", "a trumpet",
    "rain", "thunder", "wind", "ocean waves", "a stream of water", "fire crackles",
    "a car passes", "a car horn", "a siren", "a motorcycle", "a train", "an airplane",
    "a helicopter", "a boat engine", "squealing tyres",
    "a door closes", "a door bell", "knocking", "a telephone rings", "an alarm clock",
    "a smoke alarm", "church bells", "a clock ticks", "typing on a keyboard", "a vacuum cleaner",
    "glass breaks", "dishes clatter", "food sizzles", "a hammer", "a drill", "a chain saw",
    "an explosion", "a gunshot", "fireworks",
)  # fmt: skip
# What is heard most of the time and is no event.
BACKGROUND = ("silence", "background noise", "a person speaks", "a quiet room", "static hiss")


class Vocabulary:
    """CLIP's vocabulary of byte pairs, of English in small letters.

    Args:
        lines: of its file; the first is a heading, each other one joins two symbols.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        pairs = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
        merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        letters = {chr(code): code - 33 for code in range(33, 127)}  # as bytes are numbered there
        self._ids = letters | {f"{letter}</w>": 256 + at for letter, at in letters.items()}
        self._ids |= {"".join(pair): 512 + rank for rank, pair in enumerate(merges)}
        self.size = 512 + len(merges) + 2

    def ids(self, text: str, length: int) -> list[int]:
        """Return a text's ids between its begin and its end, padded with 0.

        Args:
            text: ASCII.
            length: of the result; a longer text is cut.
        """
        found = [self.size - 2]
        for word in re.findall(r"'(?:s|t|re|ve|m|ll|d)|[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()):
            symbols = [*word[:-1], f"{word[-1]}</w>"]
            while len(symbols) > 1:
                best = min(pairwise(symbols), key=self._rank)
                if best not in self._ranks:
                    break
                joined = list[str]()
                while symbols:
                    pair = tuple(symbols[:2]) == best
                    joined.append("".join(symbols[: 1 + pair]))
                    symbols = symbols[1 + pair :]
                symbols = joined
            found += [self._ids[symbol] for symbol in symbols]
        found = [*found[: length - 1], self.size - 1]
        return found + [0] * (length - len(found))

    def _rank(self, pair: tuple[str, str]) -> int:
        return self._ranks.get(pair, len(self._ranks))


class SoundEvents:
    """Names the sounds of one source; a ``Recognises`` whose notes are of the kind ``sound``.

    Args:
        ears: ImageBind's branch of sound.
        keys: [N, out] of names, length 1.
        names: of the N; those in ``BACKGROUND`` are never reported.
        scale: of cosines, before they are made likelihoods.
    """

    piece_s = PIECE_S

    def __init__(
        self, ears: ImageBindAudio, keys: Tensor, names: Sequence[str], scale: float
    ) -> None:
        self._ears, self._keys, self._names, self._scale = ears, keys, names, scale

    @torch.inference_mode()
    def likelihoods(self, clips: Sequence[Tensor]) -> Tensor:
        """Return how likely each name is for each clip of at most two seconds: [B, N]."""
        read = self._ears(torch.stack([spectrogram(clip) for clip in clips]), scaled=False)
        return (self._scale * read @ self._keys.T).softmax(dim=1)

    def transcribe(
        self, samples: np.ndarray, stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[Note]:
        """Give the events in a piece of sound, in seconds from its start.

        Args:
            samples: [N] float32 at RATE, in [-1, 1].
            stopping: asked before it is read.
        """
        size = round(CLIP_S * RATE)
        spans = [(at, min(at + size, len(samples))) for at in range(0, len(samples), size)]
        spans = [(a, b) for a, b in spans if b - a >= LEAST_S * RATE]
        spans = [(a, b) for a, b in spans if float(np.abs(samples[a:b]).max()) >= QUIET]
        if not spans or stopping():
            return
        clips = [torch.from_numpy(samples[a:b]) for a, b in spans]
        open_note: Note | None = None
        for (a, b), row in zip(spans, self.likelihoods(clips), strict=True):
            name, start, end = self._names[int(row.argmax())], a / RATE, b / RATE
            heard = float(row.max()) >= THRESHOLD and name not in BACKGROUND
            goes_on = open_note and heard and (open_note.text, open_note.end) == (name, start)
            if open_note and not goes_on:
                yield open_note
                open_note = None
            if heard:
                start = open_note.start if open_note else start
                open_note = Note(start, end, name, kind="sound")
        if open_note:
            yield open_note


def sound_events(folder: str | Path) -> Callable[[], SoundEvents]:
    """Return what opens ImageBind for sound events; whether its files are there is checked at once.

    Args:
        folder: of ``imagebind_huge.pth`` and ``bpe_simple_vocab_16e6.txt.gz``, the vocabulary that
            its authors ship.

    Raises:
        BackboneError: a file is not there.
    """
    for file in (WEIGHTS, VOCABULARY):
        if not (Path(folder) / file).is_file():
            raise BackboneError(
                f"{folder}: has no {file}; --sounds takes the folder of ImageBind's {WEIGHTS} and "
                f"of {VOCABULARY} from its repository"
            )
    return _opener(Path(folder).resolve())


@cache
def _opener(folder: Path) -> Callable[[], SoundEvents]:
    """Return the one opener of a folder, so that many sources share what it opens.

    Its lock is its own: the names take half a minute at full size, and `once` would keep all other
    parts from being opened meanwhile.
    """
    lock, opened = PartLock(), list[SoundEvents]()

    def open_first() -> SoundEvents:
        with lock:
            if not opened:
                opened.append(open_events(folder))
            return opened[0]

    return open_first


def open_events(folder: Path) -> SoundEvents:
    """Open ImageBind's branches of sound and text; the latter is read once and let go.

    Raises:
        CheckpointError: a file is corrupt, or tensors are missing or of another shape.
    """
    path = folder / WEIGHTS
    with opening(f"{path}"):
        tensors = read_torch(path)
        with torch.device("meta"):
            ears, text = ImageBindAudio(audio_config(tensors)), ImageBindText(text_config(tensors))
        others = re.compile(".*")  # of other senses
        for part in (ears, text):
            filled(part, tensors, f"{path}: not a whole ImageBind", ignored=others)
        try:
            with gzip.open(folder / VOCABULARY, "rt", encoding="utf-8") as file:
                vocabulary = Vocabulary(file.read().split("\n"))
        except (OSError, EOFError, ValueError) as error:
            raise CheckpointError(f"{folder / VOCABULARY}: corrupt ({error})") from error
        if vocabulary.size != text.config.words:
            raise CheckpointError(
                f"{folder / VOCABULARY}: has {vocabulary.size} words, {WEIGHTS} "
                f"{text.config.words}; take both from one place"
            )
    names = (*EVENTS, *BACKGROUND)
    ids = [vocabulary.ids(name, text.config.length) for name in names]
    with torch.inference_mode():
        keys = text(torch.tensor(ids))
    return SoundEvents(ears, keys, names, text.scale)
