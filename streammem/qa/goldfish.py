"""Goldfish's way to answer from a long video: from text alone, of the clips whose text is nearest.

    entries = nearest_documents(rows, key, count=3)
    items = [as_text(item, entry.notes, reply) for ...]

A clip has two documents, its summary (the caption) and its transcript (the notes). The nearest
documents, not clips, are chosen; both documents of their clips are read. It is a control beside
answers that read the evidence itself, ``SessionConfig.context``.

Source: Goldfish (arXiv 2407.12679), section 3; what its code does otherwise is in
docs/guide/minigpt4-video.md.
"""

import re
from collections.abc import Sequence

import numpy as np

from streammem.memory.entry import Entry
from streammem.models.protocols import EvidenceItem
from streammem.types import Note

MAX_WORDS = 10_000  # of all documents in a prompt


def nearest_documents(rows: Sequence[Entry], key: np.ndarray, count: int) -> list[Entry]:
    """Return the rows that own the ``count`` documents nearest to a question, in their order.

    Args:
        rows: of the memory.
        key: [K] unit key of the question's text.
        count: documents, >= 1; both of one row may be among them.
    """
    found = [
        (float((keys @ key).max()), place)
        for place, row in enumerate(rows)
        for keys in (row.caption_keys, row.note_keys)
        if len(keys)
    ]
    best = sorted(found, key=lambda document: -document[0])[:count]
    return [rows[place] for place in sorted({place for _, place in best})]


def as_text(item: EvidenceItem, notes: Sequence[Note], reply: str = "") -> EvidenceItem:
    """Return evidence with nothing to see: its caption, what was said, and a reply about it.

    Args:
        item: of a row.
        notes: all of the row.
        reply: of the model when it watched the clip again with the question; empty without.
    """
    caption = "\n".join(part for part in (item.caption, reply) if part)
    speech = " ".join(note.text for note in notes)
    return item._replace(
        tokens=None,
        keyframes=(),
        notes=(),
        heard=(),
        caption=caption or None,
        speech=speech or None,
    )


def latin_only(item: EvidenceItem) -> EvidenceItem:
    """Leave of an item's text what Goldfish does: Latin letters, digits and apostrophes."""

    def left(text: str | None) -> str | None:
        return " ".join(re.sub(r"[^a-zA-Z0-9\s']", "", text or "").split()) or None

    return item._replace(caption=left(item.caption), speech=left(item.speech))


def within_limit(items: Sequence[EvidenceItem], most: int = MAX_WORDS) -> list[EvidenceItem]:
    """Cut the text of items after ``most`` words; items that have none left are left out."""
    kept = []
    for item in items:
        parts = []
        for text in (item.caption, item.speech):
            words = text.split(" ")[:most] if text else []
            most -= len(words)
            parts.append(" ".join(words) or None)
        if any(parts):
            kept.append(item._replace(caption=parts[0], speech=parts[1], heard=()))
    return kept
