"""A published checkpoint's config.json: every key is read, checked, or known to change nothing.

A key that is none of these refuses the checkpoint: what is dropped silently gives other words.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from re import Match, compile
from typing import Any

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from streammem.errors import CheckpointError

MAX_CONFIG_BYTES = 1 << 20
PROJECTOR = compile(r"rmt_r_transformer(\d+)x")
BRIDGE_KEYS = frozenset(
    {
        "mm_hidden_size", "mm_intermediate_size", "mm_num_attention_heads", "mm_layer_norm_eps",
        "mm_hidden_dropout_prob", "mm_attention_probs_dropout_prob", "mm_projector_type",
    }
)  # fmt: skip
# Keys of a Llama's that `LlamaConfig().to_dict()` keeps under another name.
ROPE_KEYS = frozenset({"rope_theta", "rope_scaling"})
# What is built here, and nothing else.
ONLY: Mapping[str, Collection[Any]] = {
    "model_type": ("llava_llama",),
    "mm_hidden_act": ("gelu",),
    "mm_vision_select_layer": (-2,),
    "mm_vision_select_feature": ("patch",),
    "mm_patch_merge_type": ("flat",),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "mm_use_x_start_end": (False,),
    "mm_use_x_patch_token": (False,),
    "image_aspect_ratio": ("pad",),
}
# Paths and settings of training, and what an option or a flag of ours decides.
WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "X",
        "mm_image_tower", "mm_video_tower", "mm_vision_tower", "mm_projector_lr",
        "mm_vision_tower_lr", "freeze_mm_mlp_adapter", "freeze_mm_vision_resampler",
        "freeze_backbone", "tune_mm_mlp_adapter", "tune_mm_vision_resampler",
        "unfreeze_mm_vision_tower", "use_mm_proj", "num_frames", "max_length",
        "tokenizer_model_max_length", "tokenizer_padding_side",
    }
)  # fmt: skip


def read_parent_config(folder: Path, ignored: Collection[str] = ()) -> dict[str, Any]:
    """Read and check a checkpoint's config.json.

    Args:
        folder: of the checkpoint.
        ignored: keys that may be there besides, and are not read.

    Raises:
        CheckpointError: missing, not a VideoLLaMB's, or a key or value that is not understood.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: too large for a configuration")
        config = json.loads(path.read_text())
        if not PROJECTOR.fullmatch(config["mm_projector_type"]):
            raise CheckpointError(
                f"{path}: mm_projector_type {config['mm_projector_type']!r} is none of ours; "
                "VideoLLaMB's is rmt_r_transformer1x"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: missing, or not a VideoLLaMB's; get it again") from error
    config = {key: value for key, value in config.items() if key not in ignored}
    llama = set(LlamaConfig().to_dict())
    unknown = sorted(set(config) - llama - BRIDGE_KEYS - ROPE_KEYS - set(ONLY) - WITHOUT_EFFECT)
    wrong = [
        f"{key} is {config[key]!r}, and only {' or '.join(map(repr, values))} is built"
        for key, values in ONLY.items()
        if key in config and config[key] not in values
    ]
    if unknown:
        wrong.append(f"{', '.join(unknown)}: not known here")
    if wrong:
        raise CheckpointError(
            f"{path}: {'; '.join(wrong)}; keys that do not matter can be named under "
            "ignored_keys in the model's TOML file"
        )
    return config


def projector_type(folder: Path) -> Match[str] | None:
    """Return which bridge a folder's config.json names, if it is a VideoLLaMB's; never raises."""
    try:
        path = folder / "config.json"
        config = json.loads(path.read_text()) if path.stat().st_size <= MAX_CONFIG_BYTES else {}
        return PROJECTOR.fullmatch(str(config.get("mm_projector_type", "")))
    except (OSError, ValueError, AttributeError):
        return None


def llama_config(config: Mapping[str, Any], folder: Path) -> LlamaConfig:
    """Build the language model's configuration from the published one.

    Raises:
        CheckpointError: values that make no Llama, or a kind of ``rope_scaling`` that is unknown.
    """
    wanted = set(LlamaConfig().to_dict()) | ROPE_KEYS
    own = {k: v for k, v in config.items() if k in wanted - WITHOUT_EFFECT - set(ONLY)}
    try:
        llama = LlamaConfig(**own)
        kind = (llama.rope_parameters or {})["rope_type"]
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}/config.json: not a Llama's ({error})") from error
    if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
        known = ", ".join(sorted(ROPE_INIT_FUNCTIONS))
        raise CheckpointError(f"{folder}/config.json: rope_scaling {kind!r} is none of {known}")
    return llama
