"""Things stage: a head learns to name what a segment's tokens show; bridge and keys stay.

    stage = ThingStage(bridge, pictures, validation)
    names = cross_fitted(bridge, pictures, steps=400)  # by heads that have not seen them

What pictures show comes from lists (a detector's names with scores, objects of rooms and of
kitchens) and from captions. No list is complete: a name that a picture's source never lists counts
little against it.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.errors import DatasetError
from streammem.models.tiny.bridge import MemoryBridge
from streammem.models.tiny.words import LEAST_SHOWN, SHOWN, WordsOfTokens
from streammem.training.loop import Schedule, train_steps
from streammem.training.pictures import FLIPPED, WHOLE, PictureSet
from streammem.training.questions import PEOPLE, WHOLE_WORDS

MIN_LISTED = 4  # training pictures that list a name
FLIPPED_SHARE = 0.4
FEATURE_DROPOUT = 0.3
PRESENT = 0.4  # from this share on a thing counts as listed
# Weights of names in the loss: listed for the picture, by its source for others, by none of it.
LISTED, OF_SOURCE, FOREIGN = 1.0, 0.5, 0.15
START = -4.0  # logit of every name
ENCODED = 64  # pictures at once
FOLDS = 3
PERSON = "person"


class ThingStage:
    """Trains ``WordsOfTokens``.

    Args:
        bridge: frozen; makes the tokens of every picture once, [N, V, M, D] float16 in memory.
        pictures: training pictures; those that list things name the vocabulary.
        validation: for the figures.
        batch: pictures a step; those with rare names are drawn more often.

    Attributes:
        words: the head in training.

    Raises:
        DatasetError: no name is listed for ``MIN_LISTED`` pictures.
    """

    name = "things"

    def __init__(
        self,
        bridge: MemoryBridge,
        pictures: PictureSet,
        validation: PictureSet | None = None,
        *,
        batch: int = 112,
    ) -> None:
        self.batch = batch
        names = vocabulary(pictures)
        self.tokens = tokens_of(bridge, pictures)
        self._targets, self._weights = targets_of(pictures, names)
        self._chances = _chances(self._targets)
        self._measured = None
        if validation is not None and len(validation):
            shown, _ = targets_of(validation, names)
            self._measured = tokens_of(bridge, validation, views=1)[:, 0], shown
        self.words = WordsOfTokens(bridge.config.memory_tokens, bridge.config.dim, names)
        self.words.to(pictures.device)
        with torch.no_grad():
            flat = torch.from_numpy(self.tokens[:, 0]).float().flatten(0, 1)
            self.words.center.copy_(flat.mean(0))
            self.words.scale.copy_(flat.std(0).clamp(min=1e-3))
            self.words.up.bias.fill_(START)
        self.module: nn.Module = self.words

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.words.parameters()), 1.0)]

    def select(self, chosen: np.ndarray) -> None:
        """Learn from these pictures only, by index."""
        self._chances = np.where(np.isin(np.arange(len(self._chances)), chosen), self._chances, 0)
        self._chances /= self._chances.sum()

    def loss(self, rng: np.random.Generator) -> Tensor:
        count = min(self.batch, int((self._chances > 0).sum()))
        chosen = rng.choice(len(self.tokens), count, p=self._chances, replace=False)
        views = (rng.random(count) < FLIPPED_SHARE) * (self.tokens.shape[1] > FLIPPED)
        device = self.words.up.weight.device
        seen = torch.from_numpy(self.tokens[chosen, views.astype(int)]).float().to(device)
        wanted = torch.from_numpy(self._targets[chosen]).float().to(device)
        weights = torch.from_numpy(self._weights[chosen]).float().to(device)
        # Noise on the standardised tokens: what is dropped becomes the mean.
        centered = F.dropout(seen - self.words.center, FEATURE_DROPOUT) + self.words.center
        scores = self.words(centered)
        each = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none") * weights
        return 100 * each.mean()  # of a hundred and more names few are there

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Share of validation pictures with a listed thing among their five likeliest names.

        And of another picture's five.
        """
        if self._measured is None:
            return {}
        tokens, shown = self._measured
        rows = np.flatnonzero((shown >= PRESENT).any(1))
        if not len(rows):
            return {}
        device = self.words.up.weight.device
        scores = torch.cat(
            [
                self.words(torch.from_numpy(tokens[block]).float().to(device))
                for block in np.array_split(rows, max(1, len(rows) // ENCODED))
            ]
        )
        best = scores.topk(min(SHOWN, scores.shape[1])).indices.cpu().numpy()
        present = shown[rows] >= PRESENT
        hits = [present[i, names].any() for i, names in enumerate(best)]
        other = [present[i, names].any() for i, names in enumerate(np.roll(best, 1, 0))]
        return {
            "in_five": round(float(np.mean(hits)), 4),
            "in_five_other_picture": round(float(np.mean(other)), 4),
        }


def cross_fitted(
    bridge: MemoryBridge, pictures: PictureSet, *, steps: int, lr: float = 1e-3, seed: int = 0
) -> list[list[str]]:
    """Name what each picture shows as a prompt would, by a head that has not learned from it.

    A head is surer of pictures that it has learned from than it will be of any other; a language
    model that reads such names would trust them too much. Where no picture lists things, or all
    are of one fold, a head has nothing to learn from: then none are named.

    Args:
        bridge: frozen.
        pictures: as of ``ThingStage``.
        steps: of each of ``FOLDS`` heads.
        lr: their learning rate.
        seed: of their values and batches.
    """
    files = [name.partition("/")[2] for name in pictures.names]  # a picture's fold is its file's
    fold = np.array([zlib.crc32(f"fold {file}".encode()) % FOLDS for file in files])
    named: list[list[str]] = [[] for _ in pictures.names]
    if not _listed(pictures):
        return named
    for number in range(FOLDS):
        left_out, learned = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        if not len(learned):
            continue
        torch.manual_seed(seed + number)
        stage = ThingStage(bridge, pictures)
        stage.select(learned)
        train_steps(stage, Schedule(steps=steps, lr=lr, weight_decay=0.1, seed=seed + number))
        for i in left_out:
            tokens = torch.from_numpy(stage.tokens[i, WHOLE]).to(pictures.device)
            named[i] = stage.words.likely(tokens, SHOWN, LEAST_SHOWN)
    return named


@torch.inference_mode()
def tokens_of(bridge: MemoryBridge, pictures: PictureSet, views: int = 2) -> np.ndarray:
    """Read every picture as a segment of one frame: [N, V, M, D] float16.

    The views are the whole and, if each picture has it, the mirror image.
    """
    bridge.eval()
    views = min([views, *(pictures.num_views(i) for i in range(len(pictures)))])
    shape = bridge.config.memory_tokens, bridge.config.dim
    tokens = np.zeros((len(pictures), views, *shape), np.float16)
    for begin in range(0, len(pictures), ENCODED):
        rows = range(begin, min(begin + ENCODED, len(pictures)))
        for view in range(views):
            patches = pictures.views(rows, [view] * len(rows))[:, None]
            times = torch.full((len(rows), 1), 0.5, device=patches.device)
            tokens[begin : rows.stop, view] = bridge.encode(patches, times).cpu().numpy()
    return tokens


def vocabulary(pictures: PictureSet) -> list[str]:
    """Name the things that enough pictures list, and those that captions hardly leave out.

    Raises:
        DatasetError: there is none.
    """
    listed = _listed(pictures)
    if not listed:
        raise DatasetError("things: no data list what pictures show; add detected or objects")
    # Who is a man, a woman or a child is often guessed, and wrong words about people cost most.
    return sorted((listed | (WHOLE_WORDS.keys() if any(pictures.captions) else set())) - PEOPLE
                  | {PERSON})  # fmt: skip


def _listed(pictures: PictureSet) -> set[str]:
    """Return the names that enough pictures list."""
    counts = Counter(name for things in pictures.things for name in {n for n, _ in things})
    return {name for name, count in counts.items() if count >= MIN_LISTED}


def targets_of(pictures: PictureSet, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of each name for each picture and its weight, [N, W] float16 each."""
    place = {name: i for i, name in enumerate(names)}
    meant = defaultdict(list)  # by word of a caption: the names that it stands for
    for name in names:
        spellings = {name, f"{name}s"} | WHOLE_WORDS.get(name, frozenset())
        for word in PEOPLE if name == PERSON else spellings:
            meant[word].append(place[name])
    targets = np.zeros((len(pictures), len(names)), np.float16)
    weights = np.full(targets.shape, FOREIGN, np.float16)
    by_source = defaultdict(list)
    for i, (source, _) in enumerate(pictures.rows):
        by_source[source].append(i)
    for rows in by_source.values():
        for i in rows:
            for name, share in pictures.things[i]:
                if name in place:
                    targets[i, place[name]] = max(targets[i, place[name]], share)
            captions = () if pictures.made[i] else pictures.captions[i]
            for caption in captions:
                words = set(re.findall(r"[a-z]+", caption.lower()))
                for column in {c for word in words for c in meant.get(word, ())}:
                    # Four of five people are as good as all: one always leaves a thing out.
                    targets[i, column] += 1 / max(1, len(captions) - 1)
        np.minimum(targets, 1, out=targets)
        own = np.flatnonzero(targets[rows].any(0))
        weights[np.array(rows)[:, None], own] = OF_SOURCE
    weights[targets > 0] = LISTED
    return targets, weights


def _chances(targets: np.ndarray) -> np.ndarray:
    """Return how often to draw each picture: by the inverse root of its rarest name's count."""
    present = targets >= PRESENT
    rare = np.sqrt(1 / np.maximum(1, present.sum(0)))
    chances = np.maximum((present * rare).max(1), 0.03)
    return chances / chances.sum()
