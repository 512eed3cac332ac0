"""Decoding over static caches, for GPUs: shared beginnings are read once, a step is a CUDA graph.

    decoder = StaticDecoder(model)
    run = decoder.start([prompt], room=31, replies=8)  # [T, D] embeddings
    run.feed(run.logits.argmax(-1))

It computes through a model of transformers, whatever its layout, and replaces the Python between
its launches. On a CPU the same path runs without a graph: it is slower there than `decoding.py`,
and for tests. It chooses no tokens and knows no text.
"""

import logging
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from streammem.models.backbones.decoding import arranged
from streammem.models.once import PartLock

log = logging.getLogger(__name__)

# Legend: R rows, S columns of the cache, T tokens, D width, K key-value heads, E head width,
# V vocabulary.

GRAIN = 128  # columns by which caches differ in size, so that one serves many prompts
MOST_IDLE = 4 << 30  # bytes of caches, with their graphs, that wait for the next prompts
LEAST_SHARED = 8  # tokens of a beginning that is worth keeping
MOST_TOGETHER = 4 << 30  # bytes of the cache of prompts that are continued together
MOST_SHARED = 2048  # columns kept of all beginnings together: 1.1 GB for 32 layers of 32 heads


def has_static_cache(model: Any) -> bool:
    """Whether every layer of a model of transformers attends to all columns, by SDPA if asked."""
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    return bool(layers) and model._supports_sdpa and all(type(i) is DynamicLayer for i in layers)


class Columns(Cache):
    """Keys and values of all layers in tensors that stay where they are; see ``StaticCache``.

    Attributes:
        keys: of each layer [R, K, S, E]; ``values`` likewise.
        place: [1] int64, the column that the next token is written to.
        num_bytes: of all keys and values.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], rows: int, size: int) -> None:
        super().__init__(layers=[])

        def empty(like: Tensor) -> Tensor:  # zeros: what no token wrote must be finite
            return like.new_zeros(rows, like.shape[1], size, like.shape[3])

        self.keys = [empty(key) for key, _ in layers]
        self.values = [empty(value) for _, value in layers]
        self.place = torch.zeros(1, dtype=torch.long, device=self.keys[0].device)
        self.num_bytes = sum(each.nbytes for each in (*self.keys, *self.values))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token of each row; return all columns."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        return (
            keys.index_copy_(2, self.place, key_states),
            values.index_copy_(2, self.place, value_states),
        )


class StaticCache:
    """A cache of R rows and S columns, and the step that reads and writes it.

    Args:
        model: of transformers; ``has_static_cache`` holds.
        layers: keys and values of any prompt, whose shapes and types the cache takes over.
        rows: R.
        size: S.
        axes: shape of the positions before [R, 1], as a model with several axes has them.
        lock: held while the model's attention is another one.

    Attributes:
        logits: [R, V] float, of the last step; the next one writes over them on CUDA.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[tuple[Tensor, Tensor]],
        rows: int,
        size: int,
        axes: Sequence[int],
        lock: Any,
    ) -> None:
        self._model, self._lock = model, lock
        self.columns = Columns(layers, rows, size)
        device = self.columns.place.device
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(*axes, rows, 1, dtype=torch.long, device=device)
        self.readable = torch.zeros(rows, 1, 1, size, dtype=torch.bool, device=device)
        self.logits = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_eager = device.type != "cuda"

    def begin(
        self, layers: Sequence[tuple[Tensor, Tensor]], readable: Tensor, positions: Tensor
    ) -> None:
        """Take over what N <= R rows have read, T <= S columns of each.

        Args:
            layers: keys and values [N, K, T, E].
            readable: [N, T] bool, False for padding.
            positions: [..., N], of the next token.
        """
        count, length = readable.shape
        every = zip(self.columns.keys, self.columns.values, layers, strict=True)
        for keys, values, (key, value) in every:
            keys[:count, :, :length], values[:count, :, :length] = key, value
        self.readable.zero_()
        self.readable[:, :, :, 0] = True  # a row that no reply has come to reads something
        self.readable[:count, 0, 0, :length] = readable
        self.positions.zero_()
        self.positions[..., :count, 0] = positions

    def take(self, rows: Tensor, length: int) -> None:
        """Let the first rows go on as these, [N] indices in any order, of ``length`` columns."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        if len(moved):
            for held in (*self.columns.keys, *self.columns.values):
                held[moved, :, :length] = held[rows[moved], :, :length]
            self.readable[moved] = self.readable[rows[moved]]
            self.positions[..., moved, :] = self.positions[..., rows[moved], :]

    def step(self, tokens: Tensor, length: int) -> Tensor:
        """Read a token of each of the first N rows into column ``length``: logits [N, V]."""
        count = len(tokens)
        self.tokens[:count, 0] = tokens
        self.columns.place.fill_(length)
        self.readable[:, :, :, length] = True
        if self._graph is None and not self._is_eager:
            self._capture()
        if self._graph is None:
            self.logits = self._forward()
        else:
            self._graph.replay()
        self.positions += 1
        return self.logits[:count]

    def _forward(self) -> Tensor:
        with self._lock, attention(self._model, "sdpa"):
            out = self._model(
                input_ids=self.tokens,
                position_ids=self.positions,
                attention_mask=self.readable,
                past_key_values=self.columns,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1].float()

    def _capture(self) -> None:
        """Record the step as a graph. Not run yet: no GPU was at hand; without it steps go on."""
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):  # libraries allocate at their first calls
                    self._forward()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.logits = self._forward()
            self._graph = graph
        except RuntimeError as error:
            self._is_eager = True
            log.warning("no CUDA graph of this model's steps, which are slower without: %s", error)


class CachePool:
    """Caches of one model that were used and may be used again, with their graphs.

    Args:
        model: of transformers; ``has_static_cache`` holds.

    Attributes:
        lock: held while the model computes by another attention than its own.
    """

    def __init__(self, model: Any) -> None:
        self._model, self.lock = model, PartLock()
        self._idle: list[StaticCache] = []

    def open(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        rows: int,
        size: int,
        owner: object,
        axes: Sequence[int],
    ) -> StaticCache:
        """Return a cache of at least so many rows and columns.

        Args:
            layers: see ``StaticCache``.
            rows: at least so many.
            size: at least so many columns.
            owner: has it to itself while it lives.
            axes: see ``StaticCache``.
        """
        rows, size = 1 << (rows - 1).bit_length(), -(-size // GRAIN) * GRAIN
        with self.lock:
            for cache in list(self._idle):
                if cache.readable.shape[::3] == (rows, size):
                    self._idle.remove(cache)
                    break
            else:
                try:
                    cache = StaticCache(self._model, layers, rows, size, axes, self.lock)
                except torch.OutOfMemoryError:
                    self._idle.clear()
                    torch.cuda.empty_cache()
                    cache = StaticCache(self._model, layers, rows, size, axes, self.lock)
        weakref.finalize(owner, self._give_back, cache)
        return cache

    def _give_back(self, cache: StaticCache) -> None:
        with self.lock:
            self._idle.append(cache)
            while sum(each.columns.num_bytes for each in self._idle) > MOST_IDLE:
                del self._idle[0]


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """What several prompts began with.

    Attributes:
        embedded: [P, D].
        layers: keys and values [1, K, P, E] of each layer.
    """

    embedded: Tensor
    layers: list[tuple[Tensor, Tensor]]


class StaticDecoder:
    """Continues prompts through a model of transformers; the interface is ``LlamaDecoder``'s.

    What a prompt and the one before it begin with alike, such as fixed words or the recurrent
    memory, is kept and read once for all that follow.

    Args:
        model: ``has_static_cache`` holds.
        together: whether prompts are continued together; their logits may then differ in the last
            bits from those of each alone.
    """

    guesser = None

    def __init__(self, model: Any, *, together: bool) -> None:
        self._model, self.rows_apart = model, together
        self._pool = CachePool(model)
        self._beginnings: list[Beginning] = []  # the last one that served comes last
        self._last = torch.empty(0, 0)  # [T, D] the last prompt
        self.num_read = 0  # tokens of prompts that were read, for tests and statistics

    def groups(self, rows: list[Tensor], replies: int = 1) -> list[list[Tensor]]:
        """Divide prompts into those that are continued together, of at most ``MOST_TOGETHER``."""
        size = 1
        if self.rows_apart and rows:
            config = self._model.config.get_text_config(decoder=True)
            heads = config.num_key_value_heads or config.num_attention_heads
            width = getattr(config, "head_dim", None)
            width = width or config.hidden_size // config.num_attention_heads
            column = 2 * config.num_hidden_layers * heads * width * rows[0].element_size()
            size = max(1, MOST_TOGETHER // (column * max(map(len, rows)) * replies))
        return [rows[begin : begin + size] for begin in range(0, len(rows), size)]

    def start(
        self, rows: Sequence[Tensor], room: int, ends: Collection[int] = (), replies: int = 1
    ) -> "StaticRun":
        """Read prompts; see ``LlamaDecoder.start``."""
        with self._pool.lock:
            shared = self._longest_shared(rows)
            begin = len(shared.embedded) if shared else 0
            cache, readable, positions, logits = self._read(rows, shared, begin)
            layers = [(layer.keys, layer.values) for layer in cache.layers]
            self._keep_beginning(rows, layers, begin)
        return StaticRun(self._pool, layers, readable, positions, logits, room, replies)

    def _read(
        self, rows: Sequence[Tensor], shared: Beginning | None, begin: int
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        """Read prompts behind what they share, padded on the left to end in the same column."""
        longest, device = max(map(len, rows)) - begin, rows[0].device
        cache = DynamicCache()
        for number, (key, value) in enumerate(shared.layers if shared else ()):
            each = len(rows), -1, -1, -1
            cache.update(key.expand(each), value.expand(each), number)
        pads = torch.tensor([longest + begin - len(row) for row in rows])
        padded = [
            F.pad(row[begin:], (0, 0, pad, 0)) for row, pad in zip(rows, pads.tolist(), strict=True)
        ]
        columns = torch.arange(begin + longest)
        readable = (columns < begin) | (columns >= begin + pads[:, None])  # [R, S]
        places = (columns[begin:] - pads[:, None]).clamp_min(0)
        self.num_read += len(rows) * longest
        out = self._model(
            inputs_embeds=torch.stack(padded),
            # Without padding none, so that SDPA and flash attention need no mask.
            attention_mask=readable.long().to(device) if pads.any() else None,
            position_ids=places.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cache, readable.to(device), places[:, -1] + 1, out.logits[:, -1].float()

    def _longest_shared(self, rows: Sequence[Tensor]) -> Beginning | None:
        """Return the longest known beginning of all rows, cut so that each has a token left."""
        best, most = None, LEAST_SHARED - 1
        for kept in self._beginnings:
            count = min(min(alike(kept.embedded, row), len(row) - 1) for row in rows)
            if count > most:
                best, most = kept, count
        if best is None:
            return None
        self._beginnings.remove(best)
        self._beginnings.append(best)
        return Beginning(
            best.embedded[:most], [(k[:, :, :most], v[:, :, :most]) for k, v in best.layers]
        )

    def _keep_beginning(
        self, rows: Sequence[Tensor], layers: list[tuple[Tensor, Tensor]], begin: int
    ) -> None:
        """Keep what all rows and the prompt before them begin with, if more than they shared."""
        place = max(range(len(rows)), key=lambda number: len(rows[number]))  # has no padding
        row, before = rows[place], self._last
        self._last = row
        count = min(alike(row, other) for other in (*rows, before))
        if count < max(LEAST_SHARED, begin + 1) or count > MOST_SHARED:
            return
        copied = [
            (key[place : place + 1, :, :count].clone(), value[place : place + 1, :, :count].clone())
            for key, value in layers
        ]
        # A kept one that this one begins with has become needless.
        self._beginnings = [
            kept for kept in self._beginnings if alike(kept.embedded, row) < len(kept.embedded)
        ]
        self._beginnings.append(Beginning(row[:count].clone(), copied))
        while sum(len(kept.embedded) for kept in self._beginnings) > MOST_SHARED:
            del self._beginnings[0]


class StaticRun:
    """Prompts that are being continued; the interface is that of ``decoding.Run``.

    Args:
        pool: of the model's caches.
        layers: keys and values [B, K, S, E] of each layer, of what was read.
        readable: [B, S] bool, False for padding.
        positions: [..., B], of the next token, on any axes that the model has.
        logits: [B, V] of the next token.
        room: tokens that will be fed at most.
        replies: ways in which each prompt is continued at most.

    Attributes:
        logits: [N, V] of the next token; the next ``feed`` may write over them.
        length: columns filled.
    """

    def __init__(
        self,
        pool: CachePool,
        layers: Sequence[tuple[Tensor, Tensor]],
        readable: Tensor,
        positions: Tensor,
        logits: Tensor,
        room: int,
        replies: int,
    ) -> None:
        self.logits, (self._num_rows, self.length) = logits, readable.shape
        self._size = self.length + room
        self._begun = layers, readable, positions
        self._cache: StaticCache | None = None
        self._most, self._pool = self._num_rows * replies, pool

    def feed(self, tokens: Tensor) -> None:
        """Continue every row by a token, [N].

        Raises:
            IndexError: the cache is full.
        """
        if self.length == self._size:
            raise IndexError(f"the cache holds {self.length} columns, and all are filled")
        self.logits = self._opened().step(tokens.to(self.logits.device), self.length)
        self.length += 1

    def branch(self, continuations: Sequence[tuple[int, int]]) -> list[int]:
        """Continue rows in several ways; see ``decoding.Run.branch``."""
        parents, tokens, places = arranged(continuations)
        if parents != list(range(self._num_rows)):
            self.take(torch.tensor(parents))
        self.feed(torch.tensor(tokens))
        return places

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, [N] indices in any order, also repeated."""
        rows = rows.to(self.logits.device)
        self._opened().take(rows, self.length)
        self._num_rows = len(rows)
        self.logits = self.logits[rows]

    def _opened(self) -> StaticCache:
        if self._cache is None:  # a reply of one token needs none
            layers, readable, positions = self._begun
            axes = positions.shape[:-1]
            self._cache = self._pool.open(layers, self._most, self._size, self, axes)
            self._cache.begin(layers, readable, positions)
            self._begun = (), readable, positions  # the prompt's own columns are free now
        return self._cache


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Let a model compute by another attention; the caller keeps others from using it meanwhile."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    if before == name:
        yield
        return
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def alike(left: Tensor, right: Tensor) -> int:
    """Count the rows that two [T, D] begin with alike."""
    count = min(len(left), len(right))
    if not count:
        return 0
    return int((left[:count] == right[:count]).all(1).long().cumprod(0).sum())
