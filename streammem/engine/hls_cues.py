"""The subtitles of an HLS stream, on the clock of its pictures.

    for item in hls_cues(source, playlist, stopping, ended):
        ...        # notes; how far it is; what is wrong

A segment's header says which stamp of the pictures its own time 0 is. Where pictures with such
stamps lie on the source's clock the source tells, so a cue of a live stream waits for them.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import monotonic

from streammem.audio.subtitles import SAME_TEXT_GAP_S, Cues, parse_segment
from streammem.types import Note
from streammem.video import VideoSource
from streammem.video.hls import TextPlaylist, segments

AROUND_S = 2**33 / 90_000  # after so long the stamps of MPEG-TS begin again
AHEAD_S = 0.5  # of the newest picture; what lies further ahead waits for it
BEHIND_S = 120.0  # of the newest picture; what lies further behind has nothing in common with it
HELD_S = 120.0  # that a cue waits for its picture
STEP_S = 0.5  # of how far it is
MAX_HELD, MAX_KNOWN = 2000, 500  # cues that wait, and newest ones by which repeated ones are known


@dataclass(frozen=True, slots=True)
class _Held:
    """A cue that waits for its picture.

    Attributes:
        note: timed by the stamps of the pictures, in seconds.
        came: when, on a clock that never jumps.
    """

    note: Note
    came: float


def hls_cues(
    source: VideoSource,
    playlist: TextPlaylist,
    stopping: Callable[[], bool],
    ended: Callable[[], bool],
) -> Iterator[Note | str | float]:
    """Give the cues of a text track, on the source's clock.

    Args:
        source: that the track belongs to; it is read meanwhile.
        playlist: of the track.
        stopping: whether to give up.
        ended: whether the pictures have ended.

    Yields:
        Notes; seconds before which no more begin, most likely; what is wrong with them.
    """
    held, known = deque[_Held](), deque[Note](maxlen=MAX_KNOWN)
    num_lost, until = 0, 0.0
    for item in segments(playlist, source.name, stopping, ended, endless=source.live):
        # 1. New cues; one that goes on over several segments is repeated in each.
        if isinstance(item, str):
            yield item
            continue
        if isinstance(item, bytes):
            cues = _cues_of(item, source.name)
            yield from cues.faults
            new = [note for note in cues.notes if not any(_goes_on(note, old) for old in known)]
            known.extend(new)
            held.extend(_Held(note, monotonic()) for note in new)
        # 2. Those whose pictures are there.
        waiting, placed = deque[_Held](), list[Note]()
        for cue in held:
            time = _place(cue.note.start, source)
            if time is not None:
                end = time + cue.note.end - cue.note.start
                if end > 0:
                    placed.append(replace(cue.note, start=max(0.0, time), end=end))
            elif monotonic() - cue.came < HELD_S and len(waiting) < MAX_HELD:
                waiting.append(cue)
            else:
                num_lost += 1
        held = waiting
        yield from sorted(placed, key=lambda note: note.start)
        # 3. How far it is: the pictures may be as far behind the subtitles as a segment is long.
        clock = source.text_clock
        if isinstance(item, float) and clock and clock[1] - item >= until + STEP_S:
            until = clock[1] - item
            yield until
    if num_lost := num_lost + len(held):
        yield f"{source.name}: {num_lost} subtitles have no place beside the pictures; left out"


def _goes_on(note: Note, old: Note) -> bool:
    """Return whether a cue is one that was given, repeated or cut where a segment ends."""
    return note.text == old.text and old.start <= note.start <= old.end + SAME_TEXT_GAP_S


def _cues_of(content: bytes, name: str) -> Cues:
    stamp_s, cues = parse_segment(content, name)
    shifted = (
        replace(note, start=note.start + stamp_s, end=note.end + stamp_s) for note in cues.notes
    )
    return Cues(tuple(shifted), cues.faults)


def _place(stamp: float, source: VideoSource) -> float | None:
    """Return where a stamp lies on the source's clock; None where that is not known (yet)."""
    clock = source.text_clock
    if clock is None:
        return None
    distance = math.remainder(stamp - clock[0], AROUND_S)
    if source.live and not -BEHIND_S <= distance <= AHEAD_S:
        return None
    return clock[1] + distance
