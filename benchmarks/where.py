"""Where a thing was seen last, on composed hours: ``python -m benchmarks where``.

An hour is 720 scenes of five seconds, each a photo of Flickr8k's validation part, which training
has not seen. Every photo has five people's captions. "Where is the dog?" is asked of a thing that
at least four of the five name, and right is the newest scene of such a photo; a photo in which one
to three name it is taken out of that hour, as it may show the thing or not. Half of the things that
are asked for are in no photo of the hour. Captions of the memory are the model's own.

Compared with the answer: the last four scenes alone; captions as text (the newest that names the
thing); both on the same memory. The last line has the figures as JSON.
"""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streammem.captioning.captioner import CaptionConfig, Captioner, CaptionRequest
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.evaluation.datasets import Photo, read_photo, read_photos
from streammem.memory.entry import Entry
from streammem.memory.retrieval import content_words
from streammem.models.registry import load
from streammem.types import Answer, Segment

SCENES, SCENE_S = 720, 5.0
LEAST_NAMED = 4  # of five captions, of a photo that shows a thing
PHOTOS = 200
ABSENT, PRESENT = 10, 10  # things that are asked for an hour
# Nouns that captions of the photos name, as a stem names them; not people, who are everywhere.
THINGS = (
    "dog", "ball", "bike", "beach", "snow", "boat", "horse", "car", "tree", "rock", "mountain",
    "grass", "pool", "skateboard", "guitar", "bench", "fence", "river", "lake", "bird", "cat",
    "train", "bus", "truck", "motorcycle", "kayak", "swing", "slide", "table", "fountain",
    "wheelchair", "camera", "umbrella", "sheep", "cow", "elephant", "airplane", "tent", "ladder",
    "surfboard", "tractor", "statue", "piano", "trampoline", "football", "frisbee", "stick",
)  # fmt: skip
STEMS = {thing: content_words(thing) for thing in THINGS}


@dataclass(frozen=True, eq=False)
class Asked:
    """A question of an hour: the thing, and its true last scene, None where it was never shown."""

    thing: str
    last: int | None


def counts_of(photo: Photo) -> Counter[str]:
    """How many of a photo's captions name each thing."""
    words = [content_words(text) for text in photo.captions]
    return Counter(t for t, stems in STEMS.items() for each in words if stems <= each)


def rows_of(photos: Sequence[Photo], kept: Path | None) -> list[tuple[np.ndarray, str]]:
    """Return each photo's key and the model's own caption."""
    if kept is not None and kept.is_file():
        with np.load(kept) as arrays:
            return list(zip(arrays["keys"], arrays["captions"].tolist(), strict=True))
    model = load("streammem-tiny")
    captioner = Captioner(model, CaptionConfig(candidates=1, min_confidence=0.0))
    found = []
    for photo in photos:
        seen = model.perceiver.perceive(read_photo(photo.path))
        tokens = model.encode_frames([seen.patches], [0.5])
        request = CaptionRequest(Segment(0, 0.0, 1.0, None, None), seen.key[None], tokens)
        (scored,) = captioner.caption([request])
        found.append((seen.key, scored.text))
        if len(found) % 20 == 0:
            print(f"photo {len(found)} of {len(photos)}", flush=True)
    if kept is not None:
        keys, captions = zip(*found, strict=True)
        np.savez(kept, keys=np.stack(keys), captions=np.array(captions))
    return found


def hour(counts: Sequence[Counter[str]], rng: np.random.Generator) -> tuple[list[int], list[Asked]]:
    """Return the photos of an hour in order, and what is asked of it."""
    order = rng.permutation(len(THINGS)).tolist()
    present, absent = list[str](), list[str]()
    for thing in (THINGS[number] for number in order):
        shown = sum(each[thing] >= LEAST_NAMED for each in counts)
        if shown and len(present) < PRESENT:
            present.append(thing)
        elif len(absent) < ABSENT:
            absent.append(thing)
    usable = [
        number
        for number, each in enumerate(counts)
        if not any(each[thing] for thing in absent)
        and all(each[thing] in (0, *range(LEAST_NAMED, 6)) for thing in present)
    ]
    scenes = rng.choice(usable, SCENES).tolist()
    asked = [Asked(thing, None) for thing in absent]
    for thing in present:
        shown = [at for at, n in enumerate(scenes) if counts[n][thing] >= LEAST_NAMED]
        asked.append(Asked(thing, shown[-1] if shown else None))
    return scenes, asked


def told_at(answer: Answer) -> int | None:
    """The scene that an answer names; None where it says that the thing was not seen."""
    if not answer.seen:
        return None
    found = re.match(r"last seen (?:(\d+):)?(\d+):([\d.]+)-(?:(\d+):)?(\d+):([\d.]+)", answer.text)
    assert found, answer.text
    hours, minutes, seconds = found.groups()[3:]
    return round((int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)) / SCENE_S) - 1


def main(arguments: list[str]) -> int:
    """Ask each hour, and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks where", description=__doc__)
    parser.add_argument("--hours", type=int, default=10)
    parser.add_argument("--kept", type=Path, help="file to keep keys and captions in, .npz")
    options = parser.parse_args(arguments)
    photos = read_photos(Path(os.environ["STREAMMEM_DATA"]) / "flickr8k", "val")[:PHOTOS]
    counts, rows = [counts_of(photo) for photo in photos], rows_of(photos, options.kept)
    model = load("streammem-tiny")
    caption_keys = model.text_encoder.sentence_keys([caption for _, caption in rows])
    config = SessionConfig(epsilon=0.0)  # a scene a row, so that a row is a time
    found: dict[str, list[tuple[int | None, int | None]]] = {
        "answer": [], "last 4 scenes": [], "captions as text": [],
    }  # fmt: skip
    for number in range(options.hours):
        scenes, asked = hour(counts, np.random.default_rng(number))
        sessions = Session(model, config), Session(model, config)
        captions = list[frozenset[str]]()
        for at, photo in enumerate(scenes):
            key, caption = rows[photo]
            captions.append(content_words(caption))
            entry = _entry(at, key, caption, caption_keys[photo][None])
            for session in sessions if at >= SCENES - 4 else sessions[:1]:
                session.memory.append(entry, session.recurrent)
        for each in asked:
            answers = [told_at(s.ask(f"Where is the {each.thing}?")) for s in sessions]
            named = [at for at, words in enumerate(captions) if STEMS[each.thing] <= words]
            found["answer"].append((each.last, answers[0]))
            found["last 4 scenes"].append((each.last, answers[1]))
            found["captions as text"].append((each.last, named[-1] if named else None))
        print(f"hour {number + 1}", flush=True)
    report = {name: figures(pairs) for name, pairs in found.items()}
    for name, values in report.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    print(json.dumps(report))
    return 0


def figures(pairs: Sequence[tuple[int | None, int | None]]) -> dict[str, Any]:
    """Return how often the last scene is told, and how far off it is, in seconds."""
    present = [(true, told) for true, told in pairs if true is not None]
    absent = [told for true, told in pairs if true is None]
    both = [(true, told) for true, told in present if told is not None]
    off = [abs(true - told) * SCENE_S for true, told in both]
    right = np.array([true == told for true, told in present], float)
    return {
        "present": len(present),
        "right": float(right.mean()),
        "error": float(right.std() / len(right) ** 0.5),
        "too_late": float(np.mean([told is not None and told > true for true, told in present])),
        "too_early": float(np.mean([told is not None and told < true for true, told in present])),
        "not_seen": float(np.mean([told is None for _, told in present])),
        "median_off_s": float(np.median(off)) if off else float("nan"),
        "absent": len(absent),
        "rightly_not_seen": float(np.mean([told is None for told in absent])),
    }


def _entry(segment: int, key: np.ndarray, caption: str, caption_key: np.ndarray) -> Entry:
    none = np.empty((0, len(key)), np.float32)
    return Entry(
        segment, segment * SCENE_S, (segment + 1) * SCENE_S, 10, key[None], caption_key, none,
        np.empty((0, 0), np.float16), caption=caption,
    )  # fmt: skip
