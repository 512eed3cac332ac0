"""K1: one new frame of many streams: pooling, cosines and SceneTilling's decisions, one launch.

The end of streams is a launch of its own, with the same decisions.

One program pools the patches of one stream over `BLOCK_D` columns. The last program of a stream
to end (an atomic counter) takes the cosines with the frames before and runs the state machine of
`streammem.perception.scenetilling`, whose steps have the same numbers there.

Numbers of 64 bits and no fused multiply-add: given the same cosines, the state is Python's, bit
for bit. Sums over columns are taken in another order than NumPy's, so that a cosine may differ in
its last bits, and a picture that stands still may settle its gaps at another step.
"""

import torch
import triton
import triton.language as tl

from streammem_kernels.state import TillingState
from streammem_kernels.tuning import tuned

SPACE = [
    ({"BLOCK_P": 32, "BLOCK_D": 128}, 4, 3),
    ({"BLOCK_P": 64, "BLOCK_D": 64}, 4, 3),
    ({"BLOCK_P": 16, "BLOCK_D": 256}, 4, 3),
    ({"BLOCK_P": 64, "BLOCK_D": 128}, 8, 3),
]
STATE = (
    "rows", "norms", "cosines", "climb", "numbers", "learned", "count", "index", "depths",
    "arrived",
)  # fmt: skip


@triton.jit
def settle(
    count, right, scene, weight, mean, square, first, length, found,
    stream, climb, index, depths, values, min_frames, max_frames,
    FLASH: tl.constexpr, MAX_LAG: tl.constexpr,
):  # fmt: skip
    """Decide the first ``count`` gaps of the climb, whose right peak is ``right``."""
    alpha = tl.load(values)
    floor = tl.load(values + 1)
    decay = tl.load(values + 2)
    outlasting = tl.load(values + 4)
    right = tl.maximum(right, tl.load(values + 3))
    for _ in range(count):
        at_gap = climb + (stream * MAX_LAG + first % MAX_LAG) * 3
        low = tl.load(at_gap)
        peaks = tl.load(at_gap + 1) + right
        bridged_low = tl.load(at_gap + 2)
        depth = peaks - 2 * low
        deviation = tl.sqrt(square / tl.where(weight > 0, weight, 1.0))
        deviation = tl.where(weight > 0, deviation, 0.0)
        threshold = tl.maximum(floor, mean + alpha * deviation)
        least = tl.maximum(threshold, outlasting * depth)
        # 1. Only a dip can cut, not a slope.
        is_cut = (right > low) & (peaks - 2 * bridged_low > least)
        # 2. Boundaries teach nothing.
        value = tl.minimum(depth, threshold)
        new_weight = weight * decay + 1
        change = value - mean
        new_mean = mean + change / new_weight
        new_square = square * decay + change * (value - new_mean)
        weight = tl.where(is_cut, weight, new_weight)
        mean = tl.where(is_cut, mean, new_mean)
        square = tl.where(is_cut, square, new_square)
        # 3. Scenes are neither too short nor too long.
        is_cut = is_cut & (first - scene >= min_frames)
        if is_cut | (first - scene >= max_frames):
            place = stream * (MAX_LAG + FLASH) + found
            tl.store(index + place, first)
            tl.store(depths + place, tl.where(is_cut, depth, float("nan")))
            found += 1
            scene = first
        first += 1
        length -= 1
    return scene, weight, mean, square, first, length, found


@triton.jit
def measure(
    gap, frames, start, scene, weight, mean, square, first, length, found,
    stream, cosines, climb, index, depths, values, min_frames, max_frames,
    FLASH: tl.constexpr, MAX_LAG: tl.constexpr,
):  # fmt: skip
    """Add a gap to the climb; settle the gaps whose right peak it shows."""
    RING: tl.constexpr = 2 * FLASH + 2
    floor = tl.load(values + 1)
    peak = tl.load(values + 3)
    infinity = tl.load(values + 5)
    # 1. Similarity, and the peak to its left; a fall ends the climb before.
    similarity = tl.load(cosines + (stream * RING + gap % RING) * (FLASH + 1))
    left = similarity
    right = similarity
    is_dip = similarity < peak
    settled = tl.zeros((), tl.int64)
    if length > 0:
        before_gap = climb + (stream * MAX_LAG + (gap - 1) % MAX_LAG) * 3
        last = tl.load(before_gap)
        if similarity <= last:
            left = tl.load(before_gap + 1)
        if similarity < last:
            is_dip = True
            settled = length
            right = last
        elif length == MAX_LAG:
            # 3. A climb that is too long settles at its lower end.
            settled = settled + 1
    left = tl.maximum(left, peak)
    scene, weight, mean, square, first, length, found = settle(
        settled, right, scene, weight, mean, square, first, length, found,
        stream, climb, index, depths, values, min_frames, max_frames, FLASH, MAX_LAG,
    )  # fmt: skip
    # 2. Similarity across a flash. At the stream's end a flash cannot be told from a cut.
    bridged = infinity
    if is_dip & (gap + FLASH < frames) & (left + 1 - 2 * similarity > floor):
        bridged = -infinity
        for before in tl.static_range(FLASH + 1):
            if gap - 1 - before >= start:
                for after in tl.static_range(FLASH + 1 - before):
                    across = (stream * RING + (gap + after) % RING) * (FLASH + 1)
                    bridged = tl.maximum(bridged, tl.load(cosines + across + before + after))
    if length == 0:
        first = gap
    tl.debug_barrier()  # the place may be that of a gap just settled
    new_gap = climb + (stream * MAX_LAG + gap % MAX_LAG) * 3
    tl.store(new_gap, similarity)
    tl.store(new_gap + 1, left)
    tl.store(new_gap + 2, bridged)
    tl.debug_barrier()  # it is read again at the end of a stream
    return scene, weight, mean, square, first, length + 1, found


@triton.jit
def tilling_flush_kernel(
    active,  # [S] bool
    cosines,
    climb,
    numbers,
    learned,
    count,
    index,
    depths,
    values,
    min_frames,
    max_frames,
    FLASH: tl.constexpr,
    MAX_LAG: tl.constexpr,
):
    stream = tl.program_id(0).to(tl.int64)
    found = tl.zeros((), tl.int32)
    if tl.load(active + stream) != 0:
        frames = tl.load(numbers + stream * 5)
        start = tl.load(numbers + stream * 5 + 1)
        scene = tl.load(numbers + stream * 5 + 2)
        first = tl.load(numbers + stream * 5 + 3)
        length = tl.load(numbers + stream * 5 + 4)
        weight = tl.load(learned + stream * 3)
        mean = tl.load(learned + stream * 3 + 1)
        square = tl.load(learned + stream * 3 + 2)
        for gap in range(tl.maximum(frames - FLASH, start + 1), frames):
            scene, weight, mean, square, first, length, found = measure(
                gap, frames, start, scene, weight, mean, square, first, length, found,
                stream, cosines, climb, index, depths, values, min_frames, max_frames,
                FLASH, MAX_LAG,
            )  # fmt: skip
        if length > 0:
            right = tl.load(climb + (stream * MAX_LAG + (first + length - 1) % MAX_LAG) * 3)
            scene, weight, mean, square, first, length, found = settle(
                length, right, scene, weight, mean, square, first, length, found,
                stream, climb, index, depths, values, min_frames, max_frames, FLASH, MAX_LAG,
            )  # fmt: skip
        tl.store(numbers + stream * 5 + 1, frames)
        tl.store(numbers + stream * 5 + 2, frames)
        tl.store(numbers + stream * 5 + 3, first)
        tl.store(numbers + stream * 5 + 4, length)
        tl.store(learned + stream * 3, weight)
        tl.store(learned + stream * 3 + 1, mean)
        tl.store(learned + stream * 3 + 2, square)
    tl.store(count + stream, found)


@triton.jit
def tilling_step_kernel(
    patches,  # [S, P, D], or [N, D] with offsets
    offsets,  # [S + 1] int64
    center,  # [D] float32
    active,  # [S] bool
    rows,  # the state, as `TillingState` lays it out
    norms,
    cosines,
    climb,
    numbers,
    learned,
    count,
    index,
    depths,
    arrived,
    pooled,  # [S, D] float32, scratch
    values,  # [6] float64: alpha, floor, decay, peak, OUTLASTING, infinity
    num_patches,
    width,
    min_frames,
    max_frames,
    HAS_OFFSETS: tl.constexpr,
    FLASH: tl.constexpr,
    MAX_LAG: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    stream = tl.program_id(0).to(tl.int64)
    RING: tl.constexpr = 2 * FLASH + 2
    if tl.load(active + stream) == 0:
        if tl.program_id(1) == 0:
            tl.store(count + stream, 0)
    else:
        # Mean over the patches, of this program's columns.
        base = stream * num_patches
        if HAS_OFFSETS:
            base = tl.load(offsets + stream)
            num_patches = (tl.load(offsets + stream + 1) - base).to(tl.int32)
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
        for first_patch in range(0, num_patches, BLOCK_P):
            p = first_patch + tl.arange(0, BLOCK_P)
            is_inside = (p < num_patches)[:, None] & (d < width)[None, :]
            at = p[:, None] * width + d[None, :]
            total += tl.load(patches + base * width + at, is_inside, other=0).to(tl.float32)
        embedding = tl.sum(total, 0) / num_patches - tl.load(center + d, d < width, other=0)
        tl.store(pooled + stream * width + d, embedding, d < width)
        tl.debug_barrier()  # all threads' stores come before the count
        if tl.atomic_add(arrived + stream, 1, sem="acq_rel") == tl.num_programs(1) - 1:
            tl.store(arrived + stream, 0)
            infinity = tl.load(values + 5)
            frames = tl.load(numbers + stream * 5)
            start = tl.load(numbers + stream * 5 + 1)
            scene = tl.load(numbers + stream * 5 + 2)
            first = tl.load(numbers + stream * 5 + 3)
            length = tl.load(numbers + stream * 5 + 4)
            weight = tl.load(learned + stream * 3)
            mean = tl.load(learned + stream * 3 + 1)
            square = tl.load(learned + stream * 3 + 2)
            # The new row's length, and its cosines with the rows that it may be compared with.
            norm = tl.zeros((BLOCK_D,), tl.float64)
            for column in range(0, width, BLOCK_D):
                d = column + tl.arange(0, BLOCK_D)
                x = tl.load(
                    pooled + stream * width + d, d < width, other=0, cache_modifier=".cg"
                ).to(tl.float64)
                norm += x * x
            norm_square = tl.sum(norm, 0)
            if (norm_square < infinity) == 0:
                tl.store(count + stream, -1)
            else:
                norm_new = tl.sqrt(norm_square)
                place = stream * RING + frames % RING
                tl.store(norms + place, norm_new)
                for back in tl.static_range(1, FLASH + 2):
                    if frames - back >= start:
                        other = stream * RING + (frames - back) % RING
                        dot = tl.zeros((BLOCK_D,), tl.float64)
                        for column in range(0, width, BLOCK_D):
                            d = column + tl.arange(0, BLOCK_D)
                            x = tl.load(
                                pooled + stream * width + d,
                                d < width,
                                other=0,
                                cache_modifier=".cg",
                            )
                            y = tl.load(rows + other * width + d, d < width, other=0)
                            dot += x.to(tl.float64) * y.to(tl.float64)
                        product = norm_new * tl.load(norms + other)
                        # A row of zeros has cosine 0 with every row.
                        cosine = tl.sum(dot, 0) / tl.where(product > 0, product, 1.0)
                        cosine = tl.minimum(tl.maximum(cosine, -1.0), 1.0)
                        cosine = tl.where(product > 0, cosine, 0.0)
                        tl.store(cosines + place * (FLASH + 1) + back - 1, cosine)
                for column in range(0, width, BLOCK_D):
                    d = column + tl.arange(0, BLOCK_D)
                    x = tl.load(
                        pooled + stream * width + d, d < width, other=0, cache_modifier=".cg"
                    )
                    tl.store(rows + place * width + d, x, d < width)
                tl.debug_barrier()  # the cosines are read again below
                frames += 1
                tl.debug_barrier()
                found = tl.zeros((), tl.int32)
                gap = frames - 1 - FLASH
                if gap > start:
                    scene, weight, mean, square, first, length, found = measure(
                        gap, frames, start, scene, weight, mean, square, first, length, found,
                        stream, cosines, climb, index, depths, values, min_frames, max_frames,
                        FLASH, MAX_LAG,
                    )  # fmt: skip
                tl.store(numbers + stream * 5, frames)
                tl.store(numbers + stream * 5 + 2, scene)
                tl.store(numbers + stream * 5 + 3, first)
                tl.store(numbers + stream * 5 + 4, length)
                tl.store(learned + stream * 3, weight)
                tl.store(learned + stream * 3 + 1, mean)
                tl.store(learned + stream * 3 + 2, square)
                tl.store(count + stream, found)


tilling_step_tuned = tuned(
    tilling_step_kernel, SPACE, ("width", "num_patches", "HAS_OFFSETS"), changed=STATE
)


def tilling_step_triton(
    state: TillingState,
    patches: torch.Tensor,
    mean: torch.Tensor,
    active: torch.Tensor,
    offsets: torch.Tensor | None,
) -> None:
    """Compute `ops.tilling_step` by the kernel."""
    streams, width = len(active), patches.shape[-1]
    options = state.options
    tilling_step_tuned[lambda blocks: (streams, triton.cdiv(width, blocks["BLOCK_D"]))](
        patches,
        active if offsets is None else offsets,
        mean,
        active,
        state.rows,
        state.norms,
        state.cosines,
        state.climb,
        state.numbers,
        state.learned,
        state.count,
        state.index,
        state.depth,
        state.arrived,
        torch.empty(streams, width, device=patches.device),
        state.values,
        patches.shape[1] if offsets is None else 0,
        width,
        options.min_frames,
        options.max_frames,
        HAS_OFFSETS=offsets is not None,
        FLASH=options.flash_frames,
        MAX_LAG=options.max_lag,
        enable_fp_fusion=False,
    )


def tilling_flush_triton(state: TillingState, active: torch.Tensor) -> None:
    """Compute `ops.tilling_flush` by the kernel."""
    options = state.options
    tilling_flush_kernel[(len(active),)](
        active,
        state.cosines,
        state.climb,
        state.numbers,
        state.learned,
        state.count,
        state.index,
        state.depth,
        state.values,
        options.min_frames,
        options.max_frames,
        FLASH=options.flash_frames,
        MAX_LAG=options.max_lag,
        enable_fp_fusion=False,
        num_warps=1,
    )
