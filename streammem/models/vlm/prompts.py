"""Prompts of text and pictures for models that see; training none of them, we ask in plain words.

    parts = caption_parts(item, None, most=4)
    ["[00:05.5-00:09.5], picture 1 of 2:", <picture>, "[00:05.5-00:09.5], picture 2 of 2:", ...]

A time text stands before every picture, always: some servers fuse neighbouring pictures of equal
size into one, and a text between them prevents it.
"""

from collections.abc import Sequence

import numpy as np

from streammem.models.protocols import EvidenceItem
from streammem.perception.frames import spread
from streammem.types import clock

Part = str | np.ndarray
CAPTION_REQUEST = (
    "The pictures above show one scene of a video, in time order. Say in one short sentence what "
    "is seen and what happens. Write this sentence only."
)
ANSWER_REQUEST = (
    "Above are parts of a video in time order, each with its times as [minutes:seconds]. Answer "
    "the question from them alone, in one or two short sentences. If they do not show it, say so."
)
HEARD_REQUEST = "What is marked as heard was said then; it need not be seen."
MAX_SPEECH = 600  # characters of what was heard in one part; more would crowd out the pictures


def caption_parts(item: EvidenceItem, instruction: str | None, most: int) -> list[Part]:
    """Build the prompt that describes a scene from at most ``most`` of its pictures."""
    shown = [item.keyframes[i] for i in spread(len(item.keyframes), most)]
    return [*_pictures(item._replace(keyframes=tuple(shown))), instruction or CAPTION_REQUEST]


def answer_parts(items: Sequence[EvidenceItem], question: str) -> list[Part]:
    """Build the prompt that answers from evidence: pictures, captions and speech, in time order."""
    parts: list[Part] = []
    for item in items:
        parts += _pictures(item)
        words = [item.caption or ""]
        if heard := _heard(item):
            words.append(f"Heard: {heard}")
        if text := " ".join(word for word in words if word):
            parts.append(text if item.keyframes else f"{_span(item)}: {text}")
    heard = f" {HEARD_REQUEST}" if any(map(_heard, items)) else ""
    return [*parts, f"{ANSWER_REQUEST}{heard}\nQuestion: {question}"]


def _pictures(item: EvidenceItem) -> list[Part]:
    count, parts = len(item.keyframes), list[Part]()
    for number, picture in enumerate(item.keyframes, start=1):
        of = f", picture {number} of {count}" if count > 1 else ""
        parts += [f"{_span(item)}{of}:", picture]
    return parts


def _heard(item: EvidenceItem) -> str:
    """Return what was said, each note with its time where that is known, if there is room."""
    if not item.heard:
        return (item.speech or "")[:MAX_SPEECH]
    lines, size = list[str](), 0
    for note in item.heard:
        size += len(note.text)
        if size > MAX_SPEECH and lines:
            break
        text = f"“{note.text[:MAX_SPEECH]}”" if note.kind == "speech" else note.shown
        lines.append(f"[{clock(note.start)}] {text}")
    return " ".join(lines)


def _span(item: EvidenceItem) -> str:
    return f"[{clock(item.start)}-{clock(item.end)}]"
