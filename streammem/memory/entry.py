"""The record that the memory keeps of a segment, and what the folder's modules share about it.

No index and no disk: `cache.py` holds entries in RAM, `store.py` on disk.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from streammem.types import Note

MAX_KEYS = 4
"""Most keys of a kind that an entry has: visual, of captions, of notes."""

KINDS = ("visual_keys", "caption_keys", "note_keys")
"""Kinds of keys, by their names in an entry."""

MAX_TEXT_BYTES = 2_000
"""Most UTF-8 bytes of an entry's caption; its notes get as much again."""

MAX_KEYFRAME_BYTES = 32_768
"""Most bytes of a keyframe: a JPEG of 320x180 has 5 to 20 KB."""

NOTE_BYTES = 200
"""What a note counts besides its text, so that many tiny notes are bounded too."""

_GROUP = 32  # token values that share a scale
_LEVELS = 127
_UNIT_TOLERANCE = 1e-2


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
        wall_start: wall clock at ``start``, Unix seconds; None where nobody knows it.

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

    def __post_init__(self) -> None:
        if self.last < 0:
            object.__setattr__(self, "last", self.segment)
        _require(self.segment >= 0, "segment", "must be >= 0")
        _require(self.segment <= self.last, "last", "must not precede segment")
        _require(self.start <= self.end, "end", "must not precede start")
        _require(self.frames >= 1 and self.merged >= 1, "frames, merged", "must be >= 1")
        _require(len(self.keyframe or b"") <= MAX_KEYFRAME_BYTES, "keyframe", "32 KiB at most")
        for name in KINDS:
            keys = _keys(getattr(self, name), name, least=int(name == "visual_keys"))
            as_wide = not len(keys) or keys.shape[1] == self.visual_keys.shape[1]
            _require(as_wide, name, "must be as wide as visual_keys")
            object.__setattr__(self, name, keys)
        _require(np.ndim(self.tokens) == 2, "tokens", "must be [M, D]")
        object.__setattr__(self, "tokens", _rounded(_frozen(self.tokens, np.float16)))


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """An entry that a retrieval found.

    Attributes:
        score: cosine in [-1, 1] of the query and the entry's best key of any kind.
        visual: cosine with its best visual key.
        text: cosine with its best key of a caption or a note; None where it has none or none was
            asked.
        fused: what the hits are ordered by.
    """

    entry: Entry
    score: float
    visual: float
    text: float | None
    fused: float


def decode_keyframe(jpeg: bytes) -> np.ndarray:
    """Return a keyframe's picture, [H, W, 3] uint8 RGB."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def note_bytes(note: Note) -> int:
    """What a note counts against MAX_TEXT_BYTES."""
    return NOTE_BYTES + len(note.text.encode())


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


def _steps(largest: np.ndarray) -> np.ndarray:
    return largest.astype(np.float32)[:, None] / _LEVELS


def _rounded(tokens: np.ndarray) -> np.ndarray:
    _require(bool(np.isfinite(tokens).all()), "tokens", "must be finite in half precision")
    return _frozen(from_eight_bits(*to_eight_bits(tokens), tokens.shape), np.float16)


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise ValueError(f"entry: {name} {rule}")


def _keys(keys: np.ndarray, name: str, least: int) -> np.ndarray:
    _require(np.ndim(keys) == 2 and least <= len(keys) <= MAX_KEYS, name, f"has {least}-4 rows")
    norms = np.linalg.norm(np.asarray(keys, np.float32), axis=1)
    # Written so that NaN fails too.
    _require(bool(np.all(np.abs(norms - 1) < _UNIT_TOLERANCE)), name, "must be unit rows")
    return _frozen(keys, np.float16, np.float32)


def _frozen(values: np.ndarray, *dtypes: type) -> np.ndarray:
    for dtype in dtypes:
        values = np.array(values, dtype, order="C")
    values.flags.writeable = False
    return values
