"""Pictures as cached vision features with their captions, and the views that training draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streammem.training.questions import QuestionRecord

WHOLE, FLIPPED = 0, 1  # views 2 and on are random crops, none of them mirrored
MAX_FRAMES = 3  # views that stand for the frames of one segment
FLIPPED_SHARE = 1 / 3


@dataclass(frozen=True, slots=True, eq=False)
class PictureSet:
    """Pictures with their captions.

    Attributes:
        names: ``SOURCE/FILE`` of each, unique in all data of a recipe.
        captions: of each picture; may be empty where there are questions.
        questions: about each picture, with their answers; mostly empty.
        features: memory-mapped arrays [N, views, P, V] float16.
        rows: (index into ``features``, row of it) of each picture.
        made: whether each picture's captions were generated, see ``Record``.
        things: listed for each picture, likewise.
        device: of the tensors that methods return; the features stay memory-mapped.
    """

    names: Sequence[str]
    captions: Sequence[Sequence[str]]
    questions: Sequence[Sequence[QuestionRecord]]
    features: Sequence[np.ndarray]
    rows: Sequence[tuple[int, int]]
    made: Sequence[bool]
    things: Sequence[Sequence[tuple[str, float]]]
    device: str = "cpu"

    def __len__(self) -> int:
        return len(self.names)

    def view(self, index: int, view: int) -> np.ndarray:
        """Return one view's patches [P, V] float16."""
        source, row = self.rows[index]
        return self.features[source][row, view]

    def num_views(self, index: int) -> int:
        """Return the number of views of a training picture."""
        return self.features[self.rows[index][0]].shape[1]

    def whole(self, chosen: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return whole pictures as one-frame segments: patches [B, 1, P, V] and times [B, 1]."""
        patches = self.views(chosen, [WHOLE] * len(chosen))[:, None]
        return patches, torch.full((len(patches), 1), 0.5, device=self.device)

    def views(self, chosen: Sequence[int] | np.ndarray, views: Sequence[int]) -> Tensor:
        """Return the patches of a view of each picture, [B, P, V]."""
        patches = [self.view(int(i), v) for i, v in zip(chosen, views, strict=True)]
        return self.tensor(np.stack(patches))

    def tensor(self, array: np.ndarray) -> Tensor:
        """Copy an array to ``device``, floats as float32."""
        moved = torch.from_numpy(array).to(self.device)
        return moved.float() if moved.is_floating_point() else moved

    def draw(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Draw distinct pictures: indices [B], B = ``batch``, or all if there are fewer."""
        return rng.choice(len(self), min(batch, len(self)), replace=False)

    def captioned(self) -> "PictureSet":
        """Return the pictures that have captions."""
        return self.select([i for i, captions in enumerate(self.captions) if captions])

    def select(self, chosen: Sequence[int]) -> "PictureSet":
        """Return some of the pictures, in the order given."""
        return replace(
            self,
            names=[self.names[i] for i in chosen],
            captions=[self.captions[i] for i in chosen],
            questions=[self.questions[i] for i in chosen],
            rows=[self.rows[i] for i in chosen],
            made=[self.made[i] for i in chosen],
            things=[self.things[i] for i in chosen],
        )

    def __add__(self, other: "PictureSet") -> "PictureSet":
        moved = [(source + len(self.features), row) for source, row in other.rows]
        return PictureSet(
            [*self.names, *other.names],
            [*self.captions, *other.captions],
            [*self.questions, *other.questions],
            [*self.features, *other.features],
            [*self.rows, *moved],
            [*self.made, *other.made],
            [*self.things, *other.things],
            self.device,
        )


def sample_views(
    pictures: PictureSet, chosen: Sequence[int] | np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw each picture's segment: its mirror image, or one to three views of it.

    Views of one picture stand for the frames of a scene with a moving camera. A scene does not
    mirror itself halfway, and crops are not mirrored, so the mirror image is a segment by itself.

    Returns:
        patches [B, T, P, V], times [B, T], mask [B, T] bool; T <= MAX_FRAMES.
    """
    first = pictures.view(int(chosen[0]), WHOLE)
    patches = np.zeros((len(chosen), MAX_FRAMES, *first.shape), np.float32)
    times = np.full((len(chosen), MAX_FRAMES), 0.5, np.float32)
    mask = np.zeros((len(chosen), MAX_FRAMES), bool)
    for row, picture in enumerate(chosen):
        views = _segment_views(pictures.num_views(int(picture)), rng)
        count = len(views)
        for frame, view in enumerate(views):
            patches[row, frame] = pictures.view(int(picture), view)
        if count > 1:
            times[row, :count] = np.linspace(0, 1, count)
        mask[row, :count] = True
    # Pictures with fewer frames than the longest need no more padding than that.
    longest = int(mask.sum(1).max())
    drawn = [pictures.tensor(array[:, :longest]) for array in (patches, times, mask)]
    return drawn[0], drawn[1], drawn[2]


def _segment_views(num_views: int, rng: np.random.Generator) -> list[int]:
    if rng.random() < FLIPPED_SHARE:
        return [FLIPPED]
    upright = [WHOLE, *range(FLIPPED + 1, num_views)]
    count = int(rng.integers(1, MAX_FRAMES + 1))
    return [int(view) for view in rng.permutation(upright)[:count]]
