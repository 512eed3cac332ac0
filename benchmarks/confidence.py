"""Confidence: fitted on validation photos and spoiled ones, measured on others of both.

Half of the photos and the first three ways of spoiling are for the fit, the rest for the figures.
Two fits. Of a caption by itself: right is the share of its nouns that stand in one of the photo's
own five sentences (words of one kind count as one another). Of each noun of a caption that was
chosen among several: right is a noun that one of the sentences names, or a kind of it. Of a spoiled
photo nothing is right. What is printed at the default level stands below, beside what the fits in
the checkpoint print.
"""

import argparse
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.fitted import keep
from benchmarks.machine import machine
from benchmarks.said import kinds, nouns, rubbish
from streammem import load
from streammem.captioning.captioner import Captioner, CaptionRequest
from streammem.evaluation.datasets import Photo, read_photos
from streammem.evaluation.metrics import CiderD, score_captions, tokenise
from streammem.memory.retrieval import stem
from streammem.models.backbones.language import Replies
from streammem.models.caption_scores import (
    ConfidenceModel,
    Noun,
    confidence_features,
    fit_confidence,
    fit_nouns,
    names_noun,
    noun_features,
    nouns_of,
    sure_beginnings,
)
from streammem.types import Segment

SPOILED_SHARE = 4  # every fourth photo is spoiled in each way
BATCH = 16
LEVELS = 5  # of the table
SILENT = 0.01  # of the photos get no word where captions are judged by themselves
SILENCED = 0.9  # of the spoiled pictures get none where they are judged noun by noun


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


class Example(NamedTuple):
    """A picture's captions and what speaks for the best of them.

    Attributes:
        kind: "photo" or the way in which it is spoiled; those to be fitted to end in " to fit".
        sentences: people's, of a photo.
        request: of its caption, with its key and tokens.
        replies: drawn of it.
        seen: [4] ``confidence_features`` of the best reply.
        nouns: of the best reply.
        noun_seen: [N, 5] ``noun_features``.
    """

    kind: str
    sentences: tuple[str, ...]
    request: CaptionRequest
    replies: Replies
    seen: np.ndarray
    nouns: list[Noun]
    noun_seen: np.ndarray
    text: str

    @property
    def to_fit(self) -> bool:
        return self.kind.endswith(" to fit")

    @property
    def spoiled(self) -> bool:
        return not self.sentences

    @property
    def share_right(self) -> float:
        """The share of the caption's nouns that stand in a sentence, or words of their kind."""
        found = nouns(self.text)
        truth = set[str]().union(*map(kinds, self.sentences))
        return len(found & truth) / max(1, len(found))

    @property
    def right(self) -> list[bool]:
        """Whether a sentence names each noun, or a kind of it."""
        lines = "\n".join(self.sentences)
        return [names_noun(lines, noun) for noun in self.nouns]


def describe(
    model: Any, pictures: list[np.ndarray], sentences: list[tuple[str, ...]], names: list[str]
) -> list[Example]:
    """Caption pictures; ``sentences`` are people's of each, none of a spoiled one."""
    captioner, background = Captioner(model), model.background.numpy()
    requests = [
        CaptionRequest(
            Segment(0, 0.0, 1.0, None, None),
            seen.key[None],
            model.encode_frames([seen.patches], [0.5]),
        )
        for seen in map(model.perceive, pictures)
    ]
    prompts = [captioner.prompt(request) for request in requests]
    found = list[Example]()
    drawn = model.language.candidates(prompts, captioner.decoding, captioner.candidates)
    for own, name, request, replies in zip(sentences, names, requests, drawn, strict=True):
        reply, key = captioner.choose(request, replies)
        seen = confidence_features(request.keys, key, background)
        named = nouns_of(reply.text)
        rest = [other.text for other in replies if other is not reply]
        noun_seen = noun_features(named, seen, rest or [reply.text])
        found.append(Example(name, own, request, replies, seen, named, noun_seen, reply.text))
    return found


def examples(model: Any, photos: list[Photo]) -> list[Example]:
    """Describe photos and spoiled ones; those of the first half are named ``... to fit``."""
    rng, found = np.random.default_rng(0), list[Example]()
    for begin in range(0, len(photos), BATCH):
        batch = photos[begin : begin + BATCH]
        pictures = [np.asarray(Image.open(photo.path).convert("RGB")) for photo in batch]
        to_fit = begin < len(photos) // 2
        end = " to fit" if to_fit else ""
        sentences = [tuple(photo.captions) for photo in batch]
        found += describe(model, pictures, sentences, [f"photo{end}"] * len(batch))
        for picture in pictures[::SPOILED_SHARE]:
            spoiled = rubbish(picture, rng) | ({} if to_fit else others(picture, rng))
            names = [f"{name}{end}" for name in spoiled]
            found += describe(model, list(spoiled.values()), [()] * len(spoiled), names)
    return found


def fit(rows: list[Example]) -> ConfidenceModel:
    """Fit both: captions by themselves, and their nouns where several were drawn."""
    photo = np.array([not row.spoiled for row in rows])
    certainty = fit_confidence(
        np.array([row.seen for row in rows]), np.array([row.share_right for row in rows])
    )
    sure = np.array([certainty(row.seen) for row in rows])
    certainty = certainty._replace(least=round(float(np.quantile(sure[photo], SILENT)), 3))
    of_nouns = fit_nouns(
        np.concatenate([row.noun_seen for row in rows]),
        np.concatenate([row.right for row in rows]).astype(float),
        [stem(noun.word) for row in rows for noun in row.nouns],
        np.array([row.spoiled for row in rows for _ in row.nouns]),
    )
    spoiled = [of_nouns(row.noun_seen).mean() for row in rows if row.spoiled]
    least = round(float(np.quantile(spoiled, SILENCED)), 3)
    return certainty._replace(nouns=of_nouns._replace(least=least))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks confidence", description=__doc__)
    parser.add_argument("--model", help="default: the folder of --fit, else streammem-tiny")
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--fit", type=Path, help="a checkpoint folder that the fit is written to")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with flickr8k")
    photos = read_photos(Path(os.environ["STREAMMEM_DATA"]) / "flickr8k", "val")[: options.photos]
    model: Any = load(str(options.model or options.fit or "streammem-tiny"))
    if Captioner(model).candidates < 2:  # then no noun can be judged by the other captions
        parser.error(f"{model.name}: says one caption alone; fit what chooses first: choice --fit")
    found = examples(model, list(photos))
    certainty = fit([row for row in found if row.to_fit])
    if options.fit:
        keep(options.fit, "certainty", certainty.settings())
    held = [row for row in found if not row.to_fit]
    results = _figures(certainty, held)
    for name, own in (("before", model.confidence_model), ("now", certainty)):
        results[name] = _printed(replace(model, confidence_model=own), held)
        print(f"{name}: {results[name]}")
    print(json.dumps({"benchmark": "confidence", **results, "machine": machine()}))
    return 0


def _figures(certainty: ConfidenceModel, rows: list[Example]) -> dict[str, Any]:
    """Measure confidence in whole captions, noun by noun, on examples that were not fitted to."""
    assert certainty.nouns is not None
    of_nouns = [certainty.nouns(row.noun_seen) for row in rows]
    sure = np.array([sure_beginnings(chances)[-1] for chances in of_nouns])
    right = np.array([not row.spoiled and all(row.right) for row in rows])
    names = np.array([row.kind for row in rows])
    photo = names == "photo"
    level = np.minimum((sure * LEVELS).astype(int), LEVELS - 1)
    print("confidence    examples  mean confidence  all nouns right")
    error = 0.0
    for i in range(LEVELS):
        some = level == i
        if some.any():
            error += abs(sure[some].mean() - right[some].mean()) * some.mean()
            print(
                f"{i / LEVELS:.1f} to {(i + 1) / LEVELS:.1f}    {some.sum():8}  "
                f"{sure[some].mean():15.2f}  {right[some].mean():15.2f}"
            )
    alone = np.array([certainty(row.seen) for row in rows])
    chances = np.concatenate(
        [own for own, is_photo in zip(of_nouns, photo, strict=True) if is_photo]
    )
    truths = np.concatenate([row.right for row in rows if not row.spoiled])
    results: dict[str, Any] = {
        "photos": int(photo.sum()),
        "median": round(float(np.median(sure[photo])), 3),
        "right_above_wrong": round(above(sure[photo & right], sure[photo & ~right]), 3),
        "by_captions_alone": round(above(alone[photo & right], alone[photo & ~right]), 3),
        "right_nouns_above_wrong": round(above(chances[truths], chances[~truths]), 3),
        "calibration_error": round(float(error), 3),
    }
    anything = np.array([own.mean() for own in of_nouns])
    for name in sorted(set(names) - {"photo"}):
        spoiled = names == name
        results[f"median_{name}"] = round(float(np.median(sure[spoiled])), 3)
        results[f"above_{name}"] = round(above(anything[photo], anything[spoiled]), 3)
        print(
            f"{name}: median {results[f'median_{name}']}, under a photo {results[f'above_{name}']}"
        )
    return results


def _printed(model: Any, rows: list[Example]) -> dict[str, Any]:
    """Measure what a model prints of examples at its default level."""
    captioner = Captioner(model)
    given = [captioner.score(row.request, row.replies) for row in rows]
    photos = [(row, own) for row, own in zip(rows, given, strict=True) if not row.spoiled]
    texts, sentences = [own.text for _, own in photos], [row.sentences for row, _ in photos]
    cider = CiderD([[tokenise(text) for text in own] for own in sentences])
    scores, errors = score_captions(texts, sentences, cider)
    named = [nouns(text) for text in texts]
    right = sum(
        len(own & set[str]().union(*map(kinds, people)))
        for own, people in zip(named, sentences, strict=True)
    )
    withheld = Counter(row.kind for row, own in zip(rows, given, strict=True) if not own.text)
    everyone = Counter(row.kind for row in rows)
    return {
        "whole": sum(not own.unsure for _, own in photos),
        "cut": sum(own.unsure and bool(own.text) for _, own in photos),
        "cider": round(scores.cider, 3),
        "error": round(errors.cider, 3),
        "nouns_right": round(right / max(1, sum(map(len, named))), 3),
        "nouns_a_caption": round(sum(map(len, named)) / len(photos), 2),
        "withheld": {kind: round(withheld[kind] / n, 3) for kind, n in sorted(everyone.items())},
    }
