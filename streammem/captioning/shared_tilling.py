"""SceneTilling of many streams together: the frames that wait are one launch of `tilling_step`.

    streams = SharedTilling("cuda")
    tilling = streams.open(SceneTillingConfig())  # is used as a ``SceneTilling``, by one thread
    for boundary in tilling.push(embedding).boundaries:
        print(boundary.index, boundary.depth)

Given the same cosines it decides as ``SceneTilling`` does, to the bit; the cosines may differ in
their last bits. It settles no scores for plots.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from streammem_kernels import ops

from streammem.errors import ConfigError
from streammem.models.once import PartLock
from streammem.perception.scenetilling import (
    Boundary,
    Gap,
    Pushed,
    SceneTilling,
    SceneTillingConfig,
    SceneTillingState,
    Tilling,
    not_finite,
    rows_of,
)

FEWEST = 8  # streams that a group has room for at first
LEAST_STREAMS = 64  # open streams from which on a further one is the kernel's; estimated


def kernel_choice(device: torch.device | str) -> tuple[str, str]:
    """Return which form many streams take on a device, ``triton`` or ``torch``, and why.

    ``torch`` stands for a ``SceneTilling`` for each stream.

    Raises:
        ConfigError: Triton is forced, and cannot run.
    """
    try:
        form, reason = ops.choose("tilling_step", device)
    except ops.KernelError as error:
        raise ConfigError(str(error)) from error
    return form, reason


@dataclass(slots=True, eq=False)
class _WaitingRow:
    stream: int
    row: np.ndarray
    result: Pushed | Exception | None = None


class SharedTilling:
    """Streams of equal options and width, whose states lie together on a device.

    Threads may share it; each stream belongs to one of them at a time.

    A stream is decided together with others where Triton runs and ``LEAST_STREAMS`` are open, or
    where Triton is forced: one launch has the latency of many times what a ``SceneTilling`` takes
    for one frame.

    Args:
        device: where the states are.

    Raises:
        ConfigError: Triton is forced, and cannot run.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device, self._lock = device, PartLock()
        self._groups: dict[tuple[SceneTillingConfig, int], _Group] = {}
        self._opened = weakref.WeakSet[Tilling]()
        kernel_choice(device)

    def open(self, config: SceneTillingConfig) -> Tilling:
        """Begin a stream; its place is free again once it is no longer used."""
        with self._lock:
            form, reason = kernel_choice(self._device)
            is_forced = reason == f"{ops.VARIABLE}=triton"
            is_many = is_forced or len(self._opened) + 1 >= LEAST_STREAMS
            tilling: Tilling = SceneTilling(config)
            if is_many and form == "triton":
                tilling = StreamTilling(self._group, config)
            self._opened.add(tilling)
        return tilling

    def _group(self, config: SceneTillingConfig, width: int) -> "_Group":
        with self._lock:
            if (config, width) not in self._groups:
                self._groups[config, width] = _Group(config, width, self._device)
            return self._groups[config, width]


class _Group:
    """The states of streams of one width and configuration, and the frames that wait for a step."""

    def __init__(self, config: SceneTillingConfig, width: int, device: torch.device | str) -> None:
        self.options = ops.TillingOptions(**asdict(config))
        self.lock = PartLock()  # garbage may be collected by a thread that holds it
        self.state = ops.TillingState(FEWEST, width, self.options, device)
        self._mean = torch.zeros(width, device=device)
        self._free = list(range(FEWEST))[::-1]
        self._waiting: deque[_WaitingRow] = deque()

    def take(self, owner: object) -> int:
        """Return the place of a new stream, free again once ``owner`` is gone."""
        with self.lock:
            if not self._free:
                self._grow()
            stream = self._free.pop()
            weakref.finalize(owner, self._give_back, stream)
        return stream

    def _give_back(self, stream: int) -> None:
        with self.lock:
            for tensor in self.state.tensors():
                tensor[stream] = 0
            self._free.append(stream)

    def _grow(self) -> None:
        old = self.state
        count, _, width = old.rows.shape
        self.state = ops.TillingState(2 * count, width, self.options, old.rows.device)
        for tensor, before in zip(self.state.tensors(), old.tensors(), strict=True):
            tensor[:count] = before
        self._free = list(range(count, 2 * count))[::-1]

    def push(self, stream: int, row: np.ndarray) -> Pushed:
        """Add a frame's embedding [D] to a stream, in one launch with all others that wait."""
        own = _WaitingRow(stream, row)
        self._waiting.append(own)
        with self.lock:
            if own.result is None:
                batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
                try:
                    self._step(batch)
                except Exception as error:  # noqa: BLE001, carried to the threads that wait
                    for waiting in batch:
                        waiting.result = waiting.result or error
        if isinstance(own.result, Exception):
            raise own.result
        assert own.result is not None
        return own.result

    def _step(self, batch: list[_WaitingRow]) -> None:
        """Add one frame to each stream of a batch; a stream has no two frames in it."""
        device = self.state.rows.device
        batch.sort(key=lambda waiting: waiting.stream)
        sizes = torch.zeros(len(self.state.rows) + 1, dtype=torch.long)
        sizes[[waiting.stream + 1 for waiting in batch]] = 1
        rows = torch.from_numpy(np.stack([waiting.row for waiting in batch]))
        offsets = sizes.cumsum(0).to(device)
        ops.tilling_step(self.state, rows.to(device).float(), self._mean, offsets=offsets)
        counts, numbers = self.state.count.tolist(), self.state.numbers[:, 0].tolist()
        for waiting in batch:
            if counts[waiting.stream] < 0:
                waiting.result = not_finite(numbers[waiting.stream])
            else:
                waiting.result = self.settled(waiting.stream, counts[waiting.stream])

    def settled(self, stream: int, count: int) -> Pushed:
        """Return what the last step settled of a stream."""
        found = self.state.boundaries(stream) if count else ()
        return Pushed(
            (),
            tuple(
                Boundary(index, None, "max") if math.isnan(depth) else Boundary(index, depth, "cut")
                for index, depth in found
            ),
        )

    def flush(self, stream: int) -> Pushed:
        """End a stream."""
        with self.lock:
            active = torch.zeros(len(self.state.rows), dtype=torch.bool)
            active[stream] = True
            ops.tilling_flush(self.state, active.to(self.state.rows.device))
            return self.settled(stream, int(self.state.count[stream]))


class StreamTilling:
    """One stream of a ``SharedTilling``; a ``SceneTilling`` but for scores, of which it has none.

    Args:
        group: returns the group of a configuration and a width, which the first frame tells.
        config: options.
    """

    def __init__(
        self, group: Callable[[SceneTillingConfig, int], _Group], config: SceneTillingConfig
    ) -> None:
        self.config, self._find = config, group
        self._group: _Group | None = None
        self._stream = -1
        self._before = SceneTillingState()  # until the first frame

    @property
    def lag(self) -> int:
        """As ``SceneTilling.lag``."""
        return self.config.max_lag + self.config.flash_frames + 1

    @property
    def settled_before(self) -> int:
        """As ``SceneTilling.settled_before``."""
        if self._group is None:
            climb = self._before.climb
            return climb[0].frame if climb else self._before.scene_start
        with self._group.lock:
            numbers: list[int] = self._group.state.numbers[self._stream].tolist()
        _, _, scene, first, length = numbers
        return first if length else scene

    def push(self, embeddings: np.ndarray) -> Pushed:
        """Take in the next frames; as ``SceneTilling.push``, one frame after another.

        Raises:
            ValueError, BackboneError: as there; frames before one that is not finite stay.
        """
        rows = rows_of(embeddings)
        boundaries: list[Boundary] = []
        for row in rows:
            group = self._opened(len(row))
            boundaries += group.push(self._stream, row).boundaries
        return Pushed((), tuple(boundaries))

    def flush(self) -> Pushed:
        """Settle what is still open; as ``SceneTilling.flush``."""
        group = self._group
        if group is None:
            if not self._before.rows:
                return Pushed((), ())  # nothing is open
            group = self._opened(len(self._before.rows[0]))
        return group.flush(self._stream)

    def _opened(self, width: int) -> _Group:
        if self._group is None:
            self._group = self._find(self.config, width)
            self._stream = self._group.take(self)
            if self._before.frames:
                with self._group.lock:
                    _write(self._group.state, self._stream, self._before)
        elif width != self._group.state.rows.shape[2]:
            known = self._group.state.rows.shape[2]
            raise ValueError(f"embeddings of width {width} follow embeddings of width {known}")
        return self._group

    def snapshot(self) -> SceneTillingState:
        """Return the state as a ``SceneTilling`` has it, which later calls do not change."""
        if self._group is None:
            return self._before
        with self._group.lock:
            return _read(self._group.state, self._stream)

    def restore(self, state: SceneTillingState) -> None:
        """Go on from a state of a ``SceneTilling`` or of a stream with the same options."""
        self._group, self._stream, self._before = None, -1, state


def _read(state: ops.TillingState, stream: int) -> SceneTillingState:
    """Return a stream's state as a ``SceneTilling`` has it."""
    frames, start, scene, first, length = state.numbers[stream].tolist()
    ring, lag = state.rows.shape[1], state.options.max_lag
    rows = []
    for frame in range(max(start, frames - ring), frames):
        row = state.rows[stream, frame % ring].double().cpu().numpy()
        norm = float(state.norms[stream, frame % ring])
        rows.append(row / norm if norm else row)
        rows[-1].setflags(write=False)
    climb = state.climb[stream].tolist()
    gaps = tuple(Gap(gap, *climb[gap % lag]) for gap in range(first, first + length))
    return SceneTillingState(
        frames, start, scene, tuple(rows), gaps, *state.learned[stream].tolist()
    )


def _write(state: ops.TillingState, stream: int, value: SceneTillingState) -> None:
    """Let a stream go on from a state of a ``SceneTilling``; its place holds zeros."""
    options, ring = state.options, state.rows.shape[1]
    known = len(value.rows)
    units = torch.tensor(np.array(value.rows)).to(state.rows) if known else state.rows[stream, :0]
    lengths = units.double().square().sum(1).sqrt()
    cosines = torch.nn.functional.normalize(units.double(), dim=1)
    cosines = (cosines @ cosines.T).clamp(-1, 1)
    for number in range(known):
        place = (value.frames - known + number) % ring
        state.rows[stream, place], state.norms[stream, place] = units[number], lengths[number]
        for back in range(min(number, options.flash_frames + 1)):
            state.cosines[stream, place, back] = cosines[number, number - 1 - back]
    for gap in value.climb:
        held = [gap.similarity, gap.left_peak, gap.bridged]
        state.climb[stream, gap.frame % options.max_lag] = torch.tensor(held).to(state.climb)
    first = value.climb[0].frame if value.climb else 0
    numbers = [value.frames, value.start, value.scene_start, first, len(value.climb)]
    state.numbers[stream] = torch.tensor(numbers).to(state.numbers)
    learned = [value.weight, value.mean, value.square]
    state.learned[stream] = torch.tensor(learned, dtype=torch.float64).to(state.learned)
