"""Generates pictures of coloured shapes with true captions, and sentences without pictures.

    make_pictures(Path("shapes"), count=30)

Training data for a dry run.
"""

import json
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 96  # pixels
SHAPE_COLORS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
}
GROUNDS = {"white": (245, 245, 245), "black": (15, 15, 15), "gray": (128, 128, 128)}
SHAPES = ("circle", "square", "triangle")
VALIDATION_EVERY = 5
SENTENCES = "sentences.txt"


def make_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Make a captioned-picture folder, every fifth picture for validation; an existing one is kept.

    It also holds ``SENTENCES``, similar sentences that belong to no picture.

    Args:
        folder: made if need be.
        count: pictures, >= 5.
        seed: of the drawings.

    Returns:
        The folder.
    """
    table = folder / "captions.jsonl"
    if table.exists() and (folder / SENTENCES).exists():
        return folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        color, ground = rng.choice(list(SHAPE_COLORS)), rng.choice(list(GROUNDS))
        shape = rng.choice(SHAPES)
        name = f"{number:05d}.png"
        _draw(shape, SHAPE_COLORS[color], GROUNDS[ground], rng).save(folder / "images" / name)
        split = "val" if number % VALIDATION_EVERY == 0 else "train"
        captions = [
            f"A {color} {shape} on a {ground} background.",
            f"The {shape} is {color} and the background is {ground}.",
            f"There is a {color} {shape} in front of a {ground} wall.",
        ]
        rows.append(json.dumps({"image": name, "split": split, "captions": captions}))
    forms = ("A {} {} hides a {} one.", "Near the {} {} is a {} thing.")
    texts = [f.format(*of) for f in forms for of in product(SHAPE_COLORS, SHAPES, GROUNDS)]
    (folder / SENTENCES).write_text("\n".join(texts) + "\n")
    table.write_text("\n".join(rows) + "\n")  # last, so that an unfinished folder is made again
    return folder


def _draw(shape: str, color: tuple, ground: tuple, rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    size = int(rng.integers(SIDE // 3, SIDE * 3 // 4))
    left, top = (int(v) for v in rng.integers(0, SIDE - size, 2))
    box = (left, top, left + size, top + size)
    draw = ImageDraw.Draw(picture)
    if shape == "circle":
        draw.ellipse(box, fill=color)
    elif shape == "square":
        draw.rectangle(box, fill=color)
    else:
        draw.polygon(
            [(left, top + size), (left + size, top + size), (left + size // 2, top)], fill=color
        )
    return picture
