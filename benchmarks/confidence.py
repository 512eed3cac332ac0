"""Confidence: fitted on validation photos and spoiled ones, measured on others of both.

A caption is right by the share of its nouns that stand in one of the photo's own five sentences
(words of one kind count as one another); of a spoiled photo nothing is right. Half of the photos
and the first three ways of spoiling are for the fit, the rest for the figures.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.fitted import keep
from benchmarks.machine import machine
from benchmarks.said import kinds, nouns, rubbish
from streammem import load
from streammem.evaluation.datasets import Photo, read_photos
from streammem.evaluation.pictures import PictureModel
from streammem.models.caption_scores import confidence_features, fit_confidence

SPOILED_SHARE = 4  # every fourth photo is spoiled in each way
BATCH = 16
LEVELS = 5  # of the table
SILENT = 0.01  # of the photos get no word


def others(picture: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Spoil a picture in ways that are not fitted to."""
    side = picture.shape[0]
    tiles = rng.integers(0, 256, (side // 16 + 1, picture.shape[1] // 16 + 1, 3), np.uint8)
    return {
        "one colour": np.zeros_like(picture) + rng.integers(0, 256, 3, np.uint8),
        "tiles": tiles.repeat(16, 0).repeat(16, 1)[:side, : picture.shape[1]],
        "half blurred": np.asarray(
            Image.fromarray(picture).filter(ImageFilter.GaussianBlur(side / 16))
        ),
    }


def above(left: np.ndarray, right: np.ndarray) -> float:
    """Return the chance that one of the left values exceeds one of the right ones."""
    return float((left[:, None] > right).mean() + (left[:, None] == right).mean() / 2)


class Examples:
    """Captions with what speaks for them, and how right they are.

    Args:
        model: describes the pictures.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._background = model.background.numpy()
        self.signs: list[np.ndarray] = []
        self.right: list[float] = []
        self.kinds: list[str] = []

    def describe(
        self, pictures: list[np.ndarray], truths: list[set[str]], names: list[str]
    ) -> None:
        """Caption pictures; ``truths`` are the words that are right of each."""
        texts = PictureModel(self._model).caption_pictures(pictures)
        keys = self._model.sentence_keys(texts)
        for picture, text, key, truth in zip(pictures, texts, keys, truths, strict=True):
            own = self._model.perceive(picture).key[None]
            self.signs.append(confidence_features(own, key, self._background))
            self.right.append(len(nouns(text) & truth) / max(1, len(nouns(text))))
        self.kinds.extend(names)


def examples(model: Any, photos: list[Photo]) -> Examples:
    """Describe photos and spoiled ones; those of the first half are named ``... to fit``."""
    rng, found = np.random.default_rng(0), Examples(model)
    for begin in range(0, len(photos), BATCH):
        batch = photos[begin : begin + BATCH]
        pictures = [np.asarray(Image.open(photo.path).convert("RGB")) for photo in batch]
        truths = [set[str]().union(*map(kinds, photo.captions)) for photo in batch]
        to_fit = begin < len(photos) // 2
        end = " to fit" if to_fit else ""
        found.describe(pictures, truths, [f"photo{end}"] * len(batch))
        for picture in pictures[::SPOILED_SHARE]:
            spoiled = rubbish(picture, rng) | ({} if to_fit else others(picture, rng))
            names = [f"{name}{end}" for name in spoiled]
            found.describe(list(spoiled.values()), [set()] * len(spoiled), names)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks confidence", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--fit", type=Path, help="a checkpoint folder that the fit is written to")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with flickr8k")
    photos = read_photos(Path(os.environ["STREAMMEM_DATA"]) / "flickr8k", "val")[: options.photos]
    found = examples(load(options.model), list(photos))
    x, y, names = np.array(found.signs), np.array(found.right), np.array(found.kinds)
    to_fit = np.array([name.endswith(" to fit") for name in found.kinds])
    certainty = fit_confidence(x[to_fit], y[to_fit])
    fitted = np.array([certainty(row) for row in x[to_fit]])
    photo = names[to_fit] == "photo to fit"
    certainty = certainty._replace(least=round(float(np.quantile(fitted[photo], SILENT)), 3))
    if options.fit:
        keep(options.fit, "certainty", certainty._asdict())
    results = _figures(np.array([certainty(row) for row in x]), y, names, ~to_fit)
    results["least"] = certainty.least
    print(json.dumps({"benchmark": "confidence", **results, "machine": machine()}))
    return 0


def _figures(
    sure: np.ndarray, right: np.ndarray, names: np.ndarray, held: np.ndarray
) -> dict[str, object]:
    photo = names == "photo"
    level = np.minimum((sure * LEVELS).astype(int), LEVELS - 1)
    print("confidence    examples  mean confidence  nouns right")
    error = 0.0
    for i in range(LEVELS):
        some = held & (level == i)
        if some.any():
            error += abs(sure[some].mean() - right[some].mean()) * some.sum() / held.sum()
            print(
                f"{i / LEVELS:.1f} to {(i + 1) / LEVELS:.1f}    {some.sum():8}  "
                f"{sure[some].mean():15.2f}  {right[some].mean():11.2f}"
            )
    good, bad = sure[photo & (right > 2 / 3)], sure[photo & (right < 1 / 3)]
    results: dict[str, object] = {
        "photos": int(photo.sum()),
        "median": round(float(np.median(sure[photo])), 3),
        "right_above_wrong": round(above(good, bad), 3),
        "calibration_error": round(error, 3),
    }
    for name in sorted(set(names[held]) - {"photo"}):
        spoiled = sure[names == name]
        results[f"median_{name}"] = round(float(np.median(spoiled)), 3)
        results[f"above_{name}"] = round(above(sure[photo], spoiled), 3)
        print(f"{name}: median {np.median(spoiled):.2f}, under a photo {results[f'above_{name}']}")
    return results
