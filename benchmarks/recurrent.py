"""Memory of constant size: what is still known of 64 scenes in the bytes of the recurrent memory?

Streams of captioned photos, each a scene, are kept in several ways of as many bytes, and asked in
the words of people: whether a caption is of a scene of theirs (*gist*), how often a thing was
there (*count*), and which of two captions came first (*order*). Tokens are read through a linear
map into the space of the keys, fitted on other photos; keys and captions are compared as they are.
Free choices of a reader (its sharpness) are made on streams of those other photos.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.choice import draw_replies
from benchmarks.machine import machine
from streammem.evaluation.datasets import Photo, read_photo, read_photos
from streammem.models.tiny.bridge import empty_memory, update_memory
from streammem.models.tiny.model import VideoModel
from streammem.training.words import plain_words

SCENES, SIBLINGS, EMBEDDING = 64, 8, 384
AGES = {"last": slice(0, 1), "2-7": slice(1, 7), "8-31": slice(7, 32), "32-64": slice(31, SCENES)}
OUTSIDERS, PAIRS, THINGS = 40, 32, 20
SHARPNESS = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)  # 0 reads linearly
THEME = 0.3  # of the scenes of a stream that is asked for counts
READER_STEPS, READER_BATCH = 450, 256


class View(NamedTuple):
    """Photos in one space, and what is asked of them in it.

    Attributes:
        scenes: [N, D] of each photo, as a memory keeps it.
        captions: [N, E] unit, of one person's caption of each.
        things: [W, E] unit, of words.
    """

    scenes: Tensor
    captions: Tensor
    things: Tensor


class Kept(NamedTuple):
    """What is left of B streams.

    Attributes:
        vectors: [B, S, D].
        counts: [B, S] scenes that each stands for.
        times: [B, S] when these were, in any unit.
    """

    vectors: Tensor
    counts: Tensor
    times: Tensor


Keep = Callable[[Tensor], Kept]  # scenes [B, T, D], oldest first


def everything(scenes: Tensor) -> Kept:
    ones = torch.ones(scenes.shape[:2])
    return Kept(scenes, ones, torch.arange(scenes.shape[1]) * ones)


def runs(number: int) -> Keep:
    """Means of neighbours in time."""

    def keep(scenes: Tensor) -> Kept:
        parts = torch.arange(scenes.shape[1]).tensor_split(number)
        means = torch.stack([scenes[:, part].mean(1) for part in parts], dim=1)
        times = torch.stack([part.float().mean() for part in parts]).expand(len(scenes), -1)
        counts = torch.tensor([float(len(part)) for part in parts]).expand(len(scenes), -1)
        return Kept(means, counts, times)

    return keep


def chain(number: int) -> Keep:
    """The recurrent memory, its slots in the order of their first scenes."""

    def keep(scenes: Tensor) -> Kept:
        memories = []
        for stream in scenes:
            memory = empty_memory(number, scenes.shape[2])
            for scene in stream:
                memory = update_memory(memory, scene[None])
            memories.append(memory)
        memory = torch.stack(memories)
        places = torch.arange(float(number)).expand(len(scenes), -1)
        return Kept(memory[..., :-1], memory[..., -1], places)

    return keep


def tree(number: int) -> Keep:
    """A log-depth tree at its best: eight siblings are a parent, no parents are joined yet."""

    def keep(scenes: Tensor) -> Kept:
        groups = scenes.shape[1] // SIBLINGS
        each = max(1, number // groups)
        parents = [chain(each)(part) for part in scenes.split(SIBLINGS, dim=1)]
        times = [torch.full_like(p.times, float(at)) for at, p in enumerate(parents)]
        return Kept(
            torch.cat([p.vectors for p in parents], 1),
            torch.cat([p.counts for p in parents], 1),
            torch.cat(times, 1),
        )

    return keep


def fit_reader(scenes: Tensor, captions: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a linear map from scenes [N, D] to the keys of their captions [N, E], by contrast."""
    generator = torch.Generator().manual_seed(0)
    mean = scenes.mean(0)
    weight = torch.empty(captions.shape[1], scenes.shape[1])
    torch.nn.init.orthogonal_(weight, generator=generator).requires_grad_(True)
    scale = torch.tensor(3.0, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, scale], lr=2e-3, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, READER_STEPS)
    for _ in range(READER_STEPS):
        chosen = torch.randperm(len(scenes), generator=generator)[:READER_BATCH]
        keys = F.normalize((scenes[chosen] - mean) @ weight.T, dim=-1)
        logits = scale.exp() * keys @ captions[chosen].T
        target = torch.arange(len(chosen))
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    final = weight.detach()
    return lambda vectors: F.normalize((vectors - mean) @ final.T, dim=-1)


def as_they_are(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1)


class Streams(NamedTuple):
    """B streams and what is asked of them; indices of photos.

    Attributes:
        scenes: [B, T].
        outsiders: [B, OUTSIDERS] photos that are not in them.
        pairs: [B, PAIRS, 2] places of two scenes, the earlier first.
        themed: [B, T] streams of which a share shows one thing.
    """

    scenes: np.ndarray
    outsiders: np.ndarray
    pairs: np.ndarray
    themed: np.ndarray


def draw(number: int, there: np.ndarray, seed: int) -> Streams:
    """Draw streams; ``there`` [N, W] is which photo shows which thing."""
    rng = np.random.default_rng(seed)
    total = len(there)
    scenes, outsiders, pairs, themed = [], [], [], []
    for at in range(number):
        order = rng.permutation(total)
        scenes.append(order[:SCENES])
        outsiders.append(order[SCENES : SCENES + OUTSIDERS])
        pairs.append([np.sort(rng.choice(SCENES, 2, replace=False)) for _ in range(PAIRS)])
        shows = np.flatnonzero(there[:, at % there.shape[1]])
        share = rng.random(SCENES) < THEME
        themed.append(np.where(share, rng.choice(shows, SCENES), rng.integers(total, size=SCENES)))
    return Streams(*(np.array(rows) for rows in (scenes, outsiders, pairs, themed)))


def similarity(read: Tensor, asked: Tensor) -> Tensor:
    """Cosines of vectors read [B, S, E] and what is asked [B, Q, E]: [B, Q, S]."""
    return asked @ read.transpose(1, 2)


def gist(kept: Kept, read: Callable, view: View, streams: Streams) -> Tensor:
    """How often a scene's caption scores above an outsider's, [B, T], the newest first."""
    keys = read(kept.vectors)
    own = similarity(keys, view.captions[streams.scenes[:, ::-1].copy()]).amax(-1)
    others = similarity(keys, view.captions[streams.outsiders]).amax(-1)
    return (own[:, :, None] > others[:, None]).float().mean(-1)


def order(kept: Kept, read: Callable, view: View, streams: Streams, sharp: float) -> Tensor:
    """Whether the earlier of two captions is put first, [B]; undecided is half."""
    rows = np.arange(len(streams.scenes))[:, None]
    keys, when = read(kept.vectors), []
    for side in range(2):
        asked = view.captions[streams.scenes[rows, streams.pairs[:, :, side]]]
        weights = (sharp * similarity(keys, asked)).softmax(-1)
        when.append((weights @ kept.times[..., None])[..., 0])
    first, second = when
    return ((first < second).float() + 0.5 * (first == second)).mean(1)


def count(kept: Kept, read: Callable, view: View, sharp: float) -> Tensor:
    """Score how often each thing was there: [B, W]."""
    cosines = similarity(read(kept.vectors), view.things.expand(len(kept.vectors), -1, -1))
    weight = (sharp * cosines).exp() if sharp else cosines
    return (weight * kept.counts[:, None]).sum(-1)


def agreement(scores: Tensor, truth: Tensor) -> Tensor:
    """Pearson's correlation over streams, of each thing: [B, W], [B, W] -> [W]."""
    scores, truth = scores - scores.mean(0), truth - truth.mean(0)
    return (scores * truth).sum(0) / (scores.norm(dim=0) * truth.norm(dim=0)).clamp(min=1e-9)


class Asked(NamedTuple):
    """Streams of some photos, and which photo [N, W] shows which thing."""

    view: View
    streams: Streams
    there: np.ndarray

    def true_counts(self) -> Tensor:
        return torch.from_numpy(self.there[self.streams.themed].sum(1)).float()


def measure(keep: Keep, read: Callable, tuning: Asked, testing: Asked) -> dict[str, list[float]]:
    """Ask one way of keeping: mean and standard error of each figure."""

    def kept(asked: Asked) -> tuple[Kept, Kept]:
        scenes = asked.view.scenes
        return keep(scenes[asked.streams.scenes]), keep(scenes[asked.streams.themed])

    plain, themed = kept(tuning)
    ordered = [order(plain, read, tuning.view, tuning.streams, s).mean() for s in SHARPNESS]
    true = tuning.true_counts()
    counted = [agreement(count(themed, read, tuning.view, s), true).mean() for s in SHARPNESS]
    sharp_order, sharp_count = (SHARPNESS[int(np.argmax(found))] for found in (ordered, counted))
    plain, themed = kept(testing)
    right = gist(plain, read, testing.view, testing.streams)
    samples = {"gist": right.mean(1)}
    samples |= {name: right[:, ages].mean(1) for name, ages in AGES.items()}
    counts = count(themed, read, testing.view, sharp_count)
    samples["count"] = agreement(counts, testing.true_counts())
    samples["order"] = order(plain, read, testing.view, testing.streams, sharp_order)
    return {
        name: [round(v.mean().item(), 4), round((v.std() / len(v) ** 0.5).item(), 4)]
        for name, v in samples.items()
    }


def things_of(photos: Sequence[Photo]) -> tuple[list[str], np.ndarray]:
    """Return the most frequent words, and which photo shows them: those with two captions of it."""
    of_photos = [[plain_words(caption) for caption in photo.captions] for photo in photos]
    words = sorted(set().union(*(words for rows in of_photos for words in rows)))
    there = np.array([[sum(word in c for c in rows) >= 2 for word in words] for rows in of_photos])
    often = np.argsort(there.sum(0))[::-1][:THINGS]
    return [words[i] for i in often], there[:, often]


def ways(slots: int, dim: int, key_dim: int) -> dict[str, tuple[str, Keep]]:
    """Name each way of keeping with the space it keeps; the last three may take more bytes."""
    numbers = slots * (dim + 1)
    return {
        "recurrent memory": ("tokens", chain(slots)),
        "tree of eights": ("tokens", tree(slots)),
        "tokens, means of neighbours": ("tokens", runs(slots)),
        "tokens, one mean": ("tokens", runs(1)),
        "keys, means of neighbours": ("keys", runs(numbers // key_dim)),
        "keys, folded": ("keys", chain(numbers // (key_dim + 1))),
        "captions, means of embeddings": ("captions", runs(numbers // EMBEDDING)),
        "captions as text": ("captions", everything),
        "every token": ("tokens", everything),
        "every key": ("keys", everything),
    }


def compare(
    views: dict[str, View], there: np.ndarray, reader: Callable, slots: int, streams: int
) -> dict[str, dict[str, list[float]]]:
    """Measure every way of keeping: readers are tuned on half of the photos, asked on the other.

    Args:
        views: of the same N photos in the spaces ``tokens``, ``keys`` and ``captions``.
        there: [N, W] which photo shows which thing.
        reader: maps tokens to keys.
        slots: of the recurrent memory; the others get as many bytes.
        streams: how many.
    """
    half = len(there) // 2
    parts = slice(0, half), slice(half, 2 * half)
    drawn = [draw(streams, there[part], seed) for seed, part in enumerate(parts)]
    found = {}
    dims = views["tokens"].scenes.shape[1], views["keys"].scenes.shape[1]
    for name, (space, keep) in ways(slots, *dims).items():
        view = views[space]
        tuning, testing = (
            Asked(View(view.scenes[p], view.captions[p], view.things), d, there[p])
            for p, d in zip(parts, drawn, strict=True)
        )
        read = reader if space == "tokens" else as_they_are
        found[name] = measure(keep, read, tuning, testing)
    return found


def own_captions(
    photos: Sequence[Photo], model: VideoModel, tokens: Tensor, file: Path | None
) -> list[str]:
    """Return the model's captions, from a file of ``eval captions --predictions`` if given."""
    if file:
        rows = map(json.loads, file.read_text().splitlines())
        caption_of = {row["image"]: row["caption"] for row in rows}
        return [caption_of[photo.name] for photo in photos]
    blocks = [list(tokens[i : i + 16]) for i in range(0, len(tokens), 16)]
    all_replies = [replies for block in blocks for replies in draw_replies(model, block, 1)]
    return [replies[0].text for replies in all_replies]


def seen(photos: Sequence[Photo], model: VideoModel) -> tuple[Tensor, Tensor, Tensor]:
    """Look at photos: tokens [N, M, D], keys [N, K], keys of a caption of each [N, K]."""
    tokens, keys = [], []
    for photo in tqdm(photos, unit="photo", disable=None):
        perceived = model.perceive(read_photo(photo.path))
        tokens.append(model.encode_frames([perceived.patches], [0.5]))
        keys.append(torch.from_numpy(perceived.key))
    captions = model.sentence_keys([photo.captions[0] for photo in photos])
    return torch.stack(tokens), torch.stack(keys), torch.from_numpy(captions)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks recurrent", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--training", type=int, default=6000, help="photos the reader is fitted on")
    parser.add_argument("--photos", type=int, default=1000, help="photos that are asked about")
    parser.add_argument(
        "--said", type=Path, metavar="FILE", help="captions, by eval captions --predictions"
    )
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with flickr8k")
    folder = Path(os.environ["STREAMMEM_DATA"]) / "flickr8k"

    from streammem.models.checkpoint import load_checkpoint

    model = load_checkpoint(options.model)
    tokens, _, captions = seen(read_photos(folder, "train")[: options.training], model)
    reader = fit_reader(tokens.mean(1), captions)
    photos = read_photos(folder, "val")[: options.photos]
    tokens, keys, captions = seen(photos, model)
    texts = own_captions(photos, model, tokens, options.said)
    words, there = things_of(photos)
    things = torch.from_numpy(model.sentence_keys(words))
    read = model.sentences.encode
    views = {
        "tokens": View(tokens.mean(1), captions, things),
        "keys": View(keys * keys.shape[1] ** 0.5, captions, things),  # as large as tokens
        "captions": View(read(texts), read([photo.captions[0] for photo in photos]), read(words)),
    }
    found = compare(views, there, reader, model.token_shape[0], options.streams)
    for name, figures in found.items():
        cells = (f"{key} {mean:.3f} ± {error:.3f}" for key, (mean, error) in figures.items())
        print(f"{name:30}", "  ".join(cells))
    results = {"benchmark": "recurrent", "streams": options.streams, "scenes": SCENES}
    print(json.dumps(results | {"photos": len(photos), "found": found, "machine": machine()}))
    return 0
