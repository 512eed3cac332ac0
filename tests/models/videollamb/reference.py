"""VideoLLaMB's formulas in plain float64 numpy, written from the facts and not from our modules.

Every function takes the published tensors by their names.
"""

import math
from itertools import pairwise

import numpy as np

erf = np.vectorize(math.erf)


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def layer_norm(x, w, name, eps):
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attention(x, context, w, name, heads):
    """Rows [Q, D] read rows [C, D], head by head; the output product is the caller's."""
    q = linear(x, w, f"{name}.q_proj")
    k, v = (linear(context, w, f"{name}.{p}_proj") for p in "kv")
    size = x.shape[1] // heads
    parts = []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        scores = q[:, at] @ k[:, at].T / math.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, at])
    return np.concatenate(parts, 1)


# -- the bridge --

PROJECTOR, RETRIEVAL = "model.mm_projector.projector.", "model.mm_projector.retrieval."


def post_norm(x, computed, w, name, eps=1e-12):
    return layer_norm(x + linear(computed, w, f"{name}.dense"), w, f"{name}.layernorm", eps)


def read_segment(segment, memory, w, heads=8):
    """[S, D] and [M, D] -> the memory and the hidden states that one bridge layer makes of them."""
    x = np.concatenate([memory, segment])
    at = f"{PROJECTOR}layers.0"
    attended = attention(x, x, w, f"{at}.selfattention", heads)
    x = post_norm(x, attended, w, f"{at}.selfattention.residual")
    x = post_norm(x, gelu(linear(x, w, f"{at}.mlp.0")), w, f"{at}.residual")
    return x[: len(memory)], x[len(memory) :]


def retrieve(memory, cache, w, heads=8):
    at = f"{RETRIEVAL}layers.0.crossattention"
    return post_norm(memory, attention(memory, cache, w, at, heads), w, f"{at}.residual")


def project(x, w):
    return gelu(linear(x, w, f"{PROJECTOR}proj.0"))


def pool(patches, side):
    """[P, D] patches of a square grid -> [side^2, D] by adaptive averaging."""
    grid = math.isqrt(len(patches))
    square = patches.reshape(grid, grid, -1)
    cells = [(math.floor(i * grid / side), math.ceil((i + 1) * grid / side)) for i in range(side)]
    return np.stack([square[a:b, c:d].mean((0, 1)) for a, b in cells for c, d in cells])


def bridge_video(segments, w, *, cache_hidden=False):
    """Pooled segments [S, D] each -> projected tokens of each, and the recalled memory of each."""
    memory, cache, shown, recalled = w[f"{PROJECTOR}read_memory_emb"], [], [], []
    for segment in segments:
        written, hidden = read_segment(segment, memory, w)
        cache.append(hidden if cache_hidden else written)
        memory = retrieve(written, np.concatenate(cache), w)
        shown.append(project(hidden, w))
        recalled.append(memory)
    return shown, recalled


# -- the towers --

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def tower(pixels, w, prefix, *, layers, heads=16, group=0, activation=gelu, eps=1e-5):
    """[T, S, S, 3] uint8 -> hidden states before the last of ``layers`` layers, [T, N, D]."""
    kernel = w[f"{prefix}embeddings.patch_embedding.weight"]  # [D, 3, p, p]
    size = kernel.shape[-1]
    frames = []
    for picture in (pixels / 255 - MEAN) / STD:
        rows = range(0, picture.shape[0], size)
        patches = [picture[y : y + size, x : x + size] for y in rows for x in rows]
        tokens = [np.einsum("yxc,dcyx->d", patch, kernel) for patch in patches]
        tokens = np.stack([w[f"{prefix}embeddings.class_embedding"], *tokens])
        frames.append(tokens + w[f"{prefix}embeddings.position_embedding.weight"])
    x = layer_norm(np.stack(frames), w, f"{prefix}pre_layrnorm", eps)
    for number in range(layers - 1):
        x = tower_layer(x, w, f"{prefix}encoder.layers.{number}", heads, group, activation, eps)
    return x


def tower_layer(x, w, at, heads, group, activation, eps):
    if group:
        for first in range(0, len(x), group):
            for place in range(x.shape[1]):
                along = x[first : first + group, place] + w[f"{at}.temporal_embedding"][0]
                normed = layer_norm(along, w, f"{at}.temporal_layer_norm1", eps)
                attended = attention(normed, normed, w, f"{at}.temporal_attn", heads)
                added = linear(attended, w, f"{at}.temporal_attn.out_proj")
                x[first : first + group, place] = along + added
    out = []
    for frame in x:
        normed = layer_norm(frame, w, f"{at}.layer_norm1", eps)
        attended = attention(normed, normed, w, f"{at}.self_attn", heads)
        frame = frame + linear(attended, w, f"{at}.self_attn.out_proj")
        inner = activation(
            linear(layer_norm(frame, w, f"{at}.layer_norm2", eps), w, f"{at}.mlp.fc1")
        )
        out.append(frame + linear(inner, w, f"{at}.mlp.fc2"))
    return np.stack(out)


# -- SceneTilling over a whole video --


def segment(cls, k=None, alpha=0.5):
    """[T, D] -> last frames of the segments, by the k deepest gaps or a threshold.

    Both peaks are climbed one step at a time, while the next value is not smaller.
    """
    unit = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    scores = [float(a @ b) for a, b in pairwise(unit)]
    depths = []
    for i, score in enumerate(scores):
        peaks = []
        for step in (-1, 1):
            peak, j = score, i + step
            while 0 <= j < len(scores) and scores[j] >= peak:
                peak, j = scores[j], j + step
            peaks.append(peak)
        depths.append(sum(peaks) - 2 * score)
    if k is None:
        mean = sum(depths) / len(depths)
        std = math.sqrt(sum((d - mean) ** 2 for d in depths) / (len(depths) - 1))
        chosen = [i for i, d in enumerate(depths) if d > mean + alpha * std]
        k = 15
    else:
        chosen = list(range(len(depths)))
    chosen = sorted(sorted(chosen, key=lambda i: -depths[i])[:k])
    return [*chosen, len(cls) - 1]


def frames_of(first, last):
    """At most eight frames of [first, last], evenly, cut off to whole numbers."""
    count = min(8, last - first + 1)
    return [first + (last - first) * i // max(1, count - 1) for i in range(count)]
