"""How entries become one: a still scene goes on, neighbours merge, text arrives late.

When to call what is the cache's business.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from streammem.memory.entry import MAX_KEYS, MAX_TEXT_BYTES, Entry, note_bytes
from streammem.memory.keysets import coverage, similarity, visual_keys
from streammem.types import Note

_SAME_KEY = 0.999
_SAME_TIME_S = 1e-3


def merge_cost(left: Entry, right: Entry) -> float:
    """What answers lose when two neighbours become one row.

    (1 - similarity) x (segments in both): each of those segments is afterwards found by keys that
    are off by so much. Age does not count: old evidence is what a memory is for. The factor keeps
    resolution even; without it one row swallows its neighbours, for with four keys of a mixture it
    is a little like everything.

    Returns:
        >= 0.
    """
    unlike = max(0.0, 1 - similarity(left.visual_keys, right.visual_keys))
    return unlike * (left.merged + right.merged)


class MergeQueue:
    """Pairs of neighbouring rows, the cheapest merge first.

    A pair is out of date once either of its rows has changed, which its ids tell; such pairs are
    skipped when they surface, and swept when they outnumber the rows by far.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[float, int, int, int, int]] = []  # heap

    def __len__(self) -> int:
        return len(self._pairs)

    def offer(self, left: Entry, right: Entry, rows: Mapping[int, Entry]) -> None:
        """Add a pair of neighbours out of `rows`, which are keyed by segment."""
        pair = (merge_cost(left, right), left.segment, left.last, right.segment, right.last)
        heapq.heappush(self._pairs, pair)
        if len(self._pairs) > 4 * len(rows) + 64:
            self._pairs = [pair for pair in self._pairs if _current(pair, rows)]
            heapq.heapify(self._pairs)

    def pop(self, rows: Mapping[int, Entry]) -> tuple[int, int] | None:
        """Take the ids of the cheapest pair that is still as it was offered; None without one."""
        while self._pairs:
            pair = heapq.heappop(self._pairs)
            if _current(pair, rows):
                return pair[1], pair[3]
        return None


def merged(left: Entry, right: Entry) -> Entry:
    """Join an entry and its successor in time into one.

    Returns:
        Known by the left id; keys clustered anew, tokens averaged by frames, text joined, the
        keyframe of the longer one.
    """
    longer, shorter = (left, right) if left.frames >= right.frames else (right, left)
    return replace(
        left,
        end=max(left.end, right.end),
        frames=left.frames + right.frames,
        visual_keys=_condensed(left.visual_keys, right.visual_keys),
        caption_keys=_condensed(left.caption_keys, right.caption_keys),
        note_keys=_condensed(left.note_keys, right.note_keys),
        tokens=_mean_tokens(left, right),
        caption=_caption(left.caption, right.caption),
        notes=_fitting_notes(left.notes + right.notes),
        keyframe=longer.keyframe or shorter.keyframe,
        merged=left.merged + right.merged,
        last=right.last,
    )


def continues(row: Entry, entry: Entry, epsilon: float) -> bool:
    """Tell whether a closing segment shows nothing that the row before it does not.

    Every one of its keys must be within `epsilon` of one of the row's, so a short event with a key
    of its own is never swallowed, and its text must fit without loss.
    """
    return (
        row.source == entry.source
        and abs(entry.start - row.end) <= _SAME_TIME_S
        and len(row.caption_keys) + len(entry.caption_keys) <= MAX_KEYS
        and len(row.note_keys) + len(entry.note_keys) <= MAX_KEYS
        and sum(map(note_bytes, row.notes + entry.notes)) <= MAX_TEXT_BYTES
        and coverage(row.visual_keys, entry.visual_keys) >= 1 - epsilon
    )


def extended(row: Entry, entry: Entry) -> Entry:
    """Let a row go on over a segment that `continues` it; keys and tokens stay as they are."""
    return replace(
        row,
        end=entry.end,
        frames=row.frames + entry.frames,
        caption_keys=np.concatenate([row.caption_keys, entry.caption_keys]),
        note_keys=np.concatenate([row.note_keys, entry.note_keys]),
        caption=_caption(row.caption, entry.caption),
        notes=row.notes + entry.notes,
        keyframe=entry.keyframe or row.keyframe,
        merged=row.merged + entry.merged,
        last=entry.last,
    )


def with_text(
    entry: Entry,
    *,
    caption: str | None = None,
    caption_key: np.ndarray | None = None,
    notes: tuple[Note, ...] = (),
    note_key: np.ndarray | None = None,
) -> Entry:
    """Add text that came after the entry: a further line of caption, notes, their keys.

    Args:
        entry: stays as it is.
        caption: a line; the one that is there already changes nothing.
        caption_key: [D_key] unit row.
        notes: put in time order among those present.
        note_key: [D_key] unit row.

    Returns:
        The entry with it, cut to MAX_TEXT_BYTES from the middle out.
    """
    in_order = sorted(entry.notes + notes, key=lambda note: note.start)
    return replace(
        entry,
        caption=_caption(entry.caption, caption),
        caption_keys=_with_key(entry.caption_keys, caption_key),
        notes=_fitting_notes(in_order),
        note_keys=_with_key(entry.note_keys, note_key),
    )


def _current(pair: tuple[float, int, int, int, int], rows: Mapping[int, Entry]) -> bool:
    _, left, left_last, right, right_last = pair
    return (
        left in rows
        and right in rows
        and rows[left].last == left_last
        and rows[right].last == right_last
    )


def _condensed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if not len(left) or not len(right):
        return left if len(left) else right
    both = np.concatenate([left, right])
    return visual_keys(both, MAX_KEYS, min_cosine=_SAME_KEY)


def _with_key(keys: np.ndarray, key: np.ndarray | None) -> np.ndarray:
    return keys if key is None else _condensed(keys, key[None])


def _mean_tokens(left: Entry, right: Entry) -> np.ndarray:
    if left.tokens.shape != right.tokens.shape:
        return left.tokens if left.tokens.size else right.tokens
    share = left.frames / (left.frames + right.frames)
    return share * left.tokens.astype(np.float32) + (1 - share) * right.tokens.astype(np.float32)


def _caption(left: str | None, right: str | None) -> str | None:
    lines = [line for text in (left, right) if text for line in text.splitlines() if line]
    lines = [line for i, line in enumerate(lines) if i == 0 or line != lines[i - 1]]
    while len(lines) > 1 and sum(len(line.encode()) + 1 for line in lines) > MAX_TEXT_BYTES:
        lines.pop(len(lines) // 2)
    return "\n".join(lines).encode()[:MAX_TEXT_BYTES].decode(errors="ignore") or None


def _fitting_notes(notes: Sequence[Note]) -> tuple[Note, ...]:
    kept = list(notes)
    while kept and sum(map(note_bytes, kept)) > MAX_TEXT_BYTES:
        kept.pop(len(kept) // 2)
    return tuple(kept)
