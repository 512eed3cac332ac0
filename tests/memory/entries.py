"""Small entries for the memory's tests."""

import numpy as np

from streammem.memory.entry import Entry
from streammem.memory.memory import CacheConfig, MemoryCache
from streammem.memory.retrieval import Query, Window, retrieve

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


def config(**changes):
    return CacheConfig(**{"key_dim": DIM, "token_shape": TOKENS, "max_segments": 50, **changes})


def filled(num, **changes):
    cache = MemoryCache(config(**changes))
    for segment in range(num):
        cache.append(make(segment))
    return cache


def near(key, cosine, seed=7):
    """A unit row at this cosine of `key`."""
    other = unit(1, seed=seed)[0]
    other -= (other @ key) * key
    return cosine * key + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)


def search(cache, key, k=None, **window):
    """Hits of a key in the rows of a window."""
    return retrieve(cache, Query(key), Window(**window), k)
