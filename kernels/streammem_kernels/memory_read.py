"""K2: what a segment's queries read of its own memory, its patches and past memories.

    score[r, n] = scale * <queries[r], keys[n]>     lse[r] = log sum_n exp(score[r, n])
    read[r]     = sum_n exp(score[r, n] - lse[r]) * keys[n]

This is attention in the absorbed form: the key projection is in the queries, and the value
projection is applied to what is read, so that the keys, which are also the values, are never
projected or joined.

A row of queries is as wide as the keys: float32 sums of 64 rows, 1,024 wide, fill a
multiprocessor's registers. Hence two passes. `scores_kernel` writes one float32 a row and key, a
column of [R, C] for each key of any segment; `weighted_kernel` sums keys by them, `BLOCK_D` columns
a program. The gradient takes the same two again, and `keys_gradient_kernel`.
"""

import torch
import triton
import triton.language as tl

from streammem_kernels.tuning import tuned

# Four warps of blocks of 64 spill hundreds of bytes.
SCORES = [
    ({"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_D": 64}, 8, 3),
    ({"BLOCK_R": 128, "BLOCK_N": 64, "BLOCK_D": 64}, 8, 3),
    ({"BLOCK_R": 64, "BLOCK_N": 32, "BLOCK_D": 64}, 4, 3),
]
WEIGHTED = [
    ({"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_D": 128}, 8, 3),
    ({"BLOCK_R": 64, "BLOCK_N": 32, "BLOCK_D": 128}, 8, 3),
    ({"BLOCK_R": 64, "BLOCK_N": 32, "BLOCK_D": 64}, 4, 3),
]
KEYS_GRADIENT = [
    ({"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_D": 64}, 8, 3),
    ({"BLOCK_R": 32, "BLOCK_N": 64, "BLOCK_D": 64}, 8, 2),
    ({"BLOCK_R": 32, "BLOCK_N": 32, "BLOCK_D": 64}, 4, 2),
]
SHARES = 4  # programs that divide the keys of one segment in the gradient


@triton.jit
def source_place(
    SOURCE: tl.constexpr, segment, offsets, num_segments, num_own, num_patches, num_past
):
    """First key of a segment in a source (own, patches, past), their number, their first column."""
    first = segment * num_own
    count = num_own + 0 * segment
    column = first
    if SOURCE == 1:
        first = tl.load(offsets + segment)
        count = tl.load(offsets + segment + 1) - first
        column = num_segments * num_own + first
    if SOURCE == 2:
        first = segment * num_past
        count = num_past + 0 * segment
        column = num_segments * num_own + num_patches + first
    return first, count, column


@triton.jit
def key_places(SOURCE: tl.constexpr, past, begin, n, is_key):
    """Rows of the source from ``begin`` on that hold its keys ``n``; which of them are keys."""
    row = n
    if SOURCE == 2:
        row = tl.load(past + begin + n, is_key, other=-1)
        is_key = is_key & (row >= 0)
    return row, is_key


@triton.jit
def key_tile(
    SOURCE: tl.constexpr, own, patches, store, scales, begin, row, is_key, d, width, groups, like
):
    """Keys [BLOCK_N, BLOCK_D] of a source, in the type of ``like``; zeros outside."""
    is_inside = is_key[:, None] & (d < width)[None, :]
    # Offsets of 32 bits within a segment take half the registers.
    at = row[:, None] * width + d[None, :]
    if SOURCE == 0:
        tile = tl.load(own + begin * width + at, is_inside, other=0)
    elif SOURCE == 1:
        tile = tl.load(patches + begin * width + at, is_inside, other=0)
    else:
        levels = tl.load(store + at, is_inside, other=0)
        group = row[:, None] * groups + (d // (width // groups))[None, :]
        tile = levels.to(tl.float32) * tl.load(scales + group, is_inside, other=0)
    return tile.to(like.dtype.element_ty)


@triton.jit
def product(left, right, total, AS_FLOAT32: tl.constexpr):
    if AS_FLOAT32:  # the interpreter's bfloat16 product is wrong
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def scores_kernel(
    left,  # [S, R, D]: queries; in the gradient, that of what they read
    own,  # [S, O, D]
    patches,  # [N, D]
    store,  # [rows, D] int8
    scales,  # [rows, G] float32
    past,  # [S, T] int64 rows of the store, -1 for none
    offsets,  # [S + 1] int64
    scores,  # [R, C] float32; out, in the gradient in
    lse,  # [S, R] float32; out, in the gradient in
    shift,  # [S, R] float32: sums of the gradient times what was read
    gradients,  # [R, C] float32; out: of the products before the scale
    scale,
    num_segments,
    num_left,
    num_own,
    num_patches,
    num_past,
    num_columns,
    width,
    groups,
    IS_GRADIENT: tl.constexpr,
    AS_FLOAT32: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_left = r < num_left
    left_row = segment * num_left + r
    peak = tl.full((BLOCK_R,), -1e38, tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    if IS_GRADIENT:
        own_lse = tl.load(lse + left_row, is_left, other=0)
        own_lse = tl.where(own_lse > -1e38, own_lse, 0)
        own_shift = tl.load(shift + left_row, is_left, other=0)
    for source in tl.static_range(3):
        first, count, column = source_place(
            source, segment, offsets, num_segments, num_own, num_patches, num_past
        )
        for begin in range(0, count, BLOCK_N):
            n = tl.arange(0, BLOCK_N)
            is_place = begin + n < count
            row, is_key = key_places(source, past, first + begin, n, is_place)
            products = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
            for first_d in range(0, width, BLOCK_D):
                d = first_d + tl.arange(0, BLOCK_D)
                key = key_tile(
                    source, own, patches, store, scales, first + begin, row, is_key, d, width,
                    groups, left,
                )  # fmt: skip
                value = tl.load(
                    left + segment * num_left * width + (r[:, None] * width + d[None, :]),
                    is_left[:, None] & (d < width)[None, :],
                    other=0,
                )
                products = product(value, tl.trans(key), products, AS_FLOAT32)
            at = column + begin + (r[:, None] * num_columns + n[None, :])
            is_inside = is_left[:, None] & is_place[None, :]
            if IS_GRADIENT:
                score = tl.load(scores + at, is_inside, other=float("-inf"))
                weight = tl.exp(score - own_lse[:, None])
                gradient = weight * (products - own_shift[:, None]) * scale
                tl.store(gradients + at, gradient, is_inside)
            else:
                score = tl.where(is_key[None, :], products * scale, float("-inf"))
                tl.store(scores + at, score, is_inside)
                higher = tl.maximum(peak, tl.max(score, 1))
                total = total * tl.exp(peak - higher)
                total += tl.sum(tl.exp(score - higher[:, None]), 1)
                peak = higher
    if not IS_GRADIENT:
        value = peak + tl.log(tl.where(total > 0, total, 1.0))
        value = tl.where(total > 0, value, float("-inf"))  # no keys
        tl.store(lse + left_row, value, is_left)


@triton.jit
def weighted_kernel(
    weights,  # [R, C] float32: scores; in the gradient, theirs
    lse,  # [S, R] float32
    own,
    patches,
    store,
    scales,
    past,
    offsets,
    out,  # [S, R, D]
    num_segments,
    num_left,
    num_own,
    num_patches,
    num_past,
    num_columns,
    width,
    groups,
    IS_GRADIENT: tl.constexpr,
    AS_FLOAT32: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_left = r < num_left
    left_row = segment * num_left + r
    own_lse = tl.load(lse + left_row, is_left, other=0)
    own_lse = tl.where(own_lse > -1e38, own_lse, 0)
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for source in tl.static_range(3):
        first, count, column = source_place(
            source, segment, offsets, num_segments, num_own, num_patches, num_past
        )
        for begin in range(0, count, BLOCK_N):
            n = tl.arange(0, BLOCK_N)
            is_place = begin + n < count
            row, is_key = key_places(source, past, first + begin, n, is_place)
            at = column + begin + (r[:, None] * num_columns + n[None, :])
            is_inside = is_left[:, None] & is_key[None, :]
            if IS_GRADIENT:
                weight = tl.load(weights + at, is_inside, other=0)
            else:
                score = tl.load(weights + at, is_inside, other=float("-inf"))
                weight = tl.exp(score - own_lse[:, None])
            key = key_tile(
                source, own, patches, store, scales, first + begin, row, is_key, d, width, groups,
                out,
            )  # fmt: skip
            total = product(weight.to(out.dtype.element_ty), key, total, AS_FLOAT32)
    is_inside = is_left[:, None] & (d < width)[None, :]
    at = r[:, None] * width + d[None, :]
    tl.store(out + segment * num_left * width + at, total, is_inside)


@triton.jit
def keys_gradient_kernel(
    scores,  # [R, C] float32
    gradients,  # [R, C] float32
    lse,  # [S, R] float32
    queries,  # [S, R, D]
    read_gradient,  # [S, R, D]
    past,
    offsets,
    own_out,  # [S, O, D]
    patches_out,  # [N, D]
    num_segments,
    num_left,
    num_own,
    num_patches,
    num_past,
    num_columns,
    width,
    AS_FLOAT32: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(2).to(tl.int64)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    for source in tl.static_range(2):  # the store holds whole numbers: it has no gradient
        first, count, column = source_place(
            source, segment, offsets, num_segments, num_own, num_patches, num_past
        )
        share = tl.program_id(1) * BLOCK_N
        for begin in range(share, count, BLOCK_N * tl.num_programs(1)):
            n = tl.arange(0, BLOCK_N)
            is_key = begin + n < count
            total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            for first_r in range(0, num_left, BLOCK_R):
                r = first_r + tl.arange(0, BLOCK_R)
                is_left = r < num_left
                left_row = segment * num_left + r
                own_lse = tl.load(lse + left_row, is_left, other=0)
                own_lse = tl.where(own_lse > -1e38, own_lse, 0)
                at = column + begin + (r[:, None] * num_columns + n[None, :])
                is_inside = is_left[:, None] & is_key[None, :]
                score = tl.load(scores + at, is_inside, other=float("-inf"))
                weight = tl.exp(score - own_lse[:, None])
                gradient = tl.load(gradients + at, is_inside, other=0)
                value_at = segment * num_left * width + (r[:, None] * width + d[None, :])
                is_value = is_left[:, None] & (d < width)[None, :]
                query = tl.load(queries + value_at, is_value, other=0)
                read = tl.load(read_gradient + value_at, is_value, other=0)
                total = product(tl.trans(weight.to(read.dtype)), read, total, AS_FLOAT32)
                total = product(tl.trans(gradient.to(query.dtype)), query, total, AS_FLOAT32)
            out = (first + begin) * width + (n[:, None] * width + d[None, :])
            is_out = is_key[:, None] & (d < width)[None, :]
            if source == 0:
                tl.store(own_out + out, total, is_out)
            else:
                tl.store(patches_out + out, total, is_out)


KEY = ("width", "num_left", "AS_FLOAT32")
scores_tuned = tuned(scores_kernel, SCORES, (*KEY, "IS_GRADIENT"))
weighted_tuned = tuned(weighted_kernel, WEIGHTED, (*KEY, "IS_GRADIENT"))
keys_gradient_tuned = tuned(keys_gradient_kernel, KEYS_GRADIENT, KEY)


class MemoryRead(torch.autograd.Function):
    """`ops.memory_read` of rows [S, R, D] by the kernels; its gradient has none of its own."""

    @staticmethod
    def forward(context, queries, own, patches, store, scales, past, offsets, scale):
        segments, num_left, width = queries.shape
        sizes = (segments, num_left, own.shape[1], len(patches), past.shape[1])
        columns = segments * (own.shape[1] + past.shape[1]) + len(patches)
        sizes = (*sizes, columns, width, scales.shape[1])
        scores = torch.empty(num_left, columns, device=queries.device)
        lse = torch.empty(segments, num_left, device=queries.device)
        keys = (own, patches, store, scales, past, offsets)
        read = torch.empty_like(queries)
        launch_scores(queries, keys, (scores, lse, lse, scores), scale, sizes, is_gradient=False)
        launch_weighted(scores, lse, keys, read, sizes, is_gradient=False)
        context.save_for_backward(queries, *keys, scores, lse, read)
        context.scale, context.sizes = scale, sizes
        context.mark_non_differentiable(lse)
        return read, lse

    @staticmethod
    def backward(context, gradient, _):
        queries, *keys, scores, lse, read = context.saved_tensors
        own, patches, *_ = keys
        gradient = gradient.to(queries.dtype).contiguous()
        shift = (gradient.float() * read.float()).sum(2)
        gradients = torch.empty_like(scores)
        held = (scores, lse, shift, gradients)
        launch_scores(gradient, keys, held, context.scale, context.sizes, is_gradient=True)
        of_queries = of_own = of_patches = None
        if context.needs_input_grad[0]:
            of_queries = torch.empty_like(queries)
            launch_weighted(gradients, lse, keys, of_queries, context.sizes, is_gradient=True)
        if context.needs_input_grad[1] or context.needs_input_grad[2]:
            of_own, of_patches = torch.empty_like(own), torch.zeros_like(patches)
            segments, width = len(queries), queries.shape[2]
            keys_gradient_tuned[
                lambda blocks: (triton.cdiv(width, blocks["BLOCK_D"]), SHARES, segments)
            ](
                scores, gradients, lse, queries, gradient, *keys[4:], of_own, of_patches,
                *context.sizes[:-1], AS_FLOAT32=queries.device.type == "cpu",
            )  # fmt: skip
        return of_queries, of_own, of_patches, None, None, None, None, None


def launch_scores(left, keys, held, scale, sizes, *, is_gradient):
    segments, num_left = left.shape[:2]
    scores_tuned[lambda blocks: (triton.cdiv(num_left, blocks["BLOCK_R"]), segments)](
        left, *keys, *held, scale, *sizes, IS_GRADIENT=is_gradient,
        AS_FLOAT32=left.device.type == "cpu",
    )  # fmt: skip


def launch_weighted(weights, lse, keys, out, sizes, *, is_gradient):
    segments, num_left, width = out.shape
    weighted_tuned[
        lambda blocks: (
            triton.cdiv(num_left, blocks["BLOCK_R"]),
            triton.cdiv(width, blocks["BLOCK_D"]),
            segments,
        )
    ](
        weights, lse, *keys, out, *sizes, IS_GRADIENT=is_gradient,
        AS_FLOAT32=out.device.type == "cpu",
    )  # fmt: skip
