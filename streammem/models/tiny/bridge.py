"""The memory bridge: reads a segment's patches into its memory tokens, and these into words' space.

The bridge sees one segment only, so a caption can never leak an earlier scene. What was seen is
folded into the recurrent memory: a fixed number of slots that stand for everything seen; nothing of
it is learned. A segment enters with a slot of its own, then the two slots that lose least become
one. So slots that are alike are the first to go and cannot collapse, and all others stay to the
bit. What was measured against learned gates and a tree stands in docs/research/recurrent.md.

No stream state lives here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streammem.errors import ConfigError

# Legend: B batch, T frames, P patches a frame, V patch width, N = T*P, M memory tokens, D width,
# L language model width.

# A free slot is taken unless joining costs less than this, per number of an entry.
FREE_SLOT = 0.02


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """Sizes of the bridge.

    Attributes:
        patch_dim: V, width of the vision encoder's patches.
        patches: P, patches a frame.
        language_dim: L, width of the language model's embeddings.
        language_norm: mean norm of the language model's embeddings, the scale of visual tokens.
        dim: D, width of the bridge.
        memory_tokens: M.
        layers: layers of ``look``.
        heads: attention heads.
        dropout: in training, in [0, 1).
    """

    patch_dim: int
    patches: int
    language_dim: int
    language_norm: float = 1.0
    dim: int = 384
    memory_tokens: int = 16
    layers: int = 3
    heads: int = 6
    dropout: float = 0.1


class Attention(nn.Module):
    """Multi-head attention of queries over a context, pre-normalised by the caller.

    Outside training, few queries over a long context are computed in the absorbed form: the key
    projection is applied to the queries and the value projection to what they read, so that the
    context itself is never projected. Both forms are the same function up to float rounding. On
    CUDA the kernel ``memory_read`` computes it where it can, also in training without dropout:
    torch has no fused attention of heads as wide as the context.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: [B, Q, D] queries.
            context: [B, C, D] keys and values.
            mask: [B, C] bool, True where the context may be read; None reads all. At least one
                True a row.

        Returns:
            [B, Q, D].
        """
        q = self.query(x)
        readable = None if mask is None else mask[:, None, None, :]
        # Dropout of attention weights scales the value bias too, hence plain where there is any.
        if self._absorbed_is_cheaper(x.shape[1], context.shape[1]) and (
            not self.training or not self.dropout
        ):
            by_kernel = self._is_read_by_kernel(q, context)
            if by_kernel or not self.training:
                return self.out(self._absorbed(q, context, mask, by_kernel=by_kernel))
        q = rearrange(q, "b q (h d) -> b h q d", h=self.heads)
        k, v = rearrange(
            self.key_value(context), "b c (two h d) -> two b h c d", two=2, h=self.heads
        )
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=readable, dropout_p=dropout)
        return self.out(rearrange(read, "b h q d -> b q (h d)"))

    def _absorbed_is_cheaper(self, num_queries: int, num_context: int) -> bool:
        """Compare the multiplications: 2CD(D + Q) plain, 2CDQH + 2QD^2 absorbed.

        Measured on one core with D 384, H 6, Q 16, as the bridge has them: 2.0 times as fast at
        C 392 (eight frames), 1.3 at C 98, 1.05 at C 49 (one frame); 0.87 at C 16, where the
        queries attend to themselves and the rule keeps the plain form.
        """
        dim, heads = self.out.in_features, self.heads
        saved_a_row = dim + num_queries - num_queries * heads
        return num_context * saved_a_row > num_queries * dim

    def _absorbed(
        self, q: Tensor, context: Tensor, mask: Tensor | None, *, by_kernel: bool
    ) -> Tensor:
        """Attend with queries [B, Q, D] to a context [B, C, D] that is not projected -> [B, Q, D].

        q (W c + b) = (q W) c + q b, and q b, the same for all c, cancels in the softmax; weights
        sum to 1, so that sum w (V c + b) = V (sum w c) + b.
        """
        batch, num_queries, dim = q.shape
        heads, size = self.heads, dim // self.heads
        key, value = self.key_value.weight.view(2, heads, size, dim)  # [H, d, D] each
        value_bias = self.key_value.bias[dim:]
        q = q.reshape(batch * num_queries, heads, size).transpose(0, 1) @ key  # [H, B*Q, D]
        if by_kernel:
            read = self._read(rearrange(q, "h (b q) e -> b q h e", b=batch), context, mask)
            read = rearrange(read, "b q h e -> h (b q) e") @ value.transpose(1, 2)
            return rearrange(read, "h (b q) d -> b q (h d)", b=batch) + value_bias
        # One head of the whole width serves all: its queries are (head, query).
        q = rearrange(q, "h (b q) e -> b 1 (h q) e", b=batch)
        context = context[:, None]
        readable = None if mask is None else mask[:, None, None, :]
        read = F.scaled_dot_product_attention(
            q, context, context, attn_mask=readable, scale=size**-0.5
        )
        read = rearrange(read, "b 1 (h q) e -> h (b q) e", h=heads) @ value.transpose(1, 2)
        return rearrange(read, "h (b q) d -> b q (h d)", b=batch) + value_bias

    def _is_read_by_kernel(self, q: Tensor, context: Tensor) -> bool:
        from streammem_kernels import ops

        try:
            form, _ = ops.read_form(q, context.shape[0] * context.shape[1] * self.heads)
        except ops.KernelError as error:
            raise ConfigError(str(error)) from error
        return form == "triton"

    def _read(self, q: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Read [B, C, D], what the mask leaves of it, by queries [B, Q, H, D] -> [B, Q, H, D]."""
        from streammem_kernels import ops

        batch, rows, dim = context.shape
        context = context.to(q.dtype)  # autocast leaves a norm's output float32
        if mask is None:
            patches = context.reshape(batch * rows, dim)
            offsets = torch.arange(batch + 1, device=q.device) * rows
        else:
            patches, offsets = context[mask], F.pad(mask.sum(1).cumsum(0), (1, 0))
        return ops.memory_read(q, patches, offsets, scale=(dim // self.heads) ** -0.5)[0]


def feed_forward(dim: int, dropout: float) -> nn.Sequential:
    """A pre-normalised two-layer perceptron of four times the width."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 4 * dim),
        nn.GELU(),
        nn.Linear(4 * dim, dim),
        nn.Dropout(dropout),
    )


class LookLayer(nn.Module):
    """Queries attend to themselves, then to the segment's patches; pre-norm."""

    def __init__(self, config: BridgeConfig) -> None:
        super().__init__()
        dim, heads, dropout = config.dim, config.heads, config.dropout
        self.norm_self, self.norm_cross = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attention = Attention(dim, heads, dropout)
        self.cross_attention = Attention(dim, heads, dropout)
        self.mlp = feed_forward(dim, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, patches: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm_self(x)
        x = x + self.drop(self.self_attention(normed, normed))
        x = x + self.drop(self.cross_attention(self.norm_cross(x), patches, mask))
        return x + self.mlp(x)


class MemoryBridge(nn.Module):
    """Memory tokens of segments, and their way into the language model.

    Source: VideoLLaMB (arXiv 2409.01071), section 3.2, with its faults mended: distinct queries,
    position and time encodings, pre-norm, cross-attention instead of full attention over the
    patches, and memory tokens that reach the language model.
    """

    patch_mean: Tensor
    patch_std: Tensor

    def __init__(self, config: BridgeConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        # Channels of different depths of the encoder differ in scale by orders of magnitude.
        self.register_buffer("patch_mean", torch.zeros(config.patch_dim))
        self.register_buffer("patch_std", torch.ones(config.patch_dim))
        self.patch_in = nn.Linear(config.patch_dim, dim)
        self.position = nn.Parameter(0.02 * torch.randn(config.patches, dim))
        self.time_in = nn.Linear(2, dim)
        nn.init.zeros_(self.time_in.weight)
        self.norm_patches = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(config.memory_tokens, dim) * 0.5)
        self.layers = nn.ModuleList(LookLayer(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, config.language_dim)
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, patches: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read a segment.

        Args:
            patches: [B, T, P, V] float, the encoder's patches of T frames.
            times: [B, T] float in [0, 1], each frame's place in its segment.
            mask: [B, T] bool, False for padding frames; None if there are none.

        Returns:
            [B, M, D] the segment's tokens.
        """
        x = self.patch_in((patches - self.patch_mean) / self.patch_std)  # [B, T, P, D]
        clock = torch.stack([times, 1 - times], dim=-1)
        x = x + self.position + self.time_in(clock)[:, :, None, :]
        x = self.norm_patches(rearrange(x, "b t p d -> b (t p) d"))
        if mask is not None:
            mask = mask.repeat_interleave(self.config.patches, dim=1)  # [B, N]
        tokens = self.queries.expand(len(x), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, x, mask)
        return self.norm_out(tokens)

    def to_language(self, tokens: Tensor) -> Tensor:
        """Map tokens [..., D] to the language model's embedding space [..., L].

        Each is scaled to the mean norm of the model's own embeddings times a learned factor, so
        that the frozen first layers see inputs of the size that they were trained on.
        """
        projected = self.project(tokens)
        return F.normalize(projected, dim=-1) * (self.config.language_norm * self.scale)


def empty_memory(slots: int, dim: int) -> Tensor:
    """Return the memory before the first segment: ``slots`` free ones, see ``update_memory``."""
    return torch.zeros(slots, dim + 1)


def update_memory(memory: Tensor, tokens: Tensor) -> Tensor:
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
