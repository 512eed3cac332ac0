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
from functools import partial
from pathlib import Path

import numpy as np

from streammem.audio.subtitles import (
    MAX_FILE_BYTES,
    Track,
    language_of,
    parse,
    read_file,
    tracks_in,
)
from streammem.audio.track import (
    WHISPER,
    SpeechOptions,
    SpeechTrack,
    choose_track,
    is_url,
    open_track,
    open_tracks,
    track_of,
)
from streammem.engine.hls_cues import hls_cues
from streammem.engine.listener import (
    BEHIND_S,
    KEPT_S,
    PIPE_BEHIND_S,
    CueReader,
    CueSource,
    Listener,
    NoteWorker,
    SharedSound,
)
from streammem.engine.session import Session
from streammem.errors import SourceError
from streammem.models.sound_events import sound_events
from streammem.models.transcription import Recognises, recogniser
from streammem.types import Note, Notice, Segment
from streammem.video import VideoSource
from streammem.video.address import public_name
from streammem.video.fetching import fetch_small, host_of
from streammem.video.hls import text_playlists
from streammem.video.sound import Sound

MAX_HEARD = 10_000  # notes that wait for their scene to close
MAX_PAST = 1000  # scenes for which a note may still come late
LATE_S = 60.0  # beyond what may wait to be recognised: words of a live scene are not waited for


@dataclass(frozen=True, slots=True)
class Speech:
    """Where the words of a source come from.

    Attributes:
        subtitles: read already; None without any.
        opener: opens the recogniser; None without one.
        sounds: opens what names sounds; None without.
        cues: gives the subtitles that lie behind a network, see ``CueReader``; None without.
    """

    subtitles: SpeechTrack | None
    opener: Callable[[], Recognises] | None
    sounds: Callable[[], Recognises] | None = None
    cues: CueSource | None = None

    @property
    def is_heard(self) -> bool:
        """Whether notes come while the source is watched."""
        return bool(self.opener or self.sounds or self.cues)


def open_speech(source: VideoSource, options: SpeechOptions) -> Speech:
    """Read the subtitles of a source, and see whether it is to be recognised, and can be.

    Raises:
        SourceError: speech is asked for, and it cannot have sound; or the subtitle file that is
            given cannot be read.
        BackboneError: the recogniser is not installed, or not here.
        ServedModelError: its server is not there.
    """
    # 1. Subtitles: of files on this computer all of them now, others while they are watched.
    subtitles, cues = None, None
    if options.subtitles is not None:
        subtitles = _given_track(source, options)
    elif source.path is not None:
        subtitles = open_track(source.path, options, looks_inside=source.has_texts)
    elif source.paths:
        subtitles = open_tracks(source.paths, options, source.starts)
    else:
        subtitles, cues = _remote_track(source, options)
    # 2. What is recognised.
    wanted = options.recogniser
    if options.speech == "on" and not (cues or (subtitles and subtitles.is_complete)):
        wanted = WHISPER
    if wanted is None and options.sounds is None:
        return Speech(subtitles, None, cues=cues)
    if not (source.sound_beside or source.sound_apart):
        if options.where_possible:
            return Speech(subtitles, None, cues=cues)
        flag = "--sounds" if wanted is None else "--speech"
        raise SourceError(f"{source.name}: has no sound to be recognised; leave out {flag}")
    sounds = sound_events(options.sounds) if options.sounds else None
    if wanted is None:
        return Speech(subtitles, None, sounds, cues)
    language = language_of(options.language.split(",")[0]) if options.language else None
    return Speech(subtitles, recogniser(wanted, language, options.spend), sounds)


def _given_track(source: VideoSource, options: SpeechOptions) -> SpeechTrack:
    """Read the subtitle file that the user names; its times are those of the source."""
    given = str(options.subtitles)
    if source.live:
        raise SourceError(f"{source.name}: is live; a subtitle file has no place in it")
    language = language_of(options.language.split(",")[0]) if options.language else ""
    if not is_url(given):
        return track_of(read_file(Path(given), language), Path(given).name)
    name = public_name(given)
    content = fetch_small(given, name, MAX_FILE_BYTES, host_of(given)).content
    return track_of(parse(content, name, language), name)


def _remote_track(
    source: VideoSource, options: SpeechOptions
) -> tuple[SpeechTrack | None, CueSource | None]:
    """Choose a text track behind a network; return what is to be told of it, and its cues."""
    opened = source.text_pass()
    if options.speech not in ("auto", "on") or (opened is None and source.playlist is None):
        return None, None
    try:
        tracks = _tracks_of_hls(source) if opened is None else tracks_in(opened, source.name)
        track, notices = choose_track(tracks, options.language, source.name)
    except SourceError as error:
        track, notices = None, [Notice(str(error), is_failure=False)]
    if track is not None and not track.is_text:
        notices += [Notice(fault, is_failure=False) for fault in track.read().faults]
    told = SpeechTrack(source.name, (), tuple(notices)) if notices else None
    return told, track.cues if track is not None and track.is_text else None


def _tracks_of_hls(source: VideoSource) -> list[Track]:
    assert source.playlist is not None
    found = text_playlists(source.playlist, source.name)
    found.sort(key=lambda one: (one.forced, not one.default))
    return [
        Track(
            f"subtitles {one.name or one.language} of {source.name}", language_of(one.language),
            one.forced, cues=partial(hls_cues, source, one),
        )
        for one in found
    ]  # fmt: skip


def check_recogniser(options: SpeechOptions) -> None:
    """Check that what is asked for can be recognised, before any source is opened.

    Raises:
        BackboneError, ServedModelError: see ``open_speech``.
    """
    wanted = WHISPER if options.speech == "on" else options.recogniser
    if wanted is not None:
        recogniser(wanted, spend=options.spend)
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
        speech: whose subtitles behind a network, recogniser, and names of sounds are heard by; a
            thread each.
    """

    def __init__(self, session: Session, source: VideoSource, speech: Speech) -> None:
        self._session, self._at_once = session, source.sound_beside
        self._late_s = math.inf
        self._begin = math.inf  # seconds, where the first scene begins
        self._heard: deque[Note] = deque(maxlen=MAX_HEARD)
        self._open: deque[Segment] = deque()  # closed scenes whose notes are not all there yet
        self._past: deque[Segment] = deque(maxlen=MAX_PAST)  # those before, for notes that are late
        beside = source.sound_beside
        behind: tuple[float, float | None] = (BEHIND_S, KEPT_S)
        if beside:
            behind = behind if source.live else (PIPE_BEHIND_S, None)
            self._late_s = LATE_S + behind[0]
        wanted = ((speech.opener, False), (speech.sounds, True))
        openers = [(opener, events) for opener, events in wanted if opener]
        sound = None if beside or not openers else source.sound_pass()
        shared = None if sound is None else SharedSound(sound, len(openers))
        self.listeners: list[NoteWorker] = []
        for number, (opener, events) in enumerate(openers):
            own = shared.sound(number) if shared else None
            if own and speech.subtitles and not events:
                own = _without_subtitles(own, speech.subtitles)
            on_end = partial(shared.leave, number) if shared else lambda: None
            self.listeners.append(
                Listener(source.name, opener, own, *behind, events=events, on_end=on_end)
            )
        if speech.cues:
            self.listeners.append(CueReader(source.name, speech.cues))
        self._until = [0.0] * len(self.listeners)
        self._besides = source.on_sound  # a model that listens, too
        if beside:
            source.on_sound = self._push
        session.unkept = lambda: tuple(self._heard)

    def _push(self, time: float, samples: np.ndarray) -> None:
        if self._besides:
            self._besides(time, samples)
        for listener in self.listeners:
            listener.push(time, samples)

    @property
    def awaits(self) -> bool:
        """Whether notes of closed scenes may still come."""
        return bool(self._open) and not self._finished

    @property
    def _finished(self) -> bool:
        return all(listener.finished for listener in self.listeners)

    def closed(self, segment: Segment) -> None:
        """Take in a scene that has closed."""
        self._begin = min(self._begin, segment.start)
        self._open.append(segment)

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
            is_ahead = not self._open or self._until[place] >= self._open[0].end
            if listener.most_waiting and is_ahead and len(self._heard) >= MAX_HEARD // 2:
                continue  # it waits until scenes have closed
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
        if len(self._heard) > num_heard:
            self._heard = deque(sorted(self._heard, key=lambda note: note.start), MAX_HEARD)
        # What was said in a scene whose notes were kept before.
        while self._past and self._heard and self._heard[0].start < self._past[-1].end:
            said = self._heard[0].start
            yield from self._kept(next(s for s in self._past if said < s.end))
        until = math.inf if last else min(self._until)
        while self._open and self._open[0].end <= max(until, self._open[-1].end - self._late_s):
            self._past.append(self._open.popleft())
            yield from self._kept(self._past[-1])
        if self._open and len(self._heard) >= MAX_HEARD // 2:  # more begin in it than may wait
            yield from self._kept(self._open[0])

    def _kept(self, segment: Segment) -> Iterator[Note]:
        """Give a scene those of the notes that begin in it; yield them if that was not done."""
        found = list[Note]()
        while self._heard and self._heard[0].start < segment.end:
            note = self._heard.popleft()
            if self._at_once or note.end > self._begin:
                found.append(note)
        if found and self._session.memory.get(segment.id) is not None:  # it may be pruned
            self._session.add_notes(segment.id, found)
        if not self._at_once:
            yield from found

    def close(self) -> None:
        """End the listening."""
        self._session.unkept = tuple
        for listener in self.listeners:
            listener.close()

    def end(self) -> None:
        """Note that no more sound comes; what waits is still recognised."""
        for listener in self.listeners:
            listener.end()


def _without_subtitles(sound: Sound, subtitles: SpeechTrack) -> Sound:
    """Leave out the sound of those files whose words are known from their subtitles."""
    return ((time, samples) for time, samples in sound if not subtitles.covers(time))
