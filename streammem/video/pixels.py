"""From decoded pictures to [H, W, 3] RGB: size limits, shape of pixels, shrinking, turning upright.

Which pictures are converted is decided elsewhere.
"""

from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from streammem.errors import SourceError
from streammem.video.tonemap import is_wide, to_sdr, transfer_of

LARGEST_SIDE = 16384  # larger pictures are refused: one RGB frame would already be 800 MB

Matrix = tuple[int, int, int, int]


def check_size(name: str, width: int, height: int) -> None:
    """Refuse a picture with no pixels or more than LARGEST_SIDE a side.

    Raises:
        SourceError: such a size.
    """
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise SourceError(
            f"{name}: {width}x{height} pixels cannot be read; "
            f"each side must be 1 to {LARGEST_SIDE}, so scale it first"
        )


def fitted(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """Return (width, height) shrunk to ``max_side`` pixels, aspect kept, each side >= 1."""
    longer = max(width, height)
    if max_side is None or longer <= max_side:
        return width, height
    scale = max_side / longer
    return max(1, round(width * scale)), max(1, round(height * scale))


def shown_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return (width, height) in square pixels; one side grows, none shrinks.

    Args:
        width: pixels, as coded.
        height: likewise.
        aspect: width over height of one pixel; None, and values that cannot be meant, are 1.
    """
    if aspect is None or not 1 / 8 <= aspect <= 8:
        return width, height
    shown = round(width * max(aspect, Fraction(1))), round(height / min(aspect, Fraction(1)))
    return shown if max(shown) <= LARGEST_SIDE else (width, height)


def fitted_pixels(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """Shrink a picture's longer side to ``max_side`` pixels.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        max_side: pixels, or None.

    Returns:
        [h, w, 3] uint8, contiguous; the same array where nothing is to be done.
    """
    height, width = pixels.shape[:2]
    size = fitted(width, height, max_side)
    pixels = np.ascontiguousarray(pixels)
    if size == (width, height):
        return pixels
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    return VideoReformatter().reformat(frame, *size, "rgb24", threads=1).to_ndarray()


class RgbConverter:
    """Converts the decoded pictures of one stream as a player shows them.

    In the same pass they are shrunk; pixels become square, high dynamic range ordinary.

    Args:
        first: the stream's first picture, whose display matrix holds for all.
        max_side: pixels, or None.
        aspect: width over height of one pixel, as the stream states it; None is 1.
    """

    def __init__(
        self,
        first: av.VideoFrame,
        max_side: int | None = None,
        aspect: Fraction | None = None,
    ) -> None:
        self._matrix = display_matrix(first)
        self._max_side, self._aspect = max_side, aspect
        self._reformatter = VideoReformatter()  # keeps the scaler's tables

    def __call__(self, picture: av.VideoFrame) -> np.ndarray:
        """Return [H, W, 3] uint8 RGB, contiguous, of a picture in any pixel format."""
        size = fitted(*shown_size(picture.width, picture.height, self._aspect), self._max_side)
        transfer = transfer_of(picture)
        kind = "rgb24" if transfer is None else "rgb48le"
        pixels = self._reformatter.reformat(picture, *size, kind, threads=1).to_ndarray()
        if transfer is not None:
            pixels = to_sdr(pixels, transfer, wide=is_wide(picture))
        return upright(pixels, self._matrix)


def display_matrix(picture: av.VideoFrame) -> Matrix:
    """Return (a, b, c, d) of x' = a x + c y, y' = b x + d y, which turns the picture upright.

    Asking a picture for side data ties it into a reference cycle, so that its memory waits for
    the garbage collector: not to be done for every frame.
    """
    try:
        data: Any = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # FFmpeg attaches kinds of side data that PyAV has no name for (18.1: EXIF), and PyAV
        # gives none at all then. Those kinds get a name, once.
        Type._missing_ = classmethod(_unnamed)  # type: ignore[assignment, method-assign]
        data = picture.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    return a, b, c, d


def _unnamed(kind: type[Type], value: int) -> Type:
    member = object.__new__(kind)
    member._name_ = f"UNNAMED_{value}"
    member.__dict__["_value_"] = value
    return member


def upright(pixels: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Turn by quarter turns and mirror a picture, as its display matrix states.

    Args:
        pixels: [H, W, 3].
        matrix: of `display_matrix`; only signs and the larger diagonal count.

    Returns:
        [H, W, 3], or [W, H, 3] after a quarter turn; contiguous.
    """
    a, b, c, d = matrix
    if abs(b) > abs(a):  # x and y change places
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


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
