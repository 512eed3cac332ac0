"""Composed streams with a clock: scenes of seconds, what is asked about them, what is remembered.

Words and numbers only; who is asked, and what an answer is worth, is in ``asking.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streammem.evaluation.memory import LAST, UNIFORM
from streammem.evaluation.operators import TimedQuestion, ask_by_operator
from streammem.evaluation.streams import compose

PHOTOS = 200  # of a stream
SCENES = 1.2  # a photo: some come two or three times
ROUNDS = 5  # streams of each group of photos: other order, other repeats
SCENE_S = (5.0, 15.0)
MOST = 20  # questions an operator and stream
OLD_S = 600.0  # evidence that lies so far back is old


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """A stream with its clock.

    Attributes:
        photos: of each scene.
        edges: [N + 1] seconds; a scene is [edges[i], edges[i + 1]).
        questions: about it.
    """

    photos: tuple[int, ...]
    edges: np.ndarray
    questions: tuple[TimedQuestion, ...]

    def is_old(self, question: TimedQuestion) -> bool:
        """Whether it asks when something was that lies ``OLD_S`` before the stream's end."""
        if question.operator != "when":
            return False
        return bool(self.edges[question.gold[-1] + 1] <= self.edges[-1] - OLD_S)


def timelines_of(captions: Sequence[Sequence[str]]) -> list[Timeline]:
    """Compose streams of at most ``PHOTOS`` photos each, at least two in a round."""
    groups = max(2, len(captions) // PHOTOS)
    made = []
    for number, chosen in enumerate(np.array_split(np.arange(len(captions)), groups) * ROUNDS):
        texts = [captions[i] for i in chosen]
        scenes = round(SCENES * len(texts))
        wanted = 2 * sum(map(len, texts))  # half of them present: all that there are
        stream = compose(texts, scenes, wanted, asked=len(texts), seed=number)
        lengths = np.random.default_rng([1, number]).uniform(*SCENE_S, scenes)
        made.append(
            Timeline(
                tuple(int(chosen[photo]) for photo in stream.scenes),
                np.concatenate([[0.0], np.cumsum(lengths)]),
                ask_by_operator(stream, MOST, seed=number),
            )
        )
    return made


def memories_of(
    timelines: Sequence[Timeline], number: int
) -> dict[str, tuple[Sequence[int], Sequence[int]]]:
    """Return by name which photos a stream's scenes show, and which scenes are remembered."""
    photos = timelines[number].photos
    count = len(photos)
    other = np.resize(timelines[(number + 1) % len(timelines)].photos, count).tolist()
    spaced = np.unique(np.linspace(0, count - 1, min(UNIFORM, count)).round().astype(int))
    return {
        "memory": (photos, range(count)),
        f"last {LAST}": (photos, range(count)[-LAST:]),
        f"uniform {UNIFORM}": (photos, spaced.tolist()),
        "another stream's memory": (other, range(count)),
    }
