"""From decoded pictures to [H, W, 3] RGB: size limits, shape of pixels, shrinking, turning upright.

High dynamic range becomes what an ordinary screen shows: PQ and HLG, BT.2020, to BT.709 with gamma,
on pixels that swscale has converted and shrunk already. Which pictures are converted is decided
elsewhere.
"""

from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter

from streammem.errors import SourceError

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


Transfer = Literal["pq", "hlg"]

WHITE_NITS = 203.0  # of a white page in HDR. Source: ITU-R BT.2408, 2.2
_HLG_PEAK_NITS = 1000.0
_HLG_GAMMA = 1.2  # of a screen with that peak. Source: ITU-R BT.2100, table 5, note 5f
_KNEE = 0.8  # of white: below it light stays as it is, above it all the rest is compressed
_GAMMA = 2.4  # Source: ITU-R BT.1886
# Linear BT.2020 to linear BT.709. Source: ITU-R BT.2087, section 4 (inverse).
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020


def transfer_of(picture: av.VideoFrame) -> Transfer | None:
    """Return the transfer function of a picture of high dynamic range; None for any other."""
    if picture.color_trc == ColorTrc.SMPTE2084:
        return "pq"
    return "hlg" if picture.color_trc == ColorTrc.ARIB_STD_B67 else None


def is_wide(picture: av.VideoFrame) -> bool:
    """Return whether a picture's primaries are those of BT.2020."""
    return bool(picture.color_primaries == ColorPrimaries.BT2020)


def to_sdr(pixels: np.ndarray, transfer: Transfer, *, wide: bool) -> np.ndarray:
    """Map a picture of high dynamic range to 8 bits.

    Args:
        pixels: [H, W, 3] uint16 RGB, 65535 being a full signal.
        transfer: of the signal.
        wide: whether its primaries are BT.2020's; BT.709's otherwise.

    Returns:
        [H, W, 3] uint8 RGB, BT.709 with a gamma of 2.4. Light up to 0.8 of white is kept.
    """
    light = _to_light(transfer)[pixels]  # [H, W, 3], 1 = white
    if transfer == "hlg":  # the light of the scene; a screen adds its gamma to luminance
        light *= np.maximum(light @ _LUMINANCE, 1e-6)[..., None] ** (_HLG_GAMMA - 1)
        light *= _HLG_PEAK_NITS / WHITE_NITS
    if wide:
        light = np.maximum(light @ _TO_BT709.T, 0)
    # By the brightest of the three, so that a bright colour keeps its hue.
    peak = np.maximum(light.max(axis=2, keepdims=True), 1e-6)
    bright = _KNEE + (1 - _KNEE) * (1 - np.exp(-(np.maximum(peak, _KNEE) - _KNEE) / (1 - _KNEE)))
    light *= np.where(peak > _KNEE, bright / peak, 1)
    return np.rint(255 * np.clip(light, 0, 1) ** (1 / _GAMMA)).astype(np.uint8)


@lru_cache
def _to_light(transfer: Transfer) -> np.ndarray:
    """Return [65536] float32: the linear light of each signal. Source: ITU-R BT.2100, 4 and 5."""
    signal = np.linspace(0, 1, 1 << 16)
    if transfer == "pq":
        root = signal ** (32 / 2523)
        light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        nits = 10_000 * light ** (16384 / 2610)
        return (nits / WHITE_NITS).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)
