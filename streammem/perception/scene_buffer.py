"""The frames of the scene that is still open: what is kept of each, and what it leaves behind."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from streammem.memory.entry import MAX_KEYFRAME_BYTES
from streammem.perception.perceiver import Perceived
from streammem.types import Frame
from streammem.video.pixels import fitted, resize

BRIDGE_FRAMES = 8
KEYFRAME_SIDE = 320
JPEG_QUALITY = 80


@dataclass(frozen=True, slots=True, eq=False)
class Held:
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


def hold(number: int, frame: Frame, seen: Perceived) -> Held:
    """Keep of a frame what its segment may need."""
    height, width = frame.pixels.shape[:2]
    shrunk = fitted(width, height, KEYFRAME_SIDE)[::-1]
    picture = resize(frame.pixels, shrunk, "bicubic")
    if picture is frame.pixels:
        picture = picture.copy()  # whoever made the frame may use its buffer again
    end = frame.time + frame.duration
    return Held(number, frame.time, end, seen.key, seen.patches, picture)


def thinned(held: tuple[Held, ...], lag: int) -> tuple[Held, ...]:
    """Drop patches of a long scene's older frames, evenly: every 2nd, 4th, ... keeps its own.

    Frames younger than ``lag`` keep theirs, since a boundary may yet fall before them. Strides
    are powers of two, so what was kept at one length is kept at the next or dropped for good.
    """
    older = len(held) - lag
    if older <= 2 * BRIDGE_FRAMES:
        return held
    stride = 1 << (older // (2 * BRIDGE_FRAMES)).bit_length()
    first = held[0].number
    return tuple(
        f if f.patches is None or i >= older or (f.number - first) % stride == 0
        else replace(f, patches=None, picture=None)
        for i, f in enumerate(held)
    )  # fmt: skip


def places(frames: Sequence[Held]) -> list[float]:
    """Place frames in [0, 1] between the first and the last; one frame stands in the middle."""
    first, span = frames[0].time, frames[-1].time - frames[0].time
    return [(f.time - first) / span if span > 0 else 0.5 for f in frames]


def keyframe(frames: Sequence[Held], key: np.ndarray) -> bytes:
    """Encode the frame nearest to the segment's main key as a JPEG that an entry may hold."""
    best = max(frames, key=lambda f: float(f.key @ key))
    assert best.picture is not None  # these frames have kept their patches, and so this
    picture = Image.fromarray(best.picture)
    while True:
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=JPEG_QUALITY)
        if out.tell() <= MAX_KEYFRAME_BYTES:
            return out.getvalue()
        picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))
