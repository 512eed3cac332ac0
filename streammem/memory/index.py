"""Vector indexes: the nearest keys by inner product, behind one protocol.

An index knows ids and vectors, nothing of segments.
"""

from typing import Protocol

import faiss
import numpy as np


class VectorIndex(Protocol):
    """The contract of every index; `tests/contracts/test_vector_index.py` is its suite.

    Vectors may be held in half precision: scores are good to 1e-3 for unit rows.
    """

    def __len__(self) -> int: ...

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors; an id that is present is replaced.

        Args:
            ids: [N] int64, >= 0, different.
            vectors: [N, D] float32.

        Raises:
            ValueError: shapes that do not fit, values that are not finite.
        """
        ...

    def remove(self, ids: np.ndarray) -> None:
        """Remove vectors at a cost that does not grow with the index; unknown ids are ignored."""
        ...

    def search(
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the vectors of greatest inner product.

        Args:
            query: [D] float32.
            k: >= 1.
            allowed: [A] int64 ids to choose from; None for all.

        Returns:
            ids [<= k] int64 and scores [<= k] float32, best first; equal scores by id.

        Raises:
            ValueError: a query of another width, or not finite.
        """
        ...

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ids [N] in rising order and their vectors [N, D], for `add` to an empty index."""
        ...

    def num_bytes(self) -> int:
        """Return the bytes of the arrays held."""
        ...


class NumpyIndex:
    """The reference: one dictionary, one matrix product."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._rows: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        ids, vectors = _checked(ids, vectors, self.dim)
        self._rows.update(zip(ids.tolist(), vectors.copy(), strict=True))

    def remove(self, ids: np.ndarray) -> None:
        for id_ in np.asarray(ids).tolist():
            self._rows.pop(id_, None)

    def search(
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        query = _checked_query(query, self.dim)
        ids, vectors = self.to_arrays()
        if allowed is not None:
            keep = np.isin(ids, allowed)
            ids, vectors = ids[keep], vectors[keep]
        return _best_first(ids, vectors @ query, k)

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array(sorted(self._rows), np.int64)
        vectors = [self._rows[id_] for id_ in ids.tolist()]
        return ids, np.array(vectors, np.float32).reshape(len(ids), self.dim)

    def num_bytes(self) -> int:
        return sum(row.nbytes for row in self._rows.values())


class FaissIndex:
    """FAISS, every vector compared, rows in half precision.

    Chosen by measurement on clustered keys of low rank, D 256, one thread of an EPYC (ms a query,
    recall@10): at 1,000,000 keys float32 39 ms, this 21 ms and 1.00, 8 bits 20-33 ms and 0.96,
    inverted lists 3 ms but 0.88-0.98 with training that a drifting stream outdates; at 40,000
    keys this takes 0.8 ms. Exact, without training, half the bytes: nothing else is worth its code.

    Rows lie densely: the last row fills the hole of a removed one, because FAISS's own removal
    shifts every later row (512 MB at a million keys).
    """

    def __init__(self, dim: int) -> None:
        # One query is one pass over the rows; a second OpenMP thread that finds its core taken
        # costs a thousand times what it saves.
        faiss.omp_set_num_threads(1)
        self.dim = dim
        self._faiss = faiss.IndexScalarQuantizer(
            dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        self._ids = np.empty(0, np.int64)  # [capacity]; id of each row
        self._row: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._row)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        ids, vectors = _checked(ids, vectors, self.dim)
        self.remove(ids)
        start, end = len(self), len(self) + len(ids)
        if end > len(self._ids):
            self._ids = np.resize(self._ids, 2 * end)
        self._ids[start:end] = ids
        self._row.update(zip(ids.tolist(), range(start, end), strict=True))
        if len(ids):
            self._faiss.add(vectors)

    def remove(self, ids: np.ndarray) -> None:
        present = [id_ for id_ in np.asarray(ids).tolist() if id_ in self._row]
        if not present:
            return
        codes = self._codes()
        for id_ in present:
            hole, last = self._row.pop(id_), len(self._row)
            if hole != last:
                codes[hole] = codes[last]
                moved = self._ids[hole] = self._ids[last]
                self._row[int(moved)] = hole
        self._faiss.ntotal = len(self._row)

    def search(
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        query = _checked_query(query, self.dim)
        ids = self._ids[: len(self)]
        if not len(ids):
            return _best_first(ids, np.empty(0, np.float32), k)
        chosen = None
        if allowed is not None:
            bits = np.packbits(np.isin(ids, allowed), bitorder="little")
            selector = faiss.IDSelectorBitmap(len(ids), faiss.swig_ptr(bits))
            chosen = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, rows = self._faiss.search(query[None], min(k, len(ids)), params=chosen)
        found = rows[0] >= 0
        return _best_first(ids[rows[0][found]], scores[0][found], k)

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        ids = self._ids[: len(self)]
        order = np.argsort(ids)
        vectors = self._codes().view(np.float16)[order]
        return ids[order], vectors.astype(np.float32)

    def num_bytes(self) -> int:
        return int(self._faiss.codes.size()) + self._ids.nbytes

    def _codes(self) -> np.ndarray:
        """Return FAISS's own rows [N, 2 D] uint8, writable, valid until the next `add`."""
        if not len(self):
            return np.empty((0, 2 * self.dim), np.uint8)
        size = len(self) * 2 * self.dim
        return faiss.rev_swig_ptr(self._faiss.codes.data(), size).reshape(-1, 2 * self.dim)


def _checked(ids: np.ndarray, vectors: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.asarray(ids, np.int64)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if ids.ndim != 1 or vectors.shape != (len(ids), dim):
        raise ValueError(
            f"index: ids {ids.shape} and vectors {vectors.shape} do not fit [N, {dim}]"
        )
    if len(set(ids.tolist())) < len(ids) or (len(ids) and ids.min() < 0):
        raise ValueError("index: ids must be different and >= 0")
    if not np.isfinite(vectors).all():
        raise ValueError("index: vectors must be finite")
    return ids, vectors


def _checked_query(query: np.ndarray, dim: int) -> np.ndarray:
    query = np.ascontiguousarray(query, np.float32)
    if query.shape != (dim,) or not np.isfinite(query).all():
        raise ValueError(f"index: the query must be finite [{dim}], got shape {query.shape}")
    return query


def _best_first(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order].astype(np.float32)
