"""Indoors: do captions name what is in a room, and what kind of room it is?

On the part of ``rooms`` that training leaves out (one picture in five, by a checksum of its name).
An object is named if its word (of "coffee table": table) stands in the caption, in singular or
plural; words count that are an object of some picture. The control is another picture's caption.
``--sheet FILE`` draws every fifth room above its caption and objects: what people did not list is
counted by a person.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import sheet
from benchmarks.machine import machine
from streammem.evaluation.metrics import tokenise
from streammem.evaluation.pictures import PictureModel
from streammem.training.records import VALIDATION, checksum_split


def singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def words(text: str) -> set[str]:
    return {singular(word) for word in tokenise(text)}


def heads(objects: Sequence[str]) -> set[str]:
    return {singular(tokenise(name.replace("_", " "))[-1]) for name in objects}


def precision(captions: Sequence[str], there: Sequence[set[str]]) -> tuple[float, float]:
    """Return the share of named objects that are there, and named objects a caption."""
    known = set().union(*there)
    named = [words(caption) & known for caption in captions]
    right = sum(len(mentioned & objects) for mentioned, objects in zip(named, there, strict=True))
    total = sum(map(len, named))
    return right / max(1, total), total / len(captions)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks rooms", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="PNG of rooms and captions")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with rooms")
    folder = Path(os.environ["STREAMMEM_DATA"]) / "rooms"
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    rows = [row for row in rows if checksum_split(row["image"]) == VALIDATION]

    from streammem.models.checkpoint import load_checkpoint

    model = PictureModel(load_checkpoint(options.model))

    def picture(row: dict) -> np.ndarray:
        return np.asarray(Image.open(folder / "images" / row["image"]).convert("RGB"))

    def caption(chosen: list[dict]) -> list[str]:
        batches = [chosen[i : i + 16] for i in range(0, len(chosen), 16)]
        return [text for b in batches for text in model.caption_pictures([*map(picture, b)])]

    objects = [row for row in rows if row.get("objects")]
    labelled = [row for row in rows if row.get("label")]
    captions = caption(objects)
    there = [heads(row["objects"]) for row in objects]
    right, each = precision(captions, there)
    if options.sheet:
        known = set().union(*there)
        fifth = list(zip(objects, captions, strict=True))[::5]
        rows = [sheet.Row([picture(row)], text, words(text) & known) for row, text in fifth]
        sheet.write(options.sheet, rows)
    other, _ = precision(captions[1:] + captions[:1], there)
    kinds = caption(labelled)
    kind = np.mean(
        [row["label"] in text.lower() for row, text in zip(labelled, kinds, strict=True)]
    )
    print(
        f"objects named that are there     {right:.3f}, {each:.2f} a caption, {len(objects)} rooms"
    )
    print(f"control: another room's caption  {other:.3f}")
    print(f"kind of room named               {kind:.3f} of {len(labelled)} photos")
    for row, text in list(zip(objects, captions, strict=True))[:5]:
        print(f"  {text}  <- {', '.join(row['objects'][:6])}")
    results = {
        "benchmark": "rooms",
        "precision": round(right, 4),
        "precision_other": round(other, 4),
        "named_per_caption": round(each, 3),
        "kind": round(float(kind), 4),
        "rooms": len(objects),
        "labelled": len(labelled),
        "machine": machine(),
    }
    print(json.dumps(results))
    return 0
