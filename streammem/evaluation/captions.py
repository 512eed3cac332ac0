"""The suite ``captions``: how good a model's captions of photos are, and how good without sight.

    report = evaluate_captions(Path("flickr8k"), PictureModel(load("streammem-tiny")), options)
    report.own.scores.cider

Each control is the same model without sight of the photo, except ``human``, a human caption.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from streammem.errors import BackboneError, DatasetError
from streammem.evaluation.datasets import (
    EvaluationOptions,
    Photo,
    batches,
    prediction_lines,
    progress_bar,
    read_photo,
    read_photos,
)
from streammem.evaluation.metrics import CiderD, Scores, score_captions, tokenise

ShownFeatures = Literal["own", "blank", "other"]


@runtime_checkable
class CaptioningModel(Protocol):
    """A model that captions pictures."""

    def caption_pictures(
        self, pictures: Sequence[np.ndarray], *, features: ShownFeatures
    ) -> list[str]:
        """Caption each picture.

        Args:
            pictures: each [H, W, 3] uint8 RGB, of any size.
            features: the language model's input: ``own``, the picture's features;
                ``blank``, the same blank features for all; ``other``, the features of another
                of these pictures (of at least two), never its own.

        Returns:
            One caption a picture, in their order.
        """
        ...


@dataclass(frozen=True, slots=True)
class CaptionFigures:
    """The figures of one set of captions.

    Attributes:
        standard_errors: of ``scores``, by bootstrap over photos.
        distinct: how many different captions there are.
    """

    scores: Scores
    standard_errors: Scores
    distinct: int

    def to_json(self) -> dict[str, object]:
        """Return the figures by name, rounded to six decimals."""
        return {
            **_rounded(self.scores),
            "distinct": self.distinct,
            "standard_errors": _rounded(self.standard_errors),
        }


@dataclass(frozen=True, slots=True)
class CaptionReport:
    """The outcome of the suite.

    Attributes:
        photos: number of photos captioned.
        controls: by name, as far as requested: ``blank``, ``other``, ``nearest``; and ``human``,
            each photo's first caption against its others, if all photos have several.
    """

    split: str
    photos: int
    own: CaptionFigures
    controls: dict[str, CaptionFigures] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the object that ``streammem eval captions`` prints on its last line."""
        return {
            "suite": "captions",
            "split": self.split,
            "photos": self.photos,
            **self.own.to_json(),
            "controls": {name: figures.to_json() for name, figures in self.controls.items()},
        }


def evaluate_captions(
    folder: Path, captioner: CaptioningModel, options: EvaluationOptions
) -> CaptionReport:
    """Caption the photos of a split and score the captions against the human ones.

    Document frequencies for CIDEr are those of the whole split, also with ``limit``.

    Args:
        folder: see ``read_photos``.
        captioner: to evaluate.
        options: ``predictions`` gets ``{"image", "caption"}`` a photo, after each batch.

    Raises:
        DatasetError: the folder is malformed, or too small for the controls.
        ConfigError: the file of predictions cannot be written.
        BackboneError: the captioner returns another number of captions than of pictures.
    """
    split = read_photos(folder, options.split)
    photos = split[: options.limit]
    if options.controls and len(photos) < 2:
        raise DatasetError(f"{folder}: controls compare photos, so they need at least 2 of them")
    by_kind = _caption(photos, captioner, options)
    cider = CiderD([[tokenise(text) for text in photo.captions] for photo in split])
    references = [photo.captions for photo in photos]
    figures = {name: _figures(captions, references, cider) for name, captions in by_kind.items()}
    others = [captions[1:] for captions in references]
    if options.controls and all(others):
        figures["human"] = _figures([captions[0] for captions in references], others, cider)
    return CaptionReport(options.split, len(photos), figures.pop("own"), figures)


def _figures(
    captions: Sequence[str], references: Sequence[Sequence[str]], cider: CiderD
) -> CaptionFigures:
    return CaptionFigures(*score_captions(captions, references, cider), len(set(captions)))


def _caption(
    photos: Sequence[Photo], captioner: CaptioningModel, options: EvaluationOptions
) -> dict[str, list[str]]:
    """Return the captions of every photo by kind: ``own`` and the controls' names."""
    by_kind: dict[str, list[str]] = {}
    with (
        prediction_lines(options.predictions) as write,
        progress_bar(len(photos), options) as bar,
    ):
        for batch in batches(photos):
            captions = _caption_batch(
                [read_photo(photo.path) for photo in batch], captioner, options
            )
            write(
                [
                    {"image": photo.name, "caption": caption}
                    for photo, caption in zip(batch, captions["own"], strict=True)
                ]
            )
            for kind, texts in captions.items():
                by_kind.setdefault(kind, []).extend(texts)
            bar.update(len(batch))
    return by_kind


def _caption_batch(
    pictures: Sequence[np.ndarray], captioner: CaptioningModel, options: EvaluationOptions
) -> dict[str, list[str]]:
    kinds: tuple[ShownFeatures, ...] = ("own", "blank", "other") if options.controls else ("own",)
    captions: dict[str, list[str]] = {
        kind: captioner.caption_pictures(pictures, features=kind) for kind in kinds
    }
    if options.controls and options.nearest is not None:
        captions["nearest"] = options.nearest(pictures)
    for kind, texts in captions.items():
        if len(texts) != len(pictures):
            raise BackboneError(f"{kind}: {len(texts)} captions came for {len(pictures)} pictures")
    return captions


def _rounded(scores: Scores) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(scores).items()}
