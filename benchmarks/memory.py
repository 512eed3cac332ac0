"""What hours of memory cost, what they are found again by, and when the answer is "not seen".

An 8-hour stream at 1 frame a second goes through a session with its durable memory. Photos stand
for its scenes; each is encoded once, before, so that it runs in minutes: the encoder's cost is
measured beside it and does not depend on the stream. Everything else is what a user runs: gate,
SceneTilling, bridge, keys, cache, keyframes, store.

Whether a segment's cost grows is asked beside a unit of fixed work, done after every segment in the
same process and timed alike (CPU seconds): the bridge on eight fixed frames and a JPEG. What the
machine does to one it does to the other, so the ratio of the two is what is regressed on the
number of segments, over blocks of ``BLOCK_SEGMENTS``.
"""

import argparse
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.choice import draw_replies
from benchmarks.machine import machine
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.memory.entry import Entry
from streammem.memory.folder import KEYFRAMES
from streammem.memory.index import FaissIndex
from streammem.memory.memory import CacheConfig, Memory
from streammem.memory.retrieval import Query
from streammem.models.checkpoint import load_checkpoint
from streammem.models.protocols import EncodedSegment
from streammem.models.threads import limit_threads
from streammem.models.tiny.model import VideoModel
from streammem.perception.frames import Perceived, SegmentFrames
from streammem.types import Frame

FPS = 1.0
SHOTS = 200  # different pictures that the scenes show
LENGTHS = (6, 15)  # frames of a scene
EARLY, LATE = (5.0, 15.0), 60.0  # minutes compared: those after the start, the last so many
CAPTION_EVERY_S = 10.0
BLOCK_SEGMENTS = 60  # ten minutes: what else the machine does comes and goes
UNIT_FRAMES = 8
TIMED = 12  # frames encoded and captions generated for the unit costs
QUERIES = 100
PARTS = ("stream", "scale", "needles")
BLOCK = 50_000


class Replayed:
    """A model that has seen its pictures already: each array is looked up by its identity.

    Counts the CPU seconds of its bridge.
    """

    def __init__(self, model: VideoModel, seen: dict[int, Perceived]) -> None:
        self._model, self._seen = model, seen
        self.bridge_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def perceive(self, picture: np.ndarray) -> Perceived:
        return self._seen[id(picture)]

    def unit(self) -> float:
        """Do a fixed piece of work and return its CPU seconds."""
        seen = list(self._seen.values())[:UNIT_FRAMES]
        picture = np.full((180, 320, 3), np.arange(320, dtype=np.uint8)[:, None])
        began = time.process_time()
        self._model.encode_frames([each.patches for each in seen], [0.5] * len(seen))
        Image.fromarray(picture).save(io.BytesIO(), "JPEG")
        return time.process_time() - began

    def encode_segment(
        self, frames: SegmentFrames, memory: Tensor, related: Tensor | None
    ) -> EncodedSegment:
        began = time.process_time()
        taken = self._model.encode_segment(frames, memory, related)
        self.bridge_s += time.process_time() - began
        return taken


@dataclass(frozen=True)
class Cost:
    """One segment: its end (minutes), CPU seconds of the pushes up to its closing, frames.

    Of the seconds, ``bridge_s`` are the bridge's; ``unit_s`` are those of the fixed work after it.
    """

    end_min: float
    cpu_s: float
    frames: int
    bridge_s: float = 0.0
    unit_s: float = 1.0


def pictures_of(count: int) -> list[np.ndarray]:
    """[180, 320, 3] uint8 photos where STREAMMEM_DATA is set, else coloured waves."""
    data = os.environ.get("STREAMMEM_DATA")
    files = sorted(Path(data, "flickr8k", "images").glob("*.jpg")) if data else []
    if len(files) >= count:
        chosen = files[:: len(files) // count][:count]
        return [np.asarray(Image.open(f).convert("RGB").resize((320, 180))) for f in chosen]
    rng, (y, x) = np.random.default_rng(0), np.mgrid[0:180, 0:320] / 180
    waves = [
        np.sin(x[..., None] * rng.uniform(1, 30, 3) + y[..., None] * rng.uniform(1, 30, 3))
        for _ in range(count)
    ]
    return [(127 + 100 * wave).astype(np.uint8) for wave in waves]


def stream(session: Session, pictures: Sequence[np.ndarray], minutes: float) -> list[Cost]:
    """Push scenes of random pictures and lengths; time each segment."""
    rng, costs, number, spent, frames = np.random.default_rng(0), [], 0, 0.0, 0
    shot, bridge = -1, session.model.bridge_s  # type: ignore[attr-defined]
    while number < minutes * 60 * FPS:
        shot = (shot + int(rng.integers(1, len(pictures)))) % len(pictures)
        for _ in range(int(rng.integers(*LENGTHS))):
            frame = Frame(pictures[shot], number / FPS, 1 / FPS, number)
            began = time.process_time()
            closed = session.push(frame)
            spent, frames, number = spent + time.process_time() - began, frames + 1, number + 1
            if closed:
                until = session.model.bridge_s  # type: ignore[attr-defined]
                unit_s = session.model.unit()  # type: ignore[attr-defined]
                costs.append(Cost(closed[-1].end / 60, spent, frames, until - bridge, unit_s))
                spent, frames, bridge = 0.0, 0, until
                if len(costs) % 360 == 0:
                    print(f"  {closed[-1].end / 3600:.1f} h, {rss_mb():.0f} MB", file=sys.stderr)
    return costs


def slope(costs: Sequence[Cost], *, bridge: bool = True) -> tuple[float, float]:
    """Cost of a segment gained per 1,000 segments, in units of fixed work, and half its 95%.

    Least squares of each block's cost over its fixed work, on the block's place and its frames a
    segment. Without the ``bridge`` only the rest is counted.
    """
    cpu = _trimmed([c.cpu_s - (not bridge) * c.bridge_s for c in costs])
    unit = _trimmed([c.unit_s for c in costs])
    frames = np.array([c.frames for c in costs])
    blocks = np.array_split(np.arange(len(costs)), max(10, len(costs) // BLOCK_SEGMENTS))
    a = np.array([(1, frames[b].mean(), b.mean() / 1_000) for b in blocks])
    y = np.array([cpu[b].sum() / unit[b].sum() for b in blocks])
    fitted = np.linalg.lstsq(a, y, rcond=None)[0]
    free = len(y) - a.shape[1]
    spread = np.linalg.inv(a.T @ a) * ((y - a @ fitted) ** 2).sum() / free
    student = 1.96 + 2.4 / free  # within 2% of Student's t at 97.5% from seven on
    return float(fitted[2]), student * math.sqrt(spread[2, 2])


def _trimmed(seconds: Sequence[float]) -> np.ndarray:
    """Count what is far off as less far: garbage collection and the disk hit single segments."""
    values = np.array(seconds)
    median = np.median(values)
    return np.minimum(values, median + 5 * np.median(np.abs(values - median)))


def hours_of(model: VideoModel, hours: float) -> dict[str, Any]:
    """Measure the long stream, and the same without memory."""
    pictures = pictures_of(SHOTS)
    before = time.process_time()
    seen = {id(picture): model.perceive(picture) for picture in pictures}
    encode_ms = 1_000 * (time.process_time() - before) / len(pictures)
    replayed: Any = Replayed(model, seen)
    config = SessionConfig(still=0)
    # A first session pays for what happens once.
    stream(Session(replayed, config), pictures, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stream.mem")
        with Session(replayed, config, path) as session:
            start_mb = rss_mb()
            costs = stream(session, pictures, hours * 60)
            end_mb, rows, key_bytes = rss_mb(), len(session.memory), session.memory.num_bytes()
        total = bytes_in(path)
        with Session(replayed, config, Path(folder, "empty.mem")):
            pass
        fixed = bytes_in(Path(folder, "empty.mem"))
        frames = sum(f.stat().st_size for f in (path / KEYFRAMES).iterdir())
    without = stream(Session(replayed, SessionConfig(still=0, retrieved=0)), pictures, 20)
    unit_ms = 1_000 * float(np.median([c.unit_s for c in costs]))
    (gained, half), (rest, rest_half) = slope(costs), slope(costs, bridge=False)
    own, own_half = slope([Cost(c.end_min, c.unit_s, c.frames) for c in costs])
    early = [c for c in costs if EARLY[0] <= c.end_min < EARLY[1]]
    late = [c for c in costs if c.end_min >= hours * 60 - LATE]
    return {
        "frames": round(hours * 3600 * FPS),
        "segments": len(costs),
        "rows": rows,
        "segment_cpu_ms": mean_ms(costs),
        "slope_ms_per_1000_segments": round(gained * unit_ms, 3),
        "slope_95": round(half * unit_ms, 3),
        "without_bridge_ms": round(
            mean_ms(costs) - 1_000 * float(np.mean([c.bridge_s for c in costs])), 2
        ),
        "without_bridge_slope": round(rest * unit_ms, 3),
        "without_bridge_slope_95": round(rest_half * unit_ms, 3),
        "unit_ms": round(unit_ms, 2),
        "unit_slope_ms_per_1000_segments": round(1_000 * own, 3),  # the machine's drift
        "unit_slope_95": round(1_000 * own_half, 3),
        "late_over_early": round(per_frame(late) / per_frame(early), 3),
        "rss_start_mb": round(start_mb),
        "rss_end_mb": round(end_mb),
        "cache_mb": round(key_bytes / 1e6, 1),
        "disk_fixed_mb": round(fixed / 1e6, 3),
        "disk_mb_an_hour": round((total - frames - fixed) / hours / 1e6, 2),
        "disk_with_keyframes_mb_an_hour": round((total - fixed) / hours / 1e6, 2),
        "disk_bytes_a_segment": round((total - frames - fixed) / len(costs)),
        "frame_encode_ms": round(encode_ms, 2),
        "segment_without_memory_ms": mean_ms(without),
    }


def against_parent(model: VideoModel, found: dict[str, Any]) -> dict[str, Any]:
    """Compare a caption's cost: all frames again, ours, and new frames only without memory.

    From unit costs measured in this run; a caption's words are generated and counted alike.
    """
    pictures = pictures_of(TIMED)
    tokens = [model.encode_frames([model.perceive(p).patches], [0.5]) for p in pictures]
    draw_replies(model, tokens[:1], 1)
    began = time.process_time()
    for each in tokens:
        draw_replies(model, [each], 1)
    caption_ms = 1_000 * (time.process_time() - began) / len(tokens)
    frame, new = found["frame_encode_ms"], CAPTION_EVERY_S * FPS
    ours = new * frame + found["segment_cpu_ms"] + caption_ms
    plain = new * frame + found["segment_without_memory_ms"] + caption_ms
    again = {
        m: m * 60 * FPS * frame + found["segment_without_memory_ms"] + caption_ms
        for m in (1, 10, 60)
    }
    return {
        "caption_words_ms": round(caption_ms, 1),
        "caption_total_ms": round(ours, 1),
        "without_memory_ms": round(plain, 1),
        "parent_over_ours": {m: round(cost / ours, 2) for m, cost in again.items()},
        "ours_over_without_memory": round(ours / plain, 3),
    }


def scale(model: VideoModel, sizes: Sequence[int]) -> dict[str, Any]:
    """Time a query over many keys, and compare what it finds with float32."""
    real = np.stack([model.perceive(p).key for p in pictures_of(SHOTS)])
    figures: dict[str, Any] = {}
    for size in sizes:
        rng, index = np.random.default_rng(1), FaissIndex(real.shape[1])
        queries = alike(real, QUERIES, np.random.default_rng(2))
        best = np.full((QUERIES, 10), -np.inf, np.float32)
        ids = np.zeros((QUERIES, 10), np.int64)
        for start in range(0, size, BLOCK):
            rows = alike(real, min(BLOCK, size - start), rng)
            index.add(np.arange(start, start + len(rows)), rows)
            scores = np.concatenate([best, queries @ rows.T], axis=1)
            names = np.concatenate(
                [ids, np.broadcast_to(np.arange(start, start + len(rows)), (QUERIES, len(rows)))], 1
            )
            top = np.argpartition(-scores, 10, axis=1)[:, :10]
            best, ids = np.take_along_axis(scores, top, 1), np.take_along_axis(names, top, 1)
        began, shared = time.process_time(), 0
        for query, exact in zip(queries, ids, strict=True):
            shared += len(set(index.search(query, 10)[0].tolist()) & set(exact.tolist()))
        figures[str(size)] = {
            "index_ms": round(1_000 * (time.process_time() - began) / QUERIES, 2),
            "recall@10": round(shared / QUERIES / 10, 4),
            "bytes_a_key": round(index.num_bytes() / size),
        }
    figures["cache_10000_rows_ms"] = round(cache_ms(real, 10_000), 2)
    return figures


def cache_ms(real: np.ndarray, rows: int) -> float:
    """Time a question to a full cache, two visual keys and a caption's key a row."""
    rng = np.random.default_rng(3)
    memory = Memory(CacheConfig(real.shape[1], (0, 0), rows, epsilon=0))
    keys = alike(real, 3 * rows, rng)
    for row in range(rows):
        memory.append(
            Entry(row, 2.0 * row, 2.0 * row + 1, 1, keys[3 * row : 3 * row + 2],
                  keys[3 * row + 2 : 3 * row + 3], keys[:0], np.zeros((0, 0))),
            torch.zeros(0),
        )  # fmt: skip
    queries = alike(real, QUERIES, rng)
    began = time.process_time()
    for query in queries:
        memory.search(Query(query), k=5)
    return 1_000 * (time.process_time() - began) / QUERIES


def alike(real: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw unit keys [count, K] with the spread of real ones: mixtures of two, and some noise."""
    pairs, share = rng.integers(0, len(real), (2, count)), rng.random((count, 1), np.float32)
    rows = share * real[pairs[0]] + (1 - share) * real[pairs[1]]
    rows += 0.3 / math.sqrt(real.shape[1]) * rng.standard_normal(rows.shape, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def per_frame(costs: Sequence[Cost]) -> float:
    """Return the median cost of a frame, in units of fixed work."""
    return float(np.median([c.cpu_s / c.frames / c.unit_s for c in costs])) if costs else math.nan


def mean_ms(costs: Sequence[Cost]) -> float:
    return round(1_000 * float(np.mean([c.cpu_s for c in costs])), 2)


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys of the largest index")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--plots", type=Path, help="folder for the PNGs; none without it")
    parser.add_argument(
        "--fit", action="store_true", help='only fit "not seen" to training photos, and measure it'
    )
    parser.add_argument("--write", action="store_true", help="with --fit: keep it")
    parser.add_argument("--merging", action="store_true", help="only what joining scenes costs")
    parser.add_argument("--margins", action="store_true", help="only what a text key should count")
    parser.add_argument("--fixed", action="store_true", help="only a fixed camera")
    parser.add_argument("--minutes", type=int, default=120, help="with --fixed: of the stream")
    parser.add_argument(
        "--seed", type=int, default=1, help="with --fixed: of the stream; 0 was used for its design"
    )
    return parser.parse_args(arguments)


def _only(model: VideoModel, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the figures of the one thing that an option asks for; None where none does."""
    from benchmarks import abstention, fixed, margins, merging

    if options.fit:
        return abstention.measure(model, options.plots, write=options.write)
    if options.merging:
        return merging.measure(model)
    if options.margins:
        return margins.measure(model)
    if options.fixed:
        return {"fixed camera": fixed.measure(model, options.minutes, options.seed)}
    return None


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    limit_threads(busy=1)
    faiss.omp_set_num_threads(1)
    model = load_checkpoint(options.model)
    figures: dict[str, Any] = {}

    def keep(values: dict[str, Any]) -> None:
        """Print each part as it comes: the whole takes minutes."""
        for part, found in values.items():
            print(part, flush=True)
            for name, value in found.items():
                print(f"  {name:32} {value}", flush=True)
        figures.update(values)

    only = _only(model, options)
    if only is not None:
        keep(only)
    else:
        from benchmarks.haystack import haystack

        if "stream" in options.parts:
            keep({"stream": hours_of(model, options.hours)})
            keep({"against_parent": against_parent(model, figures["stream"])})
        if "scale" in options.parts:
            keep({"scale": scale(model, (10_000, options.keys))})
        if "needles" in options.parts:
            keep({"needles": haystack(model, options.plots)})
    print(json.dumps({"benchmark": "memory", **figures, "machine": machine("faiss-cpu")}))
    return 0
