import json

import numpy as np
import pytest
from PIL import Image

SENTENCES = [
    ["A dog runs.", "The brown dog runs fast."],
    ["A cat sleeps on a bed.", "The cat sleeps."],
    ["Two men play football.", "Men are playing football on grass."],
    ["A red car stands in the street.", "A car on a street."],
    ["A woman slices onions.", "Someone cuts onions in a kitchen."],
]


@pytest.fixture
def photo_folder(tmp_path):
    """Five photos of one grey each (0, 40, ..., 160), the last of them in split `train`."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, captions in enumerate(SENTENCES):
        name = f"{number}.png"
        pixels = np.full((4, 6, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        split = "train" if number == len(SENTENCES) - 1 else "val"
        rows.append({"image": name, "split": split, "captions": captions})
    write_rows(folder, rows)
    return folder


COLOURS = ("red", "blue", "green", "white")
ANIMALS = ("dog", "cat", "goat", "cow", "sheep")
PLACES = ("beach", "garden")


def scene_captions():
    """Three sentences on each of forty scenes: every colour of animal at every place."""
    scenes = [(c, a, p) for p in PLACES for a in ANIMALS for c in COLOURS]
    return [
        (
            f"A {colour} {animal} eats hay on the {place} .",
            f"One {colour} {animal} chews some hay at a {place} .",
            f"The {colour} {animal} is fed with hay , a {place} .",
        )
        for colour, animal, place in scenes
    ]


@pytest.fixture
def farm_folder(tmp_path):
    """Forty photos that differ in their grey, in split `val`."""
    folder = tmp_path / "farm"
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, captions in enumerate(scene_captions()):
        pixels = np.full((4, 6, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        rows.append({"image": f"{number}.png", "split": "val", "captions": captions})
    write_rows(folder, rows)
    return folder


def write_rows(folder, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
