"""The recurrent memory: a fixed number of slots that stand for everything seen; nothing is learned.

A segment enters with a slot of its own, then the two slots that lose least become one. So slots
that are alike are the first to go and cannot collapse, and all others stay to the bit. What was
measured against learned gates and a tree stands in docs/research/recurrent.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# A free slot is taken unless joining costs less than this, per number of an entry.
FREE_SLOT = 0.02


def empty(slots: int, dim: int) -> Tensor:
    """Return the memory before the first segment: ``slots`` free ones, see ``update``."""
    return torch.zeros(slots, dim + 1)


def update(memory: Tensor, tokens: Tensor) -> Tensor:
    """Take a segment into the memory.

    Two slots are joined where (squared distance) x (1 + log(segments in one x in the other)) is
    least. The logarithm keeps slots even, without which one swallows its neighbours; a steeper
    weight would let a day of the same empty yard outweigh what happened in it once.

    Args:
        memory: [M, D + 1] float32; the last column is how many segments a slot stands for, 0 where
            it is free. The rest of a slot is the mean of theirs.
        tokens: [N, D] of the segment; their mean enters.

    Returns:
        [M, D + 1]; free slots first, the others in the order of the first segment in each.
    """
    entry = F.pad(tokens.to(memory).mean(0, keepdim=True), (0, 1), value=1.0)
    rows = torch.cat([memory, entry])  # [M + 1, D + 1]
    left, right = _cheapest_pair(rows)
    counts = rows[[left, right], -1:]
    joined = (rows[[left, right]] * counts).sum(0) / counts.sum().clamp(min=1)
    joined[-1] = counts.sum()
    return torch.cat([rows[:left], joined[None], rows[left + 1 : right], rows[right + 1 :]])


def _cheapest_pair(rows: Tensor) -> tuple[int, int]:
    """Return which two of the rows [M + 1, D + 1] to join, the earlier one first."""
    slots, counts = rows[:, :-1], rows[:, -1]
    cost = torch.cdist(slots, slots).square() * (1 + (counts[:, None] * counts).log())
    free = (counts == 0)[:, None] | (counts == 0)
    cost[free] = FREE_SLOT * slots.shape[1]
    cost[torch.ones_like(free).tril()] = float("inf")  # each pair once, the earlier row first
    return divmod(int(cost.argmin()), len(rows))
