"""Opens causal language models of transformers from folders, never from the network.

What is said with them stands in ``language.py``.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from streammem.errors import BackboneError, ConfigError
from streammem.models.backbones.weights import check_complete
from streammem.models.once import opening

Quantize = Literal["none", "8bit", "4bit"]


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


def check_tokenizer(folder: Path) -> None:
    """Name the packages that a SentencePiece file needs; transformers' own error names others.

    Raises:
        BackboneError: the folder has such a file alone, and they are missing.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return
    # The second is a part of the namespace `google`, without which looking for it would raise.
    here = find_spec("sentencepiece") and find_spec("google") and find_spec("google.protobuf")
    if not here:
        raise BackboneError(
            f"{folder}/tokenizer.model: is a SentencePiece file, which needs sentencepiece and "
            "protobuf; run: pip install 'streammem[parents]'"
        )


def quantization(kind: str, device: str) -> BitsAndBytesConfig | None:
    """Return how bitsandbytes makes weights smaller: ``8bit`` or ``4bit``; None for ``none``.

    Raises:
        ConfigError: another device than CUDA and the CPU.
        BackboneError: bitsandbytes is missing.
    """
    if kind == "none":
        return None
    if device != "cpu" and not device.startswith("cuda"):
        raise ConfigError(f"quantize={kind}: needs CUDA or the CPU, not {device}; leave it out")
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise BackboneError(f"quantize={kind}: pip install bitsandbytes")
    # Of 8 bits it logs each product that its inputs are rounded to halves.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return BitsAndBytesConfig(
        load_in_8bit=kind == "8bit",
        load_in_4bit=kind == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32 if device == "cpu" else torch.bfloat16,
    )
