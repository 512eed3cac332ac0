"""Names read off keys: fitted for a checkpoint; and how well they tell photos that show a thing.

- ``--fit FOLDER`` makes them anew after keys or names of tokens were trained: by ridge regression
  on training photos, of the logits of the names of tokens and of ImageNet's classifier (which
  ``streammem models pull efficientnet-lite2`` keeps). The lexicon stays.
- Figures, on validation photos: of each everyday thing that some sentences name and that has a
  name here, how often a photo that shows it scores above one that does not (area under the curve;
  the mean over things), by the cosine with its sentence and by what is read off the key. Control: a
  photo's score is another photo's.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.machine import machine
from streammem import load
from streammem.errors import BackboneError
from streammem.evaluation.datasets import read_photo, read_photos
from streammem.evaluation.films import THINGS, shows
from streammem.models.backbones.weights import weights_path
from streammem.models.checkpoint import OF_KEYS, PRESETS, packed
from streammem.models.tiny.words import NamesOfKeys
from streammem.training.records import TRAIN, read_source

SOURCES = ("flickr8k", "coco_photos", "rooms", "kitchen_frames")


def classifier() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight [1000, 1280] and bias of ImageNet's classifier."""
    path = weights_path("efficientnet-lite2") / "classifier.safetensors"
    if not path.is_file():
        raise BackboneError(
            f"{path}: not here; remove its folder and pull efficientnet-lite2 again"
        )
    tensors = load_file(path)
    return tensors["weight"].float(), tensors["bias"].float()


def fitted(model: Any, data: Path, limit: int | None) -> NamesOfKeys:
    """Fit to training photos of every source, at most so many of each."""
    weight, bias = classifier()
    keys, words, classes = [], [], []
    for name in SOURCES:
        source = read_source(data / name)
        records = [record for record in source.records if record.split == TRAIN][:limit]
        for number, record in enumerate(records):
            seen = model.perceive(read_photo(record.path))
            tokens = model.encode_frames([seen.patches], [0.5])
            embedding = torch.from_numpy(seen.embedding) + model.center
            keys.append(torch.from_numpy(seen.key))
            with torch.inference_mode():
                words.append(model.words(tokens[None].float())[0])
            classes.append(embedding @ weight.T + bias)
            if number % 500 == 499:
                print(f"  {name}: {number + 1} of {len(records)}", flush=True)
    names = NamesOfKeys(len(keys[0]), model.words.names, len(bias), model.names.lexicon)
    names.fit(torch.stack(keys), torch.stack(words), torch.stack(classes))
    return names.eval()


def area(scores: np.ndarray, shown: np.ndarray) -> float:
    above, below = scores[shown][:, None], scores[~shown]
    return float((above > below).mean() + (above == below).mean() / 2)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks names", description=__doc__)
    parser.add_argument("--fit", type=Path, metavar="FOLDER", help="a checkpoint to write them to")
    parser.add_argument("--photos", type=int, default=400, help="that are measured on")
    parser.add_argument("--limit", type=int, help="photos of a source that are fitted to")
    options = parser.parse_args(arguments)
    data = Path(os.environ["STREAMMEM_DATA"])
    model: Any = load(options.fit or "streammem-tiny")
    if options.fit:
        donor: Any = load("streammem-tiny")
        model = replace(model, names=model.names or donor.names)
        model = replace(model, names=fitted(model, data, options.limit))
        path = options.fit / "model.safetensors"
        tensors = load_file(path)
        tensors |= packed({f"{OF_KEYS}.{k}": v for k, v in model.names.state_dict().items()})
        save_file(tensors, path)
        lexicon = PRESETS["streammem-tiny"] / "lexicon.txt"
        (options.fit / "lexicon.txt").write_text(lexicon.read_text())
    photos = read_photos(data / "flickr8k", "val")[: options.photos]
    keys = np.stack([model.perceive(read_photo(photo.path)).key for photo in photos])
    areas: dict[str, list[float]] = {"cosine": [], "name": [], "another photo's": []}
    for thing in THINGS:
        readout = model.name_readout(thing)
        shown = np.array([shows(photo.captions, thing) for photo in photos])
        if readout is None or not 0 < shown.sum() < len(photos):
            continue
        named = np.array([readout.odds(key[None]) for key in keys])
        areas["cosine"].append(area(keys @ model.sentence_keys([thing])[0], shown))
        areas["name"].append(area(named, shown))
        areas["another photo's"].append(area(np.roll(named, 1), shown))
    figures = {name: round(float(np.mean(found)), 3) for name, found in areas.items()}
    print(json.dumps({"photos": len(photos), "things": len(areas["name"])} | figures | machine()))
    return 0
