"""The language model: LLaMA-2 or Mistral chat of transformers, its LoRA merged or beside it.

    language = open_language(folder, lora, scale, options, "cpu")
    attach_lora(language.model, lora, scale)      # for training: y = W x + scale B (A x)

Prompts are not made here (see ``minigpt4_video.py``), nor is a checkpoint read (``published.py``).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from streammem.errors import CheckpointError
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.backbones.transformers_files import (
    check_tokenizer,
    quantization,
    unusable,
)
from streammem.models.minigpt4_video.options import MiniGPT4Options


class LoraLinear(nn.Module):
    """A linear layer with a low-rank product beside it: W x + scale B A x.

    It has the attributes by which ``backbones/products.py`` knows a layer with LoRA.

    Source: LoRA (arXiv 2106.09685), section 4.1.

    Args:
        base: stays as it is, in 8 bits or not.
        a: [r, in].
        b: [out, r].
        scale: alpha / r.
        dropout: on the input of A, while training.
    """

    merged, active_adapters = False, ("own",)

    def __init__(
        self, base: nn.Module, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base_layer, self.scale = base, scale
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)
        self.dropout = nn.Dropout(dropout)

    @property
    def bias(self) -> Any:
        """That of the base."""
        return self.base_layer.bias

    def get_delta_weight(self, name: str) -> Tensor:
        """Return what the product adds to W."""
        return self.scale * self.lora_B @ self.lora_A

    def forward(self, x: Tensor) -> Tensor:
        low = self.dropout(x).to(self.lora_A.dtype) @ self.lora_A.t()
        return self.base_layer(x) + (low @ self.lora_B.t() * self.scale).to(x.dtype)


def open_language(
    folder: str | Path,
    lora: Mapping[str, Tensor],
    scale: float,
    options: MiniGPT4Options,
    device: str,
) -> CausalLanguageModel:
    """Open the base and add its LoRA.

    Args:
        folder: config.json, safetensors, tokenizer.
        lora: ``<module>.A`` and ``<module>.B`` by module of the base, as ``merge_lora`` takes them.
        scale: alpha / r.
        options: whether it is merged, and how the base is quantised.
        device: where it runs.

    Raises:
        ConfigError: quantised weights on another device than CUDA and the CPU.
        BackboneError: missing or unreadable files, or a missing package.
        CheckpointError: a LoRA that does not fit.
    """
    from streammem.models.checkpoint import merge_lora

    check_tokenizer(Path(folder))
    config = quantization(options.quantize, device)
    if config is None:
        language = CausalLanguageModel.open(folder, device=device)
    else:
        language = CausalLanguageModel(*_open_quantised(folder, config, device))
    change = merge_lora if options.lora == "merged" else attach_lora
    if lora:
        language.edit(partial(change, lora=dict(lora), scale=scale))
    return language


def attach_lora(
    model: nn.Module, lora: Mapping[str, Tensor], scale: float, dropout: float = 0.0
) -> None:
    """Put ``LoraLinear`` in the place of each layer that has a pair in ``lora``.

    Raises:
        CheckpointError: no such layer, or half a pair.
    """
    for name in sorted({key.rpartition(".")[0] for key in lora}):
        parent, _, own = name.rpartition(".")
        try:
            holder = model.get_submodule(parent)
            base = getattr(holder, own)
            a, b = lora[f"{name}.A"], lora[f"{name}.B"]
        except (AttributeError, KeyError) as error:
            raise CheckpointError(f"lora: {name}: no such layer, or half a pair") from error
        place = base.weight.device
        setattr(
            holder, own, LoraLinear(base, a.to(place).float(), b.to(place).float(), scale, dropout)
        )


def _open_quantised(folder: str | Path, config: Any, device: str) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            quantization_config=config, device_map={"": device},
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise unusable(folder, error) from error
    return model.eval().requires_grad_(False), tokenizer
