"""The Triton kernels: compiled for GPUs that need not be there, and timed on the one that is.

    python -m benchmarks kernels [--arch 80 90 100] [--space]

Prints registers, spilled bytes, shared memory and matrix instructions of each kernel at real
shapes, the least time that the bytes take, and the time measured, or why there is none.
"""

import argparse
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from streammem_kernels import ops

# Bytes a second of memory: A100 80 GB SXM, H100 SXM; data sheets.
BANDWIDTH = {"A100": 2.04e12, "H100": 3.35e12}
ROWS, KEY_WIDTH, QUESTIONS, BEST = 1_000_000, 256, 16, 8
STREAMS, PATCHES, WIDTH = 64, 256, 1024
# Of memory_read: segments, patches of each, past tokens, own memory tokens = queries, heads.
SEGMENTS, SEGMENT_PATCHES, PAST, MEMORY, HEADS = 64, 512, 128, 16, 16


def bytes_read() -> dict[str, int]:
    """Bytes that each kernel must read once at the shapes above."""
    return {
        "find_topk int8": ROWS * (KEY_WIDTH + 4),
        "find_topk bfloat16": ROWS * KEY_WIDTH * 2,
        "tilling_step bfloat16": STREAMS * PATCHES * WIDTH * 2,
        # Keys, queries and what is read once, scores written and read once.
        "memory_read bfloat16": SEGMENTS * WIDTH * (2 * SEGMENT_PATCHES + 2 * MEMORY + PAST)
        + 2 * SEGMENTS * MEMORY * HEADS * WIDTH * 2
        + 2 * SEGMENTS * MEMORY * HEADS * (SEGMENT_PATCHES + PAST + MEMORY) * 4,
    }


def sources(whole: bool = False):
    """(name, kernel as Triton's source, options) of each kernel and type.

    With ``whole``, of each choice that is compared on a GPU, else of the first.
    """
    from streammem_kernels import find_topk, memory_read, tilling
    from triton.compiler import ASTSource

    def source(kernel, types, constants):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        # What a launch sees: addresses and sizes are multiples of 16, so that loads are wide.
        aligned = [name for name, type_ in types.items() if type_[0] == "*"]
        sizes = {"width", "num_rows", "share", "num_patches", "num_left", "num_columns"}
        aligned += sizes & types.keys()
        attributes = {
            (kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned
        }
        return ASTSource(kernel, signature, constexprs=constants, attrs=attributes)

    def choices(space):
        for blocks, warps, stages in space if whole else space[:1]:
            yield blocks, {"num_warps": warps, "num_stages": stages}

    for name, keys, parts in (
        ("int8", "*i8", 3),
        ("bfloat16", "*bf16", 3),
        ("float16", "*fp16", 3),
        ("float32", "*fp32", 1),
    ):
        types = {
            "questions": "*bf16" if name == "int8" else keys,
            "keys": keys,
            "scales": "*fp32",
            "ranges": "*i64",
            "mask": "*i1",
            "tenants": "*i32",
            "groups": "*i32",
            "best": "*i64",
            "num_questions": "i32",
            "num_rows": "i32",
            "num_tenants": "i32",
            "width": "i32",
            "share": "i32",
        }
        constants = {
            "PARTS": parts,
            "HAS_SCALES": name == "int8",
            "HAS_MASK": name in ("int8", "float16"),
            "HAS_TENANTS": name == "int8",
            "HAS_GROUPS": name in ("int8", "float16"),
            "AS_FLOAT32": False,
            "K": BEST,
            "BLOCK_Q": find_topk.QUESTIONS,
        }
        for blocks, settings in choices(find_topk.SPACE):
            kernel = source(find_topk.find_topk_kernel, types, constants | blocks)
            yield f"find_topk {name}", kernel, settings
    pointers = dict.fromkeys(("scores", "lse", "shift", "gradients", "scales", "weights"), "*fp32")
    pointers |= {"past": "*i64", "offsets": "*i64", "store": "*i8"}
    inputs = ("left", "own", "patches", "queries", "read_gradient")
    pointers |= dict.fromkeys((*inputs, "out", "own_out", "patches_out"), "*bf16")
    numbers = ("num_segments", "num_left", "num_own", "num_patches", "num_past", "num_columns")
    types = pointers | dict.fromkeys((*numbers, "width", "groups"), "i32") | {"scale": "fp32"}
    for name, kernel, space in (
        ("scores", memory_read.scores_kernel, memory_read.SCORES),
        ("weighted", memory_read.weighted_kernel, memory_read.WEIGHTED),
        ("gradient", memory_read.keys_gradient_kernel, memory_read.KEYS_GRADIENT),
    ):
        own = {name: type_ for name, type_ in types.items() if name in kernel.arg_names}
        for is_gradient in (False, True) if "IS_GRADIENT" in kernel.arg_names else (None,):
            constants = {"AS_FLOAT32": False}
            if is_gradient is not None:
                constants["IS_GRADIENT"] = is_gradient
            shown = f"memory_read {name}{'-back' if is_gradient else ''}"
            for blocks, settings in choices(space):
                yield shown, source(kernel, own, constants | blocks), settings
    doubles = dict.fromkeys(("norms", "cosines", "climb", "learned", "depths", "values"), "*fp64")
    types = doubles | {
        "patches": "*bf16",
        "offsets": "*i64",
        "center": "*fp32",
        "active": "*i1",
        "rows": "*fp32",
        "numbers": "*i64",
        "count": "*i32",
        "index": "*i64",
        "arrived": "*i32",
        "pooled": "*fp32",
        "num_patches": "i32",
        "width": "i32",
        "min_frames": "i32",
        "max_frames": "i32",
    }
    options = ops.TillingOptions()
    constants = {
        "HAS_OFFSETS": False,
        "FLASH": options.flash_frames,
        "MAX_LAG": options.max_lag,
    }
    for blocks, settings in choices(tilling.SPACE):
        kernel = source(tilling.tilling_step_kernel, types, constants | blocks)
        yield "tilling_step bfloat16", kernel, settings | {"enable_fp_fusion": False}
    flush = tilling.tilling_flush_kernel
    types = {name: type_ for name, type_ in types.items() if name in flush.arg_names}
    constants = {name: constants[name] for name in ("FLASH", "MAX_LAG")}
    yield (
        "tilling_step flush",
        source(flush, types, constants),
        {"enable_fp_fusion": False, "num_warps": 1},
    )


def compiled(source, options: dict, arch: int) -> dict[str, int | str]:
    """Compile a kernel for compute capability ``arch`` (80: A100); return what it uses."""
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = kernel.asm["ptx"]
    return {
        **resources(ptx, arch),
        "shared": kernel.metadata.shared,
        "matrix": len(re.findall(r"\bmma\.sync|\bwgmma\.mma_async|\btcgen05\.mma", ptx)),
    }


def resources(ptx: str, arch: int) -> dict[str, int]:
    """Registers of a thread and spilled bytes, as the assembler counts them."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [
            get_ptxas(arch).path,
            "-v",
            f"-arch={target}",
            path,
            "-o",
            Path(folder) / "cubin",
        ]
        log = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120
        ).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
    }


def calls():
    """(name, function to time) of each kernel, on the GPU."""
    questions = torch.randn(QUESTIONS, KEY_WIDTH, device="cuda")
    ranges = torch.tensor([[0, ROWS]] * QUESTIONS, device="cuda")
    keys = torch.nn.functional.normalize(torch.randn(ROWS, KEY_WIDTH, device="cuda"), dim=1)
    scales = keys.abs().amax(1) / 127
    whole = (keys / scales[:, None]).round().to(torch.int8)
    half = keys.bfloat16()
    yield "find_topk int8", lambda: ops.find_topk(questions, whole, ranges, BEST, scales=scales)
    yield "find_topk bfloat16", lambda: ops.find_topk(questions, half, ranges, BEST)
    read = memory_read_case("cuda", torch.bfloat16)
    yield "memory_read bfloat16", lambda: ops.memory_read(**read)
    state = ops.TillingState(STREAMS, WIDTH, device="cuda")
    patches = torch.randn(STREAMS, PATCHES, WIDTH, device="cuda").bfloat16()
    mean = torch.zeros(WIDTH, device="cuda")
    yield "tilling_step bfloat16", lambda: ops.tilling_step(state, patches, mean)


def memory_read_case(device: str, dtype: torch.dtype) -> dict:
    """Arguments of `ops.memory_read` at the shapes above."""

    def normal(*shape):
        return torch.randn(*shape, device=device).to(dtype)

    store = torch.randint(-127, 128, (4096, WIDTH), device=device).to(torch.int8)
    return {
        "queries": normal(SEGMENTS, MEMORY, HEADS, WIDTH),
        "patches": normal(SEGMENTS * SEGMENT_PATCHES, WIDTH),
        "offsets": torch.arange(SEGMENTS + 1, device=device) * SEGMENT_PATCHES,
        "own": normal(SEGMENTS, MEMORY, WIDTH),
        "store": store,
        "scales": torch.rand(len(store), WIDTH // 32, device=device) / 64,
        "past": torch.randint(0, len(store), (SEGMENTS, PAST), device=device),
        "scale": (WIDTH // HEADS) ** -0.5,
    }


def microseconds(call, count: int = 30) -> float:
    """Median time of a call on the GPU, after three that compile it."""
    times = []
    for number in range(count + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(1000 * start.elapsed_time(end))
    return statistics.median(times)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks kernels")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--space", action="store_true", help="all blocks that a GPU compares")
    options = parser.parse_args(arguments)
    for name in ops.KERNELS:
        form, reason = ops.choose(name, "cuda" if torch.cuda.is_available() else "cpu")
        print(f"{name}: {form} runs here: {reason}")
    try:
        import triton
    except ImportError:
        print("not compiled: Triton is not installed: pip install triton")
        return 1
    if triton.knobs.runtime.interpret:
        print("not compiled: TRITON_INTERPRET is set")
        return 1
    print(f"\n{'kernel':22} arch registers spilled shared matrix instructions")
    for name, source, settings in sources(options.space):
        for arch in options.arch:
            used = compiled(source, settings, arch)
            columns = ("registers", "spilled", "shared", "matrix")
            print(f"{name:22} {arch:4}", *(f"{used[column]:8}" for column in columns))
    print(f"\n{'kernel':22} {'bytes':>11}", *(f"{gpu + ' least µs':>14}" for gpu in BANDWIDTH))
    for name, count in bytes_read().items():
        print(f"{name:22} {count:11}", *(f"{1e6 * count / b:14.1f}" for b in BANDWIDTH.values()))
    if not torch.cuda.is_available():
        print("\nnot timed: there is no CUDA device here")
        return 0
    print(f"\n{torch.cuda.get_device_name()}, median µs")
    for name, call in calls():
        print(f"{name:22} {microseconds(call):14.1f}")
    return 0
