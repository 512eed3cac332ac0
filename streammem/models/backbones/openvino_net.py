"""EfficientNet-Lite run by OpenVINO: the torch module's features, about twice as fast.

The graph is built from the module's own weights; nothing is traced, converted or cached on disk.
With 8 bits a value it is faster again, and the features are close, not equal.
"""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.backbones.efficientnet import (
    STRIDE16_STAGE,
    EfficientNetLite,
    Features,
    InvertedResidual,
    SameConv,
)
from streammem.models.once import once

TELEMETRY = "openvino_telemetry"
# The first convolutions stay in float32: they have few channels, so that 8 bits save little there
# and cost more than in all others together.
FLOAT_CONVS = 6
SCALES = (2, 4, 7, 14, 28, 56, 112)  # cells a side of the noise in calibration pictures
NUM_PICTURES = 4
MARGIN = 1.5  # photos reach further than those pictures, by at most this factor on 64 photos

Ranges = dict[nn.Module, tuple[float, float]]


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
        noise = [torch.randn(1, 3, cells, cells, generator=generator) for cells in SCALES]
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
