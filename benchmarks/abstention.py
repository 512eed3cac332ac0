"""The threshold of "not seen": fitted to photos that training saw, measured on others.

Keys know the captions of training photos too well, so what is there scores too high among them.
What is not there scores as it does elsewhere: only absent things are fitted to. A stream lacks two
things or three, and things differ far more than questions about one of them do (umbrellas are seen
everywhere, bicycles are not): a rate is as good as the number of streams behind it.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fitted import keep
from streammem.errors import DatasetError
from streammem.evaluation.datasets import Photo, read_photo, read_photos
from streammem.evaluation.streams import NEEDLE_KINDS, compose
from streammem.memory import retrieval
from streammem.models.checkpoint import PRESETS
from streammem.models.tiny.model import VideoModel

FITTED_TO = {10: 200, 30: 80, 100: 30, 300: 15, 1_000: 10}  # scenes of a stream: streams
MEASURED_ON = {10: 100, 100: 30, 1_000: 10}
PHOTOS = {"train": 1_500, "val": 1_000}
SENTENCES_AT_ONCE = 256


class Asked(NamedTuple):
    """Questions to one stream: best cosines [Q], background scores [Q, B], kinds [Q]."""

    size: int
    best: np.ndarray
    background: np.ndarray
    kinds: np.ndarray

    def scores(self, chance: retrieval.GumbelNull) -> np.ndarray:
        return retrieval.normalise(self.best[:, None], self.background, self.size, chance)[:, 0]


def measure(model: VideoModel, plots: Path | None, *, write: bool) -> dict[str, Any]:
    """Fit ``GumbelNull``, measure it on the validation split, and plot risk over coverage."""
    if "STREAMMEM_DATA" not in os.environ:
        raise DatasetError("benchmarks memory --fit: set STREAMMEM_DATA to a folder with flickr8k")
    folder = Path(os.environ["STREAMMEM_DATA"]) / "flickr8k"
    absent = [
        (asked.size, asked.best[asked.kinds == "absent"], asked.background[asked.kinds == "absent"])
        for asked in _streams(model, _photos(folder, "train"), FITTED_TO, ("absent",))
    ]
    fitted = retrieval.fit_null(
        [
            (size, *(np.concatenate([scores[i] for scores in absent if scores[0] == size])
                     for i in (1, 2)))
            for size in FITTED_TO
        ]
    )  # fmt: skip
    print(fitted)
    if write:
        keep(PRESETS.get(model.name, Path(model.name)), "chance", fitted._asdict())
    measured = list(_streams(model, _photos(folder, "val"), MEASURED_ON))
    figures = {str(size): _figures(measured, size, fitted) for size in MEASURED_ON}
    if plots:
        _plot(measured, fitted, plots / "risk-coverage.png")
    return {"fit": fitted._asdict(), **figures}


def _photos(folder: Path, split: str) -> list[Photo]:
    photos = read_photos(folder, split)
    order = np.random.default_rng(0).permutation(len(photos))[: PHOTOS[split]]
    return [photos[i] for i in order]


def _streams(
    model: VideoModel,
    photos: Sequence[Photo],
    sizes: dict[int, int],
    kinds: Sequence[str] = NEEDLE_KINDS,
) -> Iterator[Asked]:
    keys = np.stack([model.perceive(read_photo(photo.path)).key for photo in photos])
    captions = [photo.captions for photo in photos]
    known: dict[str, np.ndarray] = {}
    for size, streams in sizes.items():
        for seed in range(streams):
            count = min(4 * size, 600)
            stream = compose(captions, size, count, asked=len(photos), seed=seed)
            questions = [question for question in stream.questions if question.kind in kinds]
            if not questions:
                continue
            texts = [question.text for question in questions]
            new = [text for text in dict.fromkeys(texts) if text not in known]
            for start in range(0, len(new), SENTENCES_AT_ONCE):
                block = new[start : start + SENTENCES_AT_ONCE]
                known |= dict(zip(block, model.sentence_keys(block), strict=True))
            asked = np.stack([known[text] for text in texts])
            yield Asked(
                size,
                (asked @ keys[np.array(stream.scenes)].T).max(1),
                asked @ model.background.numpy().T,
                np.array([question.kind for question in questions]),
            )


def _figures(measured: Sequence[Asked], size: int, chance: retrieval.GumbelNull) -> dict[str, Any]:
    chosen = [asked for asked in measured if asked.size == size]
    scores = np.concatenate([asked.scores(chance) for asked in chosen])
    kinds = np.concatenate([asked.kinds for asked in chosen])
    yes = scores > retrieval.threshold(retrieval.FALSE_SIGHTINGS)
    absent = scores[kinds == "absent"]
    false = scores[(kinds == "absent") | (kinds == "near")]
    return {
        **{f"yes {kind}": round(float(yes[kinds == kind].mean()), 3) for kind in NEEDLE_KINDS},
        "yes absent, standard error over streams": _error(chosen, chance),
        "true yes at 10% of absent": _above(scores[kinds == "present"], absent),
        "true yes at 10% of absent and near": _above(scores[kinds == "present"], false),
        "questions": len(scores),
    }


def _error(streams: Sequence[Asked], chance: retrieval.GumbelNull) -> float:
    """Return the standard error of the share of absent things that are answered yes."""
    limit = retrieval.threshold(retrieval.FALSE_SIGHTINGS)
    shares = [
        float((asked.scores(chance)[asked.kinds == "absent"] > limit).mean())
        for asked in streams
        if (asked.kinds == "absent").any()
    ]
    return round(float(np.std(shares, ddof=1)) / len(shares) ** 0.5, 3) if shares[1:] else np.nan


def _above(present: np.ndarray, false: np.ndarray) -> float:
    return round(float((present > np.quantile(false, 0.9)).mean()), 3)


def _plot(measured: Sequence[Asked], chance: retrieval.GumbelNull, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    shipped = retrieval.threshold(retrieval.FALSE_SIGHTINGS)
    for size, color in zip(MEASURED_ON, ("C0", "C1", "C2"), strict=True):
        chosen = [asked for asked in measured if asked.size == size]
        scores = np.concatenate([asked.scores(chance) for asked in chosen])
        kinds = np.concatenate([asked.kinds for asked in chosen])
        limits = np.sort(scores)[::-1]
        present, absent = scores[kinds == "present"], scores[kinds == "absent"]
        coverage = [(present > limit).mean() for limit in limits]
        axis.plot(
            coverage, [(absent > limit).mean() for limit in limits], color, label=f"{size} scenes"
        )
        axis.plot((present > shipped).mean(), (absent > shipped).mean(), f"{color}o")
    axis.axhline(retrieval.FALSE_SIGHTINGS, color="gray", lw=0.8, ls=":")
    axis.set(
        xlabel="coverage: what is there is answered yes",
        ylabel="risk: what never was is answered yes",
        title="The dot is the threshold as shipped",
    )
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
