"""The tower and Q-Formers of BLIP-2 against float64 formulas, transformers and known counts."""

import math

import numpy as np
import pytest
import torch
from transformers import Blip2VisionConfig, Blip2VisionModel

from streammem.models.backbones.eva import EvaConfig, EvaTower
from streammem.models.backbones.qformer import QFormer, QFormerConfig
from tests.models.videollamb.reference import MEAN, STD, gelu, layer_norm, linear

TINY = EvaConfig(width=32, layers=3, heads=2, mlp=48, side=28, patch=7)
READER = QFormerConfig(layers=3, every=2, queries=5, reads=24, width=32, heads=4, mlp=40)


def filled(module, seed=0):
    """The module with random weights that all count, and its tensors as float64 arrays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            noise = torch.randn(value.shape, generator=generator) * 0.3
            value.copy_(noise + 1 if "norm" in name.lower() and name.endswith("weight") else noise)
    module.eval().requires_grad_(False)
    return module, {n: v.double().numpy() for n, v in module.state_dict().items()}


def attended(q, k, v, heads):
    """Rows of queries read rows of keys and values, head by head."""
    size, parts = q.shape[1] // heads, []
    for at in (slice(head * size, (head + 1) * size) for head in range(heads)):
        scores = q[:, at] @ k[:, at].T / math.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, at])
    return np.concatenate(parts, 1)


def eva(picture, w, config=TINY):
    """One frame through the tower, by the formula."""
    kernel, size = w["patch_embed.proj.weight"], config.patch
    pixels = (picture / 255 - MEAN) / STD
    rows = range(0, config.side, size)
    patches = [pixels[y : y + size, x : x + size] for y in rows for x in rows]
    tokens = [np.einsum("yxc,dcyx->d", p, kernel) + w["patch_embed.proj.bias"] for p in patches]
    x = np.stack([w["cls_token"][0, 0], *tokens]) + w["pos_embed"][0]
    for number in range(config.layers):
        at = f"blocks.{number}."
        normed = layer_norm(x, w, f"{at}norm1", 1e-6)
        q, k, v = np.split(normed @ w[f"{at}attn.qkv.weight"].T, 3, axis=1)
        q, v = q + w[f"{at}attn.q_bias"], v + w[f"{at}attn.v_bias"]
        x = x + linear(attended(q, k, v, config.heads), w, f"{at}attn.proj")
        inner = gelu(linear(layer_norm(x, w, f"{at}norm2", 1e-6), w, f"{at}mlp.fc1"))
        x = x + linear(inner, w, f"{at}mlp.fc2")
    return x


def pictures(count=2):
    shape = (count, TINY.side, TINY.side, 3)
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def test_the_tower_is_the_formula():
    tower, w = filled(EvaTower(TINY))
    read = tower.double()(torch.from_numpy(pictures()))
    expected = np.stack([eva(picture, w) for picture in pictures()])
    np.testing.assert_allclose(read.numpy(), expected, atol=1e-5)  # the mean is a float32


def test_the_tower_is_that_of_transformers_blip2():
    tower, _ = filled(EvaTower(TINY))
    config = Blip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=7,
    )  # fmt: skip
    other = Blip2VisionModel(config).eval()
    own = tower.state_dict()
    renamed = {
        "embeddings.class_embedding": own["cls_token"],
        "embeddings.position_embedding": own["pos_embed"],
        "embeddings.patch_embedding.weight": own["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": own["patch_embed.proj.bias"],
    }
    for number in range(3):
        at, to = f"blocks.{number}.", f"encoder.layers.{number}."
        q, v = own[f"{at}attn.q_bias"], own[f"{at}attn.v_bias"]
        renamed[f"{to}self_attn.qkv.weight"] = own[f"{at}attn.qkv.weight"]
        renamed[f"{to}self_attn.qkv.bias"] = torch.cat([q, 0 * q, v])
        parts = {
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "attn.proj": "self_attn.projection",
        }
        for mine, theirs in (parts | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}).items():
            for kind in ("weight", "bias"):
                renamed[f"{to}{theirs}.{kind}"] = own[f"{at}{mine}.{kind}"]
    other.load_state_dict(renamed, strict=False)
    levels = torch.from_numpy((pictures() / 255 - MEAN) / STD).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        states = other(levels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(tower(torch.from_numpy(pictures())), states, atol=1e-4, rtol=1e-4)


def qformer(features, w, config):
    """Features [C, E] read by the queries, by the formula."""

    def attention(x, context, at):
        q = linear(x, w, f"{at}.attention.query")
        k, v = (linear(context, w, f"{at}.attention.{part}") for part in ("key", "value"))
        added = linear(attended(q, k, v, config.heads), w, f"{at}.output.dense")
        return layer_norm(x + added, w, f"{at}.output.LayerNorm", 1e-12)

    x = layer_norm(w["queries"][0], w, "reader.layernorm", 1e-12)
    for number in range(config.layers):
        at = f"reader.encoder.layer.{number}"
        x = attention(x, x, f"{at}.attention")
        if number % config.every == 0:
            x = attention(x, features, f"{at}.crossattention")
        inner = gelu(linear(x, w, f"{at}.intermediate_query.dense"))
        added = linear(inner, w, f"{at}.output_query.dense")
        x = layer_norm(x + added, w, f"{at}.output_query.LayerNorm", 1e-12)
    return x


@pytest.mark.parametrize("every", [1, 2])
def test_a_qformer_is_the_formula(every):
    config = QFormerConfig(layers=3, every=every, queries=5, reads=24, width=32, heads=4, mlp=40)
    reader, w = filled(QFormer(config))
    features = np.random.default_rng(2).standard_normal((2, 7, 24))
    read = reader.double()(torch.from_numpy(features))
    expected = np.stack([qformer(each, w, config) for each in features])
    np.testing.assert_allclose(read.numpy(), expected, atol=1e-12)


def test_published_names_are_those_of_blip2():
    names = QFormer(READER).published("Qformer", "query_tokens")
    assert {
        "query_tokens",
        "Qformer.bert.embeddings.LayerNorm.weight",
        "Qformer.bert.encoder.layer.0.attention.self.query.weight",
        "Qformer.bert.encoder.layer.1.attention.output.LayerNorm.bias",
        "Qformer.bert.encoder.layer.2.crossattention.self.value.bias",
        "Qformer.bert.encoder.layer.2.crossattention.output.dense.weight",
        "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight",
        "Qformer.bert.encoder.layer.0.output_query.LayerNorm.weight",
    } <= names.keys()
    assert not any(".layer.1.crossattention." in name for name in names)
    assert sorted(names.values()) == sorted(QFormer(READER).state_dict())


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [
        (QFormerConfig(12, 2, reads=1408), 255, 105_137_664),
        (QFormerConfig(2, 1), 55, 18_905_088),
        (QFormerConfig(2, 1, queries=8, reads=1024), 55, 19_691_520),
    ],
)
def test_at_full_size_names_and_parameters_are_as_many_as_published(config, tensors, parameters):
    with torch.device("meta"):
        reader = QFormer(config)
    names = reader.published("Qformer", "query_tokens")
    own = sum(value.numel() for value in reader.parameters())
    # The published counts have a buffer more, and the queries apart.
    assert (len(names) - 1 + 1, own - reader.queries.numel()) == (tensors, parameters)


def test_the_full_tower_has_as_many_names_and_parameters_as_published():
    with torch.device("meta"):
        tower = EvaTower(EvaConfig())
    assert len(tower.state_dict()) == 511
    assert sum(value.numel() for value in tower.parameters()) == 985_894_528
    assert tower.blocks[0].attn.qkv.weight.shape == (4224, 1408)
