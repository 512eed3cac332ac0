"""The pixel gate: a picture that equals the last encoded one up to noise is not encoded again.

    gate = PixelGate(model, still=6.0)
    first = gate.encode(picture)
    again = gate.encode(picture)  # the encoder does not run
    assert again is first

It compares with the last *encoded* picture, not with the picture before, so that a slow change
adds up until it passes.
"""

from dataclasses import dataclass

import numpy as np

from streammem.perception.background import Box
from streammem.perception.perceiver import Perceived, Perceiver
from streammem.video.pixels import resize

GRID = 32  # cells a side; a cell averages noise away, and 1% of the picture covers ten of them


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
