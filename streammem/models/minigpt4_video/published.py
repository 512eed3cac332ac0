"""MiniGPT4-Video's published files: what lies in which, what may lack, and opening them.

    said = find("minigpt4-video-7b", CONFIGS)      # the TOML file of a model
    model = open_model("minigpt4-video-7b", said, keys)

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

from streammem.config import override, read_toml
from streammem.errors import BackboneError, CheckpointError, ConfigError
from streammem.models.backbones.eva import EVA_UNREAD, EvaConfig
from streammem.models.backbones.torch_files import misfits, read_torch
from streammem.models.backbones.transformers_files import quantization, unusable
from streammem.models.minigpt4_video.language import open_language
from streammem.models.minigpt4_video.minigpt4_video import JOINED, FrameEncoder, MiniGPT4Video
from streammem.models.minigpt4_video.options import LIMITS, MiniGPT4Options, SessionDefaults
from streammem.models.tiny.model import VideoModel
from streammem.models.vlm.hub import local_folder

FAMILY = "minigpt4-video"
FRESH = "fresh"  # in place of a checkpoint
LLAMA = "llama_model.base_model.model."
LAYERS_OF_WIDTH = {1408: 39}  # of the tower: the 40th of the published file is dropped
SUMMARY_SHA256 = "326d9ce8867ad931"  # of Goldfish's request for summaries, its beginning
# Buffers that the parent's checkpoints hold, and numbers of layers in 8 bits.
UNREAD = re.compile(
    r"llama_model\..*(rotary_emb\.inv_freq|\.SCB|\.weight_format|\.quant_state\..*)"
)
EVA_SOURCE = "storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"


@dataclass(frozen=True, slots=True)
class MiniGPT4File:
    """What a TOML file of a model says.

    Attributes:
        family: ``minigpt4-video``, which tells it from files of other models.
        checkpoint: the parent's own, a ``.pth``: a path, relative to where the program runs, or
            ``hf:OWNER/NAME/FILE`` from the local hub cache; ``fresh`` for an untrained projection
            and adapter, with which training begins.
        vision: the tower's file, likewise.
        language: of the base: a folder, or ``hf:OWNER/NAME`` from the local hub cache.
        keys: preset or folder of the model that lends its key space.
        prompts: the parent's ``goldfish_lv.py``, from which its request for summaries is taken; its
            words are not ours to give. Empty asks for captions as every model is asked.
        about: one line for people.
        options: see ``MiniGPT4Options``.
        session: what sessions of it do otherwise unless they are told.
    """

    family: str = ""
    checkpoint: str = ""
    vision: str = "eva_vit_g.pth"
    language: str = ""
    keys: str = "streammem-tiny"
    prompts: str = ""
    about: str = ""
    options: MiniGPT4Options = field(default_factory=MiniGPT4Options)
    session: SessionDefaults = field(default_factory=SessionDefaults)


def find(name: str | Path, presets: Path) -> MiniGPT4File | None:
    """Tell whether a name means a MiniGPT4-Video: a TOML file whose ``family`` says so.

    Args:
        name: as ``--model`` takes it.
        presets: folder of the TOML files that come with streammem.

    Raises:
        ConfigError: such a file that cannot be meant.
    """
    path = Path(name)
    file = path if path.suffix == ".toml" else presets / f"{name}.toml"
    if not file.is_file():
        return None
    tables = read_toml(file)
    if tables.get("family") != FAMILY:
        return None
    said = override(MiniGPT4File(), tables, f"{file}: ")
    if not said.checkpoint or not said.language:
        raise ConfigError(f"{file}: name checkpoint, the parent's .pth, and language, its base")
    return said


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
    """Open a checkpoint; the language model follows when first needed.

    Args:
        name: of the model, for messages and memories.
        said: where its weights are, and how it is run.
        keys: lends its key space, and what scenes are cut by.
        device: where tower, projection and language model run.

    Raises:
        ConfigError: options that cannot be met here.
        CheckpointError: a file is corrupt, or tensors are missing, unknown or of another shape.
        BackboneError: a package or a file is not here.
    """
    options = said.options
    quantization(options.quantize, device)  # refuses what cannot run before anything is read
    base = _base(said.language)
    vision = _file(said.vision)
    seen = {key.removeprefix("visual_encoder."): v for key, v in read_torch(vision).items()}
    # 1. Sizes come from the files; a small checkpoint opens as the published one does.
    config = _tower_config(seen, options, vision)
    if said.checkpoint == FRESH:
        own, tensors = Path(FRESH), _fresh(base, JOINED * config.width, options.lora_rank)
    else:
        own = _file(said.checkpoint)
        tensors = {_plain_name(key): value for key, value in read_torch(own).items()}
    with torch.device("meta"):
        encoder = FrameEncoder(config, base.width)
    norm: dict[str, Tensor] = {
        key: tensors.pop(key) if key in tensors else seen.pop(key)
        for key in ("ln_vision.weight", "ln_vision.bias")
        if key in tensors or key in seen
    }
    # 2. What is wanted of each file, and one error that names all that is wrong.
    shapes = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
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
    wrong = {
        own: misfits(_shapes(tensors), wanted, UNREAD),
        vision: misfits(_shapes(seen), tower, re.compile(EVA_UNREAD)),
        "ln_vision": misfits(_shapes(norm), norms, UNREAD) if norm else "",
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
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
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


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


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


def _file(name: str) -> Path:
    """Find a file of ``MiniGPT4File``."""
    if name.startswith("hf:"):
        from huggingface_hub import try_to_load_from_cache

        owner, repository, file = (*name.removeprefix("hf:").split("/", 2), "", "")[:3]
        found = try_to_load_from_cache(f"{owner}/{repository}", file) if file else None
        if not isinstance(found, str):
            raise BackboneError(
                f"{name}: is not here; run: hf download {owner}/{repository} {file}"
            )
        return Path(found)
    path = Path(name)
    if not path.is_file():
        how = f"; run: curl -O https://{EVA_SOURCE}" if path.name == "eva_vit_g.pth" else ""
        raise BackboneError(f"{name}: no such file{how}")
    return path


def _tower_config(tensors: Mapping[str, Tensor], options: MiniGPT4Options, path: Path) -> EvaConfig:
    """Read the tower's sizes off its tensors."""
    try:
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        places = tensors["pos_embed"].shape[1]
        mlp = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: no EVA tower ({error} is missing or misshaped)") from error
    blocks = [int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))]
    if width % options.heads:
        raise ConfigError(f"heads={options.heads}: do not divide the tower's width of {width}")
    if (places - 1) % JOINED:
        raise CheckpointError(f"{path}: {places - 1} tokens a frame cannot be joined by {JOINED}")
    return EvaConfig(
        width=width,
        layers=LAYERS_OF_WIDTH.get(width, max(blocks) + 1),
        heads=options.heads,
        mlp=mlp,
        side=patch * round((places - 1) ** 0.5),
        patch=patch,
    )
