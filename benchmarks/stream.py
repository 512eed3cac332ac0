"""What a stream costs: an hour of 640x360 at 1 frame a second, perceived, captioned and stored.

It runs as `streammem watch` does: one thread decodes, one perceives, one speaks, and numeric
libraries get the threads that `streammem.models.threads` gives them. Parts are CPU seconds of their
own thread; "segment" is what a push costs beyond encoding and the bridge: SceneTilling, keys,
cache, keyframes; "other" is what no part accounts for, loading the model first of all. Seconds on
the clock count from before the model is loaded.

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
from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.clips import FPS, HEIGHT, WIDTH, join, letterboxed, write
from benchmarks.encoder import PEAK_SIDE, in_turns, multiplications
from benchmarks.machine import machine
from streammem.commands.opening import quiet_libraries
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.engine.watch import watch
from streammem.engine.watch_options import WatchOptions
from streammem.models.backbones.efficientnet import EfficientNetEncoder, open_net
from streammem.models.backbones.weights import home, weights_path
from streammem.models.checkpoint import load_checkpoint
from streammem.models.threads import limit_threads
from streammem.models.tiny.model import VideoModel
from streammem.perception.scenes import for_keyframes
from streammem.types import Caption, Frame, Segment, Stats
from streammem.video import SourceOptions, VideoSource, open_with

PARTS = ("decode", "encode", "segment", "bridge", "generate", "other")
LABELS = dict(zip(PARTS, ("decode", "encode", "segment", "bridge", "words", "other"), strict=True))
NUM_PATTERNS = 40


class Clock:
    """CPU seconds of one thread by part; a part inside another is charged to itself alone."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

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
        now = time.thread_time()
        if self._open:
            self.spent[self._open[-1]] += now - self._since
        self._since = now


@dataclass(frozen=True, eq=False, kw_only=True)
class TimedModel(VideoModel):
    """A model whose parts are on the clock of the thread that perceives."""

    clock: Clock

    def perceive(self, picture: np.ndarray):
        with self.clock.part("encode"):
            return super().perceive(picture)

    def encode_frames(self, patches, times):
        with self.clock.part("bridge"):
            return super().encode_frames(patches, times)

    def update_memory(self, memory, tokens):
        with self.clock.part("bridge"):
            return super().update_memory(memory, tokens)


class TimedSession(Session):
    """A session on its model's clock, which knows what each minute's frames cost."""

    def push(self, frame: Frame) -> tuple[Segment, ...]:
        began = time.thread_time()
        with self.model.clock.part("segment"):
            closed = super().push(frame)
        minutes = self.__dict__.setdefault("minutes", {})
        minutes.setdefault(int(frame.time // 60), []).append(time.thread_time() - began)
        return closed

    def flush(self, end: float | None = None) -> tuple[Segment, ...]:
        with self.model.clock.part("segment"):
            return super().flush(end)

    def add_caption(self, segment: Segment, text: str) -> Caption:
        with self.model.clock.part("segment"):
            return super().add_caption(segment, text)


class TimedSource(VideoSource):
    """A source on a clock of its own, which runs in the thread that reads."""

    def __init__(self, source: VideoSource) -> None:
        super().__init__(source.name, duration=source.duration)
        self._source, self.clock = source, Clock()
        self.sparse = source.sparse

    def _release(self) -> None:
        self._source.close()

    def _frames(self) -> Iterator[Frame]:
        frames = iter(self._source)
        while True:
            with self.clock.part("decode"):
                frame = next(frames, None)
            if frame is None:
                self.end = self._source.end
                return
            yield frame


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks stream", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a video; made if not given")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--scene-seconds", type=float, default=12.0, help="of the film it makes")
    parser.add_argument("--sparse", action="store_true", help="keyframes only")
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--plot", type=Path, help="PNG of the parts and their bounds")
    options = parser.parse_args(argv)
    video = options.file or made(home() / "benchmarks", options.minutes, options.scene_seconds)
    quiet_libraries()
    threads = limit_threads(busy=2)  # as `streammem watch` does
    figures = run(video, options)
    facts = {"benchmark": "stream", "threads_a_part": threads, **figures, "machine": machine()}
    print(json.dumps(facts))
    return 0


def run(video: Path, options: argparse.Namespace) -> dict[str, object]:
    """Watch a file, print the table, and return the figures."""
    began, cpu = time.perf_counter(), time.process_time()
    plain, clock = load_checkpoint(options.model), Clock()
    model = TimedModel(clock=clock, **{f.name: getattr(plain, f.name) for f in fields(plain)})
    config = SessionConfig(scenes=for_keyframes(plain.scenes) if options.sparse else None)
    opening = SourceOptions(
        fps=None if options.sparse else options.fps, end=options.minutes * 60, sparse=options.sparse
    )
    source = TimedSource(open_with(video, opening))
    with (
        tempfile.TemporaryDirectory() as scratch,
        TimedSession(model, config, Path(scratch, "memory")) as session,
    ):
        events = list(watch(session, source, WatchOptions(stats_s=math.inf)))
    wall_s, total_s = time.perf_counter() - began, time.process_time() - cpu
    captions = [event for event in events if isinstance(event, Caption) and event.text]
    (stats,) = (event for event in events if isinstance(event, Stats))
    spent = clock.spent + source.clock.spent
    spent["generate"] = stats.speak_s
    spent["other"] = total_s - sum(spent.values())
    minutes = [round(float(np.mean(each)) * 1000, 1) for each in session.minutes.values()]
    peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{video.name}: {stats.frames} frames, {clock.calls['encode']} encoded, "
        f"{stats.segments} segments, {len(captions)} captions\n"
        f"  {wall_s:.1f} s on the clock, {total_s:.1f} s of CPU"
    )
    for part in PARTS:
        print(f"  {part:10} {spent[part]:8.1f} s CPU  {spent[part] / total_s:6.1%}")
    print(f"  a pushed frame: minute 1 {minutes[0]:.1f} ms, the last {minutes[-1]:.1f} ms")
    print(f"  peak resident memory {peak_rss_mb} MB")
    bounds = {}
    if options.plot:
        bounds = _bounds(plain, video, options, captions, clock.calls["encode"])
        draw(options.plot, {part: spent[part] for part in PARTS}, bounds)
    return {
        "file": video.name,
        "fps": options.fps,
        "sparse": options.sparse,
        "frames": stats.frames,
        "encoded": clock.calls["encode"],
        "segments": stats.segments,
        "captions": len(captions),
        **{f"{part}_cpu_s": round(spent[part], 2) for part in PARTS},
        "cpu_s": round(total_s, 1),
        "wall_s": round(wall_s, 1),
        "first_minute_ms_a_frame": minutes[0],
        "last_minute_ms_a_frame": minutes[-1],
        "ms_a_frame_by_minute": minutes,
        "peak_rss_mb": peak_rss_mb,
        "bounds_s": {name: round(seconds, 2) for name, seconds in bounds.items()},
    }


def _bounds(
    model: VideoModel,
    video: Path,
    options: argparse.Namespace,
    captions: list[Caption],
    encoded: int,
) -> dict[str, float]:
    """Return the least CPU seconds of the parts that have a bound."""
    matrix = torch.rand(PEAK_SIDE, PEAK_SIDE)
    peak = 2 * PEAK_SIDE**3 / in_turns({"sgemm": lambda: matrix @ matrix}, 5)["sgemm"] * 1e3
    net = open_net(weights_path("efficientnet-lite2"), {}).eval()
    side = EfficientNetEncoder.size
    with torch.inference_mode():
        flop = 2 * multiplications(net, torch.zeros(1, 3, side, side))
    language = model.language
    tokens = torch.zeros(model.token_shape)  # any of the right shape
    prompt = len(language.embed(model.caption_prompt(tokens))) - len(
        language.ids(language.chat_prefix)  # read once for all
    )
    num_tokens = sum(prompt + len(language.ids(caption.text)) for caption in captions)
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
    axes.set_xlabel("CPU seconds")
    axes.legend(ncols=len(LABELS), loc="upper center", bbox_to_anchor=(0.5, 1.25), frameon=False)
    figure.savefig(path, dpi=110)


def made(folder: Path, minutes: float, scene_s: float) -> Path:
    """Make a film of real clips where STREAMMEM_DATA is set, else of moving pictures.

    A scene is a clip that runs forward and backward, twice or as often as it takes: no picture
    jumps within it, and only its first run is encoded. After the last clip the first comes again.
    """
    data = os.environ.get("STREAMMEM_DATA")
    clips = sorted(Path(data, "clips").glob("*.mp4")) if data else []
    kind = "clips" if clips else "patterns"
    video = folder / f"{kind}-{minutes:g}min-{scene_s:g}s.mp4"
    if video.exists():
        return video
    folder.mkdir(parents=True, exist_ok=True)
    print(f"making {video} ...", file=sys.stderr)
    scenes = (letterboxed(c, 0.0, scene_s / 4) for c in clips) if clips else patterns(scene_s / 4)
    count = min(math.ceil(minutes * 60 / scene_s), len(clips) or NUM_PATTERNS)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        runs = []
        for number, scene in enumerate(islice(scenes, count)):
            forward, run = list(scene), Path(scratch, f"{number}.mp4")
            write(run, forward + forward[::-1])
            runs += [run] * max(1, round(scene_s * FPS / (2 * len(forward))))
        join(_lasting(runs, minutes * 60), video)
    return video


def _lasting(runs: list[Path], seconds: float) -> Iterator[Path]:
    """Yield videos over and over until they last so long."""
    left = seconds
    for run in cycle(runs):
        if left <= 0:
            return
        yield run
        with av.open(str(run)) as container:
            left -= container.duration / av.time_base


def patterns(seconds: float) -> Iterator[Iterator[np.ndarray]]:
    """Scenes each with its own drifting waves of colour."""
    rng = np.random.default_rng(0)
    while True:
        yield _waves(rng.uniform(1, 12, (3, 2)), rng.uniform(40, 215, 3), round(seconds * FPS))


def _waves(rates: np.ndarray, color: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """[H, W, 3] uint8 pictures; rates [3, 2] and color [3] are a channel's waves and mean."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)[..., None] / HEIGHT
    phase = rates[:, 0] * x + rates[:, 1] * y  # [H, W, 3]
    for number in range(count):
        yield (color + 40 * np.sin(phase + number / FPS)).astype(np.uint8)
