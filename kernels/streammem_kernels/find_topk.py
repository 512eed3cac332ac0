"""K3: the k best rows for each question, of keys that are read once; the Triton form.

    score[q, n] = scales[n] * sum_d questions[q, d] * keys[n, d]    for start[q] <= n < stop[q]

One program takes 16 questions and a share of the rows. It keeps their k best rows in registers as
64-bit numbers, the score's ordered bits above the inverted row, so that the greater number has the
greater score or, of equal ones, the lower row. The shares' results are merged by `torch.topk`.

float32 questions are split into three bfloat16 parts that add up to them. int8 and bfloat16 keys
are exact in bfloat16, so that tensor cores form exact products and add them in float32.
"""

import torch
import triton
import triton.language as tl

from streammem_kernels.reference import unpack

QUESTIONS = 16  # rows of the smallest matrix product
BLOCK_N = 128
BLOCK_D = 64
WARPS = 8  # four would need twice the registers, and spill some
SHARES = 264  # programs that fill an H100's 132 multiprocessors twice


@triton.jit
def find_topk_kernel(
    questions,  # [3, Q, D] parts, or [1, Q, D] float32 for float32 keys
    keys,  # [N, D]
    scales,  # [N] float32
    ranges,  # [Q, 2] int64
    best,  # [Q, SHARES, K] int64, out
    num_questions,
    num_rows,
    width,
    share,  # rows of one program, a multiple of BLOCK_N
    PARTS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    AS_FLOAT32: tl.constexpr,  # the interpreter's bfloat16 product is wrong
    K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_question = q < num_questions
    start = tl.load(ranges + 2 * q, is_question, other=0)
    stop = tl.load(ranges + 2 * q + 1, is_question, other=0)
    is_asked = start < stop
    # 1. Rows of this share that some question asks for; the others are not read.
    own = tl.program_id(1).to(tl.int64) * share
    low = tl.maximum(tl.min(tl.where(is_asked, start, num_rows)), own)
    low = own + (low - own) // BLOCK_N * BLOCK_N
    high = tl.minimum(tl.max(tl.where(is_asked, stop, 0)), tl.minimum(own + share, num_rows))
    worst = -9223372036854775808  # below every score
    held = tl.full((BLOCK_Q, K), worst, tl.int64) + tl.arange(0, K)[None, :]  # all different
    # 2. Scores of a block of rows.
    for first in range(low, high, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        is_row = n < num_rows
        scores = tl.zeros((BLOCK_Q, BLOCK_N), tl.float32)
        for column in range(0, width, BLOCK_D):
            d = column + tl.arange(0, BLOCK_D)
            is_column = d < width
            # Offsets of 32 bits take half the registers.
            key = tl.load(
                keys + first * width + (tl.arange(0, BLOCK_N)[None, :] * width + d[:, None]),
                is_row[None, :] & is_column[:, None],
                other=0,
            )
            for part in tl.static_range(PARTS):
                question = tl.load(
                    questions + (part * num_questions + q[:, None]) * width + d[None, :],
                    is_question[:, None] & is_column[None, :],
                    other=0,
                )
                if AS_FLOAT32:
                    question = question.to(tl.float32)
                scores = tl.dot(question, key.to(question.dtype), scores, input_precision="ieee")
        if HAS_SCALES:
            scores *= tl.load(scales + n, is_row, other=0)[None, :]
        # 3. Ordered numbers of 64 bits. Both zeros are one score.
        scores = tl.where(scores == 0, 0.0, scores)
        bits = scores.to(tl.int32, bitcast=True)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        packed = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - n)[None, :]
        is_inside = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None])
        packed = tl.where(is_inside & is_row[None, :], packed, worst)
        # 4. The best of the block takes the place of the worst held, while it is better: at most
        # K times, and seldom after the first blocks. No two numbers are equal.
        top = tl.max(packed, 1)
        lowest = tl.min(held, 1)
        while tl.max((top > lowest).to(tl.int32), 0) > 0:
            is_replaced = (held == lowest[:, None]) & (top > lowest)[:, None]
            held = tl.where(is_replaced, top[:, None], held)
            packed = tl.where(packed == top[:, None], worst, packed)
            top = tl.max(packed, 1)
            lowest = tl.min(held, 1)
    at = (q.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * K
    tl.store(best + at[:, None] + tl.arange(0, K)[None, :], held, is_question[:, None])


def split(questions: torch.Tensor) -> torch.Tensor:
    """Return [3, Q, D] bfloat16 parts whose sum is the float32 [Q, D], but for denormals."""
    high = questions.bfloat16()
    rest = questions - high.float()
    middle = rest.bfloat16()
    return torch.stack([high, middle, (rest - middle.float()).bfloat16()])


def find_topk_triton(
    questions: torch.Tensor,
    keys: torch.Tensor,
    ranges: torch.Tensor,
    k: int,
    scales: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `ops.find_topk` of unit questions by the kernel."""
    num_questions, width = questions.shape
    blocks = triton.cdiv(num_questions, QUESTIONS)
    share = triton.cdiv(triton.cdiv(len(keys), max(1, SHARES // blocks)), BLOCK_N) * BLOCK_N
    shares = triton.cdiv(len(keys), share)
    held = max(2, triton.next_power_of_2(k))
    parts = questions[None] if keys.dtype == torch.float32 else split(questions)
    best = torch.empty(num_questions, shares, held, dtype=torch.int64, device=keys.device)
    find_topk_kernel[(blocks, shares)](
        parts.contiguous(),
        keys,
        scales if scales is not None else keys,
        ranges,
        best,
        num_questions,
        len(keys),
        width,
        share,
        PARTS=len(parts),
        HAS_SCALES=scales is not None,
        AS_FLOAT32=keys.device.type == "cpu",
        K=held,
        BLOCK_Q=QUESTIONS,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
        num_warps=WARPS,
    )
    return unpack(best.flatten(1), k)
