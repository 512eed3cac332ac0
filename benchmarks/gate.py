"""What the pixel gate saves on a static camera, and what it overlooks.

Saved: stills with sensor noise, through H.264, at 1 frame a second. Overlooked: squares of 1% of
the picture that appear on a still, by contrast; and in real clips, how far the embedding of each
frame that was not encoded lies from the one used for it (1 - cosine; SceneTilling's floor for a
boundary is a depth of 0.65, a dip of about 0.3).
"""

import argparse
import io
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.clips import FPS, HEIGHT, WIDTH, letterboxed
from benchmarks.machine import machine
from streammem.engine.session_config import SessionConfig
from streammem.models.checkpoint import load_checkpoint
from streammem.models.tiny.model import VideoModel
from streammem.perception.frames import Encoded, PixelGate

STILL = SessionConfig().still
SECONDS = 12
SQUARE = round((0.01 * WIDTH * HEIGHT) ** 0.5)  # pixels a side


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gate", description=__doc__)
    parser.add_argument("--clips", type=int, default=40, help="at most so many clips")
    options = parser.parse_args(argv)
    data = os.environ.get("STREAMMEM_DATA")
    clips = sorted(Path(data, "clips").glob("*.mp4"))[: options.clips] if data else []
    if not clips:
        parser.error("needs real clips: set STREAMMEM_DATA")
    torch.set_num_threads(1)
    model = load_checkpoint()
    rng = np.random.default_rng(0)
    stills = [next(letterboxed(clip, 0.0, 1.0)) for clip in clips]
    figures = {
        "static": static_cameras(model, stills[:6], rng),
        "squares_overlooked": squares(model, stills, rng),
        "clips": real_clips(model, clips),
    }
    print(json.dumps({"benchmark": "gate", **figures, "machine": machine("openvino")}))
    return 0


def static_cameras(
    model: VideoModel, stills: list[np.ndarray], rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Print and return, by the noise's deviation, the frames encoded and what a frame costs."""
    table = {}
    for deviation in (2, 5, 10):
        num_seen = num_encoded = 0
        spent = {STILL: 0.0, 0.0: 0.0}
        for picture in stills:
            frames = list(islice(_filmed(picture, deviation, rng), 0, None, FPS))
            for still in spent:
                gate, last = PixelGate(model, still), None
                before = time.process_time()
                for frame in frames:
                    now = gate.encode(frame)
                    num_encoded += now is not last and still > 0
                    last = now
                spent[still] += time.process_time() - before
            num_seen += len(frames)
        row = {
            "encoded": num_encoded / num_seen,
            "ms_a_frame": round(spent[STILL] / num_seen * 1000, 2),
            "ms_a_frame_without": round(spent[0.0] / num_seen * 1000, 2),
        }
        print(
            f"noise of {deviation:2} levels: {row['encoded']:.0%} of {num_seen} frames encoded, "
            f"{row['ms_a_frame']} ms a frame; without the gate {row['ms_a_frame_without']}"
        )
        table[str(deviation)] = row
    return table


def squares(
    model: VideoModel, stills: list[np.ndarray], rng: np.random.Generator
) -> dict[str, float]:
    """Print and return the share of squares overlooked, by contrast in levels."""
    overlooked = {}
    for contrast in (4, 8, 16, 32):
        num_missed = 0
        for picture in stills:
            left, top = rng.integers(WIDTH - SQUARE), rng.integers(HEIGHT - SQUARE)
            with_square = picture.astype(np.int16)
            place = with_square[top : top + SQUARE, left : left + SQUARE]
            place += np.where(place.mean() > 127, -contrast, contrast).astype(np.int16)
            gate = PixelGate(model, STILL)
            first = gate.encode(picture)
            after = with_square.clip(0, 255).astype(np.uint8)
            num_missed += gate.encode(after) is first
        overlooked[str(contrast)] = num_missed / len(stills)
        print(f"squares of 1%, contrast {contrast:2}: {num_missed} of {len(stills)} overlooked")
    return overlooked


def real_clips(model: VideoModel, clips: list[Path]) -> dict[str, dict[str, float]]:
    """Print and return, by frame rate, what was not encoded and how far off its embedding was."""
    table = {}
    for fps in (1, 2):
        num_seen, distances = 0, [0.0]
        for clip in clips:
            gate, last = PixelGate(model, STILL), None
            for frame in islice(letterboxed(clip, 0.0, 20.0), 0, None, FPS // fps):
                num_seen += 1
                now = gate.encode(frame)
                if now is last:
                    distances.append(_distance(now, model.perceive(frame).embedding))
                last = now
        gated = len(distances) - 1
        table[str(fps)] = {"gated": gated / num_seen, "largest_distance": max(distances)}
        print(f"clips at {fps} fps: {gated} of {num_seen} frames not encoded, "
              f"largest distance {max(distances):.3f}")  # fmt: skip
    return table


def _distance(encoded: Encoded, embedding: np.ndarray) -> float:
    used = encoded.perceived.embedding
    return float(1 - used @ embedding / np.linalg.norm(used) / np.linalg.norm(embedding))


def _filmed(
    picture: np.ndarray, deviation: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield the pictures of a camera that looks at a still, as H.264 gives them back."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        for _ in range(SECONDS * FPS):
            noisy = picture + deviation * rng.standard_normal(picture.shape, np.float32)
            pixels = noisy.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
