"""Vision encoders behind one protocol: pictures in, a frame embedding and patches out.

No memory, no scenes: what is done with the features is up to the layers above.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streammem.errors import BackboneError
from streammem.models.backbones.efficientnet import HEAD_CHANNELS, EfficientNetLite, Features
from streammem.models.backbones.openvino_net import OpenVinoNet
from streammem.models.backbones.weights import check_complete
from streammem.models.once import opening
from streammem.video.pixels import resize

log = logging.getLogger(__name__)

Runtime = Literal["auto", "openvino", "openvino-int8", "torch"]
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
    """What the engine needs of a vision encoder; ``changes`` are what training added to it."""

    changes: Mapping[str, Tensor]
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

    Frames are encoded one at a time, so that a batch gives the same bits as its frames alone; on
    a CPU a batch is no faster.

    Args:
        folder: holds model.safetensors with batch norm folded.
        changes: what training added to parameters of ``EfficientNetLite``, by name.
        runtime: ``openvino`` is about twice as fast as ``torch``; ``auto`` takes it if installed;
            ``openvino-int8`` is more than twice as fast again, with features that are close.

    Raises:
        BackboneError: missing or unreadable files, ``changes`` that do not fit, or OpenVINO asked
            for and not installed.
    """

    size = 32 * GRID

    def __init__(
        self,
        folder: Path,
        changes: Mapping[str, Tensor] | None = None,
        *,
        runtime: Runtime = "auto",
    ) -> None:
        self.changes: Mapping[str, Tensor] = dict(changes or {})
        net = open_net(folder, self.changes)
        net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._net = _compiled(net, self.size, runtime)
        self.frame_dim = HEAD_CHANNELS
        self.patches = GRID * GRID
        self.patch_dim = HEAD_CHANNELS + 4 * net.middle_channels + 3 * COLOR_CELLS**2

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> VisionFeatures:
        each = [self._encode(frame) for frame in frames]
        return VisionFeatures(*(torch.cat(parts) for parts in zip(*each, strict=True)))

    def _encode(self, frame: np.ndarray) -> VisionFeatures:
        x = pixels([frame], self.size)
        features = self._net(x)
        return VisionFeatures(features.head.mean((2, 3)), join_cells(features, color_cells(x)))


def open_net(folder: Path, changes: Mapping[str, Tensor]) -> EfficientNetLite:
    """Open EfficientNet-Lite2 with ``changes`` added to its parameters.

    Raises:
        BackboneError: missing or unreadable files, or changes that do not fit.
    """
    net = EfficientNetLite("lite2")
    try:
        net.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise BackboneError(
            f"{folder}: not EfficientNet-Lite2 weights ({reason}); remove it and pull again"
        ) from error
    parameters = dict(net.named_parameters())
    for name, value in changes.items():
        own = parameters.get(name)
        if own is None or own.shape != value.shape:
            expected = "no such parameter" if own is None else f"shape {tuple(own.shape)}"
            raise BackboneError(
                f"changes of the frame encoder: {name} {tuple(value.shape)}: EfficientNet-Lite2 "
                f"has {expected}; use the checkpoint with the encoder that it was tuned for"
            )
        own.data += value.to(own)
    return net


def pixels(frames: Sequence[np.ndarray], size: int) -> Tensor:
    """Make the net's input of pictures: [B, 3, size, size] with channels-last strides."""
    x = torch.from_numpy(np.stack([squash(frame, size) for frame in frames]))
    return (x.permute(0, 3, 1, 2).float() - 127) / 128


def color_cells(x: Tensor) -> Tensor:
    """Mean colours within each cell of the net's input, [B, P, 3 * COLOR_CELLS^2]."""
    means = F.avg_pool2d(x, 32 // COLOR_CELLS)
    grid = COLOR_CELLS
    return rearrange(means, "b c (y i) (x j) -> b (y x) (i j c)", i=grid, j=grid)


def join_cells(features: Features, colors: Tensor) -> Tensor:
    """Join head, stride 16 and colours to patches [B, P, V]."""
    head = rearrange(features.head, "b c y x -> b (y x) c")
    middle = rearrange(features.middle, "b c (y i) (x j) -> b (y x) (c i j)", i=2, j=2)
    return torch.cat([head, middle, colors], -1)


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
        self._tower: nn.Module = getattr(model, "vision_model", model).to(device).eval()
        vision = getattr(config, "vision_config", config)
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


def _compiled(net: EfficientNetLite, size: int, runtime: Runtime) -> Callable[[Tensor], Features]:
    """Make the fastest form of a net that there is, or the one asked for."""
    if runtime == "torch":
        return net
    try:
        return OpenVinoNet(net, size, int8=runtime == "openvino-int8")
    except ImportError as error:
        if runtime != "auto":
            raise BackboneError(
                f"openvino cannot be used ({error}): pip install openvino"
            ) from error
        log.info("openvino cannot be used (%s); frames are encoded by torch, half as fast", error)
        return net


def squash(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize a picture to a square without cropping: nothing at the edges goes unseen.

    Args:
        picture: [H, W, 3] uint8.
        size: side in pixels.

    Returns:
        [size, size, 3] uint8, writable; the input itself if it already is such a picture.
    """
    return resize(picture, (size, size), "bicubic")
