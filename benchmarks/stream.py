"""What a stream costs: an hour of 640x360 at 1 frame a second, on one thread.

CPU seconds of the whole process, part by part; the parts run one after another here, so that none
is charged for another. In use perception and speech run side by side. "segment" is what a push
costs beyond encoding and the bridge: SceneTilling, keys, cache, keyframes.

``--plot`` draws the parts beside two bounds: decoding the same film with nothing else, and the
floating-point work of encoder and words at the speed of a large matrix product.
"""

import argparse
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain, cycle, islice
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.clips import FPS, HEIGHT, WIDTH, letterboxed, repeat, write
from benchmarks.encoder import PEAK_SIDE, in_turns, multiplications
from benchmarks.machine import machine
from streammem.backbones.vision import EfficientNetEncoder, open_net
from streammem.backbones.weights import home, weights_path
from streammem.checkpoint import load
from streammem.live import MAX_SIDE
from streammem.model import VideoModel
from streammem.scenes import for_keyframes
from streammem.session import Session
from streammem.session_config import SessionConfig
from streammem.threads import limit_threads
from streammem.types import Caption, Segment
from streammem.video import open_source

PARTS = ("decode", "encode", "segment", "bridge", "generate")
LABELS = dict(zip(PARTS, ("decode", "encode", "segment", "bridge", "words"), strict=True))
CLIP_S = 8.0
LOOP_MIN = 10.0  # longer films repeat their first ten minutes


class Clock:
    """CPU seconds by part; a part inside another is charged to itself alone."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = time.process_time()
        if self._open:
            self.spent[self._open[-1]] += now - self._since
        self._since = now


@dataclass(frozen=True, eq=False, kw_only=True)
class Timed(VideoModel):
    """A model whose parts are on the clock."""

    clock: Clock

    def perceive(self, picture: np.ndarray):
        with self.clock.part("encode"):
            return super().perceive(picture)

    def look(self, patches, times):
        with self.clock.part("bridge"):
            return super().look(patches, times)

    def remember(self, memory, tokens, retrieved):
        with self.clock.part("bridge"):
            return super().remember(memory, tokens, retrieved)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks stream", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a video; made if not given")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--sparse", action="store_true", help="keyframes only")
    parser.add_argument("--batch", type=int, default=8, help="captions at a time; 0 for none")
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--plot", type=Path, help="PNG of the parts and their bounds")
    options = parser.parse_args(argv)
    video = options.file or made(home() / "benchmarks", options.minutes)
    limit_threads(busy=os.cpu_count() or 1)  # one thread
    figures = run(video, options)
    print(json.dumps({"benchmark": "stream", **figures, "machine": machine()}))
    return 0


def run(video: Path, options: argparse.Namespace) -> dict[str, object]:
    """Watch a file, print the table, and return the figures."""
    clock = Clock()
    plain = load(options.model)
    timed = Timed(clock=clock, **{f.name: getattr(plain, f.name) for f in fields(plain)})
    _warm(timed)
    clock.spent.clear()
    clock.calls.clear()
    scenes = for_keyframes(plain.scenes) if options.sparse else None
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Session(timed, SessionConfig(scenes=scenes), Path(scratch, "memory")) as session,
    ):
        captions, minutes = _watch(session, clock, video, options)
    total_s = sum(clock.spent.values())
    wall_s, parts = time.perf_counter() - began, clock.spent
    print(
        f"{video.name}: {session.state.frames} frames, {timed.clock.calls['encode']} encoded, "
        f"{session.state.next_segment} segments, {len(captions)} captions in {wall_s:.0f} s; "
        f"CPU {total_s - parts['generate']:.0f} s of perception, {parts['generate']:.0f} s of words"
    )
    for part in PARTS:
        print(f"  {part:10} {clock.spent[part]:8.1f} s CPU  {clock.spent[part] / total_s:6.1%}")
    print(f"  perception a frame: minute 1 {minutes[0]:.1f} ms, the last {minutes[-1]:.1f} ms")
    peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"  peak resident memory {peak_rss_mb} MB")
    bounds = {}
    if options.plot:
        bounds = _bounds(timed, video, options, captions, clock.calls["encode"])
        draw(options.plot, {part: clock.spent[part] for part in PARTS}, bounds)
    return {
        "file": video.name,
        "fps": options.fps,
        "sparse": options.sparse,
        "batch": options.batch,
        "frames": session.state.frames,
        "encoded": clock.calls["encode"],
        "segments": session.state.next_segment,
        "captions": len(captions),
        **{f"{part}_cpu_s": round(clock.spent[part], 2) for part in PARTS},
        "wall_s": round(wall_s, 1),
        "first_minute_ms_a_frame": minutes[0],
        "last_minute_ms_a_frame": minutes[-1],
        "ms_a_frame_by_minute": minutes,
        "peak_rss_mb": peak_rss_mb,
        "bounds_s": {name: round(seconds, 2) for name, seconds in bounds.items()},
    }


def _bounds(
    model: VideoModel, video: Path, options: argparse.Namespace, said: list[Caption], encoded: int
) -> dict[str, float]:
    """Return the least CPU seconds of the parts that have a bound."""
    matrix = torch.rand(PEAK_SIDE, PEAK_SIDE)
    peak = 2 * PEAK_SIDE**3 / in_turns({"sgemm": lambda: matrix @ matrix}, 5)["sgemm"] * 1e3
    net = open_net(weights_path("efficientnet-lite2"), {}).eval()
    side = EfficientNetEncoder.size
    with torch.inference_mode():
        flop = 2 * multiplications(net, torch.zeros(1, 3, side, side))
    language = model.language
    tokens = model.bridge.initial_memory()[0]  # any of the right shape
    prompt = len(language.embed(model.caption_prompt(tokens))) - len(
        language.ids(language.chat_prefix)  # read once for all
    )
    num_tokens = sum(prompt + len(language.ids(caption.text)) for caption in said)
    weights = sum(p.numel() for p in language.model.parameters())
    return {
        "decode": _decode_alone(video, options),
        "encode": encoded * flop / peak,
        "generate": 2 * weights * num_tokens / peak,
    }


def _decode_alone(video: Path, options: argparse.Namespace) -> float:
    """Return the CPU seconds of decoding on one thread, no picture converted."""
    began = time.process_time()
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        # Frames that no other needs are left out, as the reader does between samples.
        stream.codec_context.skip_frame = "NONKEY" if options.sparse else "NONREF"
        for frame in container.decode(stream):
            if frame.time >= options.minutes * 60:
                break
    return time.process_time() - began


def draw(path: Path, parts: dict[str, float], bounds: dict[str, float]) -> None:
    """Draw one bar of what was measured above one of the bounds, in CPU seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, seconds in enumerate((parts, bounds)):
        left = 0.0
        for number, (name, label) in enumerate(LABELS.items()):
            width = seconds.get(name, 0.0)
            axes.barh(row, width, left=left, color=f"C{number}", label=label if not row else None)
            if width > 0.03 * sum(parts.values()):
                axes.text(left + width / 2, row, f"{width:.1f}", ha="center", va="center")
            left += width
    axes.set_yticks([0, 1], ["measured", "bound"])
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds, one thread")
    axes.legend(ncols=len(LABELS), loc="upper center", bbox_to_anchor=(0.5, 1.25), frameon=False)
    figure.savefig(path, dpi=110)


def _watch(
    session: Session, clock: Clock, video: Path, options: argparse.Namespace
) -> tuple[list[Caption], list[float]]:
    """Return the captions, and the CPU ms a frame of each minute."""
    spent: Counter[int] = Counter()
    frames: Counter[int] = Counter()
    waiting: list[Segment] = []
    captions: list[Caption] = []
    asked = {"fps": options.fps, "end": options.minutes * 60, "sparse": options.sparse}
    with open_source(video, max_side=MAX_SIDE, **asked) as source:
        pictures = iter(source)
        while True:
            before = time.process_time()
            with clock.part("decode"):
                frame = next(pictures, None)
            with clock.part("segment"):
                waiting += session.push(frame) if frame else session.flush(source.end)
            if frame:
                minute = int(frame.time // 60)
                spent[minute] += time.process_time() - before
                frames[minute] += 1
            if options.batch and (not frame or len(waiting) >= options.batch):
                with clock.part("generate"):
                    captions += [c for c in session.captions(waiting) if c.text]
                waiting.clear()
            if not frame:
                return captions, _per_frame(spent, frames)


def _per_frame(spent: Counter[int], frames: Counter[int]) -> list[float]:
    return [round(spent[minute] / frames[minute] * 1000, 1) for minute in sorted(frames)]


def _warm(model: Timed) -> None:
    """Load what is loaded when first used."""
    session = Session(model)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with open_source([pixels], fps=1.0) as source:
        for frame in source:
            session.push(frame)
    for segment in session.flush():
        session.caption(segment)


def made(folder: Path, minutes: float) -> Path:
    """Make a film of real clips in a loop where STREAMMEM_DATA is set, else of moving pictures."""
    data = os.environ.get("STREAMMEM_DATA")
    clips = sorted(Path(data, "clips").glob("*.mp4")) if data else []
    name = "clips" if clips else "patterns"
    video, short_min = folder / f"{name}-{minutes:g}min.mp4", min(minutes, LOOP_MIN)
    short = folder / f"{name}-{short_min:g}min.mp4"
    if not short.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"making {short} ...", file=sys.stderr)
        scenes = (letterboxed(c, 0.0, CLIP_S) for c in cycle(clips)) if clips else _patterns()
        write(short, islice(chain.from_iterable(scenes), round(short_min * 60 * FPS)))
    if not video.exists():
        repeat(short, video, math.ceil(minutes / short_min))
    return video


def _patterns() -> Iterator[Iterator[np.ndarray]]:
    """Scenes of ``CLIP_S``, each with its own drifting waves of colour."""
    rng = np.random.default_rng(0)
    while True:
        yield _waves(rng.uniform(1, 12, (3, 2)), rng.uniform(40, 215, 3))


def _waves(rates: np.ndarray, color: np.ndarray) -> Iterator[np.ndarray]:
    """[H, W, 3] uint8 pictures; rates [3, 2] and color [3] are a channel's waves and mean."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)[..., None] / HEIGHT
    phase = rates[:, 0] * x + rates[:, 1] * y  # [H, W, 3]
    for number in range(round(CLIP_S * FPS)):
        yield (color + 40 * np.sin(phase + number / FPS)).astype(np.uint8)
