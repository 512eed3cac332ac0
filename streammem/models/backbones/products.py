"""How a Llama's matrices are laid out for decoding on a CPU, one way a route; the routes' names.

It multiplies; what is multiplied when is for ``decoding.py``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, eq=False)
class HalfLinear:
    """Multiplies packed float16 weights in float32.

    FBGEMM sums each row by itself and always in the same order: to the bit, a row's product does
    not depend on the rows beside it. MKL's float32 products do, from four rows on.
    """

    packed: Any

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


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
    weight = torch.cat([_weight(m).t() for m in modules], dim=1).contiguous()
    if not any(hasattr(m, "base_layer") for m in modules):
        parts = weight.split([m.weight.shape[0] for m in modules], dim=1)
        for module, part in zip(modules, parts, strict=True):
            module.weight.data = part.t()
    if gain is None:
        return lambda x: torch.mm(x, weight)
    return lambda x: torch.mm(x * gain, weight)


def _half(modules: list[Any], gain: Tensor | None) -> Linear:
    weight, bias = torch.cat([_weight(m) for m in modules]), modules[0].bias
    if gain is not None:
        weight *= gain
    low, high = torch.aminmax(weight)
    if not FLOAT16_LEAST < torch.maximum(-low, high) < FLOAT16_MOST:  # nor if it is not a number
        return lambda x: F.linear(x, weight, bias)
    return HalfLinear(torch.ops.quantized.linear_prepack_fp16(weight, bias))


def _bfloat16(modules: list[Any], gain: Tensor | None) -> Linear:
    weight, bias = torch.cat([_weight(m) for m in modules]), modules[0].bias
    if gain is not None:
        weight *= gain
    rounded = weight.bfloat16()
    rounded_bias = None if bias is None else bias.bfloat16()
    return lambda x: F.linear(x.bfloat16(), rounded, rounded_bias).float()


def _weight(module: nn.Module) -> Tensor:
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
