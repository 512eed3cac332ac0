"""The kernels by name: each call runs the Triton form or the torch reference, by what fits.

    rows, scores = ops.find_topk(questions, keys, ranges, k=8, scales=scales)
    print(ops.choose("find_topk", questions.device))  # ("torch", "the tensors are on the CPU")

``STREAMMEM_KERNELS=auto`` (the default) takes Triton on a CUDA device where it is installed and
the shapes fit, else torch. ``triton`` and ``torch`` force one.
"""

import os
from importlib.util import find_spec

import torch

from streammem_kernels import reference
from streammem_kernels.state import TillingOptions, TillingState

__all__ = [
    "KernelError",
    "TillingOptions",
    "TillingState",
    "choose",
    "find_topk",
    "memory_read",
    "read_form",
    "tilling_flush",
    "tilling_step",
]

KERNELS = ("find_topk", "memory_read", "tilling_step")
MAX_K = 64  # numbers of 64 bits that a question holds in registers
MAX_SCORES = 2**31 - 1  # of memory_read in one call, at offsets of 32 bits
MAX_ROWS = 2**31 - 1 - 64  # a row or group is half of a number of 64 bits
VARIABLE = "STREAMMEM_KERNELS"


class KernelError(ValueError):
    """`STREAMMEM_KERNELS` asks for what cannot run; the message says why and what can."""


def choose(kernel: str, device: torch.device | str, unfit: str = "") -> tuple[str, str]:
    """Return which form of a kernel runs, ``triton`` or ``torch``, and why.

    Args:
        kernel: one of ``KERNELS``.
        device: where the tensors are.
        unfit: why the shapes or types do not fit the Triton form; empty where they do.

    Raises:
        KernelError: ``STREAMMEM_KERNELS`` is unknown, or forces Triton where it cannot run.
    """
    forced = os.environ.get(VARIABLE) or "auto"
    if forced not in ("auto", "triton", "torch"):
        raise KernelError(f"{VARIABLE}={forced}: give auto, triton or torch")
    if forced == "torch":
        return "torch", f"{VARIABLE}=torch"
    device = torch.device(device)
    # The interpreter runs Triton on the CPU, thousands of times slower: for tests.
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    reason = unfit
    if device.type == "cpu" and not (forced == "triton" and is_interpreted):
        reason = "the tensors are on the CPU"
    elif not find_spec("triton"):
        reason = "Triton is not installed"
    elif device.type not in ("cpu", "cuda"):
        reason = f"Triton has no form for {device.type}"
    if not reason:
        return "triton", f"{VARIABLE}=triton" if forced == "triton" else "the tensors are on CUDA"
    if forced == "triton":
        raise KernelError(f"{VARIABLE}=triton: {kernel} cannot run in Triton: {reason}; use auto")
    return "torch", reason


def read_form(queries: torch.Tensor, num_keys: int) -> tuple[str, str]:
    """Return which form ``memory_read`` takes, and why; see ``choose``.

    Args:
        queries: [S, ...] float, of all segments.
        num_keys: of all segments together.
    """
    scores = queries[0].numel() // queries.shape[-1] * num_keys if len(queries) else 0
    unfit = "the queries are of 64 bits" if queries.dtype == torch.float64 else ""
    if scores > MAX_SCORES:
        unfit = f"{scores} scores are above {MAX_SCORES}"
    return choose("memory_read", queries.device, unfit)


def find_topk(
    questions: torch.Tensor,
    keys: torch.Tensor,
    ranges: torch.Tensor,
    k: int,
    *,
    scales: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    tenants: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the rows of greatest cosine for each question, among those that it may see.

    Args:
        questions: [Q, D] float, Q >= 1; need not be normalised. A zero row scores 0.
        keys: [N, D] int8, float16, bfloat16 or float32, finite. Times their scales, of length 1.
        ranges: [Q, 2] int64: first row and the row after the last; empty where not ascending.
        k: >= 1; the Triton form takes at most 64.
        scales: [N] float32 > 0, one a row; None for 1.
        mask: [Q, T] bool, tenants that a question may see; None for all.
        tenants: [N] int32 in [0, T), of each row; None where each row is a tenant, T = N.
        groups: [N] int32 in [0, 2^31 - 65], of each row, as a segment's several keys; a group's
            best row counts. None where each row is a group.

    Returns:
        Rows, or groups, [Q, k] int64, best first, equal scores by lower number, -1 where there
        are no more; scores [Q, k] float32, minus infinity there.

    Raises:
        ValueError: shapes or types do not fit each other.
        KernelError: see ``choose``.
    """
    if keys.dtype not in (torch.int8, torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"keys of {keys.dtype}: give int8, float16, bfloat16 or float32")
    if questions.ndim != 2 or keys.ndim != 2 or questions.shape[1] != keys.shape[1]:
        raise ValueError(
            f"questions {tuple(questions.shape)} and keys {tuple(keys.shape)}: give [Q, D], [N, D]"
        )
    if ranges.shape != (len(questions), 2) or ranges.dtype != torch.int64:
        raise ValueError(f"ranges {tuple(ranges.shape)} {ranges.dtype}: give [Q, 2] int64")
    for name, tensor, dtype in (
        ("scales", scales, torch.float32),
        ("tenants", tenants, torch.int32),
        ("groups", groups, torch.int32),
    ):
        if tensor is not None and (tensor.shape != keys.shape[:1] or tensor.dtype != dtype):
            given = f"{name} {tuple(tensor.shape)} {tensor.dtype}"
            raise ValueError(f"{given}: give [{len(keys)}] {dtype}")
    if tenants is not None and mask is None:
        raise ValueError("tenants without a mask: give [Q, T] bool")
    if mask is not None:
        width = len(keys) if tenants is None else mask.shape[-1]
        if mask.shape != (len(questions), width) or mask.dtype != torch.bool:
            raise ValueError(f"mask {tuple(mask.shape)} {mask.dtype}: give [Q, T] bool")
    if k < 1 or len(keys) > MAX_ROWS:
        raise ValueError(f"{k=} of {len(keys)} rows: give k >= 1 and at most {MAX_ROWS} rows")
    unit = torch.nn.functional.normalize(questions.float(), dim=1)
    unfit = f"k={k} is above {MAX_K}" if k > MAX_K else ""
    form, _ = choose("find_topk", keys.device, unfit)
    # Nothing to launch for.
    if form == "torch" or not len(keys) or not len(questions):
        return reference.find_topk_reference(unit, keys, ranges, k, scales, mask, tenants, groups)
    from streammem_kernels.find_topk import find_topk_triton

    given = (unit, keys, ranges)
    options = (scales, mask, tenants, groups)
    return find_topk_triton(
        *(tensor.contiguous() for tensor in given),
        k,
        *(None if tensor is None else tensor.contiguous() for tensor in options),
    )


def memory_read(
    queries: torch.Tensor,
    patches: torch.Tensor,
    offsets: torch.Tensor,
    *,
    scale: float,
    own: torch.Tensor | None = None,
    store: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    past: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let each segment's queries read its own memory, its patches and past memories, as one.

    Attention in the absorbed form: keys are also the values, and none is projected. Differentiable
    in ``queries``, ``patches`` and ``own``.

    Args:
        queries: [S, M, H, D] float: M queries of H heads, the key projection applied.
        patches: [N, D], the segments' patches one after another.
        offsets: [S + 1] int64, ascending from 0 to N: where each segment's patches start.
        scale: of the scores; 1 / sqrt(width of a head) before the projection.
        own: [S, O, D], the memory before each segment; None for none.
        store: [rows, D] int8, past memory tokens; None for none.
        scales: [rows, G] float32; a row's D values lie in G groups of one scale each.
        past: [S, T] int64, rows of ``store`` that a segment may read; -1 for none.

    Returns:
        What was read, [S, M, H, D] in the queries' type, zeros where there is no key; and the
        logarithm of the sum of the scores' exponentials, [S, M, H], minus infinity there, without
        a gradient.

    Raises:
        ValueError: shapes or types do not fit each other.
        KernelError: see ``choose``.
    """
    if queries.ndim != 4 or not queries.is_floating_point():
        raise ValueError(f"queries {tuple(queries.shape)} {queries.dtype}: give [S, M, H, D] float")
    segments, _, _, width = queries.shape
    own = queries.new_empty(segments, 0, width) if own is None else own
    if (store is None) != (past is None) or (store is None) != (scales is None):
        raise ValueError("of store, scales and past only some: give all three or none")
    if store is None or scales is None or past is None:
        store = torch.empty(0, width, dtype=torch.int8, device=queries.device)
        scales = torch.empty(0, 1, device=queries.device)
        past = torch.empty(segments, 0, dtype=torch.int64, device=queries.device)
    groups = scales.shape[-1]
    for name, tensor, shape, dtype in (
        ("patches", patches, (len(patches), width), queries.dtype),
        ("offsets", offsets, (segments + 1,), torch.int64),
        ("own", own, (segments, own.shape[1], width), queries.dtype),
        ("store", store, (len(store), width), torch.int8),
        ("scales", scales, (len(store), groups), torch.float32),
        ("past", past, (segments, past.shape[-1]), torch.int64),
    ):
        if tensor.shape != shape or tensor.dtype != dtype:
            given = f"{name} {tuple(tensor.shape)} {tensor.dtype}"
            raise ValueError(f"{given}: give {list(shape)} {dtype}")
    if not groups or width % groups:
        raise ValueError(f"{groups} scales a row of width {width}: give a divisor of the width")
    rows = queries.flatten(1, 2)  # [S, M * H, D]
    form, _ = read_form(rows, segments * (own.shape[1] + past.shape[1]) + len(patches))
    given = (rows, own, patches, store, scales, past, offsets)
    if form == "torch" or not rows.numel():
        read, lse = reference.memory_read_reference(*given, scale)
    else:
        from streammem_kernels.memory_read import MemoryRead

        read, lse = MemoryRead.apply(*(tensor.contiguous() for tensor in given), scale)
    return read.view_as(queries), lse.view(queries.shape[:3])


def tilling_step(
    state: TillingState,
    patches: torch.Tensor,
    mean: torch.Tensor,
    active: torch.Tensor | None = None,
    *,
    offsets: torch.Tensor | None = None,
) -> None:
    """Add one frame to each active stream; the state changes in place and holds what was found.

    Args:
        state: of S streams.
        patches: [S, P, D] float, P >= 1: the frames' patch embeddings; with offsets [N, D].
        mean: [D] float32, the encoder's mean, which is subtracted.
        active: [S] bool, streams that have a new frame; None for all that have patches.
        offsets: [S + 1] int64, ascending from 0 to N: where each stream's patches start. A stream
            without patches is not active.

    Raises:
        ValueError: shapes do not fit the state.
        KernelError: see ``choose``.
    """
    streams, _, width = state.rows.shape
    if offsets is not None:
        if patches.ndim != 2 or patches.shape[1] != width:
            raise ValueError(f"patches {tuple(patches.shape)} with offsets: give [N, {width}]")
        if offsets.shape != (streams + 1,) or offsets.dtype != torch.int64:
            given = f"offsets {tuple(offsets.shape)} {offsets.dtype}"
            raise ValueError(f"{given}: give [{streams + 1}] int64")
        has_patches = offsets.diff() > 0
        active = has_patches if active is None else active & has_patches
    elif patches.ndim != 3 or patches.shape[::2] != (streams, width) or not patches.shape[1]:
        raise ValueError(f"patches {tuple(patches.shape)}: give [{streams}, P, {width}]")
    if mean.shape != (width,) or mean.dtype != torch.float32:
        raise ValueError(f"mean {tuple(mean.shape)} {mean.dtype}: give [{width}] float32")
    active = _active(state, active)
    form, _ = choose("tilling_step", patches.device)
    if form == "torch":
        reference.tilling_step_reference(state, patches, mean, active, offsets)
        return
    from streammem_kernels.tilling import tilling_step_triton

    offsets = None if offsets is None else offsets.contiguous()
    tilling_step_triton(state, patches.contiguous(), mean.contiguous(), active, offsets)


def tilling_flush(state: TillingState, active: torch.Tensor | None = None) -> None:
    """End streams: settle what is still open; frames pushed later start a new scene.

    Args:
        state: of S streams; it changes in place and holds what was found.
        active: [S] bool, streams that end; None for all.

    Raises:
        ValueError: ``active`` does not fit the state.
        KernelError: see ``choose``.
    """
    active = _active(state, active)
    form, _ = choose("tilling_step", state.rows.device)
    if form == "torch":
        reference.tilling_flush_reference(state, active)
        return
    from streammem_kernels.tilling import tilling_flush_triton

    tilling_flush_triton(state, active)


def _active(state: TillingState, active: torch.Tensor | None) -> torch.Tensor:
    streams = len(state.rows)
    if active is None:
        return torch.ones(streams, dtype=torch.bool, device=state.rows.device)
    if active.shape != (streams,) or active.dtype != torch.bool:
        raise ValueError(f"active {tuple(active.shape)} {active.dtype}: give [{streams}] bool")
    return active.contiguous()
