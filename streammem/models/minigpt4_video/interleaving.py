r"""Which frames of a video are read, and beside which of them its subtitles stand.

    shortened(placed(times, notes), 400) # of each frame: ["", "Good morning. ", ...]
    parents_shots("plain", cues, ...)    # [Shot(frame=0, caption=""), ...]
    texts(["", "Good morning. "], "What happens?", "trained")
    # ["[INST] <Img>", "<Img>", "<Cap>Good morning. \nWhat happens?[/INST]"], frames between them

Three rules: ours, the parent's plain inference's, and Goldfish's. No pictures and no model here.
"""

import bisect
from collections.abc import Sequence
from typing import Literal, NamedTuple

from streammem.models.minigpt4_video.options import SubtitleStyle
from streammem.types import Note


class Cue(NamedTuple):
    """A subtitle as the parent reads it: ``start`` and ``end`` in whole milliseconds."""

    start: int
    end: int
    text: str


class Shot(NamedTuple):
    """A frame that is read.

    Attributes:
        frame: its number in the video, from 0.
        caption: what stands beside it; empty for nothing.
    """

    frame: int
    caption: str


def cues_of(notes: Sequence[Note]) -> list[Cue]:
    """Return notes with times in whole milliseconds."""
    return [Cue(round(n.start * 1000), round(n.end * 1000), n.text) for n in notes]


def placed(times: Sequence[float], notes: Sequence[Note]) -> list[str]:
    """Place each note beside the first frame at or after its beginning, else the last.

    Args:
        times: seconds of each frame, ascending; at least one.
        notes: in order of time.

    Returns:
        A caption a frame, with a space behind each word, as every caption had it in training.
    """
    captions = [""] * len(times)
    for note in notes:
        place = min(bisect.bisect_left(times, note.start), len(times) - 1)
        captions[place] += "".join(f"{word} " for word in note.text.split())
    return captions


def shortened(captions: Sequence[str], words: int) -> list[str]:
    """Shorten the longest captions until all have at most ``words`` words together.

    Each keeps its first ones, as many for all as there is room for::

        words beside frames   3  9  0  5   (17)     with room for 12   3  4  0  4
    """
    each = [caption.split() for caption in captions]
    room, most = words, 0
    for rank, length in enumerate(sorted(map(len, each))):
        most = room // (len(each) - rank)  # for each of those that are as long
        if length > most:
            break
        room, most = room - length, length
    return [
        caption if len(own) <= most else "".join(f"{word} " for word in own[:most])
        for caption, own in zip(captions, each, strict=True)
    ]


def moved(captions: Sequence[str], chosen: Sequence[int]) -> list[str]:
    """Move captions of frames that are left out to the next that is ``chosen``, or the last.

    Args:
        captions: of each frame.
        chosen: numbers of frames, ascending; without any the captions are dropped.
    """
    found = [""] * len(chosen)
    for frame, caption in enumerate(captions):
        if chosen:
            found[min(bisect.bisect_left(chosen, frame), len(chosen) - 1)] += caption
    return found


def parents_shots(
    rule: Literal["plain", "goldfish"],
    cues: Sequence[Cue],
    *,
    num_frames: int,
    total: int,
    fps: float,
    most: int,
    words: int,
) -> list[Shot]:
    """Choose and place as the parent's inference does, or as Goldfish does within a clip.

    Every int(total / most)-th frame is read. A frame's subtitle waits for the next such frame,
    unless its text was met before. Which one is a frame's: by ``plain`` what bisection finds; by
    ``goldfish`` the first of the file that is no part of what waits, time counting whole frames a
    second. Goldfish repeats the last frame until there are ``most``.

    Args:
        rule: see above.
        cues: in the order of the file.
        num_frames: that can be decoded.
        total: frames of the whole video, as its duration and ``fps`` make it.
        fps: frames a second, as the container states it, > 0.
        most: frames.
        words: after so many, captions are left out; the last may overshoot.
    """
    step = max(1, total // most)
    shots, met, waiting, counted = list[Shot](), set[str](), "", 0
    for frame in range(num_frames):
        if rule == "plain":
            text = _bisected(cues, frame / fps * 1000)
        else:
            time = frame / max(1, int(fps)) * 1000
            covering = (c.text for c in cues if c.start <= time <= c.end)
            text = next((text for text in covering if text not in waiting), None)
        if text and text not in met:
            met.add(text)
            waiting += f"{text} "
        if frame % step == 0:
            caption = ""
            if waiting and counted < words:
                caption, waiting = waiting, ""
                counted += len(caption.split(" "))
            shots.append(Shot(frame, caption))
        if len(shots) >= most:
            break
    if rule == "goldfish" and shots:
        shots += [Shot(shots[-1].frame, "")] * (most - len(shots))
    return shots


def texts(captions: Sequence[str], request: str, style: SubtitleStyle) -> list[str]:
    """Return the text around frames: one piece before each, one behind the last.

    Args:
        captions: a frame.
        request: of the user.
        style: see ``MiniGPT4Options.prompt``. Beginnings of sequence are no text.
    """
    close = " [/INST]" if style == "plain" else "[/INST]"
    pieces, before = [], "[INST] "
    for caption in captions:
        pieces.append(f"{before}<Img>")
        before = f"<Cap>{caption}" if caption else ""
    return [*pieces, f"{before}\n{request}{close}"]


def _bisected(cues: Sequence[Cue], time: float) -> str | None:
    """Find a cue that covers a time (ms) by bisection: of several whichever is met first."""
    left, right = 0, len(cues) - 1
    while left <= right:
        middle = (left + right) // 2
        if cues[middle].start <= time <= cues[middle].end:
            return cues[middle].text
        if time < cues[middle].start:
            right = middle - 1
        else:
            left = middle + 1
    return None
