"""The LoRA of the language model: added with peft, exported under the plain model's module names.

    add_lora(language, LoraOptions(), seed=0)
    tensors = lora_tensors(language)  # {"model.layers.0.self_attn.q_proj.A": ...}

``checkpoint.merge_lora`` merges it.
"""

import re

import torch
from torch import Tensor, nn

from streammem.errors import BackboneError, CheckpointError, install_command
from streammem.models.backbones.language import CausalLanguageModel
from streammem.training.recipe import LoraOptions

PARAMETER = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.default\.weight")


def check_peft() -> None:
    """Check for peft before a run needs it.

    Raises:
        BackboneError: it is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise BackboneError(f"caption stages need peft; run: {install_command('train')}") from error


def add_lora(language: CausalLanguageModel, options: LoraOptions, *, seed: int) -> None:
    """Add a fresh LoRA in place; its parameters, and no others, then require gradients.

    Raises:
        BackboneError: peft is missing, or no layer has such a name.
    """
    check_peft()
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        target_modules=list(options.targets),
        lora_dropout=options.dropout,
    )
    try:
        language.model = get_peft_model(language.model, config)
    except ValueError as error:
        raise BackboneError(
            f"lora: no layer of the language model fits targets ({error})"
        ) from error


def lora_parameters(language: CausalLanguageModel) -> nn.ParameterDict:
    """Return what a stage trains of a language model: the parameters of its LoRA."""
    trained = [(n, p) for n, p in language.model.named_parameters() if p.requires_grad]
    return nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in trained})


def lora_tensors(language: CausalLanguageModel) -> dict[str, Tensor]:
    """Return ``<module>.A`` [r, in] and ``<module>.B`` [out, r] by the plain model's module names.

    The tensors share memory with the parameters. Empty if there is no LoRA.
    """
    found = ((PARAMETER.fullmatch(n), p) for n, p in language.model.named_parameters())
    return {f"{match[1]}.{match[2]}": p.detach() for match, p in found if match}


def fill_lora(language: CausalLanguageModel, lora: dict[str, Tensor], factor: float) -> None:
    """Copy another LoRA's tensors into this one.

    Args:
        language: has a LoRA.
        lora: as ``lora_tensors`` returns it.
        factor: the other's alpha / r, divided by this one's.

    Raises:
        CheckpointError: other modules, or another rank.
    """
    own = lora_tensors(language)
    sizes, given = ({k: tuple(v.shape) for k, v in d.items()} for d in (own, lora))
    if sizes != given:
        raise CheckpointError(
            f"lora: the recipe's rank or targets are not those of the checkpoint to start from "
            f"({len(sizes)} and {len(given)} tensors)"
        )
    for name, tensor in own.items():
        tensor.copy_(lora[name] * (factor if name.endswith(".B") else 1.0))
