"""The key space that pictures and sentences share: one unit vector each, near where they agree.

No index lives here (see ``index.py``) and no sentence encoder (see ``backbones/text.py``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.memory.bridge import Attention


class PictureKey(nn.Module):
    """A picture's key from its patches: learned queries attend to them, an MLP maps the rest."""

    patch_mean: Tensor
    patch_std: Tensor

    def __init__(
        self, patch_dim: int, key_dim: int = 256, *, dim: int = 256, queries: int = 4
    ) -> None:
        super().__init__()
        self.register_buffer("patch_mean", torch.zeros(patch_dim))
        self.register_buffer("patch_std", torch.ones(patch_dim))
        self.patch_in = nn.Linear(patch_dim, dim)
        self.drop = nn.Dropout(0.2)
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(queries, dim))
        self.attention = Attention(dim, 4, 0.1)
        self.out = nn.Sequential(
            nn.LayerNorm((queries + 1) * dim),
            nn.Dropout(0.3),
            nn.Linear((queries + 1) * dim, 2 * dim),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(2 * dim, key_dim),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches [B, P, V] to unit keys [B, K]."""
        x = self.patch_in(self.drop((patches - self.patch_mean) / self.patch_std))
        x = F.gelu(self.norm(x))
        pooled = self.attention(self.queries.expand(len(x), -1, -1), x)
        joined = torch.cat([pooled.flatten(1), x.mean(1)], dim=1)
        return F.normalize(self.out(joined), dim=-1)


class TextKey(nn.Module):
    """A sentence's key from its frozen sentence embedding: a linear map and a small correction."""

    def __init__(self, text_dim: int = 384, key_dim: int = 256) -> None:
        super().__init__()
        self.linear = nn.Linear(text_dim, key_dim)
        self.correction = nn.Sequential(
            nn.Linear(text_dim, 2 * key_dim),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(2 * key_dim, key_dim),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map sentence embeddings [B, E], unit rows, to unit keys [B, K]."""
        return F.normalize(self.linear(embeddings) + 0.5 * self.correction(embeddings), dim=-1)
