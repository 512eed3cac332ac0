"""Opens causal language models of transformers from folders, never from the network.

What is said with them stands in ``language.py``.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from streammem.errors import BackboneError
from streammem.models.backbones.weights import check_complete
from streammem.models.once import opening


def open_causal(folder: str | Path, device: str, *, without_layers: bool = False) -> Any:
    """Open a causal language model, in evaluation mode, its weights frozen.

    Args:
        folder: config.json, safetensors.
        device: of torch.
        without_layers: leave out all layers, so that only embeddings and head are read.

    Raises:
        BackboneError: missing or unreadable files.
    """
    try:
        with opening(f"{folder}"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16,
                attn_implementation=attention_implementation() if "cuda" in device else "sdpa",
                output_loading_info=True,
                **({"num_hidden_layers": 0} if without_layers else {}),
            )
        model, info = loaded
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise unusable(folder, error) from error
    check_complete(info, folder)
    return model.to(device).eval().requires_grad_(False)


def unusable(folder: str | Path, error: Exception) -> BackboneError:
    """Say in one line why a folder cannot be opened."""
    reason = str(error).strip().partition("\n")[0]
    return BackboneError(f"{folder}: not a usable language model ({reason})")


def attention_implementation() -> str:
    """Name the attention to use on CUDA: flash-attn where it is installed, else SDPA."""
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
