"""VideoLLaMB's published checkpoint layout: what lies where, what may lack, and opening it.

The sizes come from config.json and from the shapes in the shards, so that a small checkpoint in
the same layout opens as the published one does. Nothing is downloaded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from streammem.errors import BackboneError, CheckpointError, ConfigError
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.backbones.languagebind import Tower, TowerConfig
from streammem.models.backbones.transformers_files import (
    attention_choice,
    check_tokenizer,
    quantization,
)
from streammem.models.backbones.weights import check_complete
from streammem.models.published import PublishedFile, dtype_of
from streammem.models.tiny.model import VideoModel
from streammem.models.videollamb.bridge import ParentBridge, ParentBridgeConfig
from streammem.models.videollamb.options import ParentOptions
from streammem.models.videollamb.published_config import (
    PROJECTOR,
    llama_config,
    projector_type,
    read_parent_config,
)
from streammem.models.videollamb.shards import Shards, check_fit, open_shards
from streammem.models.videollamb.videollamb import VideoLLaMB

BRIDGE = "model.mm_projector."
LAYERS_OF_WIDTH = {1024: 24}  # ViT-L; its last layer is never run, so none would miss it
# What the published weights hold and no pass ever reads: the random memory table, half of the
# bridge's attention, what comes after the towers' hidden layer -2, 32 vectors of a training variant
# and tables that older versions of transformers stored.
DEAD = (
    r"memory",
    r"model\.mm_projector\.projector\.memory_tokens",
    r"model\.mm_projector\.projector\.layers\.\d+\.crossattention\..*",
    r"model\.mm_projector\.retrieval\.layers\.\d+\.selfattention\..*",
    r"model\.(image|video)_tower\..*post_layernorm\.(weight|bias)",
    r"model\.(image|video)_tower\..*embeddings\.position_ids",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)


@dataclass(frozen=True, slots=True)
class ParentFile(PublishedFile):
    """What a TOML file of a VideoLLaMB says; a bare checkpoint folder takes the defaults.

    Attributes:
        weights: folder of the checkpoint, relative to where the program runs, or ``hf:NAME`` from
            the local hub cache.
        ignored_keys: keys of its config.json that are not read, where they do not matter; without
            them a key that is not known refuses the checkpoint.
    """

    NEEDED = (("weights", "a folder or hf:NAME"),)

    family: str = "videollamb"
    weights: str = ""
    ignored_keys: tuple[str, ...] = ()
    options: ParentOptions = field(default_factory=ParentOptions)

    @classmethod
    def of_folder(cls, folder: Path) -> "ParentFile | None":
        """Return the defaults for a folder in the published layout."""
        return cls(weights=str(folder)) if projector_type(folder) else None


FILE = ParentFile


def open_model(name: str, said: ParentFile, keys: VideoModel, *, device: str = "cpu") -> VideoLLaMB:
    """Open a checkpoint; see ``models.published.open_published``."""
    folder, options = weights_folder(said.weights), said.options
    quantization(options.quantize, device)  # refuses what cannot run before anything is read
    config = read_parent_config(folder, said.ignored_keys)
    shards = open_shards(folder)
    with torch.device("meta"):
        parts = _parts(config, shards, options)
        llama = LlamaForCausalLM(llama_config(config, folder))
    names = {
        f"{prefix}{key}": tuple(value.shape)
        for prefix, part in parts.items()
        for key, value in part.state_dict().items()
    }
    spoken = {key: tuple(value.shape) for key, value in llama.state_dict().items()}
    if llama.config.tie_word_embeddings:
        spoken.pop("lm_head.weight")
    dead = (*DEAD, *(rf"{re.escape(p)}encoder\.layers\.{n}\..*" for p, n in _last(parts)))
    check_fit(shards, names | spoken, re.compile("|".join(dead)))
    dtype = dtype_of(options.dtype, device)
    for prefix, part in parts.items():
        own = {f"{prefix}{key}": key for key in part.state_dict()}
        part.load_state_dict(shards.tensors(own, dtype), assign=True)
        part.to(device).eval().requires_grad_(False)

    def open_language() -> CausalLanguageModel:
        return _language(shards, llama.config, set(spoken), options, device)

    return VideoLLaMB(
        name=name,
        options=options,
        keys=keys,
        image_tower=_tower(parts, "image"),
        video_tower=_tower(parts, "video"),
        bridge=parts[BRIDGE],  # type: ignore[arg-type]
        open_language=open_language,
        session=said.session,
    )


def _parts(
    config: Mapping[str, Any], shards: Shards, options: ParentOptions
) -> dict[str, nn.Module]:
    """Build bridge and towers on the current device, by the prefix of their tensors' names."""
    positions = shards.shapes.get(f"{BRIDGE}abs_vid_pe.weight", (0,))[0]
    memory = _shape(shards, f"{BRIDGE}projector.read_memory_emb", 2)
    found = PROJECTOR.fullmatch(config["mm_projector_type"])
    try:
        bridge = ParentBridge(
            ParentBridgeConfig(
                width=config["mm_hidden_size"],
                language_width=config["hidden_size"],
                memory_tokens=memory[0],
                layers=int(found[1]) if found else 1,
                heads=config["mm_num_attention_heads"],
                mlp=config["mm_intermediate_size"],
                norm_eps=config.get("mm_layer_norm_eps", 1e-12),
                dropout=config.get("mm_hidden_dropout_prob", 0.1),
                attention_dropout=config.get("mm_attention_probs_dropout_prob", 0.1),
                positions=positions,
            )
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{shards.folder}/config.json: not a bridge's ({reason})") from error
    parts: dict[str, nn.Module] = {BRIDGE: bridge}
    for prefix in dict.fromkeys((_prefix(shards, "image", "video"), _prefix(shards, "video"))):
        parts[prefix] = Tower(_tower_config(shards, prefix, options))
    return parts


def _prefix(shards: Shards, *kinds: str) -> str:
    """Find a tower of the first kind that there is; wrappers of several depths stand around it."""
    ends = "embeddings.class_embedding"
    for kind in kinds:
        for name in shards.shapes:
            if name.startswith(f"model.{kind}_tower.") and name.endswith(ends):
                return name.removesuffix(ends)
    raise CheckpointError(f"{shards.folder}: holds no tower (model.{kinds[-1]}_tower....{ends})")


def _tower_config(shards: Shards, prefix: str, options: ParentOptions) -> TowerConfig:
    """Read a tower's sizes off the shapes of its tensors."""
    width, _, patch, _ = _shape(shards, f"{prefix}embeddings.patch_embedding.weight", 4)
    places, _ = _shape(shards, f"{prefix}embeddings.position_embedding.weight", 2)
    mlp, _ = _shape(shards, f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)
    time = shards.shapes.get(f"{prefix}encoder.layers.0.temporal_embedding")
    layer = re.compile(rf"{re.escape(prefix)}encoder\.layers\.(\d+)\..*")
    layers = [int(match[1]) for name in shards.shapes if (match := layer.fullmatch(name))]
    if width % options.heads:
        raise ConfigError(f"heads={options.heads}: do not divide the towers' width of {width}")
    return TowerConfig(
        width=width,
        layers=LAYERS_OF_WIDTH.get(width, max(layers) + 1),
        heads=options.heads,
        mlp=mlp,
        side=patch * round((places - 1) ** 0.5),
        patch=patch,
        group=time[1] if time else 0,
        activation=options.activation,
    )


def _tower(parts: Mapping[str, nn.Module], kind: str) -> Tower:
    """Return a tower; the variant for needles has one for both."""
    towers = {prefix: part for prefix, part in parts.items() if isinstance(part, Tower)}
    own = [part for prefix, part in towers.items() if prefix.startswith(f"model.{kind}_tower.")]
    return (own or list(towers.values()))[0]


def _last(parts: Mapping[str, nn.Module]) -> list[tuple[str, int]]:
    """Name each tower's last layer, which is not read: prefix and number."""
    return [(p, t.config.layers - 1) for p, t in parts.items() if isinstance(t, Tower)]


def _shape(shards: Shards, name: str, dims: int) -> tuple[int, ...]:
    shape = shards.shapes.get(name, ())
    if len(shape) != dims:
        raise CheckpointError(
            f"{shards.folder}: {name} is missing, or has not {dims} dimensions; get it again"
        )
    return shape


def _language(
    shards: Shards, config: LlamaConfig, names: set[str], options: ParentOptions, device: str
) -> CausalLanguageModel:
    """Open the language model of the shards through transformers."""
    quantized = quantization(options.quantize, device)
    # A map needs accelerate, so there is none where one device and plain weights will do.
    placed = "auto" if options.device_map == "auto" else {"": device} if quantized else None
    dtype = dtype_of(options.dtype, device)
    check_tokenizer(shards.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            shards.folder, config=config, local_files_only=True
        )
        loaded: Any = LlamaForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict=shards.tensors({name: name for name in names}, None),
            dtype=dtype,
            device_map=placed,
            quantization_config=quantized,
            attn_implementation=attention_choice(dtype)[0] if device != "cpu" else "sdpa",
            output_loading_info=True,
        )
        model, info = loaded
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BackboneError(f"{shards.folder}: language model cannot be used ({reason})") from error
    check_complete(info, shards.folder)
    if placed is None:
        model.to(device)
    return CausalLanguageModel(model.eval().requires_grad_(False), tokenizer)


def weights_folder(weights: str) -> Path:
    """Find the folder of ``ParentFile.weights``.

    Raises:
        BackboneError: a name of the hub that is not in the local cache.
    """
    if not weights.startswith("hf:"):
        return Path(weights)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = weights.removeprefix("hf:")
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise BackboneError(
            f"{weights}: weights are not here; run: hf download {name} (15 GB)"
        ) from error
