"""Chapters: neighbouring rows merged upward until few are left, each with its central rows.

The rows themselves stay as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from streammem.errors import ConfigError
from streammem.memory.entry import Entry, MergeQueue, merge_cost, merged, similarity

MAX_CHAPTERS = 24
CENTRAL = 3


class ChapterRows(NamedTuple):
    """A chapter: rows of one source, in order, and those of them that are most like all.

    Attributes:
        rows: at least one.
        central: at most ``CENTRAL`` of them, in order; of rows with the same caption the first.
    """

    rows: tuple[Entry, ...]
    central: tuple[Entry, ...]


def default_count(rows: int) -> int:
    """Return how many chapters so many rows make: the square root, at most ``MAX_CHAPTERS``."""
    return min(MAX_CHAPTERS, max(1, math.ceil(math.sqrt(rows))))


def chapter_cost(left: Entry, right: Entry) -> float:
    """How much two neighbours differ, in what is seen and, where both know it, in what is said.

    Returns:
        >= 0. The talk over one still picture is divided where its topic changes; keys of sentences
        lie closer together than those of scenes, so that pictures decide where there are several.
    """
    cost = merge_cost(left, right)
    if len(left.note_keys) and len(right.note_keys):
        unlike = max(0.0, 1 - similarity(left.note_keys, right.note_keys))
        cost += unlike * (left.merged + right.merged)
    return cost


def divide(
    entries: Sequence[Entry], count: int, gap_s: float = math.inf
) -> tuple[ChapterRows, ...]:
    """Divide rows into chapters.

    The two neighbours whose merge costs least (see ``chapter_cost``) become one until ``count``
    are left. Sources never share a chapter, so with more sources than ``count`` each has one.

    Args:
        entries: oldest first.
        count: chapters at most, >= 1.
        gap_s: seconds without a row after which another chapter begins, however many there are.

    Raises:
        ConfigError: count below 1.
    """
    if count < 1:
        raise ConfigError(f"{count} chapters: give at least 1")
    rows = {
        entry.segment: replace(entry, tokens=entry.tokens[:0, :0], keyframe=None)
        for entry in entries
    }
    parts = {entry.segment: [entry] for entry in entries}
    order = list(rows)  # ids of what is left, rising
    queue = MergeQueue(chapter_cost)

    def offer(at: int) -> None:
        if 0 <= at < len(order) - 1:
            left, right = rows[order[at]], rows[order[at + 1]]
            if left.source == right.source and right.start - left.end <= gap_s:
                queue.offer(left, right, rows)

    for at in range(len(order)):
        offer(at)
    while len(order) > count and (pair := queue.pop(rows)) is not None:
        left, right = pair
        at = order.index(left)
        rows[left] = merged(rows[left], rows.pop(right))
        parts[left] += parts.pop(right)
        del order[at + 1]
        offer(at - 1)
        offer(at)
    return tuple(ChapterRows(tuple(parts[id_]), _central(parts[id_])) for id_ in order)


def _central(rows: Sequence[Entry]) -> tuple[Entry, ...]:
    """Choose the rows nearest to the mean key, each key weighted by the frames behind it."""
    keys = np.stack([row.visual_keys[0] for row in rows])  # the widest cluster's
    weights = np.array([row.frames for row in rows], np.float32)
    likeness = keys @ (weights @ keys)
    chosen: list[int] = []
    told: set[str] = set()
    for at in np.argsort(-likeness, kind="stable").tolist():
        caption = rows[at].caption
        if caption is None or caption not in told:
            chosen.append(at)
            told.update([caption] if caption else [])
        if len(chosen) == CENTRAL:
            break
    return tuple(rows[at] for at in sorted(chosen))
