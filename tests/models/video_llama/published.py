"""A tiny Video-LLaMA in the parent's layout: five torch files and a language model's folder.

The names and shapes are written out here, not taken from the modules that read them.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from tests.models.videollamb import published as videollamb
from tests.models.videollamb.published import CONFIG, VOCABULARY, L, linear, norm

D, LAYERS, SIDE, PATCH, MLP = 32, 2, 28, 7, 48  # of the tower
W, Q, READER_LAYERS, READER_MLP, POSITIONS = 64, 4, 3, 40, 12
EARS, EAR_LAYERS, KERNEL, STRIDE, OUT, CLIPS, SOUND_Q = 24, 2, 40, 30, 24, 8, 3
OPTIONS = {"heads": 2, "reader_heads": 4, "sound_heads": 2}


def tower(at=""):
    """The file of the tower; its last block and what follows are never read."""
    names = {
        f"{at}cls_token": (1, 1, D),
        f"{at}pos_embed": (1, 1 + (SIDE // PATCH) ** 2, D),
        f"{at}patch_embed.proj.weight": (D, 3, PATCH, PATCH),
        f"{at}patch_embed.proj.bias": (D,),
        **norm(f"{at}norm", D),
        **linear(f"{at}head", D, 5),
    }
    for number in range(LAYERS):
        to = f"{at}blocks.{number}."
        names |= {f"{to}attn.q_bias": (D,), f"{to}attn.v_bias": (D,)}
        names |= {f"{to}attn.qkv.weight": (3 * D, D)} | linear(f"{to}attn.proj", D, D)
        names |= norm(f"{to}norm1", D) | norm(f"{to}norm2", D)
        names |= linear(f"{to}mlp.fc1", D, MLP) | linear(f"{to}mlp.fc2", MLP, D)
    return names


def qformer(module, queries, *, layers, every, count, reads):
    names = {queries: (1, count, W), **norm(f"{module}.bert.embeddings.LayerNorm", W)}
    for number in range(layers):
        at = f"{module}.bert.encoder.layer.{number}."
        kinds = {"attention": W} | ({"crossattention": reads} if number % every == 0 else {})
        for kind, width in kinds.items():
            names |= linear(f"{at}{kind}.self.query", W, W)
            names |= linear(f"{at}{kind}.self.key", width, W)
            names |= linear(f"{at}{kind}.self.value", width, W)
            names |= linear(f"{at}{kind}.output.dense", W, W)
            names |= norm(f"{at}{kind}.output.LayerNorm", W)
        names |= linear(f"{at}intermediate_query.dense", W, READER_MLP)
        names |= linear(f"{at}output_query.dense", READER_MLP, W)
        names |= norm(f"{at}output_query.LayerNorm", W)
    return names


def reader():
    """BLIP-2's file: the norm, the Q-Former of one frame, and its own projection."""
    names = {**norm("ln_vision", D), **linear("t5_proj", W, 7)}
    return names | qformer(
        "Qformer", "query_tokens", layers=READER_LAYERS, every=2, count=Q, reads=D
    )


def pictures():
    """The first checkpoint, without its buffers."""
    names = {"video_frame_position_embedding.weight": (POSITIONS, W), **linear("llama_proj", W, L)}
    return names | qformer(
        "video_Qformer", "video_query_tokens", layers=2, every=1, count=Q, reads=W
    )


def sound():
    """The second checkpoint, without its buffers."""
    names = {"audio_position_embedding.weight": (CLIPS, OUT), **linear("audio_llama_proj", W, L)}
    return names | qformer(
        "audio_Qformer", "audio_query_tokens", layers=2, every=1, count=SOUND_Q, reads=OUT
    )


def imagebind():
    """ImageBind's file: the branch of sound, and a tensor of another one."""
    at = "modality_preprocessors.audio."
    patches = ((128 - KERNEL) // STRIDE + 1) * ((204 - KERNEL) // STRIDE + 1)
    names = {
        f"{at}cls_token": (1, 1, EARS),
        f"{at}rgbt_stem.proj.weight": (EARS, 1, KERNEL, KERNEL),
        **norm(f"{at}rgbt_stem.norm_layer", EARS),
        f"{at}pos_embedding_helper.pos_embed": (1, 1 + patches, EARS),
        "modality_trunks.text.blocks.0.norm_1.weight": (9,),
        "modality_preprocessors.vision.cls_token": (1, 1, EARS),
        "modality_preprocessors.vision.rgbt_stem.proj.1.weight": (EARS, 3, 2, 14, 14),
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": (1, 5, EARS),
        **norm("modality_trunks.vision.pre_transformer_layer.0", EARS),
        **norm("modality_heads.vision.0", EARS),
        "modality_heads.vision.2.weight": (OUT, EARS),
        **norm("modality_heads.audio.0", EARS),
        "modality_heads.audio.2.weight": (OUT, EARS),
        "modality_postprocessors.audio.1.log_logit_scale": (),
    }
    for kind, number in [(kind, n) for kind in ("audio", "vision") for n in range(EAR_LAYERS)]:
        to = f"modality_trunks.{kind}.blocks.{number}."
        names |= {
            f"{to}attn.in_proj_weight": (3 * EARS, EARS), f"{to}attn.in_proj_bias": (3 * EARS,),
        }  # fmt: skip
        if kind == "audio":
            names |= {f"{to}attn.bias_k": (1, 1, EARS), f"{to}attn.bias_v": (1, 1, EARS)}
        names |= linear(f"{to}attn.out_proj", EARS, EARS)
        names |= norm(f"{to}norm_1", EARS) | norm(f"{to}norm_2", EARS)
        names |= linear(f"{to}mlp.fc1", EARS, MLP) | linear(f"{to}mlp.fc2", MLP, EARS)
    return names


FILES = {
    "eva_vit_g.pth": tower,
    "blip2_pretrained_flant5xxl.pth": reader,
    "pictures.pth": pictures,
    "sound.pth": sound,
    "imagebind_huge.pth": imagebind,
}
BUFFERS = {
    "pictures.pth": {
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "video_Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
    },
    "sound.pth": {
        "audio_Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "audio_encoder.modality_postprocessors.text.1.log_logit_scale": torch.tensor(4.6),
        "audio_encoder.modality_postprocessors.audio.1.log_logit_scale": torch.tensor(20.0).log(),
    },
}


def weights(seed=0):
    """Random tensors of each file: products that keep their inputs' size, biases that count."""
    generator = torch.Generator().manual_seed(seed)
    files = {}
    for file, shapes in FILES.items():
        files[file] = {}
        for name, shape in shapes().items():
            noise = torch.randn(shape, generator=generator)
            if len(shape) > 1 and not any(w in name for w in ("embed", "token", "bias_")):
                noise *= 1.5 * torch.tensor(shape[1:]).prod() ** -0.5
            elif "norm" in name.lower() and name.endswith("weight"):
                noise = 1 + 0.2 * noise
            elif name.endswith("bias"):
                noise *= 0.3
            files[file][name] = noise
        files[file] |= BUFFERS.get(file, {})
    scale = "modality_postprocessors.audio.1.log_logit_scale"
    files["imagebind_huge.pth"][scale] = torch.tensor(20.0).log()
    return files


def write(folder, files=None):
    """Write the files and the language model; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in (files or weights()).items():
        own = file in ("pictures.pth", "sound.pth", "blip2_pretrained_flant5xxl.pth")
        whole = {"model": tensors, "epoch": 4, "config": {"run": {"lr": 1e-4}}} if own else tensors
        torch.save(whole, folder / file)
    write_language(folder / "language")
    return folder


def write_language(folder):
    """Write a tiny Llama and its tokenizer."""
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = LlamaConfig(
        **{name: CONFIG[name] for name in (*kept, "num_key_value_heads", "rms_norm_eps")},
        vocab_size=len(VOCABULARY), max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    state = videollamb.weights()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    model.save_pretrained(folder)
    LlamaTokenizer(vocab=VOCABULARY, merges=[]).save_pretrained(folder)


def toml(folder, path=None, *, listens=True, **options):
    """Write the TOML file of the tiny model; return its path."""
    path = path or folder / "model.toml"
    lines = ['family = "video-llama"']
    names = {"tower": "eva_vit_g.pth", "reader": "blip2_pretrained_flant5xxl.pth"}
    names |= {"pictures": "pictures.pth", "imagebind": "", "language": "language"}
    names |= {"sound": "sound.pth"} if listens else {}
    lines += [f"{key} = '{folder / file}'" for key, file in names.items()]
    lines += ["[options]"]
    for key, value in (OPTIONS | options).items():
        lines.append(f"{key} = {value!r}")
    path.write_text("\n".join(lines) + "\n")
    return path
