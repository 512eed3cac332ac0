"""The frames of the open scene: what a model makes of each, what is kept of it, what it leaves.

    gate, buffer = PixelGate(model, still=6.0), SceneBuffer(tilling.lag)
    for frame in frames:
        buffer.push(frame, gate.encode(frame.pixels).perceived)  # a still picture only once
    scene = buffer.frames[:40]  # they ended before frame 40
    buffer.drop(40)

It decides no boundary; see ``scenetilling.py``.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor

from streammem.audio.scene_sound import SceneSound
from streammem.memory.entry import MAX_KEYFRAME_BYTES
from streammem.perception.background import Box
from streammem.perception.scenetilling import SceneTilling, SceneTillingConfig, Tilling
from streammem.types import Frame
from streammem.video.pixels import fitted

BRIDGE_FRAMES = 8
KEYFRAME_SIDE = 320
JPEG_QUALITY = 80
GRID = 32  # cells a side; a cell averages noise away, and 1% of the picture covers ten of them


class Perceived(NamedTuple):
    """What one frame gives to the stream.

    Attributes:
        embedding: [D] float32 numpy, centred; for SceneTilling.
        patches: [P, V] float16; for the bridge.
        key: [K] float32 numpy, unit; for the cache.
    """

    embedding: np.ndarray
    patches: Tensor
    key: np.ndarray


class Perceiver(Protocol):
    """Encodes one frame at a time; ``scenes`` are SceneTilling's options, fitted to it."""

    @property
    def scenes(self) -> SceneTillingConfig: ...

    def perceive(self, picture: np.ndarray) -> Perceived:
        """Encode a frame, [H, W, 3] uint8 RGB."""
        ...


@runtime_checkable
class BatchPerceiver(Perceiver, Protocol):
    """A perceiver that may encode frames of many streams together; ``share_model`` gathers them."""

    @property
    def most_together(self) -> int:
        """Frames of a batch at most; 1 where a batch takes as long as its frames."""
        ...

    def perceive_many(self, pictures: Sequence[np.ndarray]) -> list[Perceived]:
        """Encode frames, [H, W, 3] uint8 RGB of any sizes, in order."""
        ...


@runtime_checkable
class TillingPerceiver(Protocol):
    """A perceiver of many streams that also finds their boundaries together."""

    def tilling(self, config: SceneTillingConfig) -> Tilling:
        """Return what finds the boundaries of one further stream."""
        ...


def tilling_of(perceiver: Perceiver, config: SceneTillingConfig) -> Tilling:
    """Return what finds boundaries in a stream of a perceiver's embeddings."""
    if isinstance(perceiver, TillingPerceiver):
        return perceiver.tilling(config)
    return SceneTilling(config)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A picture that was encoded.

    Attributes:
        thumbnail: [``GRID``, ``GRID``, 3] uint8, what later pictures are compared with.
        perceived: what the encoder made of it.
        box: the part of it that was encoded; None for all.
    """

    thumbnail: np.ndarray
    perceived: Perceived
    box: Box | None = None


class PixelGate:
    """Encodes pictures that differ from the last encoded one.

    Not from the picture before, so that a slow change adds up until it passes.

    Args:
        perceiver: has the encoder.
        still: a picture is still while no cell's mean colour has moved by so many of 255 levels
            in any channel; 0 encodes every picture.
    """

    def __init__(self, perceiver: Perceiver, still: float) -> None:
        self._perceiver, self._still = perceiver, still
        self._last: Encoded | None = None

    def encode(self, picture: np.ndarray, box: Box | None = None) -> Encoded:
        """Encode a picture, unless it looks like the last encoded one.

        Args:
            picture: [H, W, 3] uint8 RGB.
            box: the part to encode; None for all.

        Returns:
            The same object as before for a picture that looks like the last encoded one and is
            encoded in part or as a whole, as that one was.
        """
        cells, last = thumbnail(picture), self._last
        if last is not None and (last.box is None) == (box is None):
            moved = np.abs(last.thumbnail.astype(np.int16) - cells)
            if (moved < self._still).all():
                return last
        part = picture
        if box is not None:
            height, width = picture.shape[:2]
            top, bottom = int(box[0] * height), max(1, round(box[1] * height))
            left, right = int(box[2] * width), max(1, round(box[3] * width))
            part = np.ascontiguousarray(picture[top:bottom, left:right])
        # A copy: a picture of just this size is its own thumbnail, and its buffer may be reused.
        self._last = Encoded(cells.copy(), self._perceiver.perceive(part), box)
        return self._last

    def snapshot(self) -> Encoded | None:
        """Return what was encoded last, which is all that the gate remembers."""
        return self._last

    def restore(self, state: Encoded | None) -> None:
        """Go on from the snapshot of a gate; None forgets."""
        self._last = state


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Shrink a picture [H, W, 3] to cells, [``GRID``, ``GRID``, 3] uint8."""
    return resize(picture, (GRID, GRID), "bilinear")


@dataclass(frozen=True, slots=True, eq=False)
class BufferedFrame:
    """A frame of the open scene.

    Attributes:
        number: of the frame among all pushed.
        time: seconds.
        end: seconds.
        key: [K] its key.
        patches: [P, V] float16; None once the scene is long and has enough others.
        picture: small, for a keyframe; None together with ``patches``.
    """

    number: int
    time: float
    end: float
    key: np.ndarray
    patches: Tensor | None
    picture: np.ndarray | None


class SceneBufferState(NamedTuple):
    """Everything a ``SceneBuffer`` remembers, as its attributes."""

    num_frames: int = 0
    frames: tuple[BufferedFrame, ...] = ()
    now: tuple[BufferedFrame, ...] = ()


class SceneBuffer:
    """Holds the frames of the open scene and those in which a boundary may still be found.

    Every frame keeps its key. Patches and pictures are kept of the newest ``lag`` frames and of
    at most 2 x ``BRIDGE_FRAMES`` older ones.

    Args:
        lag: >= 1, number of newest frames before which a boundary may still fall.
        now_frames: >= 0, number of newest frames kept besides, whatever scene they belong to.

    Attributes:
        num_frames: frames pushed so far; the number of the next one.
        frames: those held, in order and without gaps.
        now: the last ``now_frames``, with their patches.
    """

    def __init__(self, lag: int, now_frames: int = 0) -> None:
        self._lag, self._now_frames = lag, now_frames
        self.restore(SceneBufferState())

    def restore(self, state: SceneBufferState) -> None:
        """Go on from a state of a ``SceneBuffer`` with the same options."""
        self.num_frames, self.frames, self.now = state

    def snapshot(self) -> SceneBufferState:
        """Return the state, which later calls do not change."""
        return SceneBufferState(self.num_frames, self.frames, self.now)

    @property
    def newest(self) -> BufferedFrame | None:
        """The last frame pushed, if it is held."""
        held = self.frames or self.now
        return held[-1] if held else None

    def push(self, frame: Frame, perceived: Perceived) -> None:
        """Keep of the next frame what its segment may need; the frame's buffer may be reused.

        Long scenes are thinned: of the frames older than ``lag`` every 2nd, 4th, ... keeps its
        patches and picture. Strides are powers of two, so what was kept at one length is kept at
        the next or dropped for good.
        """
        # 1. A small picture, of its own memory.
        height, width = frame.pixels.shape[:2]
        picture = resize(frame.pixels, fitted(width, height, KEYFRAME_SIDE)[::-1], "bicubic")
        if picture is frame.pixels:
            picture = picture.copy()
        end = frame.time + frame.duration
        newest = BufferedFrame(
            self.num_frames, frame.time, end, perceived.key, perceived.patches, picture
        )
        # 2. Thin the older frames.
        frames = [*self.frames, newest]
        older = len(frames) - self._lag
        if older > 2 * BRIDGE_FRAMES:
            stride = 1 << (older // (2 * BRIDGE_FRAMES)).bit_length()
            first = frames[0].number
            for i, held in enumerate(frames[:older]):
                if held.picture is not None and (held.number - first) % stride:
                    frames[i] = replace(held, patches=None, picture=None)
        self.frames = tuple(frames)
        self.now = (*self.now, newest)[-self._now_frames :] if self._now_frames else ()
        self.num_frames += 1

    def drop(self, count: int) -> None:
        """Forget the first ``count`` frames: their scene is closed and kept elsewhere."""
        self.frames = self.frames[count:]


class SegmentFrames(NamedTuple):
    """The frames of a closing segment, as a segment encoder reads them.

    Attributes:
        number: of the segment in its stream, from 0.
        patches: of each frame, as the perceiver gave them.
        places: of each frame, in [0, 1] between the first and the last.
        times: of each frame, in seconds; empty where they are not known.
        sound: of the segment, where a session gives it, see ``SessionConfig.sound``.
    """

    number: int
    patches: Sequence[Tensor]
    places: Sequence[float]
    times: Sequence[float] = ()
    sound: SceneSound | None = None


def segment_frames(number: int, frames: Sequence[BufferedFrame]) -> SegmentFrames:
    """Choose the frames that a segment encoder reads, of those that kept their patches."""
    shown = [frames[i] for i in spread(len(frames), BRIDGE_FRAMES)]
    patches = [frame.patches for frame in shown if frame.patches is not None]
    return SegmentFrames(number, patches, places(shown), [frame.time for frame in shown])


def places(frames: Sequence[BufferedFrame]) -> list[float]:
    """Place frames in [0, 1] between the first and the last; one frame stands in the middle."""
    first, span = frames[0].time, frames[-1].time - frames[0].time
    return [(f.time - first) / span if span > 0 else 0.5 for f in frames]


def keyframe(frames: Sequence[BufferedFrame], key: np.ndarray) -> bytes:
    """Encode the frame nearest to the segment's main key as a JPEG that an entry may hold.

    Args:
        frames: with their pictures, at least one.
        key: [K] unit.
    """
    best = max(frames, key=lambda f: float(f.key @ key))
    assert best.picture is not None
    return jpeg_of(best.picture)


def jpeg_of(pixels: np.ndarray) -> bytes:
    """Encode a picture [H, W, 3] uint8 RGB as a JPEG of the bytes that an entry may hold.

    Its sides stay, unless that would take more.
    """
    picture = Image.fromarray(pixels)
    while True:
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=JPEG_QUALITY)
        if out.tell() <= MAX_KEYFRAME_BYTES:
            return out.getvalue()
        picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))


def resize(
    picture: np.ndarray, size: tuple[int, int], filter: Literal["bilinear", "bicubic"]
) -> np.ndarray:
    """Resize a picture as Pillow does, but for rounding (one level in photos), and much faster.

    Args:
        picture: [H, W, 3] uint8.
        size: height and width in pixels.
        filter: both take in all pixels when they shrink.

    Returns:
        [*size, 3] uint8, writable; the input itself if it already is such a picture.
    """
    import torch
    import torch.nn.functional as F

    picture = np.require(picture, requirements=["C", "W"])
    if picture.shape[:2] == size:
        return picture
    x = torch.from_numpy(picture).permute(2, 0, 1)[None]
    y = F.interpolate(x, size, mode=filter, antialias=True)
    return y[0].permute(1, 2, 0).contiguous().numpy()


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` places, evenly, first and last too; one: the middle."""
    if count <= most:
        return list(range(count))
    if most <= 1:
        return [count // 2] * most
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
