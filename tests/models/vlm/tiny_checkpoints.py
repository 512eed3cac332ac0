"""Vision-language models of two layers with random weights, as folders in their published layout.

config.json, safetensors, a byte-level tokenizer with the family's special tokens, the image
processor's file and a chat template of the family's shape: what a hub's folder holds.
"""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)

CLIP_MEAN, CLIP_STD = [0.481, 0.458, 0.408], [0.269, 0.261, 0.276]
HALF = [0.5, 0.5, 0.5]
NUMBERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT = {
    **NUMBERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
VISION = {**NUMBERS, "num_attention_heads": 4}

# A turn as <|im_start|>role ... <|im_end|>, parts in their order.
CHATML = (
    "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n"
    "{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}{{% for part in m.content %}}"
    "{{% if part.type == 'image' %}}{picture}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}<|im_end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
# All pictures first, then all texts, as LLaVA's template has it.
PICTURES_FIRST = (
    "{% for m in messages %}{{ m.role | upper }}: "
    "{% for part in m.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Likewise, as LLaVA-OneVision's has it.
ONEVISION = (
    "{% for m in messages %}<|im_start|>{{ m.role }} "
    "{% for part in m.content if part.type == 'image' %}<image>{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ '\\n' + part.text }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A model thinks unless its template is told otherwise.
THINKING = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
SMOL = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
    "{% if m.content[0].type == 'image' %}:{% else %}: {% endif %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model of a family, one of ``FAMILIES``; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    FAMILIES[family](folder)
    return folder


def _llava(folder):
    tokenizer = _tokenizer(folder, ["<image>"], PICTURES_FIRST, bos="<s>", eos="</s>")
    vision = CLIPVisionConfig(**VISION, image_size=28, patch_size=14, projection_dim=32)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    _model(folder, config, tokenizer)
    _image_processor(
        folder,
        "CLIPImageProcessor",
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        do_center_crop=True,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )
    _processor(
        folder,
        "LlavaProcessor",
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _llava_onevision(folder):
    tokenizer = _tokenizer(folder, ["<image>", "<video>"], ONEVISION)
    vision = SiglipVisionConfig(**VISION, image_size=28, patch_size=14, vision_use_head=False)
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28], [28, 56], [56, 28], [56, 56]],
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
    )
    _model(folder, config, tokenizer)
    _image_processor(
        folder,
        "LlavaOnevisionImageProcessor",
        size={"height": 28, "width": 28},
        image_grid_pinpoints=config.image_grid_pinpoints,
        image_mean=HALF,
        image_std=HALF,
        do_pad=True,
    )
    _processor(
        folder,
        "LlavaOnevisionProcessor",
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def _qwen_tokenizer(folder, ending=""):
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    return _tokenizer(folder, special, CHATML.format(picture=picture) + ending, bos=None)


def _qwen_ids(tokenizer):
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def _qwen2_5_vl(folder):
    tokenizer = _qwen_tokenizer(folder)
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        **_qwen_ids(tokenizer),
    )
    _model(folder, config, tokenizer)
    _image_processor(
        folder,
        "Qwen2VLImageProcessor",
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16},
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        processor_class="Qwen2_5_VLProcessor",
    )


def _qwen3_vl(folder):
    tokenizer = _qwen_tokenizer(folder)
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **_qwen_ids(tokenizer),
    )
    _model(folder, config, tokenizer)
    _qwen3_image_processor(folder)


def _qwen3_5(folder):
    """Of its layers three in four attend linearly: their state is no cache of keys and values."""
    tokenizer = _qwen_tokenizer(folder, THINKING)
    config = Qwen3_5Config(
        text_config={
            **TEXT,
            "num_hidden_layers": 4,
            "vocab_size": len(tokenizer),
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 0],
                "mrope_interleaved": True,
                "partial_rotary_factor": 0.25,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 16,
            "num_position_embeddings": 16,
        },
        **_qwen_ids(tokenizer),
    )
    _model(folder, config, tokenizer)
    _qwen3_image_processor(folder)


def _qwen3_image_processor(folder):
    _image_processor(
        folder,
        "Qwen2VLImageProcessorFast",
        size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 16},
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=HALF,
        image_std=HALF,
        processor_class="Qwen3VLProcessor",
    )


def _smolvlm(folder, config_class=SmolVLMConfig, name="SmolVLM"):
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles]
    tokenizer = _tokenizer(folder, special, SMOL, eos="<end_of_utterance>")
    config = config_class(
        vision_config={**VISION, "image_size": 28, "patch_size": 14},
        text_config=LlamaConfig(**TEXT, vocab_size=len(tokenizer)).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    _model(folder, config, tokenizer)
    _image_processor(
        folder,
        f"{name}ImageProcessor",
        size={"longest_edge": 56},
        max_image_size={"longest_edge": 28},
        do_image_splitting=True,
        image_mean=HALF,
        image_std=HALF,
        processor_class=f"{name}Processor",
    )
    _processor(folder, f"{name}Processor", image_seq_len=1)


def _idefics3(folder):
    _smolvlm(folder, Idefics3Config, "Idefics3")


def _internvl(folder):
    special = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    template = CHATML.format(picture="<IMG_CONTEXT>\n")
    tokenizer = _tokenizer(folder, special, template, extra=tokens)
    config = InternVLConfig(
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config=Qwen2Config(**TEXT, vocab_size=len(tokenizer)).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
    )
    _model(folder, config, tokenizer)
    _image_processor(
        folder,
        "GotOcr2ImageProcessorFast",
        size={"height": 28, "width": 28},
        crop_to_patches=True,
        min_patches=1,
        max_patches=4,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        processor_class="InternVLProcessor",
    )
    _processor(folder, "InternVLProcessor", image_seq_length=4)


FAMILIES = {
    "llava": _llava,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
}


def _tokenizer(folder, special, template, *, bos="<|im_start|>", eos="<|im_end|>", extra=None):
    """A byte-level tokenizer with a few merges, so that how texts join shows in its tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), (":", "Ġ"), ("]", "Ġ"), ("Ċ", "Ċ"), (".", "Ċ")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    own = ["<|pad|>", *filter(None, (bos, eos)), "<|im_start|>", "<|im_end|>"]
    tokens = list(dict.fromkeys([*own, *special]))
    vocabulary = {word: number for number, word in enumerate([*tokens, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens=extra or {},
    )
    fast.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    return fast


def _model(folder, config, tokenizer):
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    config.get_text_config().eos_token_id = tokenizer.eos_token_id
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():  # else every reply would be one letter, whatever is shown
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.3)
    letters = [tokenizer.convert_tokens_to_ids(sign) for sign in "abcdefghijklmnopqrstuvwxyz"]
    head = model.get_output_embeddings()
    with torch.no_grad():  # it writes letters alone: no special token, nothing that is stripped
        kept = head.weight[letters].clone()
        head.weight.zero_()
        head.weight[letters] = kept * 8
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)


def _image_processor(folder, kind, **options):
    options.setdefault("processor_class", None)
    written = {"image_processor_type": kind, **{k: v for k, v in options.items() if v is not None}}
    (folder / "preprocessor_config.json").write_text(json.dumps(written))


def _processor(folder, kind, **options):
    written = {"processor_class": kind, **options}
    (folder / "processor_config.json").write_text(json.dumps(written))
