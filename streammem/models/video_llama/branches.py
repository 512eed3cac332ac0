"""Video-LLaMA's two branches: pictures and sound to tokens of the language model.

    frames = pictures.frames(pixels)          # [T, 32, 768] of each frame by itself
    pictures.read(frames)                     # [32, L] of all frames together
    sound.read(sound.clips(samples))          # [8, L]

Where the weights come from is ``published.py``'s business. No stream state lives here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streammem.models.backbones.eva import EvaConfig, EvaTower, normed
from streammem.models.backbones.imagebind import ImageBindAudio, ImageBindConfig
from streammem.models.backbones.qformer import QFormer, QFormerConfig

# Legend: T frames, S side in pixels, Q queries a frame, W width of the Q-Formers, L width of the
# language model, C clips, E width of a clip's vector.

TOWER, EARS = EvaConfig(), ImageBindConfig()
FRAME_READER = QFormerConfig(layers=12, every=2, reads=1408)
VIDEO_READER = QFormerConfig(layers=2, every=1)
SOUND_READER = QFormerConfig(layers=2, every=1, queries=8, reads=1024)


@dataclass(frozen=True, slots=True)
class BranchSizes:
    """Sizes of the pictures' branch; those published by default.

    Attributes:
        tower: of the picture tower.
        reader: of the Q-Former that reads one frame.
        video: of the Q-Former that reads all frames.
        positions: frames that have a position; more are not read together.
        language: L.
    """

    tower: EvaConfig = TOWER
    reader: QFormerConfig = FRAME_READER
    video: QFormerConfig = VIDEO_READER
    positions: int = 32
    language: int = 4096


@dataclass(frozen=True, slots=True)
class SoundSizes:
    """Sizes of the sound's branch; those published by default.

    Attributes:
        ears: of ImageBind's audio branch.
        reader: of the Q-Former that reads all clips.
        positions: clips that have a position.
        language: L.
    """

    ears: ImageBindConfig = EARS
    reader: QFormerConfig = SOUND_READER
    positions: int = 8
    language: int = 4096


class PictureBranch(nn.Module):
    """Frames to tokens: a tower and a Q-Former for each, then a Q-Former over all.

    Source: Video-LLaMA (arXiv 2306.02858), section 2.1.1.
    """

    def __init__(self, sizes: BranchSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tower = EvaTower(sizes.tower)
        self.norm = nn.LayerNorm(sizes.tower.width)
        self.reader = QFormer(sizes.reader)
        self.positions = nn.Embedding(sizes.positions, sizes.video.reads)
        self.video_reader = QFormer(sizes.video)
        self.projection = nn.Linear(sizes.video.width, sizes.language)

    def published(self) -> dict[str, str]:
        """Map the published name of each tensor to ours."""
        names = {f"visual_encoder.{name}": f"tower.{name}" for name in self.tower.state_dict()}
        for part in ("weight", "bias"):
            names[f"ln_vision.{part}"] = f"norm.{part}"
            names[f"llama_proj.{part}"] = f"projection.{part}"
        names["video_frame_position_embedding.weight"] = "positions.weight"
        image = self.reader.published("Qformer", "query_tokens")
        video = self.video_reader.published("video_Qformer", "video_query_tokens")
        names |= {name: f"reader.{own}" for name, own in image.items()}
        return names | {name: f"video_reader.{own}" for name, own in video.items()}

    def frames(self, pixels: Tensor) -> Tensor:
        """Read each frame by itself.

        Args:
            pixels: [T, S, S, 3] levels of 255.

        Returns:
            [T, Q, W] float32.
        """
        # The class token stays.
        return torch.cat([self.reader(part) for part in normed(self.tower, self.norm, pixels)])

    @property
    def queries(self) -> int:
        """Tokens that the language model is shown."""
        return self.sizes.video.queries

    def read(self, frames: Tensor) -> Tensor:
        """Read frames [T, Q, W] together, T in [1, positions]: [Q, L] for the language model."""
        placed = frames + self.positions.weight[: len(frames), None]
        return self.projection(self.video_reader(placed.flatten(0, 1)[None])[0])


class SoundBranch(nn.Module):
    """Clips of sound to tokens: ImageBind's audio branch for each, then a Q-Former over all.

    Source: Video-LLaMA (arXiv 2306.02858), section 2.1.2.
    """

    def __init__(self, sizes: SoundSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.ears = ImageBindAudio(sizes.ears)
        self.positions = nn.Embedding(sizes.positions, sizes.reader.reads)
        self.reader = QFormer(sizes.reader)
        self.projection = nn.Linear(sizes.reader.width, sizes.language)

    def published(self) -> dict[str, str]:
        """Map the published name of each tensor to ours."""
        names = {f"audio_encoder.{name}": f"ears.{name}" for name in self.ears.state_dict()}
        for part in ("weight", "bias"):
            names[f"audio_llama_proj.{part}"] = f"projection.{part}"
        names["audio_position_embedding.weight"] = "positions.weight"
        reader = self.reader.published("audio_Qformer", "audio_query_tokens")
        return names | {name: f"reader.{own}" for name, own in reader.items()}

    def clips(self, spectrograms: Sequence[Tensor]) -> Tensor:
        """Read clips, [1, 128, 204] each, by themselves: [C, E] float32 of length 1."""
        weight = next(self.ears.parameters())
        stacked = torch.stack(list(spectrograms)).to(weight)
        return self.ears(stacked, scaled=False).float()

    @property
    def queries(self) -> int:
        """Tokens that the language model is shown."""
        return self.sizes.reader.queries

    def read(self, clips: Tensor, *, scaled: bool) -> Tensor:
        """Read clips [C, E] together, C in [1, positions]: [queries, L] for the language model.

        Args:
            clips: of ``clips``.
            scaled: by the scale that is stored for sound, as the parent uses it.
        """
        heard = self.ears.scale(clips) if scaled else clips
        placed = heard + self.positions.weight[: len(clips)]
        return self.projection(self.reader(placed[None])[0])
