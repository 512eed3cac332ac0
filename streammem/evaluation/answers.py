"""The suite ``answers``: are questions of known truth answered right, and by the right scenes?

    report = evaluate_answers(Path("flickr8k"), PictureModel(load("streammem-tiny")), options)
    report.operators["all"]["right"]  # share of right answers

Streams of photos, as the model's keys, are asked through the answerer that sessions use. The
language model is not run: what is computed over the timeline is scored, not its wording.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from streammem.evaluation.datasets import (
    EvaluationOptions,
    batches,
    prediction_lines,
    progress_bar,
    read_photo,
    read_photos,
)
from streammem.evaluation.memory import MemoryModel
from streammem.evaluation.streams import bm25, check_enough
from streammem.evaluation.timelines import TimedQuestion, Timeline, memories_of, timelines_of
from streammem.memory.entry import Entry
from streammem.types import Answer

CITED = 4  # best pieces of evidence that count, as many as "last 4" has
QUESTIONS_AT_ONCE = 256  # read in one batch
NEAR_TRUTH = 0.2  # of a duration


@runtime_checkable
class AnsweringModel(MemoryModel, Protocol):
    """A model with keys and captions that also reads questions."""

    def read_questions(self, questions: Sequence[str]) -> Sequence[Any]:
        """Return operator and anchors of each, see ``questions.QuestionReading``."""
        ...

    def name_readout(self, description: str) -> Any:
        """See ``protocols.TextEncoder``."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """A question with its answer, scored.

    Attributes:
        question: with the truth.
        read: whether its operator was understood.
        right: see ``is_right``.
        seen: whether it was answered as seen.
        cited: scenes of the evidence, best first.
        old: whether its evidence is old, see ``Timeline.is_old``.
        text: of the answer.
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
        """The operator; questions about absent things have a name of their own."""
        absent = self.question.operator == "exists" and not self.question.gold
        return "exists, absent" if absent else self.question.operator


@dataclass(frozen=True, slots=True)
class AnswersReport:
    """The outcome of the suite.

    Attributes:
        minutes: mean length of a stream.
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


def evaluate_answers(
    folder: Path, model: AnsweringModel, options: EvaluationOptions
) -> AnswersReport:
    """Ask streams composed of a split's photos by every operator.

    Args:
        folder: see ``read_photos``.
        model: to evaluate.
        options: ``controls`` adds memories that hold less of the stream, or none of it;
            ``predictions`` gets a line an answer.

    Raises:
        DatasetError: the folder is malformed, or has fewer than 40 photos.
        ConfigError: the file of predictions cannot be written.
    """
    # 1. Keys of all photos, and for the controls captions.
    photos = read_photos(folder, options.split)[: options.limit]
    check_enough(len(photos) // 2)
    keys, captions = [], []
    with progress_bar(len(photos), options) as bar:
        for batch in batches(photos):
            pictures = [read_photo(photo.path) for photo in batch]
            keys.append(model.picture_keys(pictures))
            captions += model.caption_pictures(pictures) if options.controls else []
            bar.update(len(batch))
    # 2. Streams of these photos, their questions, and the answers.
    timelines = timelines_of([photo.captions for photo in photos])
    outcomes = answers_to(timelines, np.concatenate(keys), model, controls=options.controls)
    with prediction_lines(options.predictions) as write:
        write(
            [
                {
                    "question": outcome.question.text,
                    "operator": outcome.name,
                    "gold": list(outcome.question.gold),
                    "answer": outcome.text,
                    "cited": list(outcome.cited),
                    "read": outcome.read,
                    "right": outcome.right,
                    "seen": outcome.seen,
                }
                for outcome in outcomes["memory"]
            ]
        )
    # 3. Figures.
    old = {
        name: _found([(o.question, o.cited) for o in answered if o.old])
        for name, answered in outcomes.items()
    }
    if options.controls:
        old |= _controls_by_captions(timelines, captions, model)
    minutes = float(np.mean([timeline.edges[-1] for timeline in timelines])) / 60
    return AnswersReport(
        options.split,
        len(photos),
        len(timelines),
        round(minutes, 1),
        by_operator(outcomes["memory"]),
        old,
    )


def answers_to(
    timelines: Sequence[Timeline], keys: np.ndarray, model: AnsweringModel, *, controls: bool
) -> dict[str, list[Outcome]]:
    """Ask every stream its questions.

    Args:
        timelines: streams with questions.
        keys: [N, K] of the photos.
        model: to evaluate.
        controls: ask every memory of ``memories_of``, those beside ``memory`` for the old
            questions only.

    Returns:
        Outcomes by name of the memory.
    """
    from torch import zeros

    from streammem.memory.memory import CacheConfig, Memory
    from streammem.qa.answerer import AnswerConfig, Answerer

    reader = _QuestionReader(model)
    reader.read_ahead(q.text for timeline in timelines for q in timeline.questions)
    width = keys.shape[1]
    no_keys = np.zeros((0, width), np.float32)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    for number, timeline in enumerate(timelines):
        edges, questions = timeline.edges, timeline.questions
        for name, (photos, scenes) in memories_of(timelines, number).items():
            if not controls and name != "memory":
                continue
            # As after ``ask SOURCE``, no scene has a caption.
            memory = Memory(CacheConfig(width, (0, 1), max(4, len(scenes))))
            for scene in scenes:
                start, end, photo = float(edges[scene]), float(edges[scene + 1]), photos[scene]
                entry = Entry(
                    scene,
                    start,
                    end,
                    1,
                    keys[photo : photo + 1],
                    no_keys,
                    no_keys,
                    np.zeros((0, 1)),
                )
                memory.append(entry, zeros(0))
            answerer = Answerer(cast(Any, reader), memory, AnswerConfig(), reader)
            asked = questions if name == "memory" else filter(timeline.is_old, questions)
            outcomes[name] += [_outcome(answerer, question, timeline) for question in asked]
    return outcomes


def is_right(question: TimedQuestion, answer: Answer, cited: set[int], edges: np.ndarray) -> bool:
    """Return whether an answer agrees with the truth.

    ``exists``: yes if it was shown, no if not. ``when``, ``first``, ``last``: exactly the scenes of
    the truth. ``how often``: the number. ``how long``: within a fifth. ``before``, ``after``,
    ``between``: it points to the scenes asked about, and shows the neighbour. ``said``: it quotes
    from a scene of the truth. ``now``: it uses only the present.

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
    if operator == "said":
        return bool(cited & gold)
    if operator == "exists" or answer.method == "model":
        return operator == "exists"
    if operator == "how often":
        number = re.match(r"once|\d+(?= times)", answer.text)
        return number is not None and int(number[0].replace("once", "1")) == len(gold)
    if operator == "how long":
        lengths = np.diff(edges)
        answered, true = (sum(lengths[list(scenes)]) for scenes in (cited, gold))
        return bool(abs(answered - true) <= NEAR_TRUTH * true)
    if operator == "before":
        return max(cited) == max(gold) and gold <= cited
    if operator == "after":
        return min(cited) == min(gold) and gold <= cited
    if operator == "between":
        return (min(cited), max(cited)) == (min(gold), max(gold)) and gold <= cited
    return cited == gold


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


class _QuestionReader:
    """The model as an answerer uses it, which reads questions in batches and generates no text.

    Reading one by one, and generating, would take seconds a question; wording is not scored.
    """

    segment_encoder = None

    def __init__(self, model: AnsweringModel) -> None:
        from streammem.models.protocols import Reads

        self._model, self.reads = model, Reads()
        self.text_encoder = self.generator = self.answer_generator = self
        self.background, self.null = model.background, model.null
        self._keys: dict[str, np.ndarray] = {}
        self._readings: dict[str, Any] = {}

    def read_ahead(self, questions: Iterable[str]) -> None:
        """Read questions, and compute the keys of their anchors, in batches."""
        texts = sorted(set(questions), key=len)
        for start in range(0, len(texts), QUESTIONS_AT_ONCE):
            block = texts[start : start + QUESTIONS_AT_ONCE]
            readings = self._model.read_questions(block)
            self._readings |= dict(zip(block, readings, strict=True))
            self.sentence_keys([a for r in readings for a in (r.anchor, r.second) if a] or block)

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._keys]
        if new:
            self._keys |= dict(zip(new, self._model.sentence_keys(new), strict=True))
        return np.stack([self._keys[sentence] for sentence in sentences])

    def name_readout(self, description: str) -> Any:
        return self._model.name_readout(description)

    def read_question(self, question: str) -> Any:
        if question not in self._readings:  # one without its time words
            self.read_ahead([question])
        return self._readings[question]

    def describe(self, entries: object) -> None:
        """Caption nothing."""

    def answer_prompt(self, *passages: object) -> list[str]:
        return []

    def stream(self, *prompt: object) -> Iterator[str]:
        return iter(())


def _outcome(answerer: Any, question: TimedQuestion, timeline: Timeline) -> Outcome:
    """Ask a question and score the answer."""
    from streammem.perception.frames import BufferedFrame
    from streammem.qa.question import Present

    answerer.turns.clear()  # each question is asked alone
    end, count = float(timeline.edges[-1]), len(timeline.photos)
    encoder = answerer.model.text_encoder
    no_key = np.zeros(encoder.background.shape[1])
    frame = BufferedFrame(count, end, end, no_key, None, None)
    answer = answerer.ask(question.text, Present((frame,), count, None))  # type: ignore[arg-type]
    cited: list[int] = []
    for item in sorted(answer.evidence, key=lambda item: -item.score):
        first, last = np.searchsorted(timeline.edges, (item.start + 1e-6, item.end - 1e-6))
        cited += range(first - 1, last)
    return Outcome(
        question,
        read=encoder.read_question(question.text).operator == question.operator,
        right=is_right(question, answer, set(cited), timeline.edges),
        seen=answer.seen,
        cited=tuple(cited),
        old=timeline.is_old(question),
        text=answer.text,
    )


def _controls_by_captions(
    timelines: Sequence[Timeline], captions: Sequence[str], model: AnsweringModel
) -> dict[str, dict[str, float]]:
    """Score old questions where scenes are ranked by captions alone, or at random."""
    encoded = np.asarray(model.sentences.encode(list(captions)))
    texts = sorted({q.text for t in timelines for q in filter(t.is_old, t.questions)})
    encoded_texts = np.asarray(model.sentences.encode(texts)) if texts else ()
    key_of = dict(zip(texts, encoded_texts, strict=True))
    rng = np.random.default_rng(0)

    def by_words(question: TimedQuestion, photos: list[int]) -> np.ndarray:
        return bm25([captions[photo] for photo in photos], question.text)

    def by_sentences(question: TimedQuestion, photos: list[int]) -> np.ndarray:
        return encoded[photos] @ key_of[question.text]

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


def _found(answers: Sequence[tuple[TimedQuestion, Sequence[int]]]) -> dict[str, float]:
    """Return how many questions were asked, and the share with a true scene among the first k."""
    return {
        "questions": len(answers),
        **{
            f"found@{k}": _share([bool(set(q.gold) & set(cited[:k])) for q, cited in answers])
            for k in (1, CITED)
        },
    }


def _share(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 4) if hits else 0.0
