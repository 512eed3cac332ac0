"""Opens causal language models of transformers from folders, never from the network.

What is said with them stands in ``language.py``.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
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
                attn_implementation=attention_choice()[0] if "cuda" in device else "sdpa",
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


def attention_choice(dtype: torch.dtype | str = torch.bfloat16) -> tuple[str, str]:
    """Return the attention that is taken on CUDA, by transformers' name, and why.

    Args:
        dtype: of the weights, or ``auto``, the files' own; flash attention has only halves.
    """
    if not torch.cuda.is_available():
        return "sdpa", "there is no CUDA device"
    if dtype == torch.float32:
        return "sdpa", "flash attention has no float32"
    major, minor = torch.cuda.get_device_capability()
    # The third is for Hopper alone. The fourth, a pre-release, is taken where it is the only one.
    for number, fits in ((3, major == 9), (2, major >= 8), (4, major >= 9)):
        if fits and has_flash_attention(number):
            return f"flash_attention_{number}", f"flash-attn {number} is installed"
    return "sdpa", f"no flash-attn for compute capability {major}.{minor} is installed"


def has_flash_attention(number: int) -> bool:
    """Tell whether transformers can use an installed flash-attn 2, 3 or 4; it fetches none."""
    is_available = getattr(transformers.utils, f"is_flash_attn_{number}_available", None)
    return is_available is not None and is_available()
