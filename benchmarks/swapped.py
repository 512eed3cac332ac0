"""Do answers rest on what is shown? Each question is asked three ways of validation photos.

Shown are one to four passages with the model's own captions, as `ask` shows them: with the photo
that answers the question (``true``), with another in its place that answers it otherwise
(``swapped``), and with none that answers it (``missing``). A reply is right by its first words; it
refuses if it begins with "not" or "no". The first answer given to swapped evidence
is what the model would have guessed.
"""

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.machine import machine
from streammem import load
from streammem.errors import DatasetError
from streammem.evaluation.datasets import Photo, read_photo, read_photos
from streammem.evaluation.pictures import PictureModel
from streammem.models.backbones.language import GenerationConfig
from streammem.models.protocols import EvidenceItem
from streammem.models.threads import limit_threads
from streammem.training.questions import Trial, TrialMaker, TrialVariant

SCENE_S = 10.0
EVERY_S = 60.0
WORDS = GenerationConfig(max_new_tokens=8)  # the first ones are judged
AT_ONCE = 8
FIRST = 4  # words of a reply in which the answer must come


class Photos:
    """Photos as passages show them; each is looked at and described once."""

    def __init__(self, model: Any, photos: Sequence[Photo], *, described: bool) -> None:
        self._model, self._photos, self._described = model, photos, described
        self._seen: dict[int, tuple[Tensor, str | None]] = {}

    def look(self, chosen: set[int]) -> None:
        new = sorted(chosen - self._seen.keys())
        pictures = [read_photo(self._photos[i].path) for i in new]
        tokens = [
            self._model.encode_frames([self._model.perceive(p).patches], [0.5]) for p in pictures
        ]
        texts: list[str | None] = [None] * len(new)
        if self._described:
            asked = PictureModel(self._model)
            for at in range(0, len(new), AT_ONCE):
                texts[at : at + AT_ONCE] = asked.caption_pictures(pictures[at : at + AT_ONCE])
        self._seen |= dict(zip(new, zip(tokens, texts, strict=True), strict=True))

    def passages(self, chosen: Sequence[int]) -> list[EvidenceItem]:
        starts = [EVERY_S * place for place in range(len(chosen))]
        return [
            EvidenceItem(start, start + SCENE_S, *self._seen[i])
            for start, i in zip(starts, chosen, strict=True)
        ]


def replies_to(model: Any, photos: Photos, asked: Sequence[tuple[str, TrialVariant]]) -> list[str]:
    photos.look({picture for _, way in asked for picture in way.pictures})
    generator = model.answer_generator
    prompts = [generator.answer_prompt(photos.passages(way.pictures), q) for q, way in asked]
    order = np.argsort([len(way.pictures) for _, way in asked], kind="stable")  # alike in length
    replies = [""] * len(asked)
    for at in range(0, len(order), AT_ONCE):
        block = order[at : at + AT_ONCE]
        generated = generator.language.generate([prompts[i] for i in block], WORDS)
        for i, text in zip(block, generated, strict=True):
            replies[i] = text
    return replies


def agrees(reply: str, answer: str) -> bool:
    """Whether a reply begins with an answer: ``brown`` in "The dog is brown."."""
    return answer.strip(".").lower() in re.findall(r"[a-z]+", reply.lower())[:FIRST]


def refuses(reply: str) -> bool:
    return re.findall(r"[a-z]+", reply.lower())[:1] in (["not"], ["no"])


def figures_of(trials: Sequence[Trial], replies: dict[str, list[str]]) -> dict[str, float]:
    """Sum up replies by variant, each as long as the trials."""
    true, swapped, missing = (replies[name] for name in ("true", "swapped", "missing"))
    rows = list(zip(trials, true, swapped, missing, strict=True))
    found = {
        "right, true evidence": [agrees(t, trial.true.answer) for trial, t, _, _ in rows],
        "right, swapped evidence": [agrees(s, trial.swapped.answer) for trial, _, s, _ in rows],
        "the first answer, swapped evidence": [
            agrees(s, trial.true.answer) for trial, _, s, _ in rows
        ],
        "another reply when swapped": [t != s for _, t, s, _ in rows],
        "refused, true evidence": [
            refuses(t) for trial, t, _, _ in rows if trial.true.answer != "No."
        ],
        "refused, other photos": [refuses(m) for trial, _, _, m in rows if trial.missing.pictures],
        "refused, nothing shown": [
            refuses(m) for trial, _, _, m in rows if not trial.missing.pictures
        ],
    }
    return {
        "questions": len(trials),
        **{name: round(float(np.mean(hits)), 3) for name, hits in found.items() if hits},
    }


def measure(
    model: Any, photos: Sequence[Photo], count: int, *, described: bool, log: Path | None
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    maker = TrialMaker([photo.captions for photo in photos])
    trials = [maker.draw(rng) for _ in range(count)]
    shown = Photos(model, photos, described=described)
    replies = {
        name: replies_to(model, shown, [(t.question, t.variants[name]) for t in trials])
        for name in ("true", "swapped", "missing")
    }
    if log:
        with open(log, "w") as lines:
            for i, trial in enumerate(trials):
                by_variant = {
                    name: [trial.variants[name].answer, texts[i]] for name, texts in replies.items()
                }
                print(json.dumps({"question": trial.question, **by_variant}), file=lines)
    by_kind: dict[str, list[int]] = defaultdict(list)
    for i, trial in enumerate(trials):
        by_kind[trial.kind].append(i)
        by_kind["all"].append(i)
    return {
        kind: figures_of(
            [trials[i] for i in of], {n: [texts[i] for i in of] for n, texts in replies.items()}
        )
        for kind, of in sorted(by_kind.items())
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks swapped", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--bare", action="store_true", help="passages without captions")
    parser.add_argument("--replies", type=Path, help="write every reply, as JSON lines")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        raise DatasetError("benchmarks swapped: set STREAMMEM_DATA to a folder with flickr8k")
    limit_threads(busy=1)
    photos = read_photos(Path(os.environ["STREAMMEM_DATA"]) / "flickr8k", "val")
    figures = measure(
        load(options.model),
        photos,
        options.questions,
        described=not options.bare,
        log=options.replies,
    )
    for kind, found in figures.items():
        print(kind)
        for name, value in found.items():
            print(f"  {name:36} {value}")
    print(json.dumps({"benchmark": "swapped", **figures, "machine": machine()}))
    return 0
