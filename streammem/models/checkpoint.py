"""Checkpoints: a folder of config.json and model.safetensors; backbones are named, not copied."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streammem.errors import BackboneError, CheckpointError, ConfigError
from streammem.models import published
from streammem.models.backbones.efficientnet import EfficientNetEncoder
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.backbones.low_rank import differences, pairs
from streammem.models.backbones.text import TEXT_DIM, SentenceEncoder
from streammem.models.backbones.vision import TransformersVisionEncoder, VisionEncoder
from streammem.models.backbones.weights import SOURCES, weights_path
from streammem.models.checkpoint_config import FORMAT, CheckpointConfig, read_config
from streammem.models.checkpoint_names import lexicon_lines, read_lexicon, read_names
from streammem.models.once import once, opening
from streammem.models.protocols import StreamModel
from streammem.models.tiny.bridge import BridgeConfig, MemoryBridge
from streammem.models.tiny.keys import (
    PictureEvidence,
    PictureKey,
    SentenceEvidence,
    TextKey,
)
from streammem.models.tiny.model import VideoModel
from streammem.models.tiny.questions import QuestionHead
from streammem.models.tiny.words import NamesOfKeys, WordsOfTokens

PACKAGED = Path(__file__).parents[1] / "weights"
PRESETS = {"streammem-tiny": PACKAGED / "streammem-tiny"}
# A wheel carries the folder; in a clone it lies beside the package.
CONFIGS = next(
    (p / "configs" for p in Path(__file__).parents[1:3] if (p / "configs").is_dir()),
    Path("configs"),
)
DEFAULT = "streammem-tiny"
SCALE = ".row_scale"
VISION = "vision."  # what training added to the frame encoder's parameters
# What older versions kept the recurrent memory by; it is not learned any more.
RETIRED = ("bridge.remember.", "bridge.initial")
WORDS = "words"  # the head that names things; a checkpoint may lack it
NAMES = "words.txt"  # its names, one a line
OF_KEYS = "names"  # what reads them off keys; likewise
LEXICON = "lexicon.txt"  # its further names: name, word, classes such as 1,4-7, between tabs
LORA, ANSWERS = "lora.", "answers."  # adapters of the language model: for captions, for answers
CAPTION_TOKENS = "caption_tokens"  # a bit a token, eight a value; a checkpoint may lack it
QUESTIONS = "questions"  # what reads questions; a checkpoint may lack it
MIN_PACKED = 1 << 14  # values; below it the scales would not pay


def load_checkpoint(name: str | Path = DEFAULT, *, device: str = "cpu") -> StreamModel:
    """Load a model by the name of a preset, or from a checkpoint folder. Never the network.

    Args:
        name: a key of ``PRESETS``, a folder that ``save`` wrote, or a published model: a TOML
            file's name in configs/, a path to such a file, or a folder in VideoLLaMB's layout.
        device: where frames and segments are encoded and the language model runs; sentences are
            encoded on the CPU.

    Raises:
        ConfigError: neither a preset nor a folder, or no such device.
        CheckpointError: a folder whose files are corrupt or of another layout.
        BackboneError: weights of a backbone are missing; the message says how to get them.
    """
    check_device(device)
    with opening(str(name)):
        if str(name) in PRESETS:
            return load_own(name, device=device)
        if said := published.find(name, CONFIGS):
            return published.open_published(
                str(name), said, load_own(said.keys, device=device), device=device
            )
        return load_own(name, device=device)


def load_own(name: str | Path = DEFAULT, *, device: str = "cpu") -> VideoModel:
    """Load a model of ours; as ``load_checkpoint``."""
    folder = PRESETS.get(str(name), Path(name))
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{name}: no such model; give one of {', '.join(PRESETS)}, or a checkpoint folder"
        )
    config = read_config(folder)
    tensors = read_tensors(folder)
    changes = {k.removeprefix(VISION): v for k, v in tensors.items() if k.startswith(VISION)}
    vision = open_vision(config.vision, changes, device=device)
    seen = (config.bridge.patches, config.bridge.patch_dim)
    if seen != (vision.patches, vision.patch_dim):
        given = (vision.patches, vision.patch_dim)
        raise CheckpointError(f"{folder}: reads {seen} patches, but {config.vision} gives {given}")
    # Without values, which the weights give: what they do not fit must not take memory either.
    with torch.device("meta"):
        bridge = MemoryBridge(config.bridge)
        picture_key = PictureKey(vision.patch_dim, config.key_dim)
        text_key = TextKey(TEXT_DIM, config.key_dim)
        if sizes := config.evidence:
            picture_key.evidence = PictureEvidence(config.key_dim, sizes)
            text_key.evidence = SentenceEvidence(TEXT_DIM, config.key_dim, sizes.words)
    for prefix, module in _learned(bridge, picture_key, text_key).items():
        _fill(module, tensors, prefix, folder)
    lora, answers = lora_of(tensors, LORA), lora_of(tensors, ANSWERS)
    if others := [key for key in answers if ".layers." not in key]:  # both share all but layers
        raise CheckpointError(f"{folder}: {ANSWERS}{others[0]}: answers may change layers only")
    words = _word_head(tensors, folder, config.bridge)
    caption_tokens = _listed_tokens(tensors, folder)
    open_language = once(
        lambda: _open_language(folder, config, lora, device, caption_tokens),
        f"{name}: language model",
    )

    def open_answers() -> CausalLanguageModel:
        scale = config.lora_scale
        return open_language().adapted(
            differences(answers, lora, scale), lambda llama: merge_lora(llama, answers, scale)
        )

    return VideoModel(
        name=str(name),
        vision=vision,
        center=_shaped(tensors, "center", (vision.frame_dim,), folder).to(device),
        bridge=bridge.to(device),
        picture_key=picture_key.to(device),
        text_key=text_key,
        background=_shaped(tensors, "background", (-1, config.key_dim), folder),
        open_sentences=lambda: SentenceEncoder(backbone_path(config.sentences)),
        open_language=open_language,
        scenes=config.scenes,
        confidence_model=config.confidence_model,
        reranker=config.reranker,
        null=config.null,
        questions=_question_head(tensors, folder),
        caption_tokens=caption_tokens,
        words=words,
        names=_names_of_keys(tensors, folder, config.key_dim, words),
        open_answers=open_answers if answers else None,
    )


def open_embeddings(name: str | Path) -> CausalLanguageModel:
    """Open of a model's language model what makes prompts: its tokenizer and its embeddings.

    Returns:
        One that embeds prompts, on the CPU in float32; its replies mean nothing, as it has no
        layers.

    Raises:
        StreammemError: as ``load_own``.
    """
    folder = PRESETS.get(str(name), Path(name))
    config = read_config(folder)
    lora = lora_of(read_tensors(folder), LORA)
    return _open_language(folder, config, lora, "cpu", without_layers=True)


def export_language(name: str | Path, folder: Path) -> None:
    """Write a model's language model, with its LoRA merged, as a folder of transformers.

    Args:
        name: a preset or a checkpoint folder.
        folder: made; float32 weights and the tokenizer, as a model server opens them.

    Raises:
        ConfigError: the folder has files already, or no such model.
        StreammemError: as ``load_own``.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already; give a new folder")
    language = load_own(name).language
    model = language.model
    # A server ends replies where we do, and takes no other options of sampling from it.
    model.generation_config.eos_token_id = sorted(language.stop_ids)
    model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner may read


def backbones_of(folder: Path) -> tuple[str, ...]:
    """Name the backbones that a checkpoint folder stands on."""
    config = read_config(folder)
    return config.vision, config.language, config.sentences


def save(
    model: VideoModel,
    folder: Path,
    *,
    backbones: dict[str, str],
    lora: dict[str, Tensor],
    lora_scale: float,
    answers: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder.

    Args:
        model: whose bridge, key heads, question head and what names things (if it has them), centre
            and background are written, and what training changed in its frame encoder: matrices
            with 8 bits a value and one bfloat16 scale a row, the rest as float16.
        folder: made if need be; an existing checkpoint in it is replaced, file by file.
        backbones: names under ``vision``, ``language`` and ``sentences``.
        lora: ``<module>.A`` [r, in] and ``<module>.B`` [out, r] by module of the language model.
        lora_scale: alpha / r, of ``answers`` too.
        answers: likewise, of the language model that answers; None: the one that captions does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"center": model.center, "background": model.background}
    tensors |= {f"{VISION}{key}": value for key, value in model.vision.changes.items()}
    learned = _learned(model.bridge, model.picture_key, model.text_key)
    for prefix, module in learned.items():
        tensors |= {f"{prefix}.{key}": value for key, value in module.state_dict().items()}
    tensors |= {f"{LORA}{key}": value for key, value in lora.items()}
    tensors |= {f"{ANSWERS}{key}": value for key, value in (answers or {}).items()}
    if model.questions is not None:
        tensors |= {f"{QUESTIONS}.{k}": v for k, v in model.questions.state_dict().items()}
    if model.caption_tokens is not None:
        bits = torch.zeros(int(model.caption_tokens.max()) + 1, dtype=torch.uint8)
        bits[model.caption_tokens] = 1
        tensors[CAPTION_TOKENS] = torch.from_numpy(np.packbits(bits.numpy()))
    if model.words is not None:
        tensors |= {f"{WORDS}.{k}": v for k, v in model.words.state_dict().items()}
    if model.names is not None:
        tensors |= {f"{OF_KEYS}.{k}": v for k, v in model.names.state_dict().items()}
    config = {
        "format": FORMAT,
        **backbones,
        "bridge": asdict(model.bridge.config),
        "key_dim": model.background.shape[1],
        "scenes": asdict(model.scenes),
        "lora_scale": lora_scale,
    }
    if model.picture_key.evidence:
        config["evidence"] = model.picture_key.evidence.sizes._asdict()
    if model.confidence_model:
        config["certainty"] = model.confidence_model.settings()
    config["chance"] = model.null._asdict()
    if model.reranker:
        config["choice"] = model.reranker._asdict()
    path = folder / "model.safetensors.part"
    save_file(packed(tensors), path)
    path.chmod(0o644)  # safetensors writes files that only their owner may read
    os.replace(path, folder / "model.safetensors")
    lines = {
        NAMES: list(model.words.names) if model.words else None,
        LEXICON: lexicon_lines(model.names.lexicon) if model.names else None,
    }
    for name, listed in lines.items():
        if listed is None:
            (folder / name).unlink(missing_ok=True)
            continue
        path = folder / f"{name}.part"
        path.write_text("".join(f"{line}\n" for line in listed), encoding="utf-8")
        os.replace(path, folder / name)
    path = folder / "config.json.part"
    path.write_text(json.dumps(config, indent=1) + "\n")
    os.replace(path, folder / "config.json")


def lora_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return an adapter of a checkpoint's tensors, ``LORA`` or ``ANSWERS``."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _open_language(
    folder: Path,
    config: CheckpointConfig,
    lora: dict[str, Tensor],
    device: str,
    caption_tokens: Tensor | None = None,
    *,
    without_layers: bool = False,
) -> CausalLanguageModel:
    path = backbone_path(config.language)
    language = CausalLanguageModel.open(path, device=device, without_layers=without_layers)
    if language.width != config.bridge.language_dim:
        raise CheckpointError(
            f"{folder}: speaks to a language model of width {config.bridge.language_dim}, "
            f"but that of {config.language} is {language.width}"
        )
    if caption_tokens is not None and caption_tokens.max() >= language.num_tokens:
        raise CheckpointError(
            f"{folder}: {CAPTION_TOKENS} names token {int(caption_tokens.max())}, but "
            f"{config.language} has {language.num_tokens}"
        )
    language.caption_tokens = caption_tokens
    if without_layers:
        lora = {key: value for key, value in lora.items() if ".layers." not in key}
    language.edit(lambda llama: merge_lora(llama, lora, config.lora_scale))
    return language


@torch.no_grad()
def merge_lora(model: nn.Module, lora: dict[str, Tensor], scale: float) -> None:
    """Add each W += scale * B A into the language model; afterwards it costs nothing.

    Raises:
        CheckpointError: half a pair, or one that fits no module; the model stays as it is.

    Source: LoRA (arXiv 2106.09685), section 4.1.
    """
    modules = dict(model.named_modules())
    changes = []
    for name, (a, b) in pairs(lora, scale).items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None:
            raise CheckpointError(f"lora: the language model has no module {name} with weights")
        delta = b @ a
        if delta.shape != weight.shape:
            shapes = f"{tuple(weight.shape)}, not {tuple(delta.shape)}"
            raise CheckpointError(f"lora: {name} is {shapes}")
        changes.append((weight, delta))
    for weight, delta in changes:
        weight += delta.to(weight)


def _learned(
    bridge: nn.Module, picture_key: nn.Module, text_key: nn.Module
) -> dict[str, nn.Module]:
    return {"bridge": bridge, "picture_key": picture_key, "text_key": text_key}


def _word_head(
    tensors: dict[str, Tensor], folder: Path, bridge: BridgeConfig
) -> WordsOfTokens | None:
    if f"{WORDS}.down.weight" not in tensors:
        return None
    inside = bridge.memory_tokens * bridge.dim
    down = _shaped(tensors, f"{WORDS}.down.weight", (-1, inside), folder)
    scored = len(_shaped(tensors, f"{WORDS}.up.bias", (-1,), folder))
    names = read_names(folder / NAMES)
    if len(names) != scored:
        raise CheckpointError(
            f"{folder / NAMES}: {len(names)} words, but the checkpoint scores {scored}"
        )
    with torch.device("meta"):
        head = WordsOfTokens(bridge.memory_tokens, bridge.dim, names, len(down))
    _fill(head, tensors, WORDS, folder)
    return head.eval()


def _names_of_keys(
    tensors: dict[str, Tensor], folder: Path, key_dim: int, words: WordsOfTokens | None
) -> NamesOfKeys | None:
    if words is None or f"{OF_KEYS}.classes.bias" not in tensors:
        return None
    classes = len(_shaped(tensors, f"{OF_KEYS}.classes.bias", (-1,), folder))
    lexicon = read_lexicon(folder / LEXICON, words.names, classes)
    with torch.device("meta"):
        head = NamesOfKeys(key_dim, words.names, classes, lexicon)
    _fill(head, tensors, OF_KEYS, folder)
    return head.eval()


def _listed_tokens(tensors: dict[str, Tensor], folder: Path) -> Tensor | None:
    packed_bits = tensors.get(CAPTION_TOKENS)
    if packed_bits is None:
        return None
    tokens = np.flatnonzero(np.unpackbits(packed_bits.numpy().astype(np.uint8)))
    if not len(tokens):
        raise CheckpointError(f"{folder}: {CAPTION_TOKENS} names no token; get the model again")
    return torch.from_numpy(tokens)


def _question_head(tensors: dict[str, Tensor], folder: Path) -> QuestionHead | None:
    if not any(key.startswith(f"{QUESTIONS}.") for key in tensors):
        return None
    head = QuestionHead(TEXT_DIM)
    _fill(head, tensors, QUESTIONS, folder)
    return head


def check_device(device: str) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        ConfigError: it does not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{device}: no device here ({reason}); try cpu") from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read a checkpoint folder's weights as float32.

    Raises:
        CheckpointError: the file is missing or corrupt, or a weight of it is no finite number.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: missing or corrupt ({error}); get the model again"
        ) from error
    tensors = {k: v for k, v in tensors.items() if not k.startswith(RETIRED)}
    scales = {k: tensors.pop(k) for k in list(tensors) if k.endswith(SCALE)}
    unpacked = {key: value.float() for key, value in tensors.items()}
    try:
        for key, scale in scales.items():
            matrix = unpacked[key.removesuffix(SCALE)]
            matrix *= scale.float().view(len(matrix), *[1] * (matrix.ndim - 1))
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: scales do not fit their matrices; get it again") from error
    for key, value in unpacked.items():
        # Both extremes are NaN where a value is: 7 ms for streammem-tiny, against 50 of isfinite.
        if value.numel() and not torch.stack(value.aminmax()).isfinite().all():
            raise CheckpointError(
                f"{path}: {key} has weights that are no finite numbers; get it again"
            )
    return unpacked


def _shaped(tensors: dict[str, Tensor], key: str, shape: tuple[int, ...], folder: Path) -> Tensor:
    """Return a tensor of this shape, in which -1 stands for any size."""
    tensor = tensors.get(key)
    sizes = [] if tensor is None else tensor.shape
    fits = len(sizes) == len(shape) and all(
        wanted in (-1, size) for wanted, size in zip(shape, sizes, strict=True)
    )
    if tensor is None or not fits:
        raise CheckpointError(f"{folder}: {key} is missing, or not of shape {shape}")
    return tensor


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a checkpoint holds them: large matrices with 8 bits a value."""
    stored = {}
    for key, tensor in tensors.items():
        value = tensor.detach().float().contiguous()
        if value.ndim >= 2 and value.numel() >= MIN_PACKED:
            # Rounding to the stored scale, not to the exact one, keeps a saved file a fixed point:
            # 127 x bfloat16 is exact in float32, however small a row is.
            rows = value.flatten(1)
            scale = (rows.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()
            stored[key + SCALE] = scale
            rounded = (rows / scale.float()[:, None]).round().clamp(-127, 127)
            stored[key] = rounded.to(torch.int8).view_as(value)
        else:
            stored[key] = value.half()
    return stored


def _fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, folder: Path) -> None:
    own = {
        k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")
    }
    try:
        module.load_state_dict(own, assign=True)
    except RuntimeError as error:
        reason = shorten(str(error), 200)  # it can name every key there is
        raise CheckpointError(
            f"{folder}: weights do not fit the configuration ({reason})"
        ) from error
    module.eval().requires_grad_(False)


def backbone_path(name: str) -> Path | str:
    """Resolve a backbone: ours by name, a folder, or ``hf:NAME`` from the local hub cache."""
    if name in SOURCES:
        return weights_path(name)
    if name.startswith("hf:"):
        return name.removeprefix("hf:")
    if os.path.isdir(name):  # unlike Path's, False for a name that no folder can have
        return Path(name)
    raise BackboneError(
        f"{name}: unknown backbone; give one of {', '.join(SOURCES)}, a folder or hf:NAME"
    )


def open_vision(
    name: str, changes: Mapping[str, Tensor] | None = None, *, device: str = "cpu"
) -> VisionEncoder:
    """Open a vision encoder by its backbone's name.

    Args:
        name: ours, a folder or ``hf:NAME``.
        changes: what training added to its parameters, by their names; of ours only.
        device: where it runs.

    Raises:
        BackboneError: missing weights, or changes that do not fit.
    """
    path = backbone_path(name)
    if name == "efficientnet-lite2":
        return EfficientNetEncoder(Path(path), changes, device=device)
    if changes:
        raise BackboneError(f"{name}: a checkpoint cannot change this encoder")
    return TransformersVisionEncoder(path, device=device)
