"""Fits what reads words off keys: of training photos, against the words that the encoder scores.

Prints the share of the scores' variance that is left, of photos that the fit has not seen;
``--write`` puts the readout into a checkpoint folder.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from streammem.evaluation.datasets import read_photo, read_photos
from streammem.models.checkpoint import add_key_words, load_own
from streammem.models.tiny.keys import WordsOfKey

HELD_OUT = 10  # one photo in so many


@torch.inference_mode()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks key_words", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="photos with captions")
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--limit", type=int, default=2600, help="photos of a folder")
    parser.add_argument("--write", type=Path, metavar="DIR", help="a checkpoint folder")
    options = parser.parse_args(arguments)
    model = load_own(options.model)
    if model.words is None:
        parser.error(f"{options.model} scores no words")
    photos = [
        p for folder in options.folders for p in read_photos(folder, "train")[: options.limit]
    ]
    keys, logits = [], []
    for photo in tqdm(photos):
        seen = model.perceive(read_photo(photo.path))
        keys.append(torch.from_numpy(np.asarray(seen.key, np.float32)))
        logits.append(model.words(seen.patches[None].float())[0])
    all_keys, all_logits = torch.stack(keys), torch.stack(logits)
    held = torch.arange(len(keys)) % HELD_OUT == 0
    head = WordsOfKey(all_keys.shape[1], all_logits.shape[1])
    head.fit(all_keys[~held], all_logits[~held])
    wrong = (head(all_keys[held]) - all_logits[held]).square().mean()
    left = (wrong / all_logits[held].var(0).mean()).item()
    print(f"{len(photos)} photos, variance left {left:.3f}")
    if options.write:
        head.fit(all_keys, all_logits)
        add_key_words(options.write, head)
    return 0
