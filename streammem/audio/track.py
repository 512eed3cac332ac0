"""What is said in a source, given to the scenes that it begins in.

track = open_track("film.mp4", SpeechOptions(speech="on", language="en"))
track.within(0.0, 12.5)      # the notes of the scene [0, 12.5)
track.after(3600.0)          # a remark on notes that lie after the end of the film
open_tracks(["one.mp4", "two.mp4"], options, source.starts)      # played as one film
"""

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from streammem.audio.subtitles import SUFFIXES, Cues, Track, language_of, tracks_of
from streammem.errors import ConfigError, SourceError
from streammem.types import Note, Notice, clock

WHISPER, HUB, OPENAI = "whisper-base", "faster-whisper:", "openai:"
CHOICES = ("auto", "on", "off", WHISPER)
# Names that faster-whisper has for models of the hub.
_SIZES = (
    *("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en"),
    *("large-v1", "large-v2", "large-v3"),
)
_DISTILLED = ("large-v2", "large-v3", "medium.en", "small.en")
MODELS = (
    {size: f"Systran/faster-whisper-{size}" for size in _SIZES}
    | {f"distil-{size}": f"Systran/faster-distil-whisper-{size}" for size in _DISTILLED}
    | {"turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo"}
)
MAX_FAULTS = 3  # of one file that are told by themselves


class Budget(Protocol):
    """What limits how much servers are asked; see ``models.vlm.server.Spend``."""

    def begin(self, where: str) -> None:
        """Count a request; raise ``ServedModelError`` where no more may be made."""
        ...

    def add(self, tokens: int) -> None:
        """Count what a reply has cost."""
        ...


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """Where words come from.

    Attributes:
        speech: ``auto`` reads subtitles where a file has some; ``on`` recognises the speech of
            files without, by ``whisper-base``; ``off`` neither; another one recognises and reads
            no subtitles: ``whisper-base``, a model of the hub that faster-whisper reads
            (``faster-whisper:small``, ``small``, ``OWNER/NAME``), the folder of one, or a
            transcription server, ``openai:URL#NAME``. A subtitle file, or the URL of one, is read
            whatever else there is: a name that ends in one of ``SUFFIXES``.
        language: of subtitles and speech, as in ``en`` or ``eng``; several after commas, the first
            that is there counts. None takes the file's best track.
        sounds: folder of ImageBind's weights, by which sounds are named; None names none.
        where_possible: watch a source that can have no sound without its words; it is refused
            otherwise, where they are asked for.
        spend: the budget that requests to a transcription server count against; None for none.

    Raises:
        ConfigError: another ``speech``, or an empty language.
    """

    speech: str = "auto"
    language: str | None = None
    sounds: str | None = None
    where_possible: bool = False
    spend: Budget | None = None

    def __post_init__(self) -> None:
        if self.subtitles is not None:
            if not is_url(self.subtitles) and not Path(self.subtitles).is_file():
                raise ConfigError(f"speech {self.subtitles}: there is no such subtitle file")
        elif self.speech not in CHOICES and not self.speech.startswith(OPENAI):
            if Path(self.speech).is_dir():
                if not (Path(self.speech) / "model.bin").is_file():
                    raise ConfigError(
                        f"speech {self.speech}: holds no model.bin, which faster-whisper reads"
                    )
            else:
                repository(self.speech)
        if self.language is not None and not all(map(str.strip, self.language.split(","))):
            raise ConfigError("speech-language is empty; give one such as en, or en,de")

    @property
    def recogniser(self) -> str | None:
        """The recogniser that is asked for by its name or folder; None for the other choices."""
        is_other = self.speech in ("auto", "on", "off") or self.subtitles is not None
        return None if is_other else self.speech

    @property
    def subtitles(self) -> str | None:
        """The subtitle file that is given, or its URL; None for the other choices."""
        if self.speech.startswith(OPENAI):
            return None
        path = urlsplit(self.speech).path if is_url(self.speech) else self.speech
        return self.speech if path.lower().endswith(SUFFIXES) else None


def is_url(spec: str) -> bool:
    """Return whether subtitles are to be fetched."""
    return spec.lower().startswith(("http://", "https://"))


def is_served(speech: str | None) -> bool:
    """Return whether a choice of ``SpeechOptions.speech`` is a transcription server."""
    return speech is not None and speech.startswith(OPENAI)


def repository(name: str) -> str:
    """Return where a model that faster-whisper reads lies on the hub, OWNER/NAME.

    Args:
        name: ``small``, or another of MODELS, or OWNER/NAME; ``faster-whisper:`` may stand before.

    Raises:
        ConfigError: neither.
    """
    short = name.removeprefix(HUB)
    if short in MODELS:
        return MODELS[short]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", short, re.ASCII) and not short.startswith("."):
        return short
    raise ConfigError(
        f"speech {name}: no such recogniser; give {', '.join(CHOICES)}, {HUB}NAME (such as small, "
        "or OWNER/NAME on the hub), the folder of such a model, openai:URL#NAME, or a subtitle "
        f"file or its URL ({', '.join(SUFFIXES)})"
    )


class SpeechTrack:
    """The notes of one file, or of several that are played one after another, in order of time.

    Args:
        name: of the track.
        notes: sorted by their start, on the file's clock.
        notices: what a user should know of it; any caller may take them out.
        following: the tracks of all the files that are played, where there are several; ``notes``
            and ``notices`` are empty then.
        starts: seconds at which these begin, by their place. It may grow while it is read: that
            of a file must be there before a scene of the file is asked for.
    """

    def __init__(
        self,
        name: str,
        notes: tuple[Note, ...],
        notices: tuple[Notice, ...] = (),
        following: "Sequence[SpeechTrack | None]" = (),
        starts: Mapping[int, float] = {},
    ) -> None:
        self.name, self.notes, self.notices = name, notes, list(notices)
        self._following, self._all_starts = following, starts
        self._begun = list[tuple[float, SpeechTrack | None]]()  # files so far, and when they begin
        self._starts = [note.start for note in notes]
        self._first: float | None = None  # where the first scene begins

    @property
    def is_complete(self) -> bool:
        """Whether each of its files has notes."""
        if not self._following:
            return bool(self.notes)
        return all(track is not None and track.notes for track in self._following)

    def covers(self, time: float) -> bool:
        """Return whether the file that is played at a time has notes; it must have begun."""
        if not self._following:
            return bool(self.notes)
        begun = [place for place, start in list(self._all_starts.items()) if start <= time]
        track = self._following[max(begun)] if begun else None
        return bool(track and track.notes)

    def within(self, start: float, end: float) -> tuple[Note, ...]:
        """Return the notes that begin in the scene [start, end).

        Those that are being said where the first scene begins are the first scene's. So each note
        of contiguous scenes is given once.
        """
        self._begin()
        if self._first is None or start < self._first:
            self._first = start
        first = bisect.bisect_left(self._starts, start)
        found = self.notes[first : bisect.bisect_left(self._starts, end)]
        if start > self._first:
            return found
        return (*(note for note in self.notes[:first] if note.end > start), *found)

    def after(self, end: float) -> Notice | None:
        """Remark on the notes that begin at or after the end of the film; None without any."""
        self._begin()
        return self._beyond(end)

    def _beyond(self, end: float) -> Notice | None:
        num = len(self.notes) - bisect.bisect_left(self._starts, end)
        if not num:
            return None
        name, total, zero = self.name, len(self.notes), 0.0
        if self._begun:
            zero, track = self._begun[-1]
            name, total = (track.name, len(track.notes)) if track else (name, total)
        last = clock(self._starts[-1] - zero)
        return Notice(
            f"{name}: {num} of {total} cues begin after the end of the film, the "
            f"last at {last}; they are left out. Is it of another film?",
            is_failure=False,
        )

    def _begin(self) -> None:
        """Take in the notes of the files that have begun since."""
        for place, start in list(self._all_starts.items())[len(self._begun) :]:
            if beyond := self._beyond(start):
                self.notices.append(beyond)
            kept = self.notes[: bisect.bisect_left(self._starts, start)]
            track = self._following[place]
            new = tuple(note.shifted(start) for note in track.notes) if track else ()
            self.notes = (*kept, *new)
            self._starts = [note.start for note in self.notes]
            self._begun.append((start, track))


def open_track(
    path: str | Path, options: SpeechOptions, *, looks_inside: bool = True
) -> SpeechTrack | None:
    """Read the subtitles of a video file.

    Args:
        path: of the video.
        options: see ``SpeechOptions``.
        looks_inside: see ``tracks_of``.

    Returns:
        None where there are none, or none are wanted.
    """
    if options.speech not in ("auto", "on"):
        return None
    name, tracks = Path(path).name, tracks_of(path, looks_inside=looks_inside)
    chosen, notices = choose_track(tracks, options.language, name)
    if chosen is None:
        return SpeechTrack(name, (), tuple(notices)) if notices else None
    try:
        return track_of(chosen.read(), chosen.name, notices)
    except SourceError as error:
        return SpeechTrack(chosen.name, (), (Notice(str(error), is_failure=False),))


def track_of(cues: Cues, name: str, notices: Sequence[Notice] = ()) -> SpeechTrack:
    """Return the notes of a track, with notices of what of it could not be read."""
    told = [*notices, *(Notice(fault, is_failure=False) for fault in cues.faults[:MAX_FAULTS])]
    if (more := len(cues.faults) - MAX_FAULTS) > 0:
        told.append(Notice(f"{name}: {more} more cues could not be read", is_failure=False))
    return SpeechTrack(name, cues.notes, tuple(told))


def open_tracks(
    paths: Sequence[str], options: SpeechOptions, starts: Mapping[int, float]
) -> SpeechTrack | None:
    """Read the subtitles of video files that are played one after another.

    Args:
        paths: of the videos.
        options: see ``SpeechOptions``; of each file its own best track is read.
        starts: see ``SpeechTrack``.

    Returns:
        None where none of them has any.
    """
    tracks = [open_track(path, options) for path in paths]
    if not any(tracks):
        return None
    notices = [notice for track in tracks if track for notice in track.notices]
    if (more := len(notices) - MAX_FAULTS) > 0:
        text = f"{more} more remarks on the subtitles of the {len(paths)} videos are left out"
        notices[MAX_FAULTS:] = [Notice(text, is_failure=False)]
    return SpeechTrack("subtitles", (), tuple(notices), tracks, starts)


def choose_track(
    tracks: list[Track], language: str | None, name: str
) -> tuple[Track | None, list[Notice]]:
    """Choose the track in a language, or the best one; and tell what else there is.

    Args:
        tracks: of a source, the best first.
        language: see ``SpeechOptions``.
        name: what messages call the source.
    """
    there = ", ".join(
        f"{track.name}{track.language and f' [{track.language}]'}" for track in tracks
    )
    if language is not None and tracks:
        for wanted in map(language_of, language.split(",")):
            if match := next((track for track in tracks if track.language == wanted), None):
                return match, []
        return None, [
            Notice(f"{name}: no subtitles in {language}; there are: {there}", is_failure=False)
        ]
    if not tracks:
        return None, []
    if len(tracks) == 1:
        return tracks[0], []
    text = f"{name}: reads {tracks[0].name}, of {there}; --speech-language chooses another"
    return tracks[0], [Notice(text, is_failure=False)]
