"""Named things against look-alikes: ``python -m benchmarks named``.

A thing is taught with one early frame of a clip, or with three. Its scenes are that clip's frames
from 1 s on; others are the 1,000 photos whose keys are likest to it, and the frames of all other
clips. Two halves of the clips are reported; both were in view when the levels were chosen. The last
tables are of small things, boxes cut from kitchen frames, against other boxes and against whole
frames, and of the check that asks for --person.

The last line has the figures as JSON.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.plan import FPS
from streammem.memory.named import BEYOND_CHANCE, LEAST_COSINE, NamedThing, Taught, TaughtPicture
from streammem.models.registry import load
from streammem.qa.teaching import looks_like_people
from streammem.video import open_source

LOOK_ALIKES = 1000
PEOPLE = {"man", "woman", "boy", "girl", "person", "people", "men", "women", "child", "children"}


def keys_of(model: Any, data: Path, most: int | None) -> dict[str, np.ndarray]:
    """Return the keys of all pictures, by what they are of."""

    def key(pixels: np.ndarray) -> np.ndarray:
        return model.perceiver.perceive(np.ascontiguousarray(pixels)).key

    found = {}
    for row in map(json.loads, (data / "clips/manifest.jsonl").read_text().splitlines()):
        with open_source(data / "clips" / row["file"], fps=FPS) as source:
            found[f"clip/{row['file']}"] = np.stack([key(frame.pixels) for frame in source])
    rows = [json.loads(line) for line in (data / "kitchen_frames/labels.jsonl").open()]
    frames = [np.asarray(_opened(data / "kitchen_frames/images" / row["image"])) for row in rows]
    boxes = []
    for frame, row in zip(frames, rows, strict=True):
        (left, top, right, bottom), (height, width) = row["objects"][0][1], frame.shape[:2]
        y, x = int(top * height), int(left * width)
        boxes.append(
            frame[y : max(int(bottom * height), y + 8), x : max(int(right * width), x + 8)]
        )
    found["frames"] = np.stack([key(frame) for frame in frames])
    found["boxes"] = np.stack([key(box) for box in boxes])
    lines = (data / "flickr8k/captions.jsonl").read_text().splitlines()[:most]
    names = [json.loads(line)["image"] for line in lines]
    found["photos"] = np.stack(
        [key(np.asarray(_opened(data / "flickr8k/images" / name))) for name in names]
    )
    return found


def thing_of(keys: np.ndarray, background: np.ndarray) -> NamedThing:
    """Return a thing that was taught with pictures of these keys."""
    pictures = tuple(TaughtPicture(b"", key, "") for key in keys)
    return NamedThing.of(Taught("my cup", False, pictures), background)


def shown(thing: NamedThing, keys: np.ndarray) -> np.ndarray:
    """Return [N] bool: whether each picture shows the thing."""
    return np.asarray((thing.keys @ keys.T - thing.levels[:, None]).max(axis=0) >= 0)


def against_look_alikes(
    keys: dict[str, np.ndarray], background: np.ndarray, half: int, taught: tuple[int, ...]
) -> dict[str, float]:
    """Return recall and false matches of a half of the clips."""
    clips = [name for name in keys if name.startswith("clip/")]
    right, there, false, others, photos, things = 0, 0, 0, 0, 0, 0
    for name in clips[half::2]:
        if len(keys[name]) <= 2 * FPS:
            continue
        thing = thing_of(keys[name][list(taught)], background)
        found = shown(thing, keys[name][int(FPS) :])
        right, there, things = right + int(found.sum()), there + len(found), things + 1
        likest = np.argsort(-(thing.keys @ keys["photos"].T).max(axis=0))[:LOOK_ALIKES]
        photos += int(shown(thing, keys["photos"][likest]).sum())
        rest = np.concatenate([keys[other] for other in clips if other != name])
        false, others = false + int(shown(thing, rest).sum()), others + len(rest)
    return {
        "things": things,
        "recall": right / there,
        "false_in_1000_look_alikes": photos / things,
        "false_in_1000_of_other_clips": 1000 * false / others,
        "precision": right / (right + photos + false),
    }


def main(arguments: list[str]) -> int:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks named", description=__doc__)
    parser.add_argument("--photos", type=int, help="of flickr8k (default: all 7,000; 8 minutes)")
    parser.add_argument("--keys", type=Path, help="file to keep the pictures' keys in, .npz")
    options = parser.parse_args(arguments)
    data, model = Path(os.environ["STREAMMEM_DATA"]), load("streammem-tiny")
    if options.keys and options.keys.is_file():
        with np.load(options.keys) as arrays:
            keys = dict(arrays)
    else:
        keys = keys_of(model, data, options.photos)
        if options.keys:
            np.savez(options.keys, **keys)  # type: ignore[arg-type]
    background = model.text_encoder.background.numpy()
    report: dict[str, Any] = {"level": LEAST_COSINE, "beyond_chance": BEYOND_CHANCE}
    for half, name in enumerate(("first half", "second half")):
        for taught in ((1,), (0, 2, 3)):
            found = against_look_alikes(keys, background, half, taught)
            report[f"{name}, {len(taught)} pictures"] = found
    rows = [json.loads(line) for line in (data / "kitchen_frames/labels.jsonl").open()]
    names = np.array([row["objects"][0][0] for row in rows])
    films = np.array([row["source"].split("/")[0] for row in rows])
    same = (names[:, None] == names) & (films[:, None] == films)
    np.fill_diagonal(same, False)
    for what in ("boxes", "frames"):
        matched = np.stack(
            [shown(thing_of(key[None], background), keys[what]) for key in keys["boxes"]]
        )
        other = names[:, None] != names
        hits, false = int((matched & same).sum()), int((matched & other).sum())
        report[f"kitchen boxes against {what}"] = {
            "recall": hits / int(same.sum()),
            "false_rate": false / int(other.sum()),
            "precision": hits / max(1, hits + false),
        }
    lines = (data / "flickr8k/captions.jsonl").read_text().splitlines()[-1000:]
    people = [_names_people(json.loads(line)["captions"]) for line in lines]
    last = keys["photos"][-1000:]
    if len(last) == len(people) and options.photos is None:
        refused = np.array([looks_like_people(model, key) for key in last])
        report["people check"] = {
            "of_people_refused": float(refused[np.array(people) == "yes"].mean()),
            "without_people_refused": float(refused[np.array(people) == "no"].mean()),
        }
    for name, values in report.items():
        shown_as = values
        if isinstance(values, dict):
            shown_as = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"{name}: {shown_as}")
    print(json.dumps(report))
    return 0


def _names_people(captions: list[str]) -> str:
    """Return whether all, none or some of a photo's captions name people."""
    named = [bool(PEOPLE & set(caption.lower().replace(".", " ").split())) for caption in captions]
    return "yes" if all(named) else "some" if any(named) else "no"


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
