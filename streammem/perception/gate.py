"""The pixel gate: a picture that equals the last encoded one up to noise is not encoded again.

It compares with the last *encoded* picture, not with the last one seen, so that a slow change
adds up until it passes.
"""

from dataclasses import dataclass

import numpy as np

from streammem.perception.background import Box, cropped
from streammem.perception.perceiver import Perceived, Perceiver
from streammem.video.pixels import resize

GRID = 32  # cells a side; a cell averages noise away, and 1% of the picture covers ten of them


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A picture that was encoded.

    Attributes:
        glance: [``GRID``, ``GRID``, 3] uint8, what later pictures are compared with.
        seen: what the encoder made of it.
        box: what part of it was encoded; None for all.
    """

    glance: np.ndarray
    seen: Perceived
    box: Box | None = None


def glance_at(picture: np.ndarray) -> np.ndarray:
    """Shrink a picture [H, W, 3] to cells, [``GRID``, ``GRID``, 3] uint8."""
    return resize(picture, (GRID, GRID), "bilinear")


def encode(
    model: Perceiver,
    picture: np.ndarray,
    last: Encoded | None,
    still: float,
    box: Box | None = None,
) -> Encoded:
    """Encode a picture, unless it looks like the last encoded one.

    Args:
        model: whose encoder sees it.
        picture: [H, W, 3] uint8 RGB.
        last: what was encoded last, if anything.
        still: levels, see ``is_still``; 0 encodes every picture.
        box: the part to look at; None for all.

    Returns:
        ``last`` itself for a picture that looks like it.
    """
    glance = glance_at(picture)
    same_part = last is not None and (last.box is None) == (box is None)
    if last is not None and same_part and is_still(last.glance, glance, still):
        return last
    return Encoded(glance.copy(), model.perceive(cropped(picture, box)), box)


def is_still(before: np.ndarray, after: np.ndarray, still: float) -> bool:
    """Tell whether no cell's mean colour moved by ``still`` of 255 levels in any channel."""
    return bool((np.abs(before.astype(np.int16) - after) < still).all())
