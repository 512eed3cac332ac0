"""Clips: do captions name what is in a clip, do they differ, and does confidence detect rubbish?

Every clip of ``clips`` is one scene of at most eight frames. A noun counts as right if it, or a
word of its kind, stands in the one sentence that the manifest has for the clip; much that is
visibly there does not stand in it, so this is a lower bound. The control is another clip's
sentence. Noise, black and blurred frames have nothing to name: their confidence stands beside.
``--sheet FILE`` draws the clips above their captions and nouns: what is visibly there is counted
by a person.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks import sheet
from benchmarks.machine import machine
from benchmarks.rooms import singular
from streammem.evaluation.metrics import tokenise

FRAMES = 8
ARTICLES = frozenset(
    tokenise("a an the his her their its another one two three four five some several")
)
ENDS = frozenset(
    tokenise(
        "is are was were be and or in on at of with by to from into over under through near up "
        "down that who which while as for off out around behind between along front next other each"
    )
)
KINDS = (  # words of one kind count as one another
    "man woman person people boy girl child children kid men women lady guy rider player someone "
    "technician paraglider baker surfer skier snowboarder dancer biker cyclist crowd hand",
    "car taxi vehicle",
    "bike bicycle bmx motorcycle scooter motorbike",
    "water pond ocean sea wave",
    "street road track roundabout city",
    "hill mountain hillside slope",
    "grass field garden yard",
    "bird swan duck",
    "horse",
    "jacket shirt suit",
)


def nouns(text: str) -> set[str]:
    """Take the last word of every noun phrase, by function words alone."""
    found, phrase = set(), []
    for word in [*tokenise(text), "and"]:
        starts, ends = word in ARTICLES, word in ENDS or word.endswith("ing")
        if starts and len(phrase) > 1:
            phrase.pop()  # before the next article without a preposition stands the verb
        if (starts or ends) and phrase:
            found.add(singular(phrase[-1]))
        phrase = [] if starts or ends else [*phrase, word]
    return found


def kinds(text: str) -> set[str]:
    """Return a sentence's words with all of their kind."""
    own = {singular(word) for word in tokenise(text)}
    return own.union(*(set(kind.split()) for kind in KINDS if own & set(kind.split())))


def precision(captions: Sequence[str], sentences: Sequence[str]) -> float:
    """Return the share of the captions' nouns that stand in the sentences."""
    named = [nouns(caption) for caption in captions]
    right = sum(len(n & kinds(s)) for n, s in zip(named, sentences, strict=True))
    return right / max(1, sum(map(len, named)))


def frames_of(path: Path, seconds: float) -> list[np.ndarray]:
    from streammem.video import open_source

    with open_source(str(path), fps=FRAMES / seconds) as source:
        return [frame.pixels for frame in source][:FRAMES]


def rubbish(picture: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(picture.shape[0] / 8))
    return {
        "noise": rng.integers(0, 256, picture.shape, np.uint8),
        "black": np.zeros_like(picture),
        "blurred": np.asarray(blurred),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks said", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="PNG of clips and captions")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with clips")
    folder = Path(os.environ["STREAMMEM_DATA"]) / "clips"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not row["multi_shot"]]

    from streammem import load
    from streammem.engine.session import Session
    from streammem.types import Caption, Frame

    model, rng = load(options.model), np.random.default_rng(0)

    def caption(pictures: Sequence[np.ndarray]) -> Caption:
        session = Session(model)
        segments = []
        for i, picture in enumerate(pictures):
            segments += session.push(Frame(picture, i / 2, 0.5, i))
        segments += session.flush()
        longest = max(segments, key=lambda segment: segment.end - segment.start)
        return session.caption(longest)

    captioned, shown, spoiled = [], [], {"noise": [], "black": [], "blurred": []}
    for row in rows:
        pictures = frames_of(folder / row["file"], row["seconds"])
        captioned.append(caption(pictures))
        shown.append(sheet.Row(pictures, captioned[-1].text, nouns(captioned[-1].text)))
        for kind, picture in rubbish(pictures[len(pictures) // 2], rng).items():
            spoiled[kind].append(caption([picture] * 2))
        print(f"{captioned[-1].confidence:.2f} {captioned[-1].text}  <- {row['caption']}")
    if options.sheet:
        sheet.write(options.sheet, shown)
    texts, sentences = [c.text for c in captioned], [row["caption"] for row in rows]
    others = [sentences[i:] + sentences[:i] for i in range(1, len(sentences))]
    sure = np.array([c.confidence for c in captioned])
    results = {
        "benchmark": "said",
        "clips": len(rows),
        "noun_precision": round(precision(texts, sentences), 3),
        "noun_precision_other": round(float(np.mean([precision(texts, o) for o in others])), 3),
        "nouns_per_caption": round(float(np.mean([len(nouns(t)) for t in texts])), 2),
        "distinct": round(len(set(texts)) / len(texts), 3),
        "confidence": round(float(np.median(sure)), 3),
    }
    for kind, captions in spoiled.items():
        unsure = np.array([c.confidence for c in captions])
        results[f"confidence_{kind}"] = round(float(np.median(unsure)), 3)
        # the chance that a clip's confidence is above that of such a frame
        results[f"separated_{kind}"] = round(float((sure[:, None] > unsure).mean()), 3)
        print(f"{kind}: {re.sub(r'[{}]', '', str(sorted({c.text for c in captions})[:4]))}")
    print(json.dumps(results | {"machine": machine()}))
    return 0
