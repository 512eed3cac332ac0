"""VideoLLaMB's memory bridge to the letter: post-norm layers, prepended memory, retrieval.

Modules bear the published names, so that a state dict fits as it is. No stream state lives here.
Our own bridge, with this one's faults mended, stands in ``memory/bridge.py``.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Legend: B batch, M memory tokens, S tokens of a segment, C cached tokens, D width, L language
# model width, N = 1 + P tokens a frame.

InitialMemory = Literal["distinct", "zeros"]


@dataclass(frozen=True, slots=True)
class ParentBridgeConfig:
    """Sizes of the bridge.

    Attributes:
        width: D.
        language_width: L.
        memory_tokens: M.
        layers: of the projector.
        heads: attention heads; they divide D.
        mlp: width between the two products of a layer's MLP.
        norm_eps: of the layer norms.
        dropout: in training, after each block, in [0, 1).
        attention_dropout: in training, of attention's weights, in [0, 1).
        positions: rows of the segment-position table; 0 for a bridge without.
    """

    width: int = 1024
    language_width: int = 4096
    memory_tokens: int = 32
    layers: int = 1
    heads: int = 8
    mlp: int = 4096
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    positions: int = 0


class Residual(nn.Module):
    """norm(x + dropout(product of what a block computed)): a block's end in a post-norm layer."""

    def __init__(self, config: ParentBridgeConfig, inside: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inside, config.width)
        self.layernorm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, computed: Tensor) -> Tensor:
        return self.layernorm(x + self.drop(self.dense(computed)))


class Attention(nn.Module):
    """Multi-head attention with its residual and norm; no positions, no mask."""

    def __init__(self, config: ParentBridgeConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.residual = Residual(config, config.width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(of), "b n (h d) -> b h n d", h=self.heads)
            for project, of in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.residual(x, rearrange(attended, "b h n d -> b n (h d)"))


class BridgeLayer(nn.Module):
    """Self-attention, then an MLP, each ended by its post-norm residual."""

    def __init__(self, config: ParentBridgeConfig) -> None:
        super().__init__()
        self.selfattention = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(config.width, config.mlp), nn.GELU())
        self.residual = Residual(config, config.mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = self.selfattention(x, x)
        return self.residual(x, self.mlp(x))


class RetrievalLayer(nn.Module):
    """Cross-attention over the cache, and nothing else."""

    def __init__(self, config: ParentBridgeConfig) -> None:
        super().__init__()
        self.crossattention = Attention(config)

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        return self.crossattention(x, cache)


class Projector(nn.Module):
    """The layers over [memory; segment], the first memory, and the way into the language model."""

    def __init__(self, config: ParentBridgeConfig) -> None:
        super().__init__()
        self.read_memory_emb = nn.Parameter(torch.zeros(config.memory_tokens, config.width))
        self.layers = nn.ModuleList(BridgeLayer(config) for _ in range(config.layers))
        # The GELU at the end is the parent's: no entry of a visual token lies below -0.17.
        self.proj = nn.Sequential(nn.Linear(config.width, config.language_width), nn.GELU())


class Retriever(nn.Module):
    """One layer that reads the cache with the memory as queries."""

    def __init__(self, config: ParentBridgeConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([RetrievalLayer(config)])


class Read(NamedTuple):
    """What the bridge makes of one segment, before retrieval.

    Attributes:
        memory: [B, M, D].
        hidden: [B, S, D] its tokens, as ``to_language`` takes them.
    """

    memory: Tensor
    hidden: Tensor


class ParentBridge(nn.Module):
    """VideoLLaMB's bridge.

    Source: VideoLLaMB (arXiv 2409.01071), section 3.2, as its published code computes it.
    """

    def __init__(self, config: ParentBridgeConfig) -> None:
        super().__init__()
        self.config = config
        self.projector = Projector(config)
        self.retrieval = Retriever(config)
        if config.positions:
            self.abs_vid_pe = nn.Embedding(config.positions, config.width)

    def initial_memory(self) -> Tensor:
        """Return the memory before the first segment, [1, M, D]."""
        return self.projector.read_memory_emb[None]

    def read(self, segment: Tensor, memory: Tensor, number: int | None = 0) -> Read:
        """Read a segment together with the memory: each attends to the other.

        Args:
            segment: [B, S, D] pooled patches of its frames.
            memory: [B, M, D] the memory before it.
            number: of the segment in its stream, from 0; counts where there is a position table,
                whose last row stands for all further ones. None adds no position.
        """
        if self.config.positions and number is not None:
            segment = segment + self.abs_vid_pe.weight[min(number, self.config.positions - 1)]
        x = torch.cat([memory, segment], dim=1)
        for layer in self.projector.layers:
            x = layer(x)
        return Read(*x.split([memory.shape[1], segment.shape[1]], dim=1))

    def recall(self, memory: Tensor, cache: Tensor) -> Tensor:
        """Let the memory [B, M, D] read the cache [B, C, D]: the memory before the next segment."""
        for layer in self.retrieval.layers:
            memory = layer(memory, cache)
        return memory

    def to_language(self, tokens: Tensor) -> Tensor:
        """Map tokens [..., D] to the language model's embeddings [..., L]."""
        return self.projector.proj(tokens)


def fresh(config: ParentBridgeConfig, initial: InitialMemory = "distinct") -> ParentBridge:
    """Make an untrained bridge.

    Args:
        config: sizes.
        initial: with ``zeros``, the parent's choice, all memory slots stay equal but for dropout.
    """
    bridge = ParentBridge(config)
    if initial == "distinct":
        nn.init.normal_(bridge.projector.read_memory_emb)
    return bridge


def pool(features: Tensor, side: int) -> Tensor:
    """Average a tower's patches over a coarser square grid.

    Args:
        features: [B, N, D], the class token first; N - 1 is a square.
        side: of the coarser grid; cells overlap where it does not divide the finer one.

    Returns:
        [B, side * side, D].
    """
    grid = round((features.shape[1] - 1) ** 0.5)
    patches = rearrange(features[:, 1:], "b (y x) d -> b d y x", y=grid)
    return rearrange(F.adaptive_avg_pool2d(patches, side), "b d y x -> b (y x) d")
