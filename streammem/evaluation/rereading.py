"""Does looking at the evidence again pay? Questions to two hours, by what the answer is read from.

    report = evaluate_rereading(Path("flickr8k"), load(), None, EvaluationOptions())
    report.rows["memory"]["old"]   # share of right answers about what ended over 10 minutes ago

A stream is made of captioned photos, a minute each, and watched by a session as any other. The
same questions are then answered from the memory and from each control: ``--context now``,
``uniform`` and ``captions``, with the same number of pictures in a prompt, and Goldfish's way, from
text alone and after each clip was seen again. What answers is a generator that reads pictures: one
of the user's, or the ``Teacher``, which knows the true sentences of every photo, captions with one
of them and answers from all. With the teacher a wrong answer is always the fault of what it was
shown.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image

from streammem.errors import DatasetError
from streammem.evaluation.asking import ReadOnce
from streammem.evaluation.datasets import (
    EvaluationOptions,
    Photo,
    batches,
    prediction_lines,
    progress_bar,
    read_photo,
    read_photos,
)
from streammem.evaluation.pictures import PictureModel
from streammem.evaluation.streams import words_of
from streammem.evaluation.timelines import OLD_S
from streammem.models.backbones.language import GenerationConfig, GrowingReply, Prompt, Replies
from streammem.models.protocols import (
    ComposedModel,
    EvidenceItem,
    Generator,
    Reads,
    StreamModel,
    Tool,
    ToolCall,
    ToolTurn,
)
from streammem.types import Answer, Frame, clock

SCENE_S, FPS = 60.0, 0.1
HOURS = 2.0
PICTURES = 8  # in a prompt, whatever it is read from
DOCUMENTS = 3  # captions and transcripts that Goldfish reads
NOW_FRAMES = 4  # of them in the memory's prompt
HELD_BACK = 0.2  # of the photos, which are asked about and not shown
MOST_QUESTIONS = 100  # of a kind
LEAST_WORDS = 2  # content words of what is asked about
STEPS = 8
NOT_SEEN = "I do not see that."
_NO = re.compile(r"\b(?:no|not|cannot|nothing|none|nobody)\b|n't\b", re.IGNORECASE)
_DOING = re.compile(
    r"^((?:an?|the|one|two|three|four|five|some|several) .*?) (is|are) (\w+ing\b.*)$"
)
_SEVERAL = re.compile(r"[,;:]| (?:is|are|while|as) ")  # things, or what they do
_QUESTION = re.compile(r"What (?:is|are|was|were) (.*?) doing(?: now)?\?")
_SHOWS = re.compile(r"Does the picture show (.*?)\?")
CONTEXTS: dict[str, dict[str, Any]] = {
    "memory": {"context": "memory", "passages": PICTURES - NOW_FRAMES},
    "now": {"context": "now"},
    "uniform": {"context": "uniform", "passages": PICTURES},
    "captions": {"context": "captions", "passages": PICTURES},
    "goldfish": {"context": "goldfish", "passages": DOCUMENTS},
    "goldfish-again": {"context": "goldfish-again", "passages": DOCUMENTS},
}


class SceneQuestion(NamedTuple):
    """A question about what a person or a thing does.

    Attributes:
        text: as it is asked.
        kind: ``old`` and ``recent`` by when its scene ended, ``now``, or ``absent``: never shown.
        doing: content words of the true answers, of each that there is; none of ``absent``.
        scene: that shows it; of ``absent`` -1.
    """

    text: str
    kind: str
    doing: tuple[frozenset[str], ...]
    scene: int


class Teacher:
    """A generator that answers from the true sentences of the photos that it is shown.

    Args:
        pictures: [H, W, 3] uint8 RGB of every photo.
        sentences: of each, by people.
        most: pictures in a prompt.

    Attributes:
        shown: pictures of each prompt that was answered, for the report.
    """

    batches = False
    decoding = GenerationConfig()

    def __init__(
        self, pictures: Sequence[np.ndarray], sentences: Sequence[Sequence[str]], most: int
    ) -> None:
        self.reads = Reads(pictures=most, tools=True)
        self._looks = np.stack([_look(picture) for picture in pictures])  # [N, 8 * 8 * 3]
        self._sentences = sentences
        self.shown: list[int] = []

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        return self.answer_prompt([item], instruction or "")

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Put times before pictures; a caption stands only for what has no picture."""
        parts: list[Any] = []
        for item in items:
            for picture in item.keyframes:
                parts += [f"[{clock(item.start)}]", picture]
            if not item.keyframes and item.caption:
                parts.append(f"caption: {item.caption}")
        return [*parts, question]

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        for prompt in prompts:
            yield (GrowingReply(self._reply(prompt), [], []),) * candidates

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        yield self._reply(prompt)

    def converse(
        self,
        prompt: Prompt,
        turns: Sequence[ToolTurn],
        tools: Sequence[Tool],
        decoding: GenerationConfig,
    ) -> Iterator[str | ToolCall | None]:
        """Search for what is asked about, then look at the scenes found, until one shows it."""
        results = [part for turn in turns for part in turn.result]
        reply = self._reply([*cast(Any, prompt[:-1]), *cast(Any, results), prompt[-1]])
        if reply != NOT_SEEN or not tools:
            yield reply
        elif not turns:
            asked = _QUESTION.search(str(prompt[-1]))
            yield ToolCall("search", {"text": asked[1] if asked else str(prompt[-1])})
        else:
            found = [int(n) for n in re.findall(r"scene (\d+),", str(turns[0].result[0]))]
            if len(turns) > len(found):
                yield reply
            else:
                yield ToolCall("look", {"segment": found[len(turns) - 1], "frames": 1})

    def _reply(self, prompt: Prompt) -> str:
        pictures = [part for part in prompt if isinstance(part, np.ndarray)]
        texts = [part for part in prompt if isinstance(part, str)]
        self.shown.append(len(pictures))
        known = [text for picture in pictures for text in self._sentences[self._which(picture)]]
        known += [text.removeprefix("caption: ") for text in texts if text.startswith("caption: ")]
        asked = _QUESTION.search(texts[-1]) or _SHOWS.search(texts[-1])
        words = set(words_of(asked[1])) if asked else {""}
        found = next((text for text in known if words <= set(words_of(text))), None)
        if asked and _SHOWS.search(texts[-1]):
            return "Yes." if found else "No."
        return found or NOT_SEEN

    def _which(self, picture: np.ndarray) -> int:
        return int(np.abs(self._looks - _look(picture)).sum(axis=1).argmin())


@dataclass(frozen=True, slots=True)
class RereadingReport:
    """The outcome.

    Attributes:
        minutes: length of the stream.
        scenes: shown.
        segments: found by the session.
        questions: by kind.
        rows: by what answers were read from: share of right answers by kind, and of the teacher
            the mean number of ``pictures`` in a prompt.
    """

    split: str
    minutes: float
    scenes: int
    segments: int
    questions: dict[str, int]
    rows: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, object]:
        """Return the object that ``streammem eval answers --answer-with`` prints last."""
        return {
            "suite": "answers",
            "read": "again",
            "split": self.split,
            "minutes": self.minutes,
            "scenes": self.scenes,
            "segments": self.segments,
            "questions": self.questions,
            "rows": self.rows,
        }

    def __str__(self) -> str:
        kinds = list(self.questions)
        lines = [f"{'right answers, %':22}" + "".join(f"{kind:>9}" for kind in kinds)]
        for name, row in self.rows.items():
            lines.append(f"{name:22}" + "".join(f"{100 * row[kind]:9.1f}" for kind in kinds))
        return "\n".join(lines)


def evaluate_rereading(
    folder: Path, model: StreamModel, generator: Generator | None, options: EvaluationOptions
) -> RereadingReport:
    """Answer questions about a stream of two hours from the memory and from each control.

    Args:
        folder: see ``read_photos``; fewer photos make a shorter stream.
        model: perceives, finds, and captions; for the teacher a person's sentence is the caption.
        generator: answers; None takes the teacher.
        options: ``controls`` adds what a generator that calls tools finds in ``STEPS`` steps;
            ``predictions`` gets a line an answer.

    Raises:
        DatasetError: the folder is malformed, or its photos give no questions.
    """
    # 1. Which photos are shown, and what is asked.
    photos = read_photos(folder, options.split)[: options.limit]
    order = np.random.default_rng(0).permutation(len(photos)).tolist()
    held = order[: round(HELD_BACK * len(photos))]
    shown = order[len(held) :][: round(HOURS * 3600 / SCENE_S)]
    questions = ask_about([photos[i] for i in shown], [photos[i] for i in held])
    kinds = dict.fromkeys(("old", "recent", "now", "absent"), 0)
    for question in questions:
        kinds[question.kind] += 1
    if not all(kinds.values()):
        raise DatasetError(f"{folder}: too few photos to ask about: questions by kind {kinds}")
    # 2. Answer them: those about the present while it is there, the others at the end.
    taught = None
    if generator is None:
        pictures = [read_photo(photos[i].path) for i in shown]
        taught = generator = Teacher(pictures, [photos[i].captions for i in shown], PICTURES)
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    pictures_shown: dict[str, list[int]] = defaultdict(list)
    with prediction_lines(options.predictions) as write:
        asked = _answers([photos[i] for i in shown], model, generator, questions, options)
        segments = 0
        for segments, name, question, answer in asked:  # noqa: B007, the last one counts
            right[name][question.kind].append(holds_answer(question, answer.text))
            if taught:
                pictures_shown[name] += taught.shown
                taught.shown = []
            write([_row(name, question, answer)])
    rows = {
        name: {kind: round(float(np.mean(found[kind])), 4) for kind in kinds}
        | ({"pictures": round(float(np.mean(pictures_shown[name])), 2)} if taught else {})
        for name, found in right.items()
    }
    minutes = round(len(shown) * SCENE_S / 60, 1)
    return RereadingReport(options.split, minutes, len(shown), segments, kinds, rows)


def ask_about(shown: Sequence[Photo], held: Sequence[Photo]) -> list[SceneQuestion]:
    """Make questions about scenes that show these photos in turn, and about none of them.

    Asked is only after what one sentence names with ``LEAST_WORDS`` content words and one photo
    alone fits.
    """
    texts = [[frozenset(words_of(text)) for text in photo.captions] for photo in shown]
    made: dict[str, list[SceneQuestion]] = defaultdict(list)
    end = len(shown) * SCENE_S
    for photos, is_shown in ((shown, True), (held, False)):
        for scene, photo in enumerate(photos):
            truths = tuple(frozenset(words_of(act)) for _, act in _things(photo))
            for subject in list(dict.fromkeys(subject for subject, _ in _things(photo))):
                words = set(words_of(subject))
                fitting = [i for i, each in enumerate(texts) if any(words <= own for own in each)]
                if len(words) < LEAST_WORDS or fitting != ([scene] if is_shown else []):
                    continue
                were = re.match(r"(?:two|three|four|five|some|several)\b", subject)
                text = f"What {'were' if were else 'was'} {subject} doing?"
                if not is_shown:
                    made["absent"].append(SceneQuestion(text, "absent", (), -1))
                    continue
                kind = "old" if end - (scene + 1) * SCENE_S >= OLD_S else "recent"
                made[kind].append(SceneQuestion(text, kind, truths, scene))
                now = f"What {'are' if were else 'is'} {subject} doing now?"
                made["now"].append(SceneQuestion(now, "now", truths, scene))
    rng = np.random.default_rng(1)
    return [
        questions[i]
        for questions in made.values()
        for i in sorted(rng.permutation(len(questions))[:MOST_QUESTIONS].tolist())
    ]


def holds_answer(question: SceneQuestion, text: str) -> bool:
    """Return whether a reply is right: half of the words of a true answer, or that it is not there.

    Source: our own rule; the teacher's replies are whole sentences by people.
    """
    if not question.doing:
        return bool(_NO.search(text))
    words = set(words_of(text))
    return any(len(words & doing) >= max(1, len(doing) / 2) for doing in question.doing)


def _answers(
    shown: Sequence[Photo],
    model: StreamModel,
    generator: Generator,
    questions: Sequence[SceneQuestion],
    options: EvaluationOptions,
) -> Iterator[tuple[int, str, SceneQuestion, Answer]]:
    """Watch the photos, and yield each answer with the segments so far and what it is read from."""
    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig
    from streammem.qa.answerer import AnswerConfig, Answerer

    composed = ComposedModel(
        name=model.name,
        fingerprint=model.fingerprint,
        perceiver=model.perceiver,
        text_encoder=ReadOnce(model.text_encoder),
        generator=generator,
    )
    session = Session(composed, SessionConfig(now_frames=PICTURES), source="photos")
    configs = {name: AnswerConfig(**changes) for name, changes in CONTEXTS.items()}
    if options.controls and generator.reads.tools:
        configs[f"memory, {STEPS} steps"] = replace(configs["memory"], steps=STEPS)
    answerers = {
        name: Answerer(composed, session.memory, config, _Nothing())
        for name, config in configs.items()
    }
    asked_now = defaultdict(list)
    for question in questions:
        if question.kind == "now":
            asked_now[question.scene].append(question)

    def ask(question: SceneQuestion) -> Iterator[tuple[int, str, SceneQuestion, Answer]]:
        for name, answerer in answerers.items():
            answerer.turns.clear()
            present = session.present()
            if name != "now" and len(present.now) > NOW_FRAMES:
                present = present._replace(now=present.now[-NOW_FRAMES:])
            yield session.next_segment, name, question, answerer.ask(question.text, present)

    taught = isinstance(generator, Teacher)
    captions = _keyed(
        [_sentence(p) for p in shown] if taught else _written(shown, model, options), model
    )
    count = round(SCENE_S * FPS)
    described = 0
    for scene, photo in enumerate(shown):
        pixels = read_photo(photo.path)
        for i in range(count):
            number = scene * count + i
            session.push(Frame(pixels, number / FPS, 1 / FPS, number))
        if scene in asked_now:
            described = _describe(session, captions, described)
            for question in asked_now[scene]:
                yield from ask(question)
    session.flush()
    _describe(session, captions, described)
    for question in questions:
        if question.kind != "now":
            yield from ask(question)


class _Nothing:
    """Captions nothing: every row has the caption of its photo."""

    def describe(self, entries: object) -> None:
        """Do nothing."""


def _written(shown: Sequence[Photo], model: StreamModel, options: EvaluationOptions) -> list[str]:
    """Caption the photos by the model itself, the likeliest words."""
    captions: list[str] = []
    writer = PictureModel(replace(cast(Any, model), reranker=None))
    with progress_bar(len(shown), options) as bar:
        for batch in batches(shown):
            captions += writer.caption_pictures([read_photo(p.path) for p in batch])
            bar.update(len(batch))
    return captions


def _sentence(photo: Photo) -> str:
    """Return a person's sentence of which no question is made, if there is one."""
    plain = [text for text in photo.captions if not _DOING.match(_lowered(text))]
    return (plain or photo.captions)[-1]


def _keyed(captions: Sequence[str], model: StreamModel) -> list[tuple[str, np.ndarray]]:
    keys = model.text_encoder.sentence_keys(captions)
    return list(zip(captions, keys, strict=True))


def _describe(session: Any, captions: Sequence[tuple[str, np.ndarray]], start: int) -> int:
    """Give rows from ``start`` on the caption of the photo in their middle."""
    for segment in range(start, session.next_segment):
        row = session.memory.get(segment)
        if row is not None and row.caption is None:
            scene = min(len(captions) - 1, int((row.start + row.end) / 2 / SCENE_S))
            session.memory.set_caption(segment, *captions[scene])
    return int(session.next_segment)


def _things(photo: Photo) -> list[tuple[str, str]]:
    """Return what is plainly named to do something in a photo's captions, and what it does."""
    found = []
    for caption in photo.captions:
        match = _DOING.match(_lowered(caption))
        if match and not _SEVERAL.search(match[1]):
            found.append((match[1], match[3]))
    return found


def _lowered(caption: str) -> str:
    text = " ".join(caption.split()).strip(" .!\"'")
    return text[:1].lower() + text[1:]


def _look(picture: np.ndarray) -> np.ndarray:
    """Return what a picture looks like at 8 x 8 pixels, whatever its size and compression."""
    small = Image.fromarray(picture).resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1)


def _row(name: str, question: SceneQuestion, answer: Answer) -> dict[str, Any]:
    return {
        "from": name,
        "question": question.text,
        "kind": question.kind,
        "answer": answer.text,
        "right": holds_answer(question, answer.text),
        "seen": answer.seen,
        "evidence": [item.segment for item in answer.evidence],
        "steps": [step.call for step in answer.steps],
    }
