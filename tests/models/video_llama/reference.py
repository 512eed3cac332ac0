"""Video-LLaMA's formulas in plain float64 numpy, written from the facts and not from our modules.

Every function takes tensors by the parent's names.
"""

import math

import numpy as np

from tests.models.video_llama.published import EAR_LAYERS, LAYERS, READER_LAYERS
from tests.models.videollamb.reference import MEAN, STD, gelu, layer_norm, linear


def attended(q, k, v, heads):
    """Rows of queries read rows of keys and values, head by head."""
    size, parts = q.shape[1] // heads, []
    for at in (slice(head * size, (head + 1) * size) for head in range(heads)):
        scores = q[:, at] @ k[:, at].T / math.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, at])
    return np.concatenate(parts, 1)


def tower(picture, w, heads=2):
    """[S, S, 3] -> [N, D] after the blocks that run and the norm over all tokens."""
    at = "visual_encoder."
    kernel = w[f"{at}patch_embed.proj.weight"]
    size = kernel.shape[-1]
    pixels = (picture / 255 - MEAN) / STD
    rows = range(0, len(picture), size)
    patches = [pixels[y : y + size, x : x + size] for y in rows for x in rows]
    bias = w[f"{at}patch_embed.proj.bias"]
    tokens = [np.einsum("yxc,dcyx->d", patch, kernel) + bias for patch in patches]
    x = np.stack([w[f"{at}cls_token"][0, 0], *tokens]) + w[f"{at}pos_embed"][0]
    for number in range(LAYERS):
        to = f"{at}blocks.{number}."
        q, k, v = np.split(
            layer_norm(x, w, f"{to}norm1", 1e-6) @ w[f"{to}attn.qkv.weight"].T, 3, axis=1
        )
        q, v = q + w[f"{to}attn.q_bias"], v + w[f"{to}attn.v_bias"]
        x = x + linear(attended(q, k, v, heads), w, f"{to}attn.proj")
        inner = gelu(linear(layer_norm(x, w, f"{to}norm2", 1e-6), w, f"{to}mlp.fc1"))
        x = x + linear(inner, w, f"{to}mlp.fc2")
    return layer_norm(x, w, "ln_vision", 1e-5)


def qformer(context, w, module, queries, *, layers, every, heads=4):
    """Learned queries read rows [C, E]: [Q, W]."""

    def attention(x, read, at):
        q = linear(x, w, f"{at}.self.query")
        k, v = (linear(read, w, f"{at}.self.{part}") for part in ("key", "value"))
        added = linear(attended(q, k, v, heads), w, f"{at}.output.dense")
        return layer_norm(x + added, w, f"{at}.output.LayerNorm", 1e-12)

    x = layer_norm(w[queries][0], w, f"{module}.bert.embeddings.LayerNorm", 1e-12)
    for number in range(layers):
        at = f"{module}.bert.encoder.layer.{number}."
        x = attention(x, x, f"{at}attention")
        if number % every == 0:
            x = attention(x, context, f"{at}crossattention")
        inner = gelu(linear(x, w, f"{at}intermediate_query.dense"))
        added = linear(inner, w, f"{at}output_query.dense")
        x = layer_norm(x + added, w, f"{at}output_query.LayerNorm", 1e-12)
    return x


def frame(picture, w):
    """[S, S, 3] -> [Q, W] of one frame."""
    seen = tower(picture, w)
    return qformer(seen, w, "Qformer", "query_tokens", layers=READER_LAYERS, every=2)


def video(frames, w):
    """Frames [Q, W] each -> [Q, L] for the language model."""
    table = w["video_frame_position_embedding.weight"]
    context = np.concatenate([each + table[number] for number, each in enumerate(frames)])
    read = qformer(context, w, "video_Qformer", "video_query_tokens", layers=2, every=1)
    return linear(read, w, "llama_proj")


def clip(spectrogram, w, heads=2, stride=30):
    """[128, 204] -> [E] of length 1."""
    at = "audio_encoder.modality_"
    to = f"{at}preprocessors.audio."
    kernel = w[f"{to}rgbt_stem.proj.weight"][:, 0]
    size = kernel.shape[-1]
    tokens = np.stack([
        np.einsum("yx,dyx->d", spectrogram[y : y + size, x : x + size], kernel)
        for y in range(0, 128 - size + 1, stride)
        for x in range(0, 204 - size + 1, stride)
    ])  # fmt: skip
    tokens = layer_norm(tokens, w, f"{to}rgbt_stem.norm_layer", 1e-5)
    x = np.concatenate([w[f"{to}cls_token"][0], tokens])
    x = x + w[f"{to}pos_embedding_helper.pos_embed"][0]
    for number in range(EAR_LAYERS):
        to = f"{at}trunks.audio.blocks.{number}."
        normed = layer_norm(x, w, f"{to}norm_1", 1e-6)
        joint = normed @ w[f"{to}attn.in_proj_weight"].T + w[f"{to}attn.in_proj_bias"]
        q, k, v = np.split(joint, 3, axis=1)
        k = np.concatenate([k, w[f"{to}attn.bias_k"][0]])
        v = np.concatenate([v, w[f"{to}attn.bias_v"][0]])
        x = x + linear(attended(q, k, v, heads), w, f"{to}attn.out_proj")
        inner = gelu(linear(layer_norm(x, w, f"{to}norm_2", 1e-6), w, f"{to}mlp.fc1"))
        x = x + linear(inner, w, f"{to}mlp.fc2")
    first = layer_norm(x[:1], w, f"{at}heads.audio.0", 1e-6)[0]
    vector = w[f"{at}heads.audio.2.weight"] @ first
    return vector / np.linalg.norm(vector)


def sound(clips, w, scale=1.0):
    """Clips [E] each, of length 1 -> tokens [queries, L]."""
    context = scale * np.stack(clips) + w["audio_position_embedding.weight"][: len(clips)]
    read = qformer(context, w, "audio_Qformer", "audio_query_tokens", layers=2, every=1)
    return linear(read, w, "audio_llama_proj")
