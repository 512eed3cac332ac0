"""Video-LLaMA's published files: what lies in which, what may lack, and opening them.

Up to five torch files (of which tensors and plain values alone are read) and the folder of the
language model. Sizes come from the files, so that a small checkpoint in the same layout opens as
the published one does. Nothing is downloaded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from streammem.errors import CheckpointError, ConfigError
from streammem.models.backbones.eva import EVA_UNREAD, config_of
from streammem.models.backbones.imagebind import (
    IMAGEBIND_UNREAD,
    ImageBindVision,
    ImageBindVisionConfig,
    audio_config,
)
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.backbones.qformer import QFORMER_UNREAD, QFormer, QFormerConfig
from streammem.models.backbones.torch_files import (
    completed,
    filled,
    layers_of,
    misfits,
    read_torch,
    shapes_of,
    size_of,
)
from streammem.models.backbones.transformers_files import unusable
from streammem.models.published import FRESH, PublishedFile, dtype_of, local_file
from streammem.models.tiny.model import VideoModel
from streammem.models.video_llama.branches import (
    FRAME_READER,
    SOUND_READER,
    VIDEO_READER,
    BranchSizes,
    PictureBranch,
    SoundBranch,
    SoundSizes,
)
from streammem.models.video_llama.options import VideoLlamaOptions
from streammem.models.video_llama.prompts import STOPS
from streammem.models.video_llama.video_llama import VideoLlama

VISION = ImageBindVisionConfig()
IMAGEBIND_FILE = "imagebind_huge.pth"  # of the folder that the parent's configuration names
# What the files may hold and no pass reads: buffers, the projection of BLIP-2's language model, and
# the text half of its Q-Former.
UNREAD = re.compile(
    rf"(\w+_)?Qformer\.{QFORMER_UNREAD}"
    r"|llama_model\..*rotary_emb\.inv_freq"
    r"|(t5|opt)_proj\.(weight|bias)"
    r"|Qformer\.(cls\..*|bert\.embeddings\.(word|position)_embeddings\..*)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*"
    rf"|visual_encoder\.{EVA_UNREAD}"
    rf"|audio_encoder\.{IMAGEBIND_UNREAD}"
)


@dataclass(frozen=True, slots=True)
class VideoLlamaFile(PublishedFile):
    """What a TOML file of a Video-LLaMA says.

    Attributes:
        tower: EVA ViT-G/14's file.
        reader: BLIP-2's, with the Q-Former of one frame and the norm before it.
        pictures: the parent's checkpoint of the pictures' branch, or ``fresh``, to be trained.
        sound: likewise of the sound's branch; empty: the model does not listen.
        imagebind: ImageBind's file, or the folder that holds it; needed beside ``sound``.
        language: folder of the language model, or ``hf:OWNER/NAME`` from the local hub cache.
    """

    NEEDED = (("pictures", "the parent's checkpoint,"), ("language", "the model beneath it"))

    family: str = "video-llama"
    tower: str = "eva_vit_g.pth"
    reader: str = "blip2_pretrained_flant5xxl.pth"
    pictures: str = ""
    sound: str = ""
    imagebind: str = IMAGEBIND_FILE
    language: str = ""
    options: VideoLlamaOptions = field(default_factory=VideoLlamaOptions)


FILE = VideoLlamaFile


def open_model(
    name: str, said: VideoLlamaFile, keys: VideoModel, *, device: str = "cpu"
) -> VideoLlama:
    """Open a checkpoint; see ``models.published.open_published``."""
    options = said.options
    # 1. All tensors by the parent's names; the second checkpoint goes over the first, as there.
    tensors = _named(said)
    if FRESH in (said.pictures, said.sound):
        tensors |= _fresh(tensors, said)
    # 2. Sizes off the files, and one error that names all that is wrong.
    pictures_sizes, sound_sizes = sizes_of(tensors, options, listens=bool(said.sound))
    with torch.device("meta"):
        pictures = PictureBranch(pictures_sizes)
        sound = SoundBranch(sound_sizes) if sound_sizes else None
    branches: list[PictureBranch | SoundBranch] = [pictures, *([sound] if sound else [])]
    wanted = {
        published: tuple(branch.state_dict()[own].shape)
        for branch in branches
        for published, own in branch.published().items()
    }
    if options.weights == "partial":
        read = {key: value for key, value in tensors.items() if not UNREAD.fullmatch(key)}
        tensors = completed(read, wanted, name)
    found = shapes_of(tensors)
    if not sound:  # a checkpoint of both branches may be used for its pictures
        found = {key: shape for key, shape in found.items() if not key.startswith("audio_")}
    if wrong := misfits(found, wanted, UNREAD):
        files = [said.tower, said.reader, said.pictures]
        files += [said.sound, said.imagebind] if said.sound else []
        raise CheckpointError(
            f"{name}: not a whole Video-LLaMA ({wrong}); it was read from {', '.join(files)}"
        )
    # 3. Fill them: towers as small as asked for, the rest in float32.
    dtype = dtype_of(options.dtype, device)
    for branch in branches:
        state = {
            own: tensors[published].to(
                device, dtype if own.startswith(("tower.", "ears.")) else torch.float32
            )
            for published, own in branch.published().items()
        }
        branch.load_state_dict(state, assign=True)
        branch.eval().requires_grad_(False)
    width = pictures_sizes.language

    def open_language() -> CausalLanguageModel:
        from streammem.models.checkpoint import backbone_path

        language = CausalLanguageModel.open(backbone_path(said.language), device=device)
        if language.width != width:
            raise CheckpointError(
                f"{name}: its tokens have width {width}, but {said.language} has {language.width}"
            )
        language.stops = STOPS[options.chat]
        return language

    return VideoLlama(
        name=name,
        options=options,
        keys=keys,
        pictures=pictures,
        sound=sound,
        open_language=open_language,
        session=said.session,
    )


def _named(said: VideoLlamaFile) -> dict[str, Tensor]:
    """Read all files; tensors bear the names that they have in the parent's whole model."""
    tower = local_file(said.tower)
    tensors = {f"visual_encoder.{key}": value for key, value in read_torch(tower).items()}
    tensors |= read_torch(local_file(said.reader))
    own = read_torch(local_file(said.pictures)) if said.pictures != FRESH else {}
    if said.sound:
        own |= read_torch(local_file(said.sound)) if said.sound != FRESH else {}
        ears = _imagebind(said)
        tensors |= {f"audio_encoder.{key}": value for key, value in read_torch(ears).items()}
    return tensors | own


def _imagebind(said: VideoLlamaFile) -> Path:
    folder = Path(said.imagebind)
    return folder / IMAGEBIND_FILE if folder.is_dir() else local_file(said.imagebind)


def _fresh(tensors: Mapping[str, Tensor], said: VideoLlamaFile) -> dict[str, Tensor]:
    """Make untrained tensors of the branches that are ``fresh``, by the parent's names."""
    from streammem.models.checkpoint import backbone_path

    path = backbone_path(said.language)
    try:
        width = AutoConfig.from_pretrained(path, local_files_only=True).hidden_size
    except (OSError, ValueError, AttributeError) as error:
        raise unusable(path, error) from error
    pictures, sound = sizes_of(tensors, said.options, listens=bool(said.sound))
    frame, made = pictures.reader, dict[str, Tensor]()
    sized = {"width": frame.width, "heads": frame.heads, "mlp": frame.mlp}
    parts = []
    if said.pictures == FRESH:
        video = replace(VIDEO_READER, queries=frame.queries, reads=frame.width, **sized)
        parts += [("video", "video_frame", "llama_proj", video, pictures.positions)]
    if said.sound == FRESH and sound:
        heard = replace(SOUND_READER, reads=sound.ears.out, **sized)
        parts += [("audio", "audio", "audio_llama_proj", heard, sound.positions)]
    for name, positions, projection, config, count in parts:
        reader, linear = QFormer(config), nn.Linear(config.width, width)
        own = reader.published(f"{name}_Qformer", f"{name}_query_tokens")
        made |= {published: reader.state_dict()[key] for published, key in own.items()}
        table = nn.Embedding(count, config.reads).weight
        made[f"{positions}_position_embedding.weight"] = table.detach()
        made |= {f"{projection}.{key}": value for key, value in linear.state_dict().items()}
    return made


def open_picture_branch(said: VideoLlamaFile, *, device: str = "cpu") -> ImageBindVision:
    """Open ImageBind's branch of pictures, through which sound learns from pictures.

    Raises:
        CheckpointError: tensors are missing or of another shape.
        BackboneError: the file is not here.
    """
    path = _imagebind(said)
    tensors = {name: v for name, v in read_torch(path).items() if ".vision." in name}
    stem, first = "modality_preprocessors.vision.", "modality_trunks.vision.blocks."
    try:
        width, _, _, patch, _ = tensors[f"{stem}rgbt_stem.proj.1.weight"].shape
        places = tensors[f"{stem}pos_embedding_helper.pos_embed"].shape[1] - 1
        mlp = tensors[f"{first}0.mlp.fc1.weight"].shape[0]
        out = tensors["modality_heads.vision.2.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: has no branch of pictures ({error})") from error
    heads = said.options.sound_heads if width != VISION.width else VISION.heads
    config = ImageBindVisionConfig(
        width, layers_of(tensors, first, 0), heads, mlp, out, patch * round(places**0.5), patch
    )
    with torch.device("meta"):
        eyes = ImageBindVision(config)
    return filled(
        eyes, tensors, f"{path}: not a whole branch of pictures",
        ignored=re.compile("modality_postprocessors.*"), device=device,
        dtype=dtype_of("auto", device),
    )  # fmt: skip


def sizes_of(
    tensors: Mapping[str, Tensor], options: VideoLlamaOptions, *, listens: bool
) -> tuple[BranchSizes, SoundSizes | None]:
    """Read sizes off tensors by the parent's names; what is missing has the published size.

    Raises:
        ConfigError: numbers of heads that do not divide a width.
    """
    size = partial(size_of, tensors)

    def reader(module: str, queries: str, published: QFormerConfig) -> QFormerConfig:
        at = f"{module}.bert.encoder.layer."
        return QFormerConfig(
            layers=layers_of(tensors, at, published.layers),
            every=published.every,
            queries=size(queries, 1, published.queries),
            reads=size(f"{at}0.crossattention.self.key.weight", 1, published.reads),
            width=size(queries, 2, published.width),
            heads=options.reader_heads,
            mlp=size(f"{at}0.intermediate_query.dense.weight", 0, published.mlp),
        )

    # 1. Pictures.
    at = "visual_encoder."
    tower = config_of(
        {key.removeprefix(at): value for key, value in tensors.items() if key.startswith(at)},
        options.heads,
    )
    pictures = BranchSizes(
        tower=tower,
        reader=reader("Qformer", "query_tokens", FRAME_READER),
        video=reader("video_Qformer", "video_query_tokens", VIDEO_READER),
        positions=size("video_frame_position_embedding.weight", 0, 32),
        language=size("llama_proj.weight", 0, 4096),
    )
    _check_heads(reader_heads=(options.reader_heads, pictures.reader.width))
    if not listens:
        return pictures, None
    # 2. Sound.
    at = "audio_encoder."
    heard = {key.removeprefix(at): v for key, v in tensors.items() if key.startswith(at)}
    ears = audio_config(heard, options.sound_heads)
    _check_heads(sound_heads=(options.sound_heads, ears.width))
    return pictures, SoundSizes(
        ears=ears,
        reader=reader("audio_Qformer", "audio_query_tokens", SOUND_READER),
        positions=size("audio_position_embedding.weight", 0, 8),
        language=size("audio_llama_proj.weight", 0, 4096),
    )


def _check_heads(**heads: tuple[int, int]) -> None:
    for name, (count, width) in heads.items():
        if width % count:
            raise ConfigError(f"{name}={count}: do not divide a width of {width}")
