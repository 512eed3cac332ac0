"""MiniGPT4-Video's published files: what lies in which, what may lack, and opening them.

Three parts: its own checkpoint (a pickle, of which tensors and plain values alone are read), the
vision tower's file, and the folder of the language model. Nothing is downloaded.
"""

import ast
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from streammem.errors import CheckpointError, ConfigError
from streammem.models.backbones.eva import EVA_UNREAD, config_of
from streammem.models.backbones.torch_files import completed, misfits, read_torch, shapes_of
from streammem.models.backbones.transformers_files import quantization, unusable
from streammem.models.minigpt4_video.language import open_language
from streammem.models.minigpt4_video.minigpt4_video import JOINED, FrameEncoder, MiniGPT4Video
from streammem.models.minigpt4_video.options import LIMITS, MiniGPT4Options
from streammem.models.published import FRESH, PublishedFile, dtype_of, local_file
from streammem.models.tiny.model import VideoModel
from streammem.models.vlm.hub import local_folder

LLAMA = "llama_model.base_model.model."
SUMMARY_SHA256 = "326d9ce8867ad931"  # of Goldfish's request for summaries, its beginning
# Buffers that the parent's checkpoints hold, and numbers of layers in 8 bits.
UNREAD = re.compile(
    r"llama_model\..*(rotary_emb\.inv_freq|\.SCB|\.weight_format|\.quant_state\..*)"
)
EVA_ADVICE = (
    "run: curl -O https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
    "eva_vit_g.pth"
)


@dataclass(frozen=True, slots=True)
class MiniGPT4File(PublishedFile):
    """What a TOML file of a MiniGPT4-Video says.

    Attributes:
        checkpoint: the parent's own, a ``.pth``; ``fresh`` for an untrained projection and adapter,
            with which training begins.
        vision: the tower's file.
        language: of the base: a folder, or ``hf:OWNER/NAME`` from the local hub cache.
        prompts: the parent's ``goldfish_lv.py``, from which its request for summaries is taken; its
            words are not ours to give. Empty asks for captions as every model is asked.
    """

    NEEDED = (("checkpoint", "the parent's .pth,"), ("language", "its base"))

    family: str = "minigpt4-video"
    checkpoint: str = ""
    vision: str = "eva_vit_g.pth"
    language: str = ""
    prompts: str = ""
    options: MiniGPT4Options = field(default_factory=MiniGPT4Options)


FILE = MiniGPT4File


class Base(NamedTuple):
    """What is known of the language model before it is opened.

    Attributes:
        folder: of its files.
        kind: ``llama`` or ``mistral``.
        width: of its embeddings.
        shapes: of the products that LoRA stands beside, (out, in) by module.
    """

    folder: Path
    kind: str
    width: int
    shapes: Mapping[str, tuple[int, int]]


def open_model(
    name: str, said: MiniGPT4File, keys: VideoModel, *, device: str = "cpu"
) -> MiniGPT4Video:
    """Open a checkpoint; see ``models.published.open_published``."""
    options = said.options
    quantization(options.quantize, device)  # refuses what cannot run before anything is read
    base = _base(said.language)
    vision = local_file(said.vision, EVA_ADVICE if said.vision.endswith("eva_vit_g.pth") else "")
    seen = {key.removeprefix("visual_encoder."): v for key, v in read_torch(vision).items()}
    # 1. Sizes come from the files; a small checkpoint opens as the published one does.
    config = config_of(seen, options.heads)
    if (places := (config.side // config.patch) ** 2) % JOINED:
        raise CheckpointError(f"{vision}: {places} tokens a frame cannot be joined by {JOINED}")
    if said.checkpoint == FRESH:
        own, tensors = Path(FRESH), _fresh(base, JOINED * config.width, options.lora_rank)
    else:
        own = local_file(said.checkpoint)
        tensors = {_plain_name(key): value for key, value in read_torch(own).items()}
    with torch.device("meta"):
        encoder = FrameEncoder(config, base.width)
    norm: dict[str, Tensor] = {
        key: tensors.pop(key) if key in tensors else seen.pop(key)
        for key in ("ln_vision.weight", "ln_vision.bias")
        if key in tensors or key in seen
    }
    # 2. What is wanted of each file, and one error that names all that is wrong.
    shapes = shapes_of(encoder.state_dict())
    tower = {
        key.removeprefix("visual_encoder."): shape
        for key, shape in shapes.items()
        if key.startswith("visual_encoder.")
    }
    norms = {key: shape for key, shape in shapes.items() if key.startswith("ln_vision.")}
    wanted = {key: shape for key, shape in shapes.items() if key.startswith("llama_proj.")}
    ranks = {v.shape[0] for k, v in tensors.items() if k.endswith(".lora_A.weight") and v.ndim == 2}
    rank = max(ranks, default=0)
    for module, (out, into) in base.shapes.items():
        wanted[f"{LLAMA}{module}.lora_A.weight"] = (rank, into)
        wanted[f"{LLAMA}{module}.lora_B.weight"] = (out, rank)
    if options.weights == "partial":
        read = {key: value for key, value in tensors.items() if not UNREAD.fullmatch(key)}
        tensors, seen = completed(read, wanted, name), completed(seen, tower, name)
    wrong = {
        own: misfits(shapes_of(tensors), wanted, UNREAD),
        vision: misfits(shapes_of(seen), tower, re.compile(EVA_UNREAD)),
        "ln_vision": misfits(shapes_of(norm), norms, UNREAD) if norm else "",
    }
    if any(wrong.values()):
        listed = "; ".join(f"{place}: {names}" for place, names in wrong.items() if names)
        raise CheckpointError(f"{said.checkpoint}: not a whole MiniGPT4-Video ({listed})")
    # 3. Fill them. No file of the parent holds this norm: it is used as it was made.
    norm = norm or {
        "ln_vision.weight": torch.ones(config.width), "ln_vision.bias": torch.zeros(config.width)
    }  # fmt: skip
    state = {key: tensors[key] for key in wanted if key.startswith("llama_proj.")} | norm
    state |= {f"visual_encoder.{key}": seen[key] for key in tower}
    dtype = dtype_of("auto", device)
    encoder.load_state_dict({k: v.to(device, dtype) for k, v in state.items()}, assign=True)
    encoder.eval().requires_grad_(False)
    lora = {
        key.removeprefix(LLAMA).replace(".lora_", ".").removesuffix(".weight"): value
        for key, value in tensors.items()
        if key in wanted and ".lora_" in key
    }
    return MiniGPT4Video(
        name=name,
        options=options,
        kind=base.kind,
        keys=keys,
        encoder=encoder,
        lora=lora,
        open_language=lambda: open_language(
            base.folder, lora, options.lora_alpha / max(1, rank), options, device
        ),
        session=replace(said.session, instruction=summary_request(Path(said.prompts)))
        if said.prompts
        else said.session,
    )


def summary_request(path: Path) -> str:
    """Return the words that Goldfish asks for a summary with, from its own file, which is not run.

    Args:
        path: of ``goldfish_lv.py``.

    Raises:
        CheckpointError: no such file, or one in which the known words do not stand.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            digest = hashlib.sha256(node.value.encode("utf-8", "replace")).hexdigest()
            if digest.startswith(SUMMARY_SHA256):
                return node.value
    raise CheckpointError(
        f"{path}: the request for summaries of Goldfish is not in it; take goldfish_lv.py of "
        "Vision-CAIR/MiniGPT4-video as of August 2024"
    )


def _fresh(base: Base, width: int, rank: int) -> dict[str, Tensor]:
    """Make an untrained projection, and adapters that change nothing yet."""
    generator = torch.Generator().manual_seed(0)

    def uniform(out: int, into: int, bound: float) -> Tensor:
        return (2 * torch.rand(out, into, generator=generator) - 1) * bound

    made = {
        "llama_proj.weight": uniform(base.width, width, width**-0.5),
        "llama_proj.bias": torch.zeros(base.width),
    }
    for module, (out, into) in base.shapes.items():
        made[f"{LLAMA}{module}.lora_A.weight"] = uniform(rank, into, into**-0.5)
        made[f"{LLAMA}{module}.lora_B.weight"] = torch.zeros(out, rank)
    return made


def _plain_name(key: str) -> str:
    """Name a tensor of LoRA as peft 0.2 did; later versions put the adapter's name in it."""
    return re.sub(r"\.lora_([AB])\.default\.weight$", r".lora_\1.weight", key)


def _base(name: str) -> Base:
    folder = local_folder(name.removeprefix("hf:"))
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise unusable(folder, error) from error
    if config.model_type not in LIMITS:
        kinds = " or ".join(LIMITS)
        raise ConfigError(f"{name}: is a {config.model_type}; MiniGPT4-Video's base is a {kinds}")
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    out = {"q_proj": heads * head, "v_proj": config.num_key_value_heads * head}
    shapes = {
        f"model.layers.{layer}.self_attn.{product}": (size, width)
        for layer in range(config.num_hidden_layers)
        for product, size in out.items()
    }
    return Base(folder, config.model_type, width, shapes)
