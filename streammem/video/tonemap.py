"""High dynamic range to what an ordinary screen shows: PQ and HLG, BT.2020, to BT.709 with gamma.

It works on pixels that swscale has converted and shrunk already, with numpy.
"""

from functools import lru_cache
from typing import Literal

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

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
