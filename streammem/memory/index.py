"""Vector indexes: the nearest keys by inner product, behind one protocol.

An index knows ids and vectors, nothing of segments. `index_for` chooses one. Torch is
imported where it is used: a memory can be read without it.
"""

import os
from collections.abc import Iterator
from typing import Protocol

import faiss
import numpy as np

from streammem.errors import ConfigError

LEAST_ON_GPU = 100_000  # keys; estimated: below, a launch takes longer than the read


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
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None, group: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the vectors of greatest inner product.

        Args:
            query: [D] float32.
            k: >= 1.
            allowed: [A] int64 ids to choose from; None for all.
            group: >= 1, vectors that one thing has at most. Ids of the same quotient by it are
                one thing, and its best vector counts.

        Returns:
            ids // group [<= k] int64 and scores [<= k] float32, best first; equal scores by id.

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
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None, group: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        query = _checked_query(query, self.dim)
        ids, vectors = self.to_arrays()
        if allowed is not None:
            keep = np.isin(ids, allowed)
            ids, vectors = ids[keep], vectors[keep]
        return _best_first(ids // group, vectors @ query, k)

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
        self._rows = _DenseRows()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        ids, vectors = _checked(ids, vectors, self.dim)
        self.remove(ids)
        self._rows.append(ids)
        if len(ids):
            self._faiss.add(vectors)

    def remove(self, ids: np.ndarray) -> None:
        if not (codes := self._codes()).size:
            return
        for hole, last in self._rows.remove(ids):
            codes[hole] = codes[last]
        self._faiss.ntotal = len(self._rows)

    def search(
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None, group: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        query = _checked_query(query, self.dim)
        ids = self._rows.ids
        if not len(ids):
            return _best_first(ids, np.empty(0, np.float32), k)
        chosen = None
        if allowed is not None:
            bits = np.packbits(np.isin(ids, allowed), bitorder="little")
            selector = faiss.IDSelectorBitmap(len(ids), faiss.swig_ptr(bits))
            chosen = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, rows = self._faiss.search(query[None], min(k * group, len(ids)), params=chosen)
        found = rows[0] >= 0
        return _best_first(ids[rows[0][found]] // group, scores[0][found], k)

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        ids = self._rows.ids
        order = np.argsort(ids)
        vectors = self._codes().view(np.float16)[order]
        return ids[order], vectors.astype(np.float32)

    def num_bytes(self) -> int:
        return int(self._faiss.codes.size()) + self._rows.num_bytes()

    def _codes(self) -> np.ndarray:
        """Return FAISS's own rows [N, 2 D] uint8, writable, valid until the next `add`."""
        if not len(self):
            return np.empty((0, 2 * self.dim), np.uint8)
        size = len(self) * 2 * self.dim
        return faiss.rev_swig_ptr(self._faiss.codes.data(), size).reshape(-1, 2 * self.dim)


class TorchIndex:
    """The vectors on a GPU, in half precision, every one compared by `find_topk` in one read.

    Args:
        dim: D.
        device: of torch. On ``cpu`` it is for tests: FAISS is faster there.
    """

    def __init__(self, dim: int, device: str = "cuda") -> None:
        import torch

        self.dim = dim
        self._rows = _DenseRows()
        self._keys = torch.empty(0, dim, dtype=torch.float16, device=device)  # [capacity, D]
        self._ids = torch.empty(0, dtype=torch.int64, device=device)  # [capacity]

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        import torch
        from streammem_kernels import ops

        ids, vectors = _checked(ids, vectors, self.dim)
        if len(ids) and ids.max() > ops.MAX_ROWS:
            raise ValueError(f"index: an id is above {ops.MAX_ROWS}")
        self.remove(ids)
        start, end = len(self), len(self) + len(ids)
        self._rows.append(ids)
        if end > len(self._ids):
            keys, labels = self._keys, self._ids
            self._keys = keys.new_empty(2 * end, self.dim)
            self._ids = labels.new_empty(2 * end)
            self._keys[:start], self._ids[:start] = keys[:start], labels[:start]
        self._keys[start:end] = torch.from_numpy(vectors).to(self._keys)
        self._ids[start:end] = torch.from_numpy(ids)

    def remove(self, ids: np.ndarray) -> None:
        for hole, last in self._rows.remove(ids):
            self._keys[hole], self._ids[hole] = self._keys[last], self._ids[last]

    def search(
        self, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None, group: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        import torch
        from streammem_kernels import ops

        query = _checked_query(query, self.dim)
        ids, keys = self._ids[: len(self)], self._keys[: len(self)]
        mask = None
        if allowed is not None:
            mask = torch.isin(ids, torch.from_numpy(np.asarray(allowed, np.int64)).to(ids))[None]
        # A question has no length there: the scores are cosines, and are given theirs again.
        found, cosines = ops.find_topk(
            torch.from_numpy(query)[None].to(keys.device),
            keys,
            torch.tensor([[0, len(self)]], device=keys.device),
            min(k, max(1, len(self))),
            mask=mask,
            groups=(ids // group).int(),
        )
        things, scores = found[0].cpu().numpy(), cosines[0].cpu().numpy()
        is_found = things >= 0
        length = np.float32(np.linalg.norm(query))
        return _best_first(things[is_found], scores[is_found] * length, k)

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self._rows.ids)
        return self._rows.ids[order], self._keys[: len(self)].float().cpu().numpy()[order]

    def num_bytes(self) -> int:
        return self._keys.nbytes + self._ids.nbytes + self._rows.num_bytes()


def index_for(dim: int, most: int) -> VectorIndex:
    """Make the index that is fastest here for at most ``most`` vectors; see ``index_choice``."""
    return TorchIndex(dim) if index_choice(most)[0] == "find_topk" else FaissIndex(dim)


def index_choice(most: int) -> tuple[str, str]:
    """Return which index ``most`` vectors get, ``find_topk`` or ``FAISS``, and why.

    Raises:
        ConfigError: ``STREAMMEM_KERNELS`` is unknown, or forces Triton where there is none.
    """
    import torch
    from streammem_kernels import ops

    try:
        form, reason = ops.choose("find_topk", "cuda" if torch.cuda.is_available() else "cpu")
    except ops.KernelError as error:
        raise ConfigError(str(error)) from error
    if form == "torch":
        return "FAISS", reason
    if most < LEAST_ON_GPU and os.environ.get(ops.VARIABLE) != "triton":
        return "FAISS", f"{most:,} keys are fewer than {LEAST_ON_GPU:,}: a launch would cost more"
    return "find_topk", reason


class _DenseRows:
    """Which id lies in which row; the last row fills the hole of a removed one."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int64)  # [capacity]; id of each row
        self._row: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._row)

    @property
    def ids(self) -> np.ndarray:
        """The id of each row, [N] int64."""
        return self._ids[: len(self)]

    def append(self, ids: np.ndarray) -> None:
        start, end = len(self), len(self) + len(ids)
        if end > len(self._ids):
            self._ids = np.resize(self._ids, 2 * end)
        self._ids[start:end] = ids
        self._row.update(zip(ids.tolist(), range(start, end), strict=True))

    def remove(self, ids: np.ndarray) -> Iterator[tuple[int, int]]:
        """Remove ids; yield (hole, last row) for each row that must move before the next."""
        for id_ in np.asarray(ids).tolist():
            if id_ in self._row:
                hole, last = self._row.pop(id_), len(self._row)
                if hole != last:
                    moved = self._ids[hole] = self._ids[last]
                    self._row[int(moved)] = hole
                    yield hole, last

    def num_bytes(self) -> int:
        return self._ids.nbytes


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
    order = np.lexsort((ids, -scores))
    ids, scores = ids[order], scores[order]
    if len(first := np.unique(ids, return_index=True)[1]) < len(ids):  # the best of each
        first.sort()
        ids, scores = ids[first], scores[first]
    return ids[:k], scores[:k].astype(np.float32)
