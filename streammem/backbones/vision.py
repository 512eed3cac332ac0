"""Vision encoders behind one protocol: pictures in, a frame embedding and patches out.

No memory, no scenes: what is done with the features is up to the layers above.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streammem.backbones.efficientnet import HEAD_CHANNELS, EfficientNetLite
from streammem.errors import BackboneError

GRID = 7  # cells a side of EfficientNet-Lite's head at 224 px
COLOR_CELLS = 4  # colour means a side within one cell


class VisionFeatures(NamedTuple):
    """Features of a batch of frames.

    Attributes:
        frame: [B, D] one embedding a frame; not centred, not normalised.
        patches: [B, P, V] what the bridge reads.
    """

    frame: Tensor
    patches: Tensor


class VisionEncoder(Protocol):
    """What the engine needs of a vision encoder."""

    frame_dim: int
    patches: int
    patch_dim: int

    def encode(self, frames: Sequence[np.ndarray]) -> VisionFeatures:
        """Encode pictures [H, W, 3] uint8 RGB of any sizes."""
        ...


class EfficientNetEncoder:
    """EfficientNet-Lite2 at 224 px, squashed; 49 cells that see three depths and the colours.

    A cell joins the head (1280, what things are), the last stage at stride 16 folded 2x2
    (480, finer shapes), and 4x4 mean colours (48), which ImageNet classification throws away.

    Args:
        folder: holds model.safetensors with batch norm folded.

    Raises:
        BackboneError: missing or unreadable files.
    """

    size = 32 * GRID

    def __init__(self, folder: Path) -> None:
        self._net = EfficientNetLite("lite2")
        try:
            self._net.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, RuntimeError, KeyError, SafetensorError) as error:
            raise BackboneError(
                f"{folder}: not EfficientNet-Lite2 weights; remove it and pull again"
            ) from error
        self._net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frame_dim = HEAD_CHANNELS
        self.patches = GRID * GRID
        self.patch_dim = HEAD_CHANNELS + 4 * self._net.middle_channels + 3 * COLOR_CELLS**2

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> VisionFeatures:
        x = torch.from_numpy(np.stack([squash(frame, self.size) for frame in frames]))
        x = (x.permute(0, 3, 1, 2).float() - 127) / 128  # channels-last strides, as stored
        head, middle = self._net(x)
        patches = torch.cat(
            [
                rearrange(head, "b c y x -> b (y x) c"),
                rearrange(middle, "b c (y i) (x j) -> b (y x) (c i j)", i=2, j=2),
                rearrange(
                    F.avg_pool2d(x, 32 // COLOR_CELLS),
                    "b c (y i) (x j) -> b (y x) (i j c)",
                    i=COLOR_CELLS,
                    j=COLOR_CELLS,
                ),
            ],
            dim=-1,
        )
        return VisionFeatures(head.mean((2, 3)), patches)


class TransformersVisionEncoder:
    """A CLIP, SigLIP or similar vision tower of transformers.

    Args:
        folder: a model folder (or a cached hub name) with config, safetensors and image processor.
        device: where it runs; float32 on CPU, bfloat16 elsewhere.

    Raises:
        BackboneError: missing or unreadable files.
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu") -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, backend="pil"
            )
            model = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise BackboneError(f"{folder}: not a usable vision encoder ({reason})") from error
        self._tower: nn.Module = getattr(model, "vision_model", model).to(device).eval()
        vision = getattr(config, "vision_config", config)
        # CLIP puts a class token before the patches; SigLIP has none.
        self._skip = int(vision.model_type.startswith("clip"))
        self.frame_dim = self.patch_dim = vision.hidden_size
        self.patches = (vision.image_size // vision.patch_size) ** 2

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> VisionFeatures:
        # Stated, because a picture of three rows could as well be three channels.
        processed = self._processor(
            images=list(frames), input_data_format="channels_last", return_tensors="pt"
        )
        pixels = processed["pixel_values"]
        parameter = next(self._tower.parameters())
        hidden = self._tower(pixels.to(parameter)).last_hidden_state.float()
        patches = hidden[:, self._skip :]
        frame = hidden[:, 0] if self._skip else patches.mean(1)
        return VisionFeatures(frame, patches)


def squash(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize a picture to a square without cropping: nothing at the edges goes unseen.

    Args:
        picture: [H, W, 3] uint8.
        size: side in pixels.

    Returns:
        [size, size, 3] uint8; the input itself if it already has that size.
    """
    if picture.shape[:2] == (size, size):
        return picture
    return np.array(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
