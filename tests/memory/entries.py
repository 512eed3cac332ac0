"""Small entries for the memory's tests."""

import numpy as np

from streammem.memory.entry import Entry

DIM = 16
TOKENS = (2, 6)


def unit(num, seed=0, dim=DIM):
    rows = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make(segment, keys=None, **changes):
    """An entry of one second at `segment` seconds whose keys, tokens and text follow its id."""
    fields = {
        "segment": segment,
        "start": float(segment),
        "end": segment + 1.0,
        "frames": 1,
        "visual_keys": unit(1, seed=segment) if keys is None else keys,
        "caption_keys": np.empty((0, DIM), np.float32),
        "note_keys": np.empty((0, DIM), np.float32),
        "tokens": np.full(TOKENS, segment % 100, np.float16),
        "keyframe": b"jpeg %d" % segment,
    }
    return Entry(**{**fields, **changes})


def same(left, right):
    """Whether two entries are equal to the last bit."""
    names = Entry.__slots__
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)
