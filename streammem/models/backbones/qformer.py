"""Q-Formers: learned queries that read features. transformers' BLIP-2 class with published names.

reader = QFormer(QFormerConfig(layers=12, every=2, reads=1408))
reader(features)                      # [B, C, 1408] -> [B, 32, 768]
reader.published("Qformer", "query_tokens")   # our name of each tensor by its published name
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

# A table that older versions of transformers stored, by its name behind the Q-Former's.
QFORMER_UNREAD = r"bert\.embeddings\.position_ids"
_OWN_ATTENTION = re.compile(r"\.(attention|crossattention)\.attention\.")


@dataclass(frozen=True, slots=True)
class QFormerConfig:
    """Sizes of a Q-Former.

    Attributes:
        layers: of self-attention, attention to the features where there is any, and an MLP.
        every: each so many layers, beginning with the first, one reads the features.
        queries: Q.
        reads: E, width of the features.
        width: W.
        heads: attention heads; they divide W.
        mlp: width between the two products of an MLP.
        dropout: in training.
    """

    layers: int
    every: int
    queries: int = 32
    reads: int = 768
    width: int = 768
    heads: int = 12
    mlp: int = 3072
    dropout: float = 0.1


class QFormer(nn.Module):
    """Queries [Q, W] read features [C, E]; all of them see each other and every feature.

    Source: BLIP-2 (arXiv 2301.12597), section 3.1, of which the half for text is left out.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.randn(1, config.queries, config.width) * 0.02)
        self.reader = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.mlp,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                layer_norm_eps=1e-12,
                cross_attention_frequency=config.every,
                encoder_hidden_size=config.reads,
                use_qformer_text_input=False,
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """Read features [B, C, E] into [B, Q, W]."""
        queries = self.queries.expand(len(features), -1, -1)
        read = self.reader(query_embeds=queries, encoder_hidden_states=features.to(queries.dtype))
        return read.last_hidden_state

    def published(self, module: str, queries: str) -> dict[str, str]:
        """Map the published name of each tensor to ours.

        Args:
            module: what the published names begin with, such as ``Qformer``.
            queries: the published name of the queries.
        """
        names = {queries: "queries"}
        for own in self.reader.state_dict():
            name = _OWN_ATTENTION.sub(r".\1.self.", own)
            name = name.replace("layernorm.", "embeddings.LayerNorm.", 1)
            names[f"{module}.bert.{name}"] = f"reader.{own}"
        return names
