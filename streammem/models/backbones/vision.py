"""Vision encoders behind one protocol: pictures in, a frame embedding and patches out.

Ours is in `efficientnet.py`; here is what a tower of transformers needs. No memory, no scenes: what
is done with the features is up to the layers above.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from streammem.errors import BackboneError
from streammem.models.backbones.weights import check_complete
from streammem.models.once import opening


class VisionFeatures(NamedTuple):
    """Features of a batch of frames.

    Attributes:
        frame: [B, D] one embedding a frame; not centred, not normalised.
        patches: [B, P, V] what the bridge reads.
    """

    frame: Tensor
    patches: Tensor


class VisionEncoder(Protocol):
    """What the engine needs of a vision encoder; ``changes`` are what training added to it."""

    changes: Mapping[str, Tensor]
    frame_dim: int
    patches: int
    patch_dim: int

    def encode(self, frames: Sequence[np.ndarray]) -> VisionFeatures:
        """Encode pictures [H, W, 3] uint8 RGB of any sizes."""
        ...


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
            with opening(f"{folder}"):
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
                self._processor = AutoImageProcessor.from_pretrained(
                    folder, local_files_only=True, backend="pil"
                )
                model, info = AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.float32 if device == "cpu" else torch.bfloat16,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise BackboneError(f"{folder}: not a usable vision encoder ({reason})") from error
        check_complete(info, folder)
        tower, vision = model, config
        if "vision_config" in config.sub_configs:  # of a model that reads words, too
            tower, vision = model.vision_model, config.vision_config
        self._tower: nn.Module = tower.to(device).eval()
        # CLIP puts a class token before the patches; SigLIP has none.
        self._skip = int(vision.model_type.startswith("clip"))
        self.changes: Mapping[str, Tensor] = {}
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
