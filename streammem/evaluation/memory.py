"""The suite ``memory``: is a scene found among ten thousand, and what never was, refused?

    report = evaluate_memory(Path("flickr8k"), PictureModel(load("streammem-tiny")), options)
    report.sizes["1000"]["recall@1"]

Scenes are photos as the model's keys and captions, in the cache that a session uses. The language
model only captions each photo once.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from streammem.evaluation.datasets import (
    EVERY_SPLIT,
    EvaluationOptions,
    Photo,
    batches,
    prediction_lines,
    progress_bar,
    read_photo,
    read_photos,
)
from streammem.evaluation.streams import NEEDLE_KINDS, ComposedStream, bm25, check_enough, compose
from streammem.memory.entry import Entry
from streammem.memory.retrieval import FALSE_SIGHTINGS, GumbelNull, Query, normalise, threshold

if TYPE_CHECKING:
    from streammem.memory.memory import Memory

# Scenes of a stream: number of streams. Each leaves out a few things only, and some things are much
# more easily mistaken as seen than others, so one stream is a poor measure of refusals.
SIZES = {10: 40, 100: 12, 1_000: 8, 10_000: 1}
FORGETTING_AT = 1_000
MOST_QUESTIONS = 1_200  # about one stream
FOUND_AT = (1, 5)
FALSE_YES = 0.1
LAST, UNIFORM = 4, 32  # scenes that the controls hold
TENTH = 0.1


@runtime_checkable
class MemoryModel(Protocol):
    """A model with keys of pictures and sentences, and captions of pictures."""

    @property
    def background(self) -> Any:
        """[B, K] unit keys of unrelated pictures."""
        ...

    @property
    def null(self) -> GumbelNull:
        """Distribution of the best cosine among many unrelated pictures."""
        ...

    @property
    def sentences(self) -> Any:
        """A frozen sentence encoder: ``encode(sentences) -> [N, E]``, unit rows."""
        ...

    def picture_keys(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """[H, W, 3] uint8 RGB each, N of them -> [N, K] unit float."""
        ...

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        """N sentences -> [N, K] unit float."""
        ...

    def caption_pictures(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """One caption a picture."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Album:
    """Photos with a model's keys and captions; the first ``len(own)`` are asked about.

    Attributes:
        captions: human, of each photo; the last of them is reserved for the ceiling ``human``.
        keys: [N, K] of the pictures.
        own: the model's captions of the photos asked about.
        own_keys: [A, K] of ``own``.
        own_sentences: [A, E] of ``own`` from the sentence encoder alone.
        human_keys: [N, K] of the reserved captions.
    """

    captions: Sequence[Sequence[str]]
    keys: np.ndarray
    own: Sequence[str]
    own_keys: np.ndarray
    own_sentences: np.ndarray
    human_keys: np.ndarray


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The outcome of the suite.

    Attributes:
        sizes: figures by number of scenes, see ``figures_of``.
        forgetting: recall of questions about the oldest and the newest tenth, and of the same
            questions in the reversed stream.
    """

    split: str
    photos: int
    sizes: dict[str, Any]
    forgetting: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """Return the object that ``streammem eval memory`` prints on its last line."""
        return {
            "suite": "memory",
            "split": self.split,
            "photos": self.photos,
            "sizes": self.sizes,
            "forgetting": self.forgetting,
        }


def evaluate_memory(folder: Path, model: MemoryModel, options: EvaluationOptions) -> MemoryReport:
    """Ask about streams composed of a split's photos.

    Streams of more scenes than the split has photos also show photos of other splits. These have no
    captions, so such streams have no controls by captions.

    Args:
        folder: see ``read_photos``; five captions a photo are best, two the least.
        model: to evaluate.
        options: ``limit`` takes part of the photos and leaves out streams of more than ten times
            as many scenes; ``controls`` adds the controls; ``predictions`` gets
            ``{"scenes", "question", "kind", "gold", "found", "score", "seen"}`` a question.

    Raises:
        DatasetError: the folder is malformed, or has fewer than 20 photos.
        ConfigError: the file of predictions cannot be written.
    """
    asked = read_photos(folder, options.split)[: options.limit]
    check_enough(len(asked))
    sizes = [size for size in SIZES if size <= 10 * len(asked)]
    others: list[Photo] = []
    if max(sizes) > len(asked):
        known = {photo.name for photo in asked}
        everything = read_photos(folder, EVERY_SPLIT)[: max(sizes)]
        others = [photo for photo in everything if photo.name not in known]
    album = _album(asked, others, model, options)
    figures, forgetting = {}, {}
    with prediction_lines(options.predictions) as write:
        for size in sizes:
            runs = list(_runs(album, size, model))
            figures[str(size)] = figures_of(runs, album, model, controls=options.controls)
            write([row for run in runs for row in run.rows()])
            if size == FORGETTING_AT:
                forgetting = forgetting_of(runs[0], album)
    return MemoryReport(options.split, len(asked), figures, forgetting)


@dataclass(frozen=True, slots=True, eq=False)
class MemoryRun:
    """The results of a memory for a stream's questions.

    Attributes:
        keys: [Q, K] of the questions.
        found: [Q, <= 5] scenes, best first.
        scores: [Q] how far the best exceeds chance; above ``threshold(FALSE_SIGHTINGS)``: seen.
    """

    stream: ComposedStream
    keys: np.ndarray
    found: np.ndarray
    scores: np.ndarray

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each question with its outcome, for JSON."""
        for question, found, score in zip(
            self.stream.questions, self.found.tolist(), self.scores.tolist(), strict=True
        ):
            yield {
                "scenes": len(self.stream.scenes),
                "question": question.text,
                "kind": question.kind,
                "gold": list(question.gold),
                "found": found,
                "score": round(score, 3),
                "seen": score > threshold(FALSE_SIGHTINGS),
            }


def memory_of(album: Album, scenes: Sequence[int]) -> "Memory":
    """Fill a memory with scenes, each a photo's key and, where it has one, its caption's key."""
    from torch import zeros

    from streammem.memory.memory import CacheConfig, Memory

    no_keys = np.zeros((0, album.keys.shape[1]), np.float32)
    # No row may be merged with another: a scene's index is the truth.
    config = CacheConfig(album.keys.shape[1], (0, 0), max(4, len(scenes)), epsilon=0.0)
    memory, no_state = Memory(config), zeros(0)
    for scene, photo in enumerate(scenes):
        has_caption = photo < len(album.own)
        memory.append(
            Entry(
                segment=scene,
                start=2.0 * scene,  # a gap of a second, for the same reason
                end=2.0 * scene + 1,
                frames=1,
                visual_keys=album.keys[photo : photo + 1],
                caption_keys=album.own_keys[photo : photo + 1] if has_caption else no_keys,
                note_keys=no_keys,
                tokens=np.zeros((0, 0)),
                caption=album.own[photo] if has_caption else None,
            ),
            no_state,
        )
    return memory


def run_of(album: Album, stream: ComposedStream, keys: np.ndarray, model: MemoryModel) -> MemoryRun:
    """Ask a memory of a stream all its questions.

    Args:
        album: keys and captions of the scenes.
        stream: scenes and questions.
        keys: [Q, K] of the questions.
        model: whose keys they are.
    """
    background = np.asarray(model.background)
    memory = memory_of(album, stream.scenes)
    found, scores = [], []
    for key in keys:
        hits = memory.search(Query(key), k=max(FOUND_AT))
        best = np.array([max(hit.visual for hit in hits)])
        found.append([hit.entry.segment for hit in hits])
        scores.append(normalise(best, background @ key, max(2, len(memory)), model.null)[0])
    return MemoryRun(stream, keys, np.array(found), np.array(scores))


def _runs(album: Album, size: int, model: MemoryModel) -> Iterator[MemoryRun]:
    for seed in range(SIZES[size]):
        questions = min(4 * size, MOST_QUESTIONS)
        known = len(album.own) if size <= len(album.own) else len(album.captions)
        captions = [texts[:-1] or texts for texts in album.captions[:known]]
        stream = compose(captions, size, questions, asked=len(album.own), seed=seed)
        texts = [question.text for question in stream.questions]
        yield run_of(album, stream, model.sentence_keys(texts), model)


def figures_of(
    runs: Sequence[MemoryRun], album: Album, model: MemoryModel, *, controls: bool
) -> dict[str, Any]:
    """Sum up runs of one size.

    Returns:
        ``questions`` by kind; ``recall@1``, ``recall@5``: share of present questions with a gold
        scene among the first; ``human``: that of human captions in the same key space, the
        ceiling; ``yes@0.1``: share of present questions answered yes where a tenth of the
        absent and near ones are; ``yes`` by kind: shares answered yes as shipped; ``controls``.
    """
    kinds = np.array([q.kind for run in runs for q in run.stream.questions])
    scores = np.concatenate([run.scores for run in runs])
    false = np.sort(scores[(kinds == "absent") | (kinds == "near")])
    limit = np.quantile(false, 1 - FALSE_YES) if len(false) else np.nan
    yes = scores > threshold(FALSE_SIGHTINGS)
    rankings = {"human": [_top(run.keys @ album.human_keys[_photos(run)].T) for run in runs]}
    if controls:
        uncaptioned = max(p for run in runs for p in run.stream.scenes) >= len(album.own)
        for name, rank in _controls(album, model).items():
            if not (uncaptioned and name.startswith("captions")):
                rankings[name] = list(map(rank, runs))
    recalls = {name: _recalls(runs, found) for name, found in rankings.items()}
    return {
        "questions": dict(Counter(kinds.tolist())),
        **_recalls(runs, [run.found for run in runs]),
        "human": recalls.pop("human"),
        f"yes@{FALSE_YES}": _share(scores[kinds == "present"] > limit),
        "yes": {kind: _share(yes[kinds == kind]) for kind in NEEDLE_KINDS},
        "controls": recalls,
    }


def forgetting_of(run: MemoryRun, album: Album) -> dict[str, float]:
    """Compare recall of old and new scenes, in the stream and in the reversed stream."""
    count = len(run.stream.scenes)
    reversed_memory = memory_of(album, run.stream.scenes[::-1])
    asked = [i for i, q in enumerate(run.stream.questions) if len(q.gold) == 1]
    place = {i: run.stream.questions[i].gold[0] / count for i in asked}
    ends = {
        "oldest": [i for i in asked if place[i] < TENTH],
        "newest": [i for i in asked if place[i] >= 1 - TENTH],
    }
    figures: dict[str, float] = {}
    for end, chosen in ends.items():
        golds = [run.stream.questions[i].gold[0] for i in chosen]
        figures[f"{end}_questions"] = len(chosen)
        figures[f"{end}_recall@5"] = _share(
            np.array([gold in run.found[i] for i, gold in zip(chosen, golds, strict=True)])
        )
        figures[f"{end}_reversed_recall@5"] = _share(
            np.array(
                [
                    count - 1 - gold
                    in [h.entry.segment for h in reversed_memory.search(Query(run.keys[i]), k=5)]
                    for i, gold in zip(chosen, golds, strict=True)
                ]
            )
        )
    return figures


def _album(
    asked: Sequence[Photo], others: Sequence[Photo], model: MemoryModel, options: EvaluationOptions
) -> Album:
    keys, own = [], []
    with progress_bar(len(asked) + len(others), options) as bar:
        for photos in (asked, others):
            for batch in batches(photos):
                pictures = [read_photo(photo.path) for photo in batch]
                keys.append(model.picture_keys(pictures))
                own += model.caption_pictures(pictures) if photos is asked else []
                bar.update(len(batch))
    captions = [photo.captions for photo in (*asked, *others)]
    return Album(
        captions=captions,
        keys=np.concatenate(keys),
        own=own,
        own_keys=model.sentence_keys(own),
        own_sentences=np.asarray(model.sentences.encode(own)),
        human_keys=model.sentence_keys([texts[-1] for texts in captions]),
    )


def _controls(album: Album, model: MemoryModel) -> dict[str, Any]:
    """Return functions by name that rank scenes for a run's questions: MemoryRun -> [Q, <= 5]."""

    def visual(run: MemoryRun) -> np.ndarray:
        return run.keys @ album.keys[_photos(run)].T  # [Q, N]

    def only(run: MemoryRun, scenes: np.ndarray) -> np.ndarray:
        scores = np.full((len(run.keys), len(run.stream.scenes)), -np.inf, np.float32)
        scores[:, scenes] = visual(run)[:, scenes]
        return _top(scores)

    def uniform(run: MemoryRun) -> np.ndarray:
        count = len(run.stream.scenes)
        return only(
            run, np.unique(np.linspace(0, count - 1, min(UNIFORM, count)).round().astype(int))
        )

    def sentences(run: MemoryRun) -> np.ndarray:
        asked = np.asarray(model.sentences.encode([q.text for q in run.stream.questions]))
        return _top(asked @ album.own_sentences[_photos(run)].T)

    def words(run: MemoryRun) -> np.ndarray:
        captions = [album.own[photo] for photo in run.stream.scenes]
        return _top(np.stack([bm25(captions, q.text) for q in run.stream.questions]))

    def blind(run: MemoryRun) -> np.ndarray:
        return _top(np.random.default_rng(0).random((len(run.keys), len(run.stream.scenes))))

    return {
        "blind": blind,
        f"last {LAST}": lambda run: only(run, np.arange(len(run.stream.scenes))[-LAST:]),
        f"uniform {UNIFORM}": uniform,
        "captions, BM25": words,
        "captions, sentences": sentences,
        "without text keys": lambda run: _top(visual(run)),
        # The same scenes at other places.
        "another stream's memory": lambda run: _top(
            np.roll(visual(run), len(run.stream.scenes) // 2, axis=1)
        ),
    }


def _photos(run: MemoryRun) -> np.ndarray:
    return np.array(run.stream.scenes)


def _top(scores: np.ndarray) -> np.ndarray:
    """Return the best places [Q, <= 5] of scores [Q, N], best first; never one of -inf."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, : max(FOUND_AT)]
    return np.where(np.take_along_axis(scores, best, 1) > -np.inf, best, -1)


def _recalls(runs: Sequence[MemoryRun], found: Sequence[np.ndarray]) -> dict[str, float]:
    present = [
        (set(question.gold), row)
        for run, rows in zip(runs, found, strict=True)
        for question, row in zip(run.stream.questions, rows.tolist(), strict=True)
        if question.kind == "present"
    ]
    return {
        f"recall@{k}": _share(np.array([bool(gold & set(row[:k])) for gold, row in present]))
        for k in FOUND_AT
    }


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 4) if len(hits) else 0.0
