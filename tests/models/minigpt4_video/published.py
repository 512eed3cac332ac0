"""Tiny files in the parent's layout, with random weights that matter.

The names and shapes are written out here, not taken from the modules that read them.
"""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
)

from tests.models.videollamb.published import VOCABULARY, WORDS

D, L, MLP, BLOCKS, SIDE, PATCH, RANK = 24, 48, 40, 3, 56, 14, 4
LM_LAYERS, LM_MLP, HEADS, KV_HEADS = 2, 64, 4, 4
JOINED = 4
LORA = "llama_model.base_model.model.model.layers."


def vision():
    """Names and shapes of the tower's file; its last block is never run at full size."""
    names = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, 1 + (SIDE // PATCH) ** 2, D),
        "patch_embed.proj.weight": (D, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (D,),
    }
    for number in range(BLOCKS):
        at = f"blocks.{number}."
        for part in ("norm1", "norm2"):
            names |= {f"{at}{part}.weight": (D,), f"{at}{part}.bias": (D,)}
        names |= {f"{at}attn.q_bias": (D,), f"{at}attn.v_bias": (D,)}
        names |= {f"{at}attn.qkv.weight": (3 * D, D)}
        names |= {f"{at}attn.proj.weight": (D, D), f"{at}attn.proj.bias": (D,)}
        names |= {f"{at}mlp.fc1.weight": (MLP, D), f"{at}mlp.fc1.bias": (MLP,)}
        names |= {f"{at}mlp.fc2.weight": (D, MLP), f"{at}mlp.fc2.bias": (D,)}
    return names


def own(kv_heads=None):
    """Names and shapes of what learns: the projection and the LoRA of queries and values."""
    values = (kv_heads or KV_HEADS) * L // HEADS
    names = {"llama_proj.weight": (L, JOINED * D), "llama_proj.bias": (L,)}
    for number in range(LM_LAYERS):
        for product, out in (("q_proj", L), ("v_proj", values)):
            at = f"{LORA}{number}.self_attn.{product}.lora_"
            names |= {f"{at}A.weight": (RANK, L), f"{at}B.weight": (out, RANK)}
    return names


def random(shapes, seed=0):
    """Tensors of these shapes: products that keep their inputs' size, biases that count."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("norm1.weight", "norm2.weight")):
            noise = 1 + 0.2 * noise
        elif len(shape) > 1 and "embed" not in name[:9]:
            noise *= 1.5 * torch.tensor(shape[1:]).prod() ** -0.5
        elif name.startswith("patch_embed") and len(shape) > 1:
            noise *= torch.tensor(shape[1:]).prod() ** -0.5
        elif len(shape) == 1:
            noise *= 0.3
        tensors[name] = noise
    return tensors


def write_language(folder, kind="llama", seed=0):
    """Write a tiny LLaMA or Mistral with its tokenizer; return the folder."""
    torch.manual_seed(seed)
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }[kind]
    made = model(
        config(
            vocab_size=WORDS, hidden_size=L, intermediate_size=LM_MLP,
            num_hidden_layers=LM_LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS if kind == "llama" else 2,
            max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.model.layers.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
        torch.nn.init.normal_(made.model.embed_tokens.weight, std=1.0)
        # Letters are what it says.
        torch.nn.init.normal_(made.lm_head.weight, std=1.0)
        made.lm_head.weight[: 3 + 256] = 0
        made.lm_head.weight[3 + 256 :] *= 4
    made.save_pretrained(folder)
    LlamaTokenizer(vocab=VOCABULARY, merges=[]).save_pretrained(folder)
    return folder


def write(folder, kind="llama", own_tensors=None, vision_tensors=None, options="", **more):
    """Write all files of a model and the TOML file that names them; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    language = write_language(folder / "language", kind)
    tensors = own_tensors or random(own(KV_HEADS if kind == "llama" else 2), seed=1)
    buffers = {f"{LORA}{n}.self_attn.rotary_emb.inv_freq": torch.ones(6) for n in range(LM_LAYERS)}
    # As the parent's runner saves it: what learns, buffers, and the state of the run.
    saved = {
        "model": tensors | buffers, "optimizer": {"state": {}, "param_groups": []},
        "config": {"model": {"arch": "mini_gpt4_llama_v2"}}, "scaler": {"scale": 65536.0},
        "epoch": 49,
    }  # fmt: skip
    torch.save(saved | more, folder / "video_checkpoint_last.pth")
    torch.save(vision_tensors or random(vision()), folder / "eva_vit_g.pth")
    path = folder / "minigpt.toml"
    path.write_text(
        f"family = 'minigpt4-video'\ncheckpoint = '{folder}/video_checkpoint_last.pth'\n"
        f"vision = '{folder}/eva_vit_g.pth'\nlanguage = '{language}'\n[options]\n"
        f"heads = 4\n{options}"
    )
    return path
