"""Names of things that a segment's tokens show, for prompts that answer questions.

    words = WordsOfTokens(16, 384, ("cup", "knife"))
    words.likely(tokens, 5)  # ["knife"]

It reads what the memory keeps of a segment, so that it also names what memories of before show.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHOWN = 5  # words of a segment that a prompt shows, at most
LEAST_SHOWN = 0.25  # probability of a word that a prompt shows
DROPOUT = 0.4


class WordsOfTokens(nn.Module):
    """Scores each name by a two-layer perceptron over all tokens of a segment.

    Args:
        tokens: M, tokens of a segment.
        dim: D, their width.
        names: of the things, in the order of their scores, each once.
        hidden: width of the hidden layer.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, tokens: int, dim: int, names: Sequence[str], hidden: int = 256) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.down = nn.Linear(tokens * dim, hidden)
        self.drop = nn.Dropout(DROPOUT)
        self.up = nn.Linear(hidden, len(self.names))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, M, D] to logits [B, W], each that the thing is there."""
        x = ((tokens - self.center) / self.scale).flatten(1)
        return self.up(self.drop(F.gelu(self.down(x))))

    @torch.inference_mode()
    def likely(self, tokens: Tensor, count: int, least: float = 0.0) -> list[str]:
        """Name what a segment most likely shows, the likeliest first.

        Args:
            tokens: [M, D] of one segment.
            count: names at most.
            least: probability of a name that is given, in [0, 1].
        """
        shares = self(tokens[None].float())[0].sigmoid()
        best = shares.topk(min(count, len(shares)))
        return [
            self.names[i]
            for share, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if share >= least
        ]
