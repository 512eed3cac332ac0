"""How a Llama's matrices are laid out for decoding on a CPU, one way a route; the routes' names.

It multiplies; what is multiplied when is for ``decoding.py``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Route = Literal["exact", "half", "bfloat16"]
Linear = Callable[[Tensor], Tensor]
# Of modules with equal input, and the gains [in] of that input if a norm stands before it.
Fuse = Callable[[list[Any], Tensor | None], Linear]
# Largest weight of a matrix that float16 holds well: not infinite, and its unit of 6e-8 for the
# smallest values is less than a rounding error of the largest.
FLOAT16_LEAST, FLOAT16_MOST = 1e-3, 65504.0
BLOCK = 120  # rows that FBGEMM multiplies before it takes the next ones
MOST_ADDED = 4  # rows of zeros that a product may take in addition


@dataclass(frozen=True, slots=True, eq=False)
class HalfLinear:
    """Multiplies packed float16 weights in float32; a row's product depends on no other row.

    To the bit, and at every number of rows: see ``row_counts``. MKL's float32 products do depend
    on the other rows, from four rows on.

    Attributes:
        packed: the weights [in, out] and the bias, as FBGEMM holds them.
        counts: ``row_counts`` of the input's width; empty where products depend on other rows.
    """

    packed: Any
    counts: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [M, in]: [M, out]."""
        count = len(x)
        added = self.counts[count % BLOCK] - count % BLOCK if self.counts else 0
        if not added:
            return _multiply(x, self.packed)
        return _multiply(F.pad(x, (0, 0, 0, added)), self.packed)[:count]


def _multiply(x: Tensor, packed: Any) -> Tensor:
    return torch.ops.quantized.linear_dynamic_fp16(x, packed)


@cache
def row_counts(width: int) -> tuple[int, ...]:
    """Measure at which numbers of rows FBGEMM sums every row in one and the same order.

    FBGEMM divides the rows of a product among kernels of 1 to 6 rows (AVX2) or 1 to 14 (AVX-512).
    With AVX-512 all kernels sum alike. With AVX2 the kernel of one row keeps four partial sums and
    that of two rows sums differently again, but those of 3 to 6 rows sum alike: rows of zeros are
    added until no kernel of one or two rows has work (1 -> 3, 2 -> 3, 7 -> 8, ...). This measures
    instead of asking for the instruction set, so that another FBGEMM is judged by what it does.

    Args:
        width: of the rows, >= 1. 40 ms at 1536, once in a process.

    Returns:
        BLOCK entries: for m rows, m or the least larger number at which each row, at any place,
        has the product that it has among BLOCK rows. Empty if that takes over MOST_ADDED rows.
    """
    generator = torch.Generator().manual_seed(0)
    # 40 columns: a whole block of columns of either instruction set, and a part of one.
    packed = torch.ops.quantized.linear_prepack_fp16(
        torch.randn(40, width, generator=generator), None
    )
    rows = torch.randn(BLOCK, width, generator=generator)
    expected, counts, least = _multiply(rows, packed), [BLOCK] * BLOCK, BLOCK
    for count in reversed(range(1, BLOCK)):
        places = [slice(first, first + count) for first in (0, BLOCK - count)]
        if all(torch.equal(_multiply(rows[p], packed), expected[p]) for p in places):
            least = count
        if least - count > MOST_ADDED:
            return ()
        counts[count] = least
    counts[0] = 0
    return tuple(counts)


def why_rows_are_apart() -> tuple[bool, str]:
    """Tell whether several scenes can be described together here, and the reason."""
    if not has_half():
        return False, "float32 products of a scene depend on the others"
    counts = row_counts(576)  # of the default language model
    if not counts:
        return False, "float16 products of a scene depend on the others, however many rows"
    if counts == tuple(range(BLOCK)):
        return True, "a scene's products depend on no other"
    return True, f"in products of at least {counts[1]} rows, a scene's depend on no other"


def has_half() -> bool:
    """Tell whether this torch multiplies float16 weights fast: FBGEMM, on x86 with AVX2."""
    return (
        hasattr(torch.ops.quantized, "linear_prepack_fp16")
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and bool({"fbgemm", "x86"} & set(torch.backends.quantized.supported_engines))
    )


def has_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16: AVX-512 BF16 or AMX."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def gain_of(norm: Any) -> Tensor:
    """Return what a norm multiplies a direction by, [D]."""
    return norm.weight * math.sqrt(len(norm.weight))


def _exact(modules: list[Any], gain: Tensor | None) -> Linear:
    """Lay the weights out as [in, out]: MKL then reads them in order, 30% faster for one row."""
    weight = torch.cat([weight_of(m).t() for m in modules], dim=1).contiguous()
    if not any(hasattr(m, "base_layer") for m in modules):
        parts = weight.split([m.weight.shape[0] for m in modules], dim=1)
        for module, part in zip(modules, parts, strict=True):
            module.weight.data = part.t()
    if gain is None:
        return lambda x: torch.mm(x, weight)
    return lambda x: torch.mm(x * gain, weight)


def _half(modules: list[Any], gain: Tensor | None) -> Linear:
    weight, bias = torch.cat([weight_of(m) for m in modules]), modules[0].bias
    if gain is not None:
        weight *= gain
    low, high = torch.aminmax(weight)
    if not FLOAT16_LEAST < torch.maximum(-low, high) < FLOAT16_MOST:  # nor if it is not a number
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    return HalfLinear(packed, row_counts(weight.shape[1]))


def _bfloat16(modules: list[Any], gain: Tensor | None) -> Linear:
    weight, bias = torch.cat([weight_of(m) for m in modules]), modules[0].bias
    if gain is not None:
        weight *= gain
    rounded = weight.bfloat16()
    rounded_bias = None if bias is None else bias.bfloat16()
    return lambda x: F.linear(x.bfloat16(), rounded, rounded_bias).float()


def weight_of(module: nn.Module) -> Tensor:
    """Return a linear module's weight [out, in], its LoRA added."""
    base: Any = getattr(module, "base_layer", None)
    if base is None:
        return module.weight  # type: ignore[return-value]
    lora: Any = module
    if lora.merged:
        return base.weight
    return base.weight + sum(lora.get_delta_weight(name) for name in lora.active_adapters)


FUSE: dict[Route, Fuse] = {
    "exact": _exact,
    "half": _half,
    "bfloat16": _bfloat16,
}
