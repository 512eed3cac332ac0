"""Low-rank changes of matrices, multiplied beside the matrices as they are.

    changes = differences(answers, lora, scale)  # by module: W + B A
    decoder = language.decoder().adapted(changes)

So a language model with another LoRA needs no copy of the weights. A product is then three, which
takes a quarter of the time of a token more at rank 32, on a CPU.

Source: LoRA (arXiv 2106.09685), section 4.1, not merged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streammem.errors import CheckpointError
from streammem.models.backbones.products import Fuse, HalfLinear, Linear

LowRank = tuple[Tensor, Tensor]  # A [r, in] and B [out, r], of W + B A


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedLinear:
    """A product and its low-rank change: [M, in] -> [M, out].

    Attributes:
        base: of the weights that others use too.
        down: [M, in] -> [M, r].
        up: [M, r] -> [M, out].
    """

    base: Linear
    down: Linear
    up: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def keeps_rows_apart(product: Linear) -> bool:
    """Tell whether a row's product depends on no other row, to the bit."""
    if isinstance(product, AdaptedLinear):
        return all(map(keeps_rows_apart, (product.base, product.down, product.up)))
    return isinstance(product, HalfLinear) and bool(product.counts)


def adapt(
    product: Linear,
    changes: Sequence[LowRank | None],
    heights: Sequence[int],
    gain: Tensor | None,
    fuse: Fuse,
) -> Linear:
    """Change the product of one or several modules with equal input.

    Args:
        product: [M, in] -> [M, sum of ``heights``], as ``fuse`` made it.
        changes: of each module; None leaves it as it is.
        heights: rows of each module's weight.
        gain: [in] of the input, as ``fuse`` was given it.
        fuse: of the route of ``product``.
    """
    kept = [change for change in changes if change]
    if not kept:
        return product
    ranks = [len(change[0]) if change else 0 for change in changes]
    up = torch.zeros(sum(heights), sum(ranks))
    row = column = 0
    for change, height, rank in zip(changes, heights, ranks, strict=True):
        if change:
            up[row : row + height, column : column + rank] = change[1]
        row, column = row + height, column + rank
    down = torch.cat([a for a, _ in kept])
    return AdaptedLinear(product, fuse([_linear(down)], gain), fuse([_linear(up)], None))


def _linear(weight: Tensor) -> nn.Linear:
    """Make a linear module of a weight [out, in]."""
    module = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return module


def pairs(lora: Mapping[str, Tensor], scale: float) -> dict[str, LowRank]:
    """Return a LoRA's changes by module, the scale in B.

    Args:
        lora: ``<module>.A`` [r, in] and ``<module>.B`` [out, r].
        scale: alpha / r.

    Raises:
        CheckpointError: half a pair, or two that cannot be multiplied.
    """
    found = {}
    for name in sorted({key.rpartition(".")[0] for key in lora}):
        a, b = lora.get(f"{name}.A"), lora.get(f"{name}.B")
        if a is None or b is None or (a.ndim, b.ndim) != (2, 2) or a.shape[0] != b.shape[1]:
            sizes = [None if m is None else tuple(m.shape) for m in (a, b)]
            raise CheckpointError(f"lora: {name}: its A and B are no pair ({sizes})")
        found[name] = a.float(), b.float() * scale
    return found


def differences(
    wanted: Mapping[str, Tensor], merged: Mapping[str, Tensor], scale: float
) -> dict[str, LowRank]:
    """Return what changes weights into which one LoRA was merged into those with another.

    Args:
        wanted: see ``pairs``.
        merged: likewise.
        scale: of both.

    Raises:
        CheckpointError: as ``pairs``.
    """
    changes = pairs(wanted, scale)
    for name, (a, b) in pairs(merged, scale).items():
        if name not in changes:
            changes[name] = a, -b
        else:
            own_a, own_b = changes[name]
            changes[name] = torch.cat([own_a, a]), torch.cat([own_b, -b], dim=1)
    return changes
