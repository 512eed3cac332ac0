"""Keys: what a segment is found by, and how alike two segments are.

Where the vectors come from (the retrieval heads) is not known here.
"""

import numpy as np

from streammem.memory.entry import MAX_KEYS

_MAX_ROUNDS = 8


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
