"""K3: the k best rows for each question, of keys that are read once; the Triton form.

    score[q, n] = scales[n] * sum_d questions[q, d] * keys[n, d]
                  for start[q] <= n < stop[q] and mask[q, tenants[n]]
    the k greatest of each question; with groups, of max over the rows n of a group

One program takes 16 questions and a share of the rows. It keeps their k best rows in registers as
64-bit numbers, the score's ordered bits above the inverted row or group, so that the greater number
has the greater score or, of equal ones, the lower row. Of a group only the best is kept: it takes
the place of the one that is held. A few sorts of torch merge the shares' results.

float32 questions are split into three bfloat16 parts that add up to them, for float16 keys into
float16 parts. int8 and bfloat16 keys are exact in bfloat16, so that tensor cores form exact
products and add them in float32.
"""

import torch
import triton
import triton.language as tl

from streammem_kernels.reference import unpack
from streammem_kernels.tuning import tuned

QUESTIONS = 16  # rows of the smallest matrix product
# Four warps of the first would need twice the registers, and spill some.
SPACE = [
    ({"BLOCK_N": 128, "BLOCK_D": 64}, 8, 3),
    ({"BLOCK_N": 64, "BLOCK_D": 64}, 4, 3),
    ({"BLOCK_N": 64, "BLOCK_D": 128}, 4, 3),
    ({"BLOCK_N": 128, "BLOCK_D": 128}, 8, 2),
]
MAX_BLOCK_N = 128
SHARES = 264  # programs that fill an H100's 132 multiprocessors twice


@triton.jit
def find_topk_kernel(
    questions,  # [3, Q, D] parts, or [1, Q, D] float32 for float32 keys
    keys,  # [N, D]
    scales,  # [N] float32
    ranges,  # [Q, 2] int64
    mask,  # [Q, T] bool
    tenants,  # [N] int32 in [0, T)
    groups,  # [N] int32 >= 0
    best,  # [Q, SHARES, K] int64, out
    num_questions,
    num_rows,
    num_tenants,
    width,
    share,  # rows of one program, a multiple of BLOCK_N
    PARTS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_TENANTS: tl.constexpr,  # if not, each row is a tenant
    HAS_GROUPS: tl.constexpr,  # if not, each row is a group
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
        group = n.to(tl.int32)
        if HAS_GROUPS:
            group = tl.load(groups + n, is_row, other=0)
        packed = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - group)[None, :]
        is_inside = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None]) & is_row[None, :]
        if HAS_MASK:
            tenant = n
            if HAS_TENANTS:
                tenant = tl.load(tenants + n, is_row, other=0)
            at = q.to(tl.int64)[:, None] * num_tenants + tenant[None, :]
            is_inside &= tl.load(mask + at, is_inside & is_question[:, None], other=0) != 0
        packed = tl.where(is_inside, packed, worst)
        # 4. The best of the block takes the place of its own group's, or of the worst held, while
        # it is better: seldom after the first blocks. The low halves of two held are different.
        top = tl.max(packed, 1)
        lowest = tl.min(held, 1)
        while tl.max((top > lowest).to(tl.int32), 0) > 0:
            number = top.to(tl.int32)[:, None]
            place = lowest
            if HAS_GROUPS:
                of_group = tl.max(tl.where(held.to(tl.int32) == number, held, worst), 1)
                place = tl.maximum(lowest, of_group)
            is_replaced = (held == place[:, None]) & (top > place)[:, None]
            held = tl.where(is_replaced, top[:, None], held)
            packed = tl.where(packed.to(tl.int32) == number, worst, packed)
            top = tl.max(packed, 1)
            lowest = tl.min(held, 1)
    at = (q.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * K
    tl.store(best + at[:, None] + tl.arange(0, K)[None, :], held, is_question[:, None])


find_topk_tuned = tuned(find_topk_kernel, SPACE, ("width", "K", "PARTS", "HAS_SCALES"))


def split(questions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return parts [3, Q, D] whose sum is the unit float32 [Q, D] to 2^-25 and better."""
    high = questions.to(dtype)
    rest = questions - high.float()
    middle = rest.to(dtype)
    return torch.stack([high, middle, (rest - middle.float()).to(dtype)])


def find_topk_triton(
    questions: torch.Tensor,
    keys: torch.Tensor,
    ranges: torch.Tensor,
    k: int,
    scales: torch.Tensor | None,
    mask: torch.Tensor | None,
    tenants: torch.Tensor | None,
    groups: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `ops.find_topk` of unit questions by the kernel."""
    num_questions, width = questions.shape
    blocks = triton.cdiv(num_questions, QUESTIONS)
    share = triton.cdiv(triton.cdiv(len(keys), max(1, SHARES // blocks)), MAX_BLOCK_N) * MAX_BLOCK_N
    shares = triton.cdiv(len(keys), share)
    held = max(2, triton.next_power_of_2(k))
    parts_dtype = torch.float16 if keys.dtype == torch.float16 else torch.bfloat16
    is_float32 = keys.dtype == torch.float32
    parts = questions[None] if is_float32 else split(questions, parts_dtype)
    best = torch.empty(num_questions, shares, held, dtype=torch.int64, device=keys.device)
    find_topk_tuned[lambda _: (blocks, shares)](
        parts.contiguous(),
        keys,
        scales if scales is not None else keys,
        ranges,
        mask if mask is not None else keys,
        tenants if tenants is not None else keys,
        groups if groups is not None else keys,
        best,
        num_questions,
        len(keys),
        0 if mask is None else mask.shape[1],
        width,
        share,
        PARTS=len(parts),
        HAS_SCALES=scales is not None,
        HAS_MASK=mask is not None,
        HAS_TENANTS=tenants is not None,
        HAS_GROUPS=groups is not None,
        AS_FLOAT32=keys.device.type == "cpu",
        K=held,
        BLOCK_Q=QUESTIONS,
    )
    return unpack(best.flatten(1), k, has_groups=groups is not None)
