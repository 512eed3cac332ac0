"""What encoding a frame costs: the network alone, and from a 640x360 picture to its features.

The baseline is eager torch in the published layout: channels first, padding, convolution and batch
norm as separate steps, Pillow's resizing. One thread; CPU milliseconds, median over rounds in which
all take turns, so that whatever else the machine does slows all of them alike.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.clips import HEIGHT, WIDTH
from benchmarks.machine import machine
from streammem.models.backbones.efficientnet import (
    EfficientNetEncoder,
    EfficientNetLite,
    Features,
    SameConv,
)
from streammem.models.backbones.weights import weights_path

PEAK_SIDE = 1024  # of the square float32 matrices whose product stands for the machine's peak
Runs = dict[str, Callable[[], object]]


class Published(nn.Module):
    """A convolution as published: zero padding, no bias, and a batch norm that adds it."""

    def __init__(self, folded: SameConv) -> None:
        super().__init__()
        conv = folded.conv
        self.kernel, self.stride = folded.kernel, folded.stride
        self.conv = nn.Conv2d(
            conv.in_channels, conv.out_channels, self.kernel, self.stride,
            groups=conv.groups, bias=False,
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(conv.out_channels, eps=0.0)
        self.conv.weight.data.copy_(conv.weight)
        self.norm.bias.data.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return self.norm(self.conv(nn.functional.pad(x, pads) if any(pads) else x))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks encoder", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = weights_path("efficientnet-lite2")
    began = time.process_time()
    encoders = {"openvino": EfficientNetEncoder(folder, runtime="openvino")}
    start_s = round(time.process_time() - began, 2)
    for runtime in ("openvino-int8", "torch"):
        encoders[runtime] = EfficientNetEncoder(folder, runtime=runtime)
    with torch.inference_mode():
        figures = run(encoders, options.rounds) | {"start_cpu_s": start_s}
    print(f"  start-up, with the import of OpenVINO: {start_s:.2f} s of CPU")
    print(json.dumps({"benchmark": "encoder", **figures, "machine": machine("openvino")}))
    return 0


def run(encoders: dict[str, EfficientNetEncoder], rounds: int) -> dict[str, object]:
    """Print both tables; return the figures. Encoders by runtime."""
    ours, eighth, folded = (encoders[r] for r in ("openvino", "openvino-int8", "torch"))
    module = folded._net
    assert isinstance(module, EfficientNetLite)
    published = as_published(module)
    picture = _picture()
    x = _tensor(np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC)))
    channels_last = x.contiguous(memory_format=torch.channels_last)
    matrix = torch.rand(PEAK_SIDE, PEAK_SIDE)
    runs: Runs = {
        "network: eager torch, published layout": lambda: published(x),
        "network: torch, folded, channels-last": lambda: module(channels_last),
        "network: OpenVINO float32": lambda: ours._net(channels_last),
        "network: OpenVINO int8": lambda: eighth._net(channels_last),
        "frame: eager torch, Pillow": lambda: _published_frame(published, picture),
        "frame: torch, folded": lambda: folded.encode([picture]),
        "frame: OpenVINO float32 (default)": lambda: ours.encode([picture]),
        "frame: OpenVINO int8": lambda: eighth.encode([picture]),
        "sgemm": lambda: matrix @ matrix,
    }
    spent = in_turns(runs, rounds)
    peak = 2 * PEAK_SIDE**3 / spent.pop("sgemm") / 1e6  # GFLOP/s
    gflop = 2 * multiplications(module, x) / 1e9
    print(f"{gflop:.2f} GFLOP a frame; the machine's peak by sgemm {peak:.0f} GFLOP/s")
    for name, ms in spent.items():
        kind = name.partition(":")[0]
        base = next(t for n, t in spent.items() if n.startswith(kind))
        bound = f"{gflop / ms * 1e3 / peak:5.0%} of peak" if kind == "network" else ""
        print(f"  {name:42} {ms:6.1f} ms  {1000 / ms:5.1f} frames/s  {base / ms:4.2f} x  {bound}")
    error = difference(ours._net(channels_last), published(x))
    print(f"  greatest difference of a feature, OpenVINO and published: {error:.1e}")
    return {
        "cpu_ms": {name: round(ms, 2) for name, ms in spent.items()},
        "gflop": round(gflop, 3),
        "peak_gflop_s": round(peak, 1),
        "max_error": error,
    }


def in_turns(runs: Runs, rounds: int) -> dict[str, float]:
    """Run all in turns; return each one's median in CPU milliseconds."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, call in runs.items():
            before = time.process_time()
            call()
            if number:  # the first round warms up
                spent[name].append((time.process_time() - before) * 1000)
    return {name: float(np.median(times)) for name, times in spent.items()}


def as_published(module: EfficientNetLite) -> EfficientNetLite:
    """Return the same function with batch norms unfolded, channels first."""
    net = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SameConv):
                setattr(parent, name, Published(child))
    return net.eval()


def multiplications(module: nn.Module, x: Tensor) -> int:
    """Count the multiply-adds of the convolutions."""
    counted = []

    def count(conv: nn.Module, _: object, y: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        counted.append(y.shape[2] * y.shape[3] * conv.weight.numel())

    hooks = [m.register_forward_hook(count) for m in module.modules() if type(m) is nn.Conv2d]
    module(x)
    for hook in hooks:
        hook.remove()
    return sum(counted)


def difference(ours: Features, theirs: Features) -> float:
    """Return the greatest absolute difference of two nets' feature maps."""
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def _published_frame(net: nn.Module, picture: np.ndarray) -> Features:
    square = Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC)
    return net(_tensor(np.array(square)))


def _tensor(square: np.ndarray) -> Tensor:
    x = torch.from_numpy(square.copy()).permute(2, 0, 1)[None]
    return ((x.float() - 127) / 128).contiguous()


def _picture() -> np.ndarray:
    """Return a photo of STREAMMEM_DATA where there is one, else waves; [360, 640, 3] uint8."""
    data = os.environ.get("STREAMMEM_DATA")
    photos = sorted(Path(data, "flickr8k", "images").glob("*.jpg")) if data else []
    if photos:
        return np.array(Image.open(photos[0]).convert("RGB").resize((WIDTH, HEIGHT)))
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 20.0
    return (127 + 120 * np.sin(np.stack([x, y, x + y], -1))).astype(np.uint8)
