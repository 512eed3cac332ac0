"""The state of SceneTilling for many streams at once, as tensors."""

import math
from dataclasses import dataclass

import torch

OUTLASTING = 0.1  # as in streammem.perception.scenetilling


@dataclass(frozen=True, slots=True)
class TillingOptions:
    """Options of `streammem.perception.scenetilling.SceneTillingConfig`, of the same meaning."""

    alpha: float = 2.0
    floor: float = 0.65
    half_life: float = 60.0
    min_frames: int = 2
    max_frames: int = 480
    max_lag: int = 64
    flash_frames: int = 2
    peak: float = -1.0

    @property
    def decay(self) -> float:
        """Part of a depth's weight that is left after a frame."""
        return 0.5 ** (1 / self.half_life)


class TillingState:
    """What S streams remember, and what the last step found; a step changes it in place.

    A row of the state is one stream. Frame t lies at place t modulo the ring's length.

    Args:
        streams: S >= 1.
        width: D, of an embedding.

    Attributes:
        rows: [S, 2 flash_frames + 2, D] float32 pooled embeddings, a ring by frame.
        norms: [S, 2 flash_frames + 2] float64, their lengths.
        cosines: [S, 2 flash_frames + 2, flash_frames + 1] float64: of frame t and frame t - 1 - i.
        climb: [S, max_lag, 3] float64, a ring by gap: similarity, left peak, bridged.
        numbers: [S, 5] int64: frames, start, start of the scene, first gap of the climb, and
            the climb's length.
        learned: [S, 3] float64: weight, mean, square.
        count: [S] int32, boundaries that the last step found; -1 for an embedding that is not
            finite, which changed nothing.
        index: [S, max_lag + flash_frames] int64: the first ``count`` are the boundaries' frames,
            ascending.
        depth: [S, max_lag + flash_frames] float64: their depths; NaN for a scene that reached
            ``max_frames``.
    """

    def __init__(
        self,
        streams: int,
        width: int,
        options: TillingOptions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.options = options = options or TillingOptions()
        ring, lag = 2 * options.flash_frames + 2, options.max_lag

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.zeros(streams, *shape, dtype=dtype, device=device)

        self.rows = zeros(ring, width, dtype=torch.float32)
        self.norms = zeros(ring)
        self.cosines = zeros(ring, options.flash_frames + 1)
        self.climb = zeros(lag, 3)
        self.numbers = zeros(5, dtype=torch.int64)
        self.learned = zeros(3)
        self.count = zeros(dtype=torch.int32)
        most = lag + options.flash_frames  # that the end of a stream settles
        self.index = zeros(most, dtype=torch.int64)
        self.depth = zeros(most)
        self.arrived = zeros(dtype=torch.int32)  # the kernel's count of tiles; 0 between steps
        values = [options.alpha, options.floor, options.decay, options.peak, OUTLASTING, math.inf]
        self.values = torch.tensor(values, dtype=torch.float64, device=device)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all that a stream has, a row each."""
        of_streams = (self.rows, self.norms, self.cosines, self.climb, self.numbers, self.learned)
        return (*of_streams, self.count, self.index, self.depth, self.arrived)

    def boundaries(self, stream: int) -> list[tuple[int, float]]:
        """Return what the last step found in one stream: (first frame of the scene, depth)."""
        count = max(0, int(self.count[stream]))
        indices, depths = self.index[stream, :count], self.depth[stream, :count]
        return list(zip(indices.tolist(), depths.tolist(), strict=True))
