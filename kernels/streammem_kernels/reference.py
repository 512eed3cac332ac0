"""The kernels' laws in plain torch and Python: what they must equal, and what runs on a CPU."""

import itertools
import math

import torch

from streammem_kernels.state import OUTLASTING, TillingState

WORST = torch.iinfo(torch.int64).min  # no row


def find_topk_reference(
    questions: torch.Tensor,
    keys: torch.Tensor,
    ranges: torch.Tensor,
    k: int,
    scales: torch.Tensor | None,
    mask: torch.Tensor | None = None,
    tenants: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `ops.find_topk` of unit questions: all scores, then the best of them."""
    scores = questions @ keys.float().T
    if scales is not None:
        scores = scores * scales
    rows = torch.arange(len(keys), device=keys.device)
    scores = torch.where(scores == 0, 0.0, scores)  # both zeros are one score
    bits = scores.view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    packed = (bits.long() << 32) | (0x7FFFFFFF - (rows if groups is None else groups.long()))
    inside = (rows >= ranges[:, :1]) & (rows < ranges[:, 1:])
    if mask is not None:
        inside &= mask if tenants is None else mask[:, tenants.long()]
    return unpack(torch.where(inside, packed, WORST), k, has_groups=groups is not None)


def unpack(packed: torch.Tensor, k: int, *, has_groups: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and scores [Q, k] of the greatest numbers in [Q, M] int64, best first.

    With groups, numbers of the same low half are one, and the greatest of them counts.
    """
    if has_groups and packed.shape[1]:
        packed = packed.sort(1, descending=True).values
        low, order = (packed & 0xFFFFFFFF).sort(dim=1, stable=True)
        packed = packed.gather(1, order)
        packed[:, 1:].masked_fill_(low[:, 1:] == low[:, :-1], WORST)
    best = packed.topk(min(k, packed.shape[1])).values
    best = torch.nn.functional.pad(best, (0, k - best.shape[1]), value=WORST)
    bits = (best >> 32).int()
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    is_none = best < WORST + 2**32  # below the number of any score
    rows = (0x7FFFFFFF - (best & 0xFFFFFFFF)).masked_fill(is_none, -1)
    return rows, bits.view(torch.float32).masked_fill(is_none, -math.inf)


def memory_read_reference(
    queries: torch.Tensor,
    own: torch.Tensor,
    patches: torch.Tensor,
    store: torch.Tensor,
    scales: torch.Tensor,
    past: torch.Tensor,
    offsets: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `ops.memory_read` of rows [S, R, D], a segment at a time, in float32 or float64."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    reads, sums = [], []
    for segment, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        rows = past[segment][past[segment] >= 0]
        by = scales[rows].repeat_interleave(store.shape[1] // scales.shape[1], dim=1)
        recalled = store[rows].to(dtype) * by.to(dtype)
        keys = torch.cat([own[segment].to(dtype), patches[start:stop].to(dtype), recalled])
        scores = scale * queries[segment].to(dtype) @ keys.T
        sums.append(scores.detach().logsumexp(1))
        reads.append((scores.softmax(1) @ keys).to(queries.dtype))  # zeros where no key is
    return torch.stack(reads), torch.stack(sums)


def tilling_step_reference(
    state: TillingState,
    patches: torch.Tensor,
    mean: torch.Tensor,
    active: torch.Tensor,
    offsets: torch.Tensor | None,
) -> None:
    """Compute `ops.tilling_step`, a stream at a time."""
    frames = patches if offsets is None else patches.tensor_split(offsets[1:-1].tolist())
    for stream, frame in enumerate(frames):
        if active[stream]:
            _step(state, stream, frame.float().mean(0) - mean)
        else:
            state.count[stream] = 0


def tilling_flush_reference(state: TillingState, active: torch.Tensor) -> None:
    """Compute `ops.tilling_flush`, a stream at a time."""
    for stream in range(len(active)):
        if active[stream]:
            _step(state, stream, None)
        else:
            state.count[stream] = 0


def _step(state: TillingState, stream: int, row: torch.Tensor | None) -> None:  # noqa: C901
    """Add one frame's embedding [D] to one stream; None ends it. One function, as the kernel."""
    options = state.options
    flash, ring = options.flash_frames, 2 * options.flash_frames + 2
    frames, start, scene, first, length = state.numbers[stream].tolist()
    weight, mean, square = state.learned[stream].tolist()
    climb = state.climb[stream]
    found: list[tuple[int, float]] = []
    if row is not None:
        norm = float(row.double().square().sum())
        if not math.isfinite(norm):
            state.count[stream] = -1
            return
        norm = math.sqrt(norm)
        state.rows[stream, frames % ring] = row
        state.norms[stream, frames % ring] = norm
        for back in range(1, min(flash + 1, frames - start) + 1):
            other = (frames - back) % ring
            dot = float(row.double().dot(state.rows[stream, other].double()))
            product = norm * float(state.norms[stream, other])
            cosine = max(-1.0, min(1.0, dot / product)) if product else 0.0
            state.cosines[stream, frames % ring, back - 1] = cosine
        frames += 1

    def settle(count: int, right: float) -> None:
        nonlocal scene, weight, mean, square, first, length
        right = max(right, options.peak)
        for _ in range(count):
            similarity, left, bridged = climb[first % options.max_lag].tolist()
            depth = left + right - 2 * similarity
            deviation = math.sqrt(square / weight) if weight else 0.0
            threshold = max(options.floor, mean + options.alpha * deviation)
            least = max(threshold, OUTLASTING * depth)
            cuts = right > similarity and left + right - 2 * bridged > least
            if not cuts:
                learned = min(depth, threshold)
                weight = weight * options.decay + 1
                change = learned - mean
                mean += change / weight
                square = square * options.decay + change * (learned - mean)
            size = first - scene
            is_cut = cuts and size >= options.min_frames
            if is_cut or size >= options.max_frames:
                found.append((first, depth if is_cut else math.nan))
                scene = first
            first += 1
            length -= 1

    # The end measures the gaps that a flash would still have been waited for.
    gaps = range(frames - 1 - flash, frames - flash)
    if row is None:
        gaps = range(frames - flash, frames)
    for gap in range(max(gaps.start, start + 1), gaps.stop):
        similarity = float(state.cosines[stream, gap % ring, 0])
        left, dips = similarity, similarity < options.peak
        if length:
            last, last_left, _ = climb[(gap - 1) % options.max_lag].tolist()
            if similarity <= last:
                left = last_left
            if similarity < last:
                settle(length, last)
                dips = True
        # A full climb gives its lower end before the new gap takes that place.
        if length == options.max_lag:
            settle(1, similarity)
        left = max(left, options.peak)
        bridged = math.inf
        if dips and gap + flash < frames and left + 1 - 2 * similarity > options.floor:
            bridged = max(
                float(state.cosines[stream, (gap + after) % ring, before + after])
                for before in range(min(flash, gap - 1 - start) + 1)
                for after in range(flash - before + 1)
            )
        if not length:
            first = gap
        climb[gap % options.max_lag] = torch.tensor(
            [similarity, left, bridged], dtype=torch.float64
        )
        length += 1
    if row is None:
        if length:
            settle(length, float(climb[(first + length - 1) % options.max_lag, 0]))
        start = scene = frames
    state.numbers[stream] = torch.tensor([frames, start, scene, first, length])
    state.learned[stream] = torch.tensor([weight, mean, square], dtype=torch.float64)
    state.count[stream] = len(found)
    for place, (index, depth) in enumerate(found):
        state.index[stream, place] = index
        state.depth[stream, place] = depth
