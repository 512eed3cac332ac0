"""Everyday scenes: captions of COCO photos, people's questions about others, objects in kitchens.

- *captions*: all of ``coco_mini`` (CIDEr against its own sentences), and apart those of its photos
  that training may not have shown (one in five, by a checksum of the name). Of the words that say
  gender, age and colour: the share that stand in one of the photo's own sentences.
- *named*: captions of photos of ``coco_photos`` from the held-out fifth: the share that name a
  thing that the detector is sure of (a person is none), and the share that name one of its eighty
  things that it has not found at any score. Control: another photo's caption.
- *questions*: people's, about photos of ``coco_photos`` from the held-out fifth, sampled. The reply
  is right if it begins with the person's answer. Controls: the same question with another photo's
  evidence, with none (blind), and the commonest answer to such a beginning of a question, from the
  other four fifths (guess).
- *kitchens*: frames of ``kitchen_frames`` of held-out persons. The named object is among the five
  likeliest of all things that the model names (words), and of all names that frames have, by the
  cosine of keys (keys). Controls: another frame's, and the five commonest names of the other
  persons.

``python -m benchmarks said`` and ``rooms`` measure clips and rooms.
"""

import argparse
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.rooms import singular
from benchmarks.swapped import Photos, replies_to
from streammem import load
from streammem.evaluation.datasets import Photo, read_photo, read_photos
from streammem.evaluation.metrics import CiderD, score_captions, tokenise
from streammem.evaluation.pictures import PictureModel
from streammem.models.tiny.words import NamesInText
from streammem.training.questions import COLORS, QuestionRecord, TrialVariant
from streammem.training.records import HELD_OUT_PERSONS, VALIDATION, checksum_split, thing_name
from streammem.training.things import PERSON

PARTS = ("captions", "named", "questions", "kitchens")
BATCH = 16
FIRST = 6  # words of a reply in which the answer must come
BEST = 5  # words a frame
SURE = 0.5  # score of what the detector is sure of
# Words that are read as others; of "yes" singular would make "ye".
ALIKE = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10", "grey": "gray", "yes": "yes",
}  # fmt: skip
FILLERS = frozenset("a an the is are it its there they this that".split())  # noqa: SIM905
# Words of a kind that exclude each other.
RISKY = {
    "gender": ("man men boy boys guy he his", "woman women girl girls lady she her"),
    "age": ("man men woman women adult guy lady", "boy boys girl girls child children baby kid"),
    "colour": COLORS,
}


def error(hits: Sequence[float] | np.ndarray) -> float:
    """Return the standard error of a mean."""
    return float(np.std(hits) / max(1, len(hits)) ** 0.5)


def share(hits: Sequence[bool]) -> dict[str, float]:
    return {"share": round(float(np.mean(hits)), 4), "error": round(error(hits), 4)}


# -- captions --


def measure_captions(model: Any, folder: Path) -> dict[str, Any]:
    photos = read_photos(folder / "coco_mini", "all")
    references = [photo.captions for photo in photos]
    cider = CiderD([[tokenise(text) for text in captions] for captions in references])
    texts = list[str]()
    for begin in range(0, len(photos), BATCH):
        batch = [read_photo(photo.path) for photo in photos[begin : begin + BATCH]]
        texts += PictureModel(model).caption_pictures(batch)
    held = [i for i, photo in enumerate(photos) if checksum_split(photo.name) == VALIDATION]
    people = [captions[0] for captions in references], [c[1:] for c in references]
    sets = {
        "all": (texts, references),
        "held out": ([texts[i] for i in held], [references[i] for i in held]),
        "another photo's": (texts[1:] + texts[:1], references),
        "one person's": people,
    }
    figures: dict[str, Any] = {}
    for name, (captions, of) in sets.items():
        scores, errors = score_captions(captions, of, cider)
        figures[name] = {"photos": len(of), "cider": round(scores.cider, 4)}
        figures[name] |= {"error": round(errors.cider, 4), "bleu4": round(scores.bleu4, 4)}
    for kind, groups in RISKY.items():
        figures[kind] = risky_words(texts, references, groups)
    for photo, text in list(zip(photos, texts, strict=True))[:5]:
        print(f"  {text}  <- {photo.captions[0]}")
    return figures


def risky_words(
    texts: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[str]
) -> dict[str, float]:
    """Measure captions that use exactly one of the groups of words: do people use it too?"""
    hits = []
    for text, captions in zip(texts, references, strict=True):
        used = [group for group in groups if set(group.split()) & set(tokenise(text))]
        if len(used) == 1:
            people = {word for caption in captions for word in tokenise(caption)}
            hits.append(bool(set(used[0].split()) & people))
    return {"captions": len(hits)} | share(hits)


# -- things that are named --


def measure_named(model: Any, folder: Path, count: int) -> dict[str, Any]:
    table = folder / "coco_photos" / "labels.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    kinds = {thing_name(name) for row in rows for name, *_ in row["detected"]}
    held = [row for row in rows if checksum_split(row["image"]) == VALIDATION]
    found = [
        {thing_name(name) for name, score, _ in row["detected"] if score >= SURE} - {PERSON}
        for row in held
    ]
    chosen = [i for i, things in enumerate(found) if things][:count]
    texts = list[str]()
    for begin in range(0, len(chosen), BATCH):
        batch = [held[i]["image"] for i in chosen[begin : begin + BATCH]]
        pictures = [read_photo(folder / "coco_photos" / "images" / name) for name in batch]
        texts += PictureModel(model).caption_pictures(pictures)
    names_in = NamesInText(sorted(kinds))
    named = [{names_in.names[i] for i in names_in(text)} for text in texts]
    listed = [{thing_name(name) for name, *_ in held[i]["detected"]} for i in chosen]
    figures: dict[str, Any] = {"photos": len(chosen), "different": len(set(texts))}
    for way, own in (("own", named), ("another photo's", named[1:] + named[:1])):
        hits = [bool(n & found[i]) for n, i in zip(own, chosen, strict=True)]
        false = [bool(n - there) for n, there in zip(own, listed, strict=True)]
        figures[way] = share(hits)
        figures[f"{way}, not there"] = share(false)
    return figures


# -- questions --


def measure_questions(model: Any, folder: Path, count: int, log: Path | None) -> dict[str, Any]:
    # 1. A seeded sample of the held-out questions, and what the others are mostly answered.
    held, rest = split_questions(folder / "coco_photos" / "labels.jsonl")
    rng = np.random.default_rng(0)
    asked = [held[i] for i in sorted(rng.permutation(len(held))[:count])]
    guess = guesser([record for _, record in rest])
    names = list(dict.fromkeys(name for name, _ in asked))
    images = folder / "coco_photos" / "images"
    shown = Photos(model, [Photo(n, images / n, ()) for n in names], described=True)
    # 2. Each with its own photo, with the next one's, and with none.
    replies = {}
    for way, step in (("own", 0), ("another photo", 1), ("blind", None)):
        places = [names.index(name) for name, _ in asked]
        seen = [() if step is None else ((p + step) % len(names),) for p in places]
        variants = [TrialVariant(pictures, "") for pictures in seen]
        questions = [record.question for _, record in asked]
        replies[way] = replies_to(model, shown, list(zip(questions, variants, strict=True)))
    replies["guess"] = [guess(record.question) for _, record in asked]
    if log:
        with open(log, "w") as lines:
            for i, (name, record) in enumerate(asked):
                row = {"image": name, **record._asdict(), **{k: v[i] for k, v in replies.items()}}
                print(json.dumps(row), file=lines)
    # 3. Shares that are right, by kind of answer.
    kinds = defaultdict[str, list[int]](list)
    for i, (_, record) in enumerate(asked):
        kinds["all"].append(i)
        kinds[kind_of(record.answer)].append(i)
    figures: dict[str, Any] = {}
    for kind, chosen in kinds.items():
        hits = {
            way: [is_right(texts[i], asked[i][1].answer) for i in chosen]
            for way, texts in replies.items()
        }
        figures[kind] = {"questions": len(chosen)} | {way: share(h) for way, h in hits.items()}
        for way in ("another photo", "blind", "guess"):
            gain = np.subtract(hits["own"], hits[way], dtype=float)
            figures[kind][way]["own minus it"] = round(float(gain.mean()), 4)
            figures[kind][way]["its error"] = round(error(gain), 4)
    return figures


def split_questions(
    table: Path,
) -> tuple[list[tuple[str, QuestionRecord]], list[tuple[str, QuestionRecord]]]:
    """Return the questions about held-out photos and about the others, with the photos' names."""
    held, rest = list[tuple[str, QuestionRecord]](), list[tuple[str, QuestionRecord]]()
    for row in map(json.loads, table.read_text().splitlines()):
        to = held if checksum_split(row["image"]) == VALIDATION else rest
        to += [(row["image"], QuestionRecord(*pair)) for pair in row["qa"]]
    return held, rest


def guesser(records: Sequence[QuestionRecord]) -> Callable[[str], str]:
    """Return what answers a question by its first two words, or else its first, or "yes"."""
    counts = defaultdict[tuple[str, ...], Counter[str]](Counter)
    for record in records:
        words = tokenise(record.question)
        for length in (2, 1):
            counts[tuple(words[:length])][record.answer.lower()] += 1

    def guess(question: str) -> str:
        words = tokenise(question)
        known = counts.get(tuple(words[:2])) or counts.get(tuple(words[:1]))
        return known.most_common(1)[0][0] if known else "yes"

    return guess


def plain(text: str) -> list[str]:
    """Return a text's words: as ``ALIKE`` reads them, singular, without articles."""
    words = [ALIKE.get(word) or singular(word) for word in tokenise(text)]
    return [word for word in words if word not in FILLERS]


def is_right(reply: str, answer: str) -> bool:
    """Whether a reply begins with an answer: "brown" in "The dog is brown."."""
    said, wanted = plain(reply)[:FIRST], plain(answer)
    if wanted in (["yes"], ["no"]):
        return said[:1] == wanted
    return bool(wanted) and any(
        said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)
    )


def kind_of(answer: str) -> str:
    words = plain(answer)
    if words in (["yes"], ["no"]):
        return "yes or no"
    if len(words) == 1 and words[0].isdigit():
        return "number"
    return "colour" if words and set(words) <= {*COLORS, "and"} else "other"


# -- kitchens --


def measure_kitchens(model: Any, folder: Path) -> dict[str, Any]:
    table = folder / "kitchen_frames" / "labels.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    held = [row for row in rows if person_of(row) in HELD_OUT_PERSONS]
    rest = [row for row in rows if person_of(row) not in HELD_OUT_PERSONS]
    truths = [names_of(row) for row in held]
    names = sorted(set().union(*map(names_of, rows)))
    common = Counter(name for row in rest for name in names_of(row)).most_common(BEST)
    best: dict[str, list[set[str]]] = {"words": [], "keys": []}
    sentences = model.sentence_keys([f"a {name}" for name in names])
    for row in held:
        seen = model.perceive(read_photo(folder / "kitchen_frames" / "images" / row["image"]))
        order = np.argsort(-(sentences @ seen.key))[:BEST]
        best["keys"].append({names[i] for i in order})
        tokens = model.encode_frames([seen.patches], [0.5])
        if likely := model.likely_words(tokens, BEST):
            best["words"].append({*likely})
    figures: dict[str, Any] = {"frames": len(held)}
    for way, found in best.items():
        if found:
            figures[way] = share([bool(f & t) for f, t in zip(found, truths, strict=True)])
            moved = found[len(found) // 2 :] + found[: len(found) // 2]
            other = [bool(f & t) for f, t in zip(moved, truths, strict=True)]
            figures[f"{way}, another frame"] = share(other)
    figures["commonest"] = share([bool({n for n, _ in common} & truth) for truth in truths])
    if best["words"]:
        known = {*model.words.names}
        figures["names known"] = share([bool(truth & known) for truth in truths])
    return figures


def names_of(row: dict[str, Any]) -> set[str]:
    return {thing_name(name) for name, _ in row["objects"]}


def person_of(row: dict[str, Any]) -> str:
    return re.split("_", row["source"])[0].replace("alireaza", "alireza")  # spelled both ways


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks see", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--questions", type=int, default=200, help="of 740; drawn by seed 0")
    parser.add_argument("--photos", type=int, default=300, help="of some 600 with things to name")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--replies", type=Path, help="write every reply, as JSON lines")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with coco_mini")
    folder, model = Path(os.environ["STREAMMEM_DATA"]), load(options.model)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "captions": lambda: measure_captions(model, folder),
        "named": lambda: measure_named(model, folder, options.photos),
        "questions": lambda: measure_questions(model, folder, options.questions, options.replies),
        "kitchens": lambda: measure_kitchens(model, folder),
    }
    results: dict[str, Any] = {}
    for part in options.parts:
        results[part] = measures[part]()
        for name, value in results[part].items():
            print(f"{part:10} {name:24} {value}", flush=True)
    print(json.dumps({"benchmark": "see", **results, "machine": machine()}))
    return 0
