"""The suite ``answers``: are questions of known truth answered right, and by the right scenes?

Streams of photos as the model's keys, answered by the path a session answers by. The language
model is not run: what is computed over the timeline is judged, not how it is phrased.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from streammem.evaluation.datasets import (
    Options,
    batches,
    prediction_lines,
    progress_bar,
    read_photos,
    read_picture,
)
from streammem.evaluation.memory import LAST, UNIFORM, Rememberer
from streammem.evaluation.operators import TimedQuestion, ask_by_operator
from streammem.evaluation.streams import bm25, check_enough, compose
from streammem.memory.cache import CacheConfig
from streammem.memory.entry import Entry
from streammem.types import Answer

if TYPE_CHECKING:
    from streammem.answering import Answerer

PHOTOS = 200  # of a stream
SCENES = 1.2  # a photo: some come two or three times
ROUNDS = 5  # streams of each group of photos: other order, other repeats
SCENE_S = (5.0, 15.0)
MOST = 20  # questions an operator and stream
OLD_S = 600.0  # evidence that lies so far back is old
CITED = 4  # best pieces of evidence that count, as many as "last 4" has
NEAR_TRUTH = 0.2  # of a duration


@runtime_checkable
class Answering(Rememberer, Protocol):
    """Whatever remembers and reads questions."""

    def read_question(self, question: str) -> Any:
        """Return operator and anchors, see ``questions.Reading``."""
        ...


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


@dataclass(frozen=True, slots=True)
class AnswersReport:
    """The outcome of the suite.

    Attributes:
        minutes: length of a stream.
        operators: see ``by_operator``.
        old: by memory, how often the best ``CITED`` pieces of evidence show a scene of the truth,
            for ``when`` questions whose evidence is old.
    """

    split: str
    photos: int
    streams: int
    minutes: float
    operators: dict[str, Any]
    old: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, object]:
        """Return the object that ``streammem eval answers`` prints on its last line."""
        return {
            "suite": "answers",
            "split": self.split,
            "photos": self.photos,
            "streams": self.streams,
            "minutes": self.minutes,
            "operators": self.operators,
            "old": self.old,
        }


def evaluate_answers(folder: Path, model: Answering, options: Options) -> AnswersReport:
    """Ask streams composed of a split's photos by every operator.

    Args:
        folder: see ``read_photos``.
        model: whose answers they are.
        options: ``controls`` adds what sees less, or nothing, of the stream; ``predictions`` gets
            a line an answer.

    Raises:
        DatasetError: the folder is malformed, or has fewer than 40 photos.
        ConfigError: the file of predictions cannot be written.
    """
    photos = read_photos(folder, options.split)[: options.limit]
    check_enough(len(photos) // 2)
    keys, said = [], []
    with progress_bar(len(photos), options) as bar:
        for batch in batches(photos):
            pictures = [read_picture(photo.path) for photo in batch]
            keys.append(model.picture_keys(pictures))
            said += model.caption_pictures(pictures) if options.controls else []
            bar.update(len(batch))
    timelines = _timelines([photo.captions for photo in photos])
    outcomes = _answered(timelines, np.concatenate(keys), model, controls=options.controls)
    with prediction_lines(options.predictions) as write:
        write([_row(outcome) for outcome in outcomes["memory"]])
    old = {name: _old_of(found) for name, found in outcomes.items()}
    if options.controls:
        old |= _read_captions(timelines, said, model)
    minutes = float(np.mean([timeline.edges[-1] for timeline in timelines])) / 60
    return AnswersReport(
        options.split,
        len(photos),
        len(timelines),
        round(minutes, 1),
        by_operator(outcomes["memory"]),
        old,
    )


def by_operator(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Sum up answers by operator.

    Returns:
        By operator, and of ``all``: ``questions``; ``read``, share whose operator was understood;
        ``right``, of right answers; ``seen``, answered as seen; ``cited``, of these those whose
        evidence shows a scene of the truth; ``evidence``, scenes cited on average.
    """
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.name].append(outcome)
        groups["all"].append(outcome)
    return {
        name: {
            "questions": len(found),
            "read": _share([o.read for o in found]),
            "right": _share([o.right for o in found]),
            "seen": _share([o.seen for o in found]),
            "cited": _share(
                [bool(set(o.cited) & set(o.question.gold)) for o in found if o.seen and o.cited]
            ),
            "evidence": round(float(np.mean([len(o.cited) for o in found])), 2),
        }
        for name, found in groups.items()
    }


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

    def __init__(self, model: Answering) -> None:
        self._model = model
        self._keys: dict[str, np.ndarray] = {}
        self._readings: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        for sentence in sentences:
            if sentence not in self._keys:
                self._keys[sentence] = self._model.sentence_keys([sentence])[0]
        return np.stack([self._keys[sentence] for sentence in sentences])

    def read_question(self, question: str) -> Any:
        if question not in self._readings:
            self._readings[question] = self._model.read_question(question)
        return self._readings[question]

    def take_in(self, *shown: object) -> tuple[None, None]:
        return None, None

    def answer_prompt(self, *shown: object) -> list[str]:
        return []

    def stream(self, *prompt: object) -> Iterator[str]:
        return iter(())


def _timelines(captions: Sequence[Sequence[str]]) -> list[Timeline]:
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


def _answered(
    timelines: Sequence[Timeline], keys: np.ndarray, model: Answering, *, controls: bool
) -> dict[str, list[Outcome]]:
    """Ask every stream its questions, by name of what is remembered of it."""
    silent = _Silent(model)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    for number, timeline in enumerate(timelines):
        for name, (photos, rows) in _memories(timelines, number).items():
            if not controls and name != "memory":
                continue
            answerer = _answerer(silent, keys[list(photos)], timeline.edges, rows)
            asked = timeline.questions
            if name != "memory":  # it is for the old questions that they are compared
                asked = tuple(filter(timeline.is_old, asked))
            outcomes[name] += [_asked(answerer, question, timeline) for question in asked]
    return outcomes


def _memories(
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


def _answerer(model: Any, keys: np.ndarray, edges: np.ndarray, rows: Sequence[int]) -> "Answerer":
    """Give a memory of some scenes its voice; as after ``ask SOURCE``, nothing has a caption."""
    from streammem.answering import Answerer
    from streammem.memory.memory import Memory
    from streammem.session_config import SessionConfig

    width = keys.shape[1]
    memory = Memory(CacheConfig(width, (0, 1), max(4, len(rows))))
    none = np.zeros((0, width), np.float32)
    for scene in rows:
        start, end = float(edges[scene]), float(edges[scene + 1])
        memory.cache.append(
            Entry(scene, start, end, 1, keys[scene : scene + 1], none, np.zeros((0, 1)))
        )
    return Answerer(model, memory, SessionConfig(), lambda segments: None)


def _asked(answerer: "Answerer", question: TimedQuestion, timeline: Timeline) -> Outcome:
    from streammem.answering import Present
    from streammem.openscene import Held

    answerer.turns.clear()  # each question stands alone
    end, count = float(timeline.edges[-1]), len(timeline.photos)
    frame = Held(count, end, end, np.zeros(answerer.model.background.shape[1]), None, None)
    answer = answerer.ask(question.text, Present((frame,), count, None))  # type: ignore[arg-type]
    cited: list[int] = []
    for item in sorted(answer.evidence, key=lambda item: -item.score):
        first, last = np.searchsorted(timeline.edges, (item.start + 1e-6, item.end - 1e-6))
        cited += range(first - 1, last)
    return Outcome(
        question,
        read=answerer.model.read_question(question.text).operator == question.operator,
        right=is_right(question, answer, set(cited), timeline.edges),
        seen=answer.seen,
        cited=tuple(cited),
        old=timeline.is_old(question),
        text=answer.text,
    )


def _read_captions(
    timelines: Sequence[Timeline], said: Sequence[str], model: Answering
) -> dict[str, dict[str, float]]:
    """Find the old scenes by captions alone, and by nothing."""
    encoded = np.asarray(model.sentences.encode(list(said)))
    texts = sorted({q.text for t in timelines for q in filter(t.is_old, t.questions)})
    asked = (
        dict(zip(texts, np.asarray(model.sentences.encode(texts)), strict=True)) if texts else {}
    )
    rng = np.random.default_rng(0)

    def by_words(question: TimedQuestion, photos: list[int]) -> np.ndarray:
        return bm25([said[photo] for photo in photos], question.text)

    def by_sentences(question: TimedQuestion, photos: list[int]) -> np.ndarray:
        return encoded[photos] @ asked[question.text]

    def blind(question: TimedQuestion, photos: list[int]) -> np.ndarray:
        return rng.random(len(photos))

    controls: dict[str, Callable[[TimedQuestion, list[int]], np.ndarray]] = {
        "captions, BM25": by_words, "captions, sentences": by_sentences, "blind": blind,
    }  # fmt: skip
    return {
        name: _found(
            [
                (q, np.argsort(-score(q, list(t.photos)), kind="stable").tolist())
                for t in timelines
                for q in filter(t.is_old, t.questions)
            ]
        )
        for name, score in controls.items()
    }


def _old_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    return _found([(o.question, o.cited) for o in outcomes if o.old])


def _found(answers: Sequence[tuple[TimedQuestion, Sequence[int]]]) -> dict[str, float]:
    return {
        "questions": len(answers),
        **{
            f"found@{k}": _share([bool(set(q.gold) & set(cited[:k])) for q, cited in answers])
            for k in (1, CITED)
        },
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "question": outcome.question.text,
        "operator": outcome.name,
        "gold": list(outcome.question.gold),
        "answer": outcome.text,
        "cited": list(outcome.cited),
        "read": outcome.read,
        "right": outcome.right,
        "seen": outcome.seen,
    }


def _ends(scenes: set[int]) -> tuple[int, int]:
    return min(scenes), max(scenes)


def _share(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 4) if hits else 0.0
