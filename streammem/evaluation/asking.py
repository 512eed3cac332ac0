"""Asking what remembers a composed stream, by the path of a session, and judging what it says.

The language model is not run: what is computed over the timeline is judged, not how it is phrased.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from streammem.evaluation.memory import Rememberer
from streammem.evaluation.operators import TimedQuestion
from streammem.evaluation.timelines import Timeline, memories_of
from streammem.memory.cache import CacheConfig
from streammem.memory.entry import Entry
from streammem.models.protocols import Reads
from streammem.types import Answer

if TYPE_CHECKING:
    from streammem.qa.answerer import Answerer

AT_ONCE = 256  # questions read in one go
NEAR_TRUTH = 0.2  # of a duration


@runtime_checkable
class Answering(Rememberer, Protocol):
    """Whatever remembers and reads questions."""

    def read_questions(self, questions: Sequence[str]) -> Sequence[Any]:
        """Return operator and anchors of each, see ``questions.Reading``."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """A question, how it was read, and what came of it.

    Attributes:
        cited: scenes of the evidence, best first.
    """

    question: TimedQuestion
    read: bool
    right: bool
    seen: bool
    cited: tuple[int, ...]
    old: bool
    text: str

    @property
    def name(self) -> str:
        """The operator; what is absent apart from what is there."""
        absent = self.question.operator == "exists" and not self.question.gold
        return "exists, absent" if absent else self.question.operator


def answers_to(
    timelines: Sequence[Timeline], keys: np.ndarray, model: Answering, *, controls: bool
) -> dict[str, list[Outcome]]:
    """Ask every stream its questions, by name of what is remembered of it."""
    silent = _Silent(model)
    silent.read_ahead(q.text for timeline in timelines for q in timeline.questions)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    for number, timeline in enumerate(timelines):
        for name, (photos, rows) in memories_of(timelines, number).items():
            if not controls and name != "memory":
                continue
            answerer = _answerer(silent, keys[list(photos)], timeline.edges, rows)
            asked = timeline.questions
            if name != "memory":  # it is for the old questions that they are compared
                asked = tuple(filter(timeline.is_old, asked))
            outcomes[name] += [_asked(answerer, question, timeline) for question in asked]
    return outcomes


def is_right(question: TimedQuestion, answer: Answer, cited: set[int], edges: np.ndarray) -> bool:
    """Whether an answer says what is true.

    ``exists``: yes where it was shown, no where not. ``when``, ``first``, ``last``: exactly the
    scenes of the truth. ``how often``: the number. ``how long``: within a fifth. ``before``,
    ``after``, ``between``: it points to the scenes asked about, and shows the neighbour. ``now``:
    it looks at nothing but the present.

    Args:
        question: with the truth.
        answer: of a session.
        cited: scenes of its evidence.
        edges: [N + 1] seconds, of the scenes.
    """
    gold, operator = set(question.gold), question.operator
    if operator == "now":
        return answer.method == "model" and not cited
    if not gold or not answer.seen:
        return answer.seen == bool(gold)
    if operator == "exists" or answer.method == "model":
        return operator == "exists"
    if operator == "how often":
        number = re.match(r"once|\d+(?= times)", answer.text)
        return number is not None and int(number[0].replace("once", "1")) == len(gold)
    if operator == "how long":
        lengths = np.diff(edges)
        told, true = (sum(lengths[list(scenes)]) for scenes in (cited, gold))
        return bool(abs(told - true) <= NEAR_TRUTH * true)
    if operator in ("before", "after", "between"):
        end = {"before": max, "after": min}.get(operator)
        points = end(cited) == end(gold) if end else _ends(cited) == _ends(gold)
        return points and gold <= cited
    return cited == gold


class _Silent:
    """A model that remembers what it read and says nothing: words take seconds, and are not judged.

    Everything else is the model's own.
    """

    segment_encoder = None
    reads = Reads()

    def __init__(self, model: Answering) -> None:
        self._model = model
        self.text_encoder = self.generator = self
        self._keys: dict[str, np.ndarray] = {}
        self._readings: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def read_ahead(self, questions: Iterable[str]) -> None:
        """Read questions and what they are about, many at a time, which takes less time."""
        texts = sorted(set(questions), key=len)
        for start in range(0, len(texts), AT_ONCE):
            block = texts[start : start + AT_ONCE]
            readings = self._model.read_questions(block)
            self._readings |= dict(zip(block, readings, strict=True))
            self.sentence_keys([a for r in readings for a in (r.anchor, r.second) if a] or block)

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._keys]
        if new:
            self._keys |= dict(zip(new, self._model.sentence_keys(new), strict=True))
        return np.stack([self._keys[sentence] for sentence in sentences])

    def read_question(self, question: str) -> Any:
        if question not in self._readings:  # without its time words
            self.read_ahead([question])
        return self._readings[question]

    def describe(self, entries: object) -> None:
        """Caption nothing."""

    def answer_prompt(self, *shown: object) -> list[str]:
        return []

    def stream(self, *prompt: object) -> Iterator[str]:
        return iter(())


def _answerer(model: Any, keys: np.ndarray, edges: np.ndarray, rows: Sequence[int]) -> "Answerer":
    """Give a memory of some scenes its voice; as after ``ask SOURCE``, nothing has a caption."""
    from torch import zeros

    from streammem.memory.memory import Memory
    from streammem.qa.answerer import AnswerConfig, Answerer

    width = keys.shape[1]
    memory = Memory(CacheConfig(width, (0, 1), max(4, len(rows))))
    none = np.zeros((0, width), np.float32)
    for scene in rows:
        start, end = float(edges[scene]), float(edges[scene + 1])
        shown = keys[scene : scene + 1]
        memory.append(Entry(scene, start, end, 1, shown, none, none, np.zeros((0, 1))), zeros(0))
    return Answerer(model, memory, AnswerConfig(), model)


def _asked(answerer: "Answerer", question: TimedQuestion, timeline: Timeline) -> Outcome:
    from streammem.perception.scene_buffer import BufferedFrame
    from streammem.qa.question import Present

    answerer.turns.clear()  # each question stands alone
    end, count = float(timeline.edges[-1]), len(timeline.photos)
    frame = BufferedFrame(
        count, end, end, np.zeros(answerer.model.text_encoder.background.shape[1]), None, None
    )
    answer = answerer.ask(question.text, Present((frame,), count, None))  # type: ignore[arg-type]
    cited: list[int] = []
    for item in sorted(answer.evidence, key=lambda item: -item.score):
        first, last = np.searchsorted(timeline.edges, (item.start + 1e-6, item.end - 1e-6))
        cited += range(first - 1, last)
    return Outcome(
        question,
        read=answerer.model.text_encoder.read_question(question.text).operator == question.operator,
        right=is_right(question, answer, set(cited), timeline.edges),
        seen=answer.seen,
        cited=tuple(cited),
        old=timeline.is_old(question),
        text=answer.text,
    )


def _ends(scenes: set[int]) -> tuple[int, int]:
    return min(scenes), max(scenes)
