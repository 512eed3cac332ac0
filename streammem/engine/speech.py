"""What is heard in a source that is watched: its subtitles, a recogniser's notes, sound events.

speech = open_speech(source, SpeechOptions("on"))     # what is missing is told now
session.speech = speech.subtitles
notes = SceneNotes(session, source, speech)           # begins to listen, where it recognises
... notes.closed(segment); yield from notes.due(); notes.close()
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from streammem.audio.subtitles import language_of
from streammem.audio.track import WHISPER, SpeechOptions, SpeechTrack, open_track, open_tracks
from streammem.engine.listener import BEHIND_S, KEPT_S, PIPE_BEHIND_S, Listener
from streammem.engine.session import Session
from streammem.errors import SourceError
from streammem.models.sound_events import sound_events
from streammem.models.transcription import Recognises, recogniser
from streammem.types import Note, Notice, Segment
from streammem.video import VideoSource
from streammem.video.sound import Sound

MAX_HEARD = 10_000  # notes that wait for their scene to close
LATE_S = 60.0  # beyond what may wait to be recognised: words of a live scene are not waited for


@dataclass(frozen=True, slots=True)
class Speech:
    """Where the words of a source come from.

    Attributes:
        subtitles: read already; None without any.
        opener: opens the recogniser; None without one.
        sounds: opens what names sounds; None without.
    """

    subtitles: SpeechTrack | None
    opener: Callable[[], Recognises] | None
    sounds: Callable[[], Recognises] | None = None


def open_speech(source: VideoSource, options: SpeechOptions) -> Speech:
    """Read the subtitles of a source, and see whether it is to be recognised, and can be.

    Raises:
        SourceError: speech is asked for, and it cannot have sound.
        BackboneError: the recogniser is not installed, or not here.
        ServedModelError: its server is not there.
    """
    subtitles = None
    if source.path is not None:
        subtitles = open_track(source.path, options)
    elif source.paths:
        subtitles = open_tracks(source.paths, options, source.starts)
    wanted = options.recogniser
    if options.speech == "on" and not (subtitles and subtitles.is_complete):
        wanted = WHISPER
    if wanted is None and options.sounds is None:
        return Speech(subtitles, None)
    if not (source.sound_beside or source.sound_apart):
        if options.where_possible:
            return Speech(subtitles, None)
        flag = "--sounds" if wanted is None else "--speech"
        raise SourceError(f"{source.name}: has no sound to be recognised; leave out {flag}")
    sounds = sound_events(options.sounds) if options.sounds else None
    if wanted is None:
        return Speech(subtitles, None, sounds)
    language = language_of(options.language.split(",")[0]) if options.language else None
    return Speech(subtitles, recogniser(wanted, language), sounds)


def check_recogniser(options: SpeechOptions) -> None:
    """Check that what is asked for can be recognised, before any source is opened.

    Raises:
        BackboneError, ServedModelError: see ``open_speech``.
    """
    wanted = WHISPER if options.speech == "on" else options.recogniser
    if wanted is not None:
        recogniser(wanted)
    if options.sounds:
        sound_events(options.sounds)


class SceneNotes:
    """Listens to a source, and gives what is recognised to the scenes that it begins in.

    The notes of a scene are kept together once all of it was recognised, so that what is stored
    does not depend on how fast words come. Those of a live source are given at once, all others
    when they are kept.

    Args:
        session: keeps them.
        source: not being read yet.
        speech: whose recogniser, names of sounds, or both, are heard by; one listener each.
    """

    def __init__(self, session: Session, source: VideoSource, speech: Speech) -> None:
        self._session, self._at_once = session, source.sound_beside
        self._late_s = math.inf
        self._begin = math.inf  # seconds, where the first scene begins
        self._heard: deque[Note] = deque(maxlen=MAX_HEARD)
        self._ends: deque[tuple[float, int]] = deque()  # of closed scenes, that may get notes
        beside = source.sound_beside
        behind: tuple[float, float | None] = (BEHIND_S, KEPT_S)
        if beside:
            behind = behind if source.live else (PIPE_BEHIND_S, None)
            self._late_s = LATE_S + behind[0]
        wanted = ((speech.opener, False), (speech.sounds, True))
        self.listeners = []
        for opener, events in wanted:
            if opener:
                sound = None if beside else source.sound_pass()
                if sound and speech.subtitles and not events:
                    sound = _without_subtitles(sound, speech.subtitles)
                self.listeners.append(Listener(source.name, opener, sound, *behind, events=events))
        self._until = [0.0] * len(self.listeners)
        if beside:
            source.on_sound = self._push

    def _push(self, time: float, samples: np.ndarray) -> None:
        for listener in self.listeners:
            listener.push(time, samples)

    @property
    def awaits(self) -> bool:
        """Whether notes of closed scenes may still come."""
        return bool(self._ends) and not self._finished

    @property
    def _finished(self) -> bool:
        return all(listener.finished for listener in self.listeners)

    def closed(self, segment: Segment) -> None:
        """Take in a scene that has closed."""
        self._begin = min(self._begin, segment.start)
        self._ends.append((segment.end, segment.id))

    def due(self, wait_s: float = 0.0, *, last: bool = False) -> Iterator[Note | Notice]:
        """Keep and give what was recognised, in order of time.

        Args:
            wait_s: for the next note, at most.
            last: nothing more is waited for.
        """
        offset = self._session.time_offset
        last |= self._finished
        num_heard = len(self._heard)
        for place, listener in enumerate(self.listeners):
            if listener.finished:
                self._until[place] = math.inf
            for item in listener.ready(wait_s):
                wait_s = 0.0
                if isinstance(item, Note):
                    self._heard.append(item.shifted(offset))
                    if self._at_once:
                        yield self._heard[-1]
                elif isinstance(item, Notice):
                    yield item
                else:
                    self._until[place] = item + offset
        if len(self.listeners) > 1 and len(self._heard) > num_heard:
            self._heard = deque(sorted(self._heard, key=lambda note: note.start), MAX_HEARD)
        until = math.inf if last else min(self._until)
        while self._ends and self._ends[0][0] <= max(until, self._ends[-1][0] - self._late_s):
            (end, segment), found = self._ends.popleft(), list[Note]()
            while self._heard and self._heard[0].start < end:
                note = self._heard.popleft()
                if self._at_once or note.end > self._begin:
                    found.append(note)
            if found and self._session.memory.get(segment) is not None:  # it may be pruned
                self._session.add_notes(segment, found)
            if not self._at_once:
                yield from found

    def close(self) -> None:
        """End the listening."""
        for listener in self.listeners:
            listener.close()

    def end(self) -> None:
        """Note that no more sound comes; what waits is still recognised."""
        for listener in self.listeners:
            listener.end()


def _without_subtitles(sound: Sound, subtitles: SpeechTrack) -> Sound:
    """Leave out the sound of those files whose words are known from their subtitles."""
    return ((time, samples) for time, samples in sound if not subtitles.covers(time))
