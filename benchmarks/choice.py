"""How many captions to draw, and what to choose among them by: figures by number, and the fit.

Captions are drawn anew for each number, as a session draws so many: up to half of them begin with
names of what is seen.
The weights of each half of the validation photos choose on the other half, so that no photo's
figures rest on its own sentences; what is written is fitted to all. Controls: the likeliest caption
alone, one drawn blindly, and the best that there was.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from benchmarks.fitted import keep
from benchmarks.machine import machine
from streammem import load
from streammem.evaluation.datasets import Photo, read_photo, read_photos
from streammem.evaluation.metrics import CiderD, score_captions, tokenise
from streammem.models.backbones.language import Replies
from streammem.models.caption_scores import Reranker, fit_reranker, reranking_features
from streammem.models.protocols import EvidenceItem

AT_ONCE = 4  # photos described in one batch
TIMED = 24  # photos whose captions are timed one by one
NAMING = 0.1  # weight of what a caption names, in a checkpoint that does not choose yet


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The captions of one photo, the likeliest first.

    Attributes:
        texts: as they were drawn.
        log_probs: mean log-probability of a token of each.
        keys: [N, K] of the texts.
        key: [K] of the photo.
        worth: [N] CIDEr-D of each.
        named: [N] how many of the things that each names are there, see ``NamingEncoder``.
    """

    texts: list[str]
    log_probs: list[float]
    keys: np.ndarray
    key: np.ndarray
    worth: np.ndarray
    named: np.ndarray

    @property
    def features(self) -> np.ndarray:
        return reranking_features(self.log_probs, self.keys, self.key[None])


def draw(model: Any, photos: list[Photo], count: int) -> list[Drawn]:
    """Describe every photo ``count`` times and weigh the captions."""
    cider = CiderD([[tokenise(text) for text in photo.captions] for photo in photos])
    drawn = []
    for begin in tqdm(range(0, len(photos), AT_ONCE), desc=f"{count} captions each", disable=None):
        batch = photos[begin : begin + AT_ONCE]
        seen = [model.perceive(read_photo(photo.path)) for photo in batch]
        tokens = [model.encode_frames([each.patches], [0.5]) for each in seen]
        all_replies = draw_replies(model, tokens, count)
        for photo, perceived, own, replies in zip(batch, seen, tokens, all_replies, strict=True):
            drawn.append(_weighed(model, photo, (perceived.key, own), replies, cider))
    return drawn


def draw_replies(model: Any, tokens: list[Tensor], count: int) -> list[Replies]:
    """Draw ``count`` captions of each segment's tokens, the likeliest first."""
    prompts = [model.caption_prompt(EvidenceItem(0, 0, each)) for each in tokens]
    return model.language.candidates(prompts, model.decoding, count)


def _weighed(
    model: Any, photo: Photo, seen: tuple[np.ndarray, Tensor], replies: Replies, cider: CiderD
) -> Drawn:
    texts, (key, tokens) = [reply.text for reply in replies], seen
    references = [tokenise(text) for text in photo.captions]
    return Drawn(
        texts,
        [float(np.mean(reply.log_probs)) for reply in replies],
        model.sentence_keys(texts),
        key,
        np.array([cider.score(tokenise(text), references) for text in texts]),
        model.naming(tokens, texts),
    )


def fit(drawn: Sequence[Drawn], count: int, naming: float) -> Reranker:
    """Fit the weights of fit and likelihood, beside a given one of naming."""
    worth = [each.worth - naming * each.named for each in drawn]
    return fit_reranker([each.features for each in drawn], worth, count)._replace(naming=naming)


def chosen_across(drawn: Sequence[Drawn], count: int, naming: float) -> list[int]:
    """Return which caption of each photo is chosen by the weights of the other half of them."""
    halves = [fit(drawn[1 - half :: 2], count, naming) for half in (0, 1)]
    return [halves[i % 2](each.features, each.named) for i, each in enumerate(drawn)]


def seconds(model: Any, tokens: list[Tensor], count: int) -> float:
    """Measure the median CPU time of one caption of ``count`` candidates, chosen ones read."""
    taken = []
    for each in tokens:
        began = time.process_time()
        (replies,) = draw_replies(model, [each], count)
        if count > 1:
            model.sentence_keys([reply.text for reply in replies])
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks choice", description=__doc__)
    parser.add_argument("--model", help="default: the folder of --fit, else streammem-tiny")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 6, 8, 12])
    parser.add_argument("--fit", type=Path, help="a checkpoint folder that the fit is written to")
    parser.add_argument("--default", type=int, default=8, help="candidates that it writes")
    weight = f"weight of what a caption names; default: the model's own, else {NAMING}"
    parser.add_argument("--naming", type=float, help=weight)
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with flickr8k")
    folder = Path(os.environ["STREAMMEM_DATA"]) / "flickr8k"
    photos = list(read_photos(folder, "val"))[: options.photos]
    model: Any = load(str(options.model or options.fit or "streammem-tiny"))
    if options.naming is not None:
        naming = options.naming
    else:
        naming = model.reranker.naming if model.reranker else NAMING
    results: dict[str, Any] = {"photos": len(photos), "drawn": {}}
    tokens = [
        model.encode_frames([model.perceive(read_photo(photo.path)).patches], [0.5])
        for photo in photos[:TIMED]
    ]
    draw_replies(model, tokens[:1], 1)  # the first takes longer
    print("drawn  BLEU-1  BLEU-4  ROUGE-L  CIDEr  gained         different  best there was  ms")
    for count in sorted({*options.counts, *([options.default] if options.fit else [])}):
        drawn = draw(model, photos, count)
        ms = 1_000 * seconds(model, tokens, count)
        results["drawn"][str(count)] = _row(photos, drawn, count, naming, ms)
        if count > 1:
            results["blind"] = float(np.mean([each.worth[1] for each in drawn]))
        if options.fit and count == options.default:
            choice = fit(drawn, count, naming)
            keep(options.fit, "choice", choice._asdict())
            results["weights"] = choice.weights
    print(json.dumps({"benchmark": "choice", **results, "machine": machine()}))
    return 0


def _row(
    photos: list[Photo], drawn: list[Drawn], count: int, naming: float, ms: float
) -> dict[str, Any]:
    """Print and return the figures of so many captions a photo."""
    references = [photo.captions for photo in photos]
    cider = CiderD([[tokenise(text) for text in captions] for captions in references])
    picked = chosen_across(drawn, count, naming) if count > 1 else [0] * len(drawn)
    texts = [each.texts[i] for each, i in zip(drawn, picked, strict=True)]
    figures, _ = score_captions(texts, references, cider)
    gained = np.array([e.worth[i] - e.worth[0] for e, i in zip(drawn, picked, strict=True)])
    error = gained.std() / len(gained) ** 0.5
    best = float(np.mean([each.worth.max() for each in drawn]))
    print(
        f"{count:5}  {figures.bleu1:6.3f}  {figures.bleu4:6.3f}  {figures.rouge_l:7.3f}  "
        f"{figures.cider:5.3f}  {gained.mean():+.3f} ± {error:.3f}  {len(set(texts)):9}  "
        f"{best:14.3f}  {ms:.0f}",
        flush=True,
    )
    return {
        "bleu1": round(figures.bleu1, 4), "bleu4": round(figures.bleu4, 4),
        "rouge_l": round(figures.rouge_l, 4), "cider": round(figures.cider, 4),
        "gained": round(float(gained.mean()), 4), "error": round(float(error), 4),
        "different": len(set(texts)), "best": round(best, 4), "ms": round(ms),
    }  # fmt: skip
