"""A tiny VideoLLaMB checkpoint in the published key layout, with random weights that matter.

The names and shapes are written out here, not taken from the modules that read them.
"""

import json

import torch
from safetensors.torch import save_file
from transformers import LlamaTokenizer

D, M, L, MLP, LAYERS, SIDE, PATCH, GROUP = 32, 4, 48, 40, 3, 56, 14, 8
LM_MLP, LM_LAYERS = 64, 2
OPTIONS = {"pool": 3}
CONFIG = {
    "architectures": ["LlavaLlamaForCausalLMRMT"],
    "model_type": "llava_llama",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": L,
    "intermediate_size": LM_MLP,
    "num_hidden_layers": LM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "mm_hidden_size": D,
    "mm_intermediate_size": MLP,
    "mm_num_attention_heads": 8,
    "mm_hidden_act": "gelu",
    "mm_hidden_dropout_prob": 0.1,
    "mm_attention_probs_dropout_prob": 0.1,
    "mm_layer_norm_eps": 1e-12,
    "mm_projector_type": "rmt_r_transformer1x",
    "mm_image_tower": "./checkpoints/LanguageBind_Image",
    "mm_video_tower": "./checkpoints/LanguageBind_Video_merge",
    "num_frames": 16,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LETTERS = "▁" + "".join(chr(c) for c in range(33, 127))
VOCABULARY = {"<unk>": 0, "<s>": 1, "</s>": 2}
VOCABULARY |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
VOCABULARY |= {letter: 259 + i for i, letter in enumerate(LETTERS)}
WORDS = CONFIG["vocab_size"] = len(VOCABULARY)


def shapes():
    """The published names, and their shapes at this size."""
    names = {"memory": (M, L)}  # of a training variant; nothing reads it
    projector, retrieval = "model.mm_projector.projector.", "model.mm_projector.retrieval."
    names |= {f"{projector}read_memory_emb": (M, D), f"{projector}memory_tokens": (M, D)}
    for part in (projector, retrieval):
        for kind in ("selfattention", "crossattention"):
            at = f"{part}layers.0.{kind}."
            for product in ("k_proj", "v_proj", "q_proj", "residual.dense"):
                names |= linear(at + product, D, D)
            names |= norm(f"{at}residual.layernorm", D)
    names |= linear(f"{projector}layers.0.mlp.0", D, MLP)
    names |= linear(f"{projector}layers.0.residual.dense", MLP, D)
    names |= norm(f"{projector}layers.0.residual.layernorm", D)
    names |= linear(f"{projector}proj.0", D, L)
    names |= tower("model.image_tower.image_tower.", video=False)
    names |= tower("model.video_tower.video_tower.", video=True)
    return names | llama()


def tower(prefix, *, video):
    names = {
        f"{prefix}embeddings.class_embedding": (D,),
        f"{prefix}embeddings.patch_embedding.weight": (D, 3, PATCH, PATCH),
        f"{prefix}embeddings.position_embedding.weight": (1 + (SIDE // PATCH) ** 2, D),
        **norm(f"{prefix}pre_layrnorm", D),
        **norm(f"{prefix}post_layernorm", D),
    }
    for number in range(LAYERS):
        at = f"{prefix}encoder.layers.{number}."
        attentions, norms = ["self_attn"], ["layer_norm1", "layer_norm2"]
        if video:
            names[f"{at}temporal_embedding"] = (1, GROUP, D)
            attentions, norms = [*attentions, "temporal_attn"], [*norms, "temporal_layer_norm1"]
        for attention in attentions:
            for product in ("k_proj", "v_proj", "q_proj", "out_proj"):
                names |= linear(f"{at}{attention}.{product}", D, D)
        for each in norms:
            names |= norm(at + each, D)
        names |= linear(f"{at}mlp.fc1", D, MLP) | linear(f"{at}mlp.fc2", MLP, D)
    return names


def llama():
    names = {
        "model.embed_tokens.weight": (WORDS, L),
        "model.norm.weight": (L,),
        "lm_head.weight": (WORDS, L),
    }
    for number in range(LM_LAYERS):
        at = f"model.layers.{number}."
        names |= {f"{at}self_attn.{part}_proj.weight": (L, L) for part in "qkvo"}
        names |= {f"{at}mlp.{part}_proj.weight": (LM_MLP, L) for part in ("gate", "up")}
        names[f"{at}mlp.down_proj.weight"] = (L, LM_MLP)
        names |= {f"{at}{norm}.weight": (L,) for norm in ("input_layernorm",)}
        names[f"{at}post_attention_layernorm.weight"] = (L,)
    return names


def linear(name, inside, out):
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def weights(seed=0):
    """Random tensors: products that keep their inputs' size, norms near 1, biases that count."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1 and "emb" not in name and "memory" not in name:
            noise *= 1.5 * torch.tensor(shape[1:]).prod() ** -0.5
        elif name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            noise = 1 + 0.2 * noise
        elif "norm" in name or name.endswith(".bias"):
            noise *= 0.3
        tensors[name] = noise
    # Letters are what it says, and the prompt's end is not.
    head = tensors["lm_head.weight"]
    head[: 3 + 256] = 0
    head[3 + 256 :] *= 4
    return tensors


def write(folder, tensors=None, *, shards=3, config=CONFIG):
    """Write a checkpoint folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights() if tensors is None else tensors
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file({name: tensor.contiguous() for name, tensor in part.items()}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
    LlamaTokenizer(vocab=VOCABULARY, merges=[]).save_pretrained(folder)
    return folder
