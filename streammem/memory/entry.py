"""The record that the memory keeps of a segment: its keys, and how two records become one.

    entry = Entry(segment=0, start=0.0, end=4.5, frames=9, visual_keys=visual_keys(frame_keys), ...)
    if continues(row, entry, epsilon=0.02):   # a still scene goes on
        row = extended(row, entry)
    row = with_text(row, caption="A dog swims.", caption_key=key)
    row.age(Now(wall=time.time(), ends={"": 60.0}))   # seconds

No index and no disk: `memory.py` holds entries in RAM, `store.py` on disk. When rows merge is the
cache's business; where keys come from (the retrieval heads) is not known here.
"""

import heapq
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from streammem.types import Caption, Note

MAX_KEYS = 4
"""Most keys of a kind that an entry has: visual, of captions, of notes."""

KEY_KINDS = ("visual_keys", "caption_keys", "note_keys")
"""Kinds of keys, by their names in an entry."""

MAX_TEXT_BYTES = 2_000
"""Most UTF-8 bytes of an entry's caption."""

MAX_NOTES_BYTES = 24_000
"""Most bytes of an entry's notes, each with NOTE_BYTES, and of the times of their words: four
minutes of quick dialogue, the longest scene, have 80 cues of 40 letters."""

MAX_KEYFRAME_BYTES = 32_768
"""Most bytes of a keyframe: a JPEG of 320x180 has 5 to 20 KB."""

NOTE_BYTES = 200
"""What a note counts besides its text, so that many tiny notes are bounded too."""

WORD_BYTES = 32
"""What the time of a word takes."""

_GROUP = 32  # token values that share a scale
_LEVELS = 127
_UNIT_TOLERANCE = 1e-2
_MAX_ROUNDS = 8  # of k-means
_SAME_KEY = 0.999
_SAME_TIME_S = 1e-3
_SAME_WALL_S = 1.0  # a camera's wall clock is read anew at each connection


class Now(NamedTuple):
    """The present, on every clock that a row may be timed by.

    The default lies before everything: every age is 0.

    Attributes:
        wall: Unix seconds.
        ends: by name of a source, the newest second of its own clock.
    """

    wall: float = -math.inf
    ends: Mapping[str, float] = MappingProxyType({})


class Sureness(NamedTuple):
    """How sure a caption is.

    Attributes:
        confidence: in [0, 1], as in a ``Caption``; None where it is not known.
        unsure: whether the model was not sure enough of all that it said; see ``Caption.reason``.
        likelihood: in (0, 1], as in a ``Caption``; None where it is not known.
    """

    confidence: float | None = None
    unsure: bool = False
    likelihood: float | None = None


UNKNOWN = Sureness()


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A segment as the memory remembers it, or several that were merged.

    Arrays are copied on the way in and read-only afterwards, so an entry is a value. Keys are
    rounded to half precision: then the index in RAM, the row on disk and the entry agree to the
    last bit at half the size; the error of a cosine is below 1e-3. Tokens are rounded to what 8
    bits hold (see ``to_eight_bits``) for the same reason: a caption from a memory on disk is the
    caption from RAM.

    Attributes:
        segment: id of its first segment, >= 0; the entry is known by it.
        start: seconds of the source's clock.
        end: seconds, >= start; the span is half-open.
        frames: frames perceived in it, >= 1.
        visual_keys: [K, D_key] float32 unit rows, 1 <= K <= 4, the widest cluster first.
        caption_keys: [C, D_key] float32 unit rows, C <= 4; often 0 at first.
        note_keys: [N, D_key] float32 unit rows of speech and subtitles, N <= 4.
        tokens: [M, D] finite float16, what the bridge kept of it; [0, 0] where they lie elsewhere.
        caption: one line a caption, in time order.
        notes: speech and subtitles, in time order.
        keyframe: a JPEG of at most 32 KiB.
        merged: number of original segments in it.
        last: id of its newest original segment; -1 stands for ``segment``.
        source: name of the source that it was seen in.
        wall_start: wall clock at ``start``, Unix seconds; None where it is not known.
        sureness: of each line of the caption; of one that was withheld as a whole where there is
            no caption; empty where it is not known, as of captions made before it was kept.

    Raises:
        ValueError: a field out of the ranges above.
    """

    segment: int
    start: float
    end: float
    frames: int
    visual_keys: np.ndarray
    caption_keys: np.ndarray
    note_keys: np.ndarray
    tokens: np.ndarray
    caption: str | None = None
    notes: tuple[Note, ...] = ()
    keyframe: bytes | None = None
    merged: int = 1
    last: int = -1
    source: str = ""
    wall_start: float | None = None
    sureness: tuple[Sureness, ...] = ()

    def __post_init__(self) -> None:
        if self.last < 0:
            object.__setattr__(self, "last", self.segment)
        _require(self.segment >= 0, "segment", "must be >= 0")
        _require(self.segment <= self.last, "last", "must not precede segment")
        _require(self.start <= self.end, "end", "must not precede start")
        _require(self.frames >= 1 and self.merged >= 1, "frames, merged", "must be >= 1")
        _require(len(self.keyframe or b"") <= MAX_KEYFRAME_BYTES, "keyframe", "32 KiB at most")
        for name in KEY_KINDS:
            keys = _keys(getattr(self, name), name, least=int(name == "visual_keys"))
            as_wide = not len(keys) or keys.shape[1] == self.visual_keys.shape[1]
            _require(as_wide, name, "must be as wide as visual_keys")
            object.__setattr__(self, name, keys)
        _require(np.ndim(self.tokens) == 2, "tokens", "must be [M, D]")
        tokens = _frozen(self.tokens, np.float16)
        if tokens.size:
            _require(bool(np.isfinite(tokens).all()), "tokens", "must be finite in half precision")
            tokens = _frozen(from_eight_bits(*to_eight_bits(tokens), tokens.shape), np.float16)
        object.__setattr__(self, "tokens", tokens)

    def age(self, at: Now) -> float:
        """Return how many seconds ago it ended, >= 0.

        By the wall clock where the row knows it; otherwise by its source's own clock.
        """
        if self.wall_start is not None:
            return max(0.0, at.wall - (self.wall_start + self.end - self.start))
        return max(0.0, at.ends.get(self.source, self.end) - self.end)


def caption_of(entry: Entry) -> Caption:
    """Return an entry's caption as an event; its text is empty where it was withheld."""
    likelihoods = [sure.likelihood for sure in entry.sureness if sure.likelihood is not None]
    confidences = [sure.confidence for sure in entry.sureness if sure.confidence is not None]
    reason: Literal["unsure"] | None = None
    if any(sure.unsure for sure in entry.sureness):
        reason = "unsure"
    return Caption(
        entry.segment,
        entry.start,
        entry.end,
        entry.caption or "",
        min(confidences, default=None),
        reason,
        min(likelihoods, default=None),
    )


def decode_keyframe(jpeg: bytes) -> np.ndarray:
    """Return a keyframe's picture, [H, W, 3] uint8 RGB."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def note_bytes(note: Note) -> int:
    """What a note counts against MAX_NOTES_BYTES."""
    return NOTE_BYTES + len(note.text.encode())


def word_bytes(note: Note) -> int:
    """What the times of a note's words count against MAX_NOTES_BYTES, as long as there is room."""
    return WORD_BYTES * len(note.word_starts)


def to_eight_bits(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round tokens to signed 8-bit levels, 32 neighbouring values on one scale.

    Args:
        tokens: [M, D] finite float16.

    Returns:
        The largest absolute value [G] float16 of each group, and levels [G, 32] int8, zeros behind
        the last token. What ``from_eight_bits`` makes of them gives the same levels again.

    Source: the layout Q8_0 of GGUF, with the greatest value in the scale's place.
    """
    groups = np.zeros((num_groups(tokens.shape), _GROUP), np.float32)
    groups.reshape(-1)[: tokens.size] = tokens.reshape(-1)
    largest = np.abs(groups).max(axis=1).astype(np.float16)
    levels = np.rint(groups / _steps(np.where(largest > 0, largest, 1)))
    return largest, levels.astype(np.int8)


def num_groups(shape: tuple[int, ...]) -> int:
    """Return how many scales tokens of a shape [M, D] have."""
    return -(-shape[0] * shape[1] // _GROUP)


def from_eight_bits(largest: np.ndarray, levels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return tokens [M, D] float16 from what ``to_eight_bits`` made of them."""
    values = levels * _steps(largest)
    return values.reshape(-1)[: shape[0] * shape[1]].reshape(shape).astype(np.float16)


# -- keys --


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1.

    Args:
        rows: [N, D] float.

    Returns:
        [N, D] float32. A zero row stays zero.

    Raises:
        ValueError: not two-dimensional, or not finite.
    """
    rows = np.asarray(rows, np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"keys: need finite rows [N, D], got shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def visual_keys(
    frame_keys: np.ndarray, max_keys: int = MAX_KEYS, *, min_cosine: float = 0.9
) -> np.ndarray:
    """Summarise a segment's frames by few keys so that a short event keeps its own.

    Spherical k-means grown by farthest points: the frame that the keys so far cover worst founds
    the next cluster, until every frame is covered or the keys run out. The result depends on the
    set of frames only, to the last bit: rows are put in a canonical order first.

    Args:
        frame_keys: [T, D] float, T >= 1; zero rows do not count.
        max_keys: >= 1.
        min_cosine: frames at least this close to a key are covered by it. Raising it gives more
            keys to quiet segments.

    Returns:
        [K, D] float32 unit rows, 1 <= K <= max_keys, the cluster of most frames first.

    Raises:
        ValueError: no row that is not zero.

    Source: Gonzalez 1985 (farthest points); Dhillon and Modha 2001 (spherical k-means).
    """
    rows = unit_rows(frame_keys)
    rows = rows[np.any(rows != 0, axis=1)]
    if not len(rows):
        raise ValueError("visual_keys: needs at least one row that is not zero")
    rows = rows[np.lexsort(rows.T[::-1])]
    centres, sizes = _settled(rows, rows[:1])
    while len(centres) < max_keys:
        covered = (rows @ centres.T).max(axis=1)  # [T]
        worst = int(covered.argmin())
        if covered[worst] >= min_cosine:
            break
        centres, sizes = _settled(rows, np.concatenate([centres, rows[worst : worst + 1]]))
    return centres[np.argsort(-sizes, kind="stable")]


def similarity(left: np.ndarray, right: np.ndarray) -> float:
    """How alike two sets of keys are: the mean cosine of each key with its best match.

    Args:
        left: [K, D] unit rows.
        right: [L, D] unit rows.

    Returns:
        In [-1, 1]; symmetric; 1 for equal sets.
    """
    cosines = left @ right.T  # [K, L]
    return float(cosines.max(axis=1).mean() + cosines.max(axis=0).mean()) / 2


def coverage(keys: np.ndarray, others: np.ndarray) -> float:
    """How well `keys` stand for every one of `others`: the cosine of the worst covered.

    Args:
        keys: [K, D] unit rows.
        others: [L, D] unit rows.

    Returns:
        In [-1, 1].
    """
    return float((others @ keys.T).max(axis=1).min())


# -- two entries become one --


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

    Args:
        cost: of a merge of two neighbours.
    """

    def __init__(self, cost: Callable[[Entry, Entry], float] = merge_cost) -> None:
        self._cost = cost
        self._pairs: list[tuple[float, int, int, int, int]] = []  # heap

    def __len__(self) -> int:
        return len(self._pairs)

    def offer(self, left: Entry, right: Entry, rows: Mapping[int, Entry]) -> None:
        """Add a pair of neighbours out of `rows`, which are keyed by segment."""
        pair = (self._cost(left, right), left.segment, left.last, right.segment, right.last)
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
    caption, sureness = _captions((left.caption, left.sureness), (right.caption, right.sureness))
    return replace(
        left,
        end=max(left.end, right.end),
        frames=left.frames + right.frames,
        visual_keys=_condensed(left.visual_keys, right.visual_keys),
        caption_keys=_condensed(left.caption_keys, right.caption_keys),
        note_keys=_condensed(left.note_keys, right.note_keys),
        tokens=_mean_tokens(left, right),
        caption=caption,
        sureness=sureness,
        notes=fitting_notes(left.notes + right.notes),
        keyframe=longer.keyframe or shorter.keyframe,
        merged=left.merged + right.merged,
        last=right.last,
    )


def continues(row: Entry, entry: Entry, epsilon: float) -> bool:
    """Tell whether a closing segment shows nothing that the row before it does not.

    Every one of its keys must be within `epsilon` of one of the row's, so a short event with a key
    of its own is never swallowed, and its text must fit without loss. With an epsilon of 0 no row
    goes on, even over the same picture.
    """
    return (
        epsilon > 0
        and row.source == entry.source
        and abs(entry.start - row.end) <= _SAME_TIME_S
        and _on_one_clock(row, entry)
        and len(row.caption_keys) + len(entry.caption_keys) <= MAX_KEYS
        and len(row.note_keys) + len(entry.note_keys) <= MAX_KEYS
        and sum(map(note_bytes, row.notes + entry.notes)) <= MAX_NOTES_BYTES
        and coverage(row.visual_keys, entry.visual_keys) >= 1 - epsilon
    )


def extended(row: Entry, entry: Entry) -> Entry:
    """Let a row go on over a segment that `continues` it; keys and tokens stay as they are."""
    caption, sureness = _captions((row.caption, row.sureness), (entry.caption, entry.sureness))
    return replace(
        row,
        end=entry.end,
        frames=row.frames + entry.frames,
        caption_keys=np.concatenate([row.caption_keys, entry.caption_keys]),
        note_keys=np.concatenate([row.note_keys, entry.note_keys]),
        caption=caption,
        sureness=sureness,
        notes=fitting_notes(row.notes + entry.notes),
        keyframe=entry.keyframe or row.keyframe,
        merged=row.merged + entry.merged,
        last=entry.last,
    )


def with_text(
    entry: Entry,
    *,
    caption: str | None = None,
    sureness: Sureness = UNKNOWN,
    caption_key: np.ndarray | None = None,
    notes: tuple[Note, ...] = (),
    note_key: np.ndarray | None = None,
) -> Entry:
    """Add text that came after the entry: a further line of caption, notes, their keys.

    Args:
        entry: stays as it is.
        caption: a line; the one that is there already changes nothing. Empty where it was withheld.
        sureness: of that line.
        caption_key: [D_key] unit row.
        notes: put in time order among those present.
        note_key: [D_key] unit row.

    Returns:
        The entry with it: a caption cut to MAX_TEXT_BYTES from the middle out, notes as
        ``fitting_notes`` cuts them.
    """
    in_order = sorted(entry.notes + notes, key=lambda note: note.start)
    added = () if caption is None or sureness == UNKNOWN else (sureness,)
    text, known = _captions((entry.caption, entry.sureness), (caption, added))
    fitting = fitting_notes(in_order)
    if (
        caption_key is None
        and note_key is None
        and (text, known, fitting)
        == (
            entry.caption,
            entry.sureness,
            entry.notes,
        )
    ):
        return entry  # as most rows of a memory that is opened; checking them anew takes longest
    return replace(
        entry,
        caption=text,
        sureness=known,
        caption_keys=_with_key(entry.caption_keys, caption_key),
        notes=fitting,
        note_keys=_with_key(entry.note_keys, note_key),
    )


def fitting_notes(notes: Sequence[Note]) -> tuple[Note, ...]:
    """Return notes as an entry can hold them, within MAX_NOTES_BYTES.

    Of too many, the times of words go first, those of the oldest notes before others. Then
    neighbours become one; only where their words alone are too many do the middle ones go.
    """
    kept = list(notes)
    over = sum(note_bytes(note) + word_bytes(note) for note in kept) - MAX_NOTES_BYTES
    for i, note in enumerate(kept):
        if over > 0 and note.word_starts:
            kept[i], over = replace(note, word_starts=()), over - word_bytes(note)
    while kept and (total := sum(map(note_bytes, kept))) > MAX_NOTES_BYTES:
        words = total - NOTE_BYTES * (len(kept) - 1)
        if len(kept) == 1 or words > MAX_NOTES_BYTES:
            kept.pop(len(kept) // 2)
            continue
        # Words outlive their exact times.
        sizes = [len(a.text) + len(b.text) for a, b in pairwise(kept)]
        at = sizes.index(min(sizes))
        first, second = kept[at : at + 2]
        same = first.kind == second.kind
        parts = (first.text, second.text) if same else (first.shown, second.shown)
        joined, kind = " ".join(parts), first.kind if same else "speech"
        kept[at : at + 2] = [Note(first.start, max(first.end, second.end), joined, kind=kind)]
    return tuple(kept)


# -- private --


def _on_one_clock(row: Entry, entry: Entry) -> bool:
    """Tell whether what is known of a row's wall clock holds for an entry that goes on from it."""
    if row.wall_start is None or entry.wall_start is None:
        return row.wall_start is entry.wall_start
    return abs(entry.wall_start - row.wall_start - (entry.start - row.start)) <= _SAME_WALL_S


def _steps(largest: np.ndarray) -> np.ndarray:
    return largest.astype(np.float32)[:, None] / _LEVELS


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise ValueError(f"entry: {name} {rule}")


def _keys(keys: np.ndarray, name: str, least: int) -> np.ndarray:
    _require(np.ndim(keys) == 2 and least <= len(keys) <= MAX_KEYS, name, f"has {least}-4 rows")
    if not len(keys):
        return _frozen(keys, np.float32)
    norms = np.linalg.norm(np.asarray(keys, np.float32), axis=1)
    # Written so that NaN fails too.
    _require(bool(np.all(np.abs(norms - 1) < _UNIT_TOLERANCE)), name, "must be unit rows")
    return _frozen(keys, np.float16, np.float32)


def _frozen(values: np.ndarray, *dtypes: type) -> np.ndarray:
    for dtype in dtypes:
        values = np.array(values, dtype, order="C")
    values.flags.writeable = False
    return values


def _settled(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move centres to their rows' mean direction until no row changes sides."""
    nearest = None
    for _ in range(_MAX_ROUNDS):
        before, nearest = nearest, (rows @ centres.T).argmax(axis=1)
        if before is not None and np.array_equal(before, nearest):
            break
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, rows)
        # Opposite rows cancel, and a centre may lose all its rows: both keep their old place.
        lost = np.linalg.norm(sums, axis=1) < 1e-6
        centres = np.where(lost[:, None], centres, unit_rows(sums))
    sizes = np.bincount((rows @ centres.T).argmax(axis=1), minlength=len(centres))
    return centres[sizes > 0], sizes[sizes > 0]


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


def _captions(
    *parts: tuple[str | None, tuple[Sureness, ...]],
) -> tuple[str | None, tuple[Sureness, ...]]:
    """Join captions, each with the sureness of its lines; equal neighbours become one line."""
    lines: list[tuple[str, Sureness]] = []
    for text, sureness in parts:
        own = [line for line in (text or "").splitlines() if line]
        if len(sureness) != len(own):  # a line end within a caption, or nothing is known
            sureness = (sureness[0] if sureness else UNKNOWN,) * len(own)
        lines += zip(own, sureness, strict=True)
    lines = [line for i, line in enumerate(lines) if i == 0 or line[0] != lines[i - 1][0]]
    while len(lines) > 1 and sum(len(line.encode()) + 1 for line, _ in lines) > MAX_TEXT_BYTES:
        lines.pop(len(lines) // 2)
    caption = "\n".join(line for line, _ in lines)
    caption = caption.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    known = tuple(sure for _, sure in lines)
    if not lines:  # what was withheld is remembered as such
        known = next((sureness[:1] for _, sureness in parts if sureness), ())
    return caption or None, known if any(sure != UNKNOWN for sure in known) else ()
