"""The suite ``answers``: are questions of known truth answered right, and by the right scenes?

Streams of photos as the model's keys, answered by the path a session answers by. The language
model is not run: what is computed over the timeline is judged, not how it is phrased.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streammem.evaluation.asking import Answering, Outcome, answers_to
from streammem.evaluation.datasets import (
    Options,
    batches,
    prediction_lines,
    progress_bar,
    read_photos,
    read_picture,
)
from streammem.evaluation.operators import TimedQuestion
from streammem.evaluation.streams import bm25, check_enough
from streammem.evaluation.timelines import Timeline, timelines_of

CITED = 4  # best pieces of evidence that count, as many as "last 4" has


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
    timelines = timelines_of([photo.captions for photo in photos])
    outcomes = answers_to(timelines, np.concatenate(keys), model, controls=options.controls)
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


def _share(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 4) if hits else 0.0
