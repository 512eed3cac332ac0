"""A sheet of pictures above their captions, on which a person can count."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from streammem.perception.frames import spread

WIDTH, GAP, LINE = 960, 8, 22
PICTURES = 4


class Row(NamedTuple):
    """Pictures [H, W, 3] uint8 of one size, their caption, and the words that are counted."""

    pictures: Sequence[np.ndarray]
    text: str
    judged: set[str]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG of numbered rows; of a row's pictures at most four, evenly."""
    strips = [_strip(row.pictures) for row in rows]
    page = Image.new("RGB", (WIDTH, sum(s.height + 2 * LINE + GAP for s in strips)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    top = 0
    for number, (row, strip) in enumerate(zip(rows, strips, strict=True), start=1):
        page.paste(strip, (0, top))
        top += strip.height
        judged = ", ".join(sorted(row.judged, key=row.text.lower().find))
        draw.text((GAP, top), f"{number}  {row.text}", "black", font)
        draw.text((GAP, top + LINE), f"    {len(row.judged)}: {judged}", "grey", font)
        top += 2 * LINE + GAP
    page.save(path, "PNG")


def _strip(pictures: Sequence[np.ndarray]) -> Image.Image:
    shown = [pictures[i] for i in spread(len(pictures), PICTURES)]
    width = WIDTH // max(2, len(shown))
    height = round(width * shown[0].shape[0] / shown[0].shape[1])
    strip = Image.new("RGB", (WIDTH, height), "white")
    for place, picture in enumerate(shown):
        strip.paste(Image.fromarray(picture).resize((width, height)), (place * width, 0))
    return strip
