"""The streaming protocol: a video is watched once, and each question is asked at its time.

    run = RunConfig(contexts=("memory", "now"), scorer="likelihood")
    rows = ask_suite(found, videos, partial(SessionWatcher, model, run), run, out=Path("run"))

A watcher is given frames in order and questions between them, so that it sees the past alone: it is
never given the video's path, nor what is said later, nor ids, answers or evidence of questions. The
same question is put to the memory and to each control; see ``CONTEXTS``.
"""

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from tqdm import tqdm

from streammem.errors import ConfigError, DatasetError
from streammem.evaluation.judge import Judge
from streammem.evaluation.questions import LETTERS, SUITES, QuestionSet, SuiteQuestion, Videos
from streammem.evaluation.scoring import Reply, score
from streammem.memory.folder import write_file
from streammem.types import Frame, Note, TimeSpan

if TYPE_CHECKING:
    from streammem.models.protocols import StreamModel, TextEncoder

Scorer = Literal["likelihood", "letter"]
UNIFORM = 32  # segments of the control ``uniform``
LATE_S = 1.0  # what is cited may end so much after the question: a frame lasts
PREDICTIONS = "predictions.jsonl"

# What a question is answered from. All but the first are controls.
CONTEXTS: dict[str, str] = {
    "memory": "the stream's memory",
    "blind": "the question alone",
    "now": "the last 4 frames",
    "uniform": f"{UNIFORM} scenes spread evenly",
    "captions": "captions as text",
    "shuffled": "the same, options in another order",
    "other": "another video's memory",
}


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How a suite is run; two runs are compared only as far as this is the same.

    Attributes:
        contexts: keys of ``CONTEXTS``; the first is what is reported, the others stand beside it.
        scorer: how an option is chosen: by the mean log-probability of its tokens as a reply, or by
            a letter that the model writes.
        limit: of questions, a sample drawn with ``seed``; None asks all.
        seed: of the sample and of the order of shuffled options.
        captions: describe every scene while it is watched.
        fps: frames a second that are watched, > 0.
        wording: whether the wording of answers is scored; else controls write none, where the
            model would answer in words.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    contexts: tuple[str, ...] = ("memory",)
    scorer: Scorer = "likelihood"
    limit: int | None = None
    seed: int = 0
    captions: bool = False
    fps: float = 2.0
    wording: bool = True

    def __post_init__(self) -> None:
        unknown = set(self.contexts) - set(CONTEXTS)
        if unknown or not self.contexts:
            raise ConfigError(f"contexts {sorted(unknown)}: give some of {', '.join(CONTEXTS)}")
        if self.scorer not in get_args(Scorer):
            raise ConfigError(f"scorer {self.scorer!r}: give one of {', '.join(get_args(Scorer))}")
        if (self.limit is not None and self.limit < 1) or not self.fps > 0:
            raise ConfigError("limit must be at least 1, fps above 0")

    @property
    def is_blind(self) -> bool:
        """Whether no video is needed: it is asked from the question alone, in any order."""
        return self.contexts[0] == "blind" and set(self.contexts) <= {"blind", "shuffled"}


class Asked(NamedTuple):
    """What a watcher is told of a question."""

    text: str
    options: tuple[str, ...] = ()


class Watcher(Protocol):
    """A model on one video, as the harness drives it.

    Attributes:
        num_bytes: of what it keeps of the video so far.
        fingerprint: of the model's weights; answers of others are never mixed with its own.
    """

    @property
    def num_bytes(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def push(self, frame: Frame, notes: Sequence[Note]) -> None:
        """Take in the next frame, and what was said since the one before."""
        ...

    def end(self) -> None:
        """Take note that the video has ended."""
        ...

    def ask(self, asked: Asked, context: str) -> Reply:
        """Answer from what was pushed, as a key of ``CONTEXTS`` says; ``shuffled`` never comes."""
        ...


# -- our sessions --


class Chooser:
    """A generator that replies with one of several options, where there are any.

    Args:
        inner: the generator of a model.
        scorer: see ``RunConfig``.

    Attributes:
        options: of the question at hand; empty passes the inner generator's words on.
        chosen: number of the option chosen last by likelihood; None in words.
        tokens: of the last prompt: of text that is not tokenised yet its words; without pictures.
        writes: whether it writes words where there are no options; else it replies nothing.

    Raises:
        ConfigError: likelihood of a generator that states none.
    """

    def __init__(self, inner: Any, scorer: Scorer) -> None:
        from streammem.models.protocols import LikelihoodGenerator

        if scorer == "likelihood" and not isinstance(inner, LikelihoodGenerator):
            raise ConfigError("this model states no likelihoods; choose --scorer letter")
        self._inner, self._scorer = inner, scorer
        self.reads, self.decoding, self.batches = inner.reads, inner.decoding, inner.batches
        self.options: tuple[str, ...] = ()
        self.chosen: int | None = None
        self.tokens = 0
        self.writes = True

    def caption_prompt(self, item: Any, instruction: str | None = None) -> Any:
        return self._inner.caption_prompt(item, instruction)

    def replies(self, prompts: Any, decoding: Any, candidates: int = 1) -> Any:
        return self._inner.replies(prompts, decoding, candidates)

    def answer_prompt(self, items: Sequence[Any], question: str) -> Any:
        """Build the prompt; with letters, the options follow the question."""
        if self.options and self._scorer == "letter":
            listed = (f"{LETTERS[i]}. {option}" for i, option in enumerate(self.options))
            question = "\n".join([question, *listed, "Answer with the letter of the right option."])
        return self._inner.answer_prompt(items, question)

    def stream(self, prompt: Any, decoding: Any) -> Iterator[str]:
        self.tokens = 0
        for part in prompt:
            if not isinstance(part, np.ndarray):
                self.tokens += len(part.split()) if isinstance(part, str) else len(part)
        if not self.options or self._scorer == "letter":
            if self.options or self.writes:
                yield from self._inner.stream(prompt, decoding)
            return
        scores = [np.mean(row) for row in self._inner.log_probs(prompt, self.options)]
        self.chosen = int(np.argmax(scores))
        yield self.options[self.chosen]


class ReadOnce:
    """A text encoder that reads each text once, however many answers need it; it keeps them all."""

    def __init__(self, encoder: "TextEncoder") -> None:
        self._encoder = encoder
        self.background, self.null = encoder.background, encoder.null
        self._keys: dict[str, np.ndarray] = {}
        self._readings: dict[str, Any] = {}

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(sentences) if text not in self._keys]:
            self._keys |= dict(zip(new, self._encoder.sentence_keys(new), strict=True))
        return np.stack([self._keys[text] for text in sentences])

    def sentence_meanings(self, sentences: Sequence[str]) -> np.ndarray:
        return self._encoder.sentence_meanings(sentences)

    def name_readout(self, description: str) -> Any:
        return self._encoder.name_readout(description)

    def read_question(self, question: str) -> Any:
        if question not in self._readings:
            self._readings[question] = self._encoder.read_question(question)
        return self._readings[question]


class SessionWatcher:
    """A session of a model as a watcher.

    Args:
        model: any that sessions take.
        config: of the run.
    """

    def __init__(self, model: "StreamModel", config: RunConfig) -> None:
        from streammem.engine.session import Session
        from streammem.engine.session_config import defaults_of
        from streammem.models.protocols import ComposedModel
        from streammem.qa.answerer import Answerer

        own = replace(defaults_of(model), cuts="streaming")
        self._captions, self._notes, self._closed = config.captions, list[Note](), False
        self._first, self._wording = config.contexts[0], config.wording
        self._session = Session(model, own)
        self._chooser = Chooser(model.answer_generator, config.scorer)
        composed = ComposedModel.of(
            model, answer_generator=self._chooser, text_encoder=ReadOnce(model.text_encoder)
        )
        settings = {
            "memory": own.answering,
            "now": replace(own.answering, context="now"),
            "uniform": replace(own.answering, context="uniform", passages=UNIFORM),
            "captions": replace(own.answering, context="captions"),
        }
        session = self._session
        self._answerers = {
            name: Answerer(composed, session.memory, settings[name], session) for name in settings
        }
        self._empty = Session(composed, own)  # for what is asked blind
        self.fingerprint: str = model.fingerprint

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows in the memory."""
        return self._session.memory.num_bytes()

    def push(self, frame: Frame, notes: Sequence[Note]) -> None:
        from streammem.audio.track import SpeechTrack

        if notes:  # it never holds what is said later
            self._notes += notes
            self._session.speech = SpeechTrack("speech", tuple(self._notes))
        self._caption(self._session.push(frame))

    def end(self) -> None:
        self._caption(self._session.flush())

    def _caption(self, closed: Sequence[Any]) -> None:
        for segment in closed if self._captions else ():
            self._session.caption(segment)

    def ask(self, asked: Asked, context: str) -> Reply:
        chooser = self._chooser
        chooser.options, chooser.chosen, chooser.tokens = asked.options, None, 0
        chooser.writes = self._wording or context == self._first
        try:
            if context == "blind":
                return self._blind(asked)
            answerer = self._answerers["memory" if context == "other" else context]
            answerer.turns.clear()
            present, in_words = self._session.present(), bool(asked.options)
            answer = answerer.ask(asked.text, present, in_words=in_words)
            # No scene is closed yet, or nothing was seen: a choice is a guess, and not an error.
            if asked.options and not chooser.tokens:
                return self._blind(asked)._replace(seen=answer.seen)
        finally:
            chooser.options = ()
        ranked = sorted(answer.evidence, key=lambda item: -item.score)
        cited = tuple(TimeSpan(item.start, item.end) for item in ranked)
        best = ranked[0].score if ranked else 0.0
        return Reply(answer.text, chooser.chosen, answer.seen, cited, chooser.tokens, best, answer)

    def _blind(self, asked: Asked) -> Reply:
        """Answer from the question alone; what is computed, from an empty memory."""
        if not asked.options:
            answer = self._empty.ask(asked.text)
            return Reply(answer.text, None, answer.seen, answer=answer)
        prompt = self._chooser.answer_prompt([], asked.text)
        decoding = self._session.config.answer
        text = "".join(self._chooser.stream(prompt, decoding)).strip()
        return Reply(text, self._chooser.chosen, None, (), self._chooser.tokens)


# -- the run --


class Missing(NamedTuple):
    """What could not be asked, since its video is not there."""

    videos: int
    questions: int


class SuiteRun(NamedTuple):
    """What a run gave.

    Attributes:
        questions: that were drawn, by id.
        rows: an answer each, see ``_row``.
        missing: not among the rows.
        watched_s: seconds of video that were watched, by this process or before.
        watching_s: seconds that watching took, without answers.
        settings: see ``_settings``.
        fingerprint: of the model.
    """

    questions: dict[str, SuiteQuestion]
    rows: list[dict[str, Any]]
    missing: Missing
    watched_s: float
    watching_s: float
    settings: dict[str, Any]
    fingerprint: str = ""


Factory = Callable[[], Watcher]
OnProgress = Callable[[int, int], None]


def ask_suite(
    found: QuestionSet,
    videos: Videos,
    factory: Factory,
    config: RunConfig,
    *,
    model: str,
    out: Path | None = None,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    judge: Judge | None = None,
) -> SuiteRun:
    """Watch the videos of a suite, and ask its questions.

    Args:
        found: the questions.
        videos: where their videos are; none is needed of what is asked blind.
        factory: makes a watcher for one video.
        config: of the run.
        model: name and fingerprint, for the report.
        out: folder that keeps the answers; a run that was interrupted goes on there, video by
            video. None keeps none.
        progress: show a bar on stderr, where that is a terminal.
        on_progress: called after each video with the questions that are done, and all.
        judge: of open answers, besides their scores.

    Raises:
        DatasetError: no video is there.
        ConfigError: ``out`` holds answers of another run, or of a model with other weights.
        ServedModelError: the judge cannot be asked.
    """
    # 1. What is asked, and of which videos. A clip that is cut at its question stands in where the
    # video itself is missing.
    drawn = _drawn(found.questions, config)
    by_video: dict[str, list[SuiteQuestion]] = defaultdict(list)
    lost: list[SuiteQuestion] = []
    for question in drawn:
        if config.is_blind or videos.find(question.video):
            by_video[question.video].append(question)
        elif question.cut and videos.find(question.cut):
            by_video[question.cut].append(replace(question, time=None))
        else:
            lost.append(question)
    missing = Missing(len({question.video for question in lost}), len(lost))
    if not by_video:
        looked = ", ".join(map(str, videos.roots)) or "no folder of videos"
        raise DatasetError(
            f"{found.suite}: none of its {missing.videos} videos is there ({looked}): nothing is "
            "scored. Give --videos DIR; --context blind needs none"
        )
    # 2. Go on with what is there.
    settings = _settings(found, config, model)
    if judge:
        settings["judge"] = judge.name
    log = _Log(out, settings)
    order, done, num_asked = sorted(by_video), 0, sum(map(len, by_video.values()))
    bar = tqdm(total=num_asked, unit="question", disable=None if progress else True)
    with bar:
        for number, name in enumerate(order):
            following = by_video[order[(number + 1) % len(order)]] if len(order) > 1 else []
            if not log.has(name):
                watcher = factory()
                log.check_model(watcher.fingerprint)
                log.write(name, *_unit(
                    name, by_video[name], following, videos, watcher, config, found.suite, judge
                ))  # fmt: skip
            bar.update(len(by_video[name]))
            done += len(by_video[name])
            if on_progress:
                on_progress(done, num_asked)
    log.finish()
    asked = {question.id: question for question in drawn}
    return SuiteRun(
        asked, log.rows, missing, log.watched_s, log.watching_s, settings, log.fingerprint
    )


def _drawn(questions: Sequence[SuiteQuestion], config: RunConfig) -> list[SuiteQuestion]:
    if config.limit is None or config.limit >= len(questions):
        return list(questions)
    rng = np.random.default_rng(config.seed)
    return [questions[i] for i in sorted(rng.permutation(len(questions))[: config.limit])]


def _unit(
    name: str,
    questions: Sequence[SuiteQuestion],
    following: Sequence[SuiteQuestion],
    videos: Videos,
    watcher: Watcher,
    config: RunConfig,
    suite: str,
    judge: Judge | None,
) -> tuple[list[dict[str, Any]], float, float]:
    """Watch a video; ask its questions at their times, then those of the next video, as control.

    Returns:
        Rows; seconds watched; seconds that it took.
    """
    rows: list[dict[str, Any]] = []
    ask = partial(_answers, watcher, config=config, suite=suite, video=name, judge=judge)
    own = [context for context in config.contexts if context != "other"]
    if config.is_blind:
        for question in questions:
            rows += ask(question, own)
        return rows, 0.0, 0.0
    due = sorted(questions, key=lambda q: math.inf if q.time is None else q.time)
    watched_s = watching_s = 0.0
    for frame, notes in _frames(videos, name, config.fps):
        while due and due[0].time is not None and due[0].time < frame.time:
            rows += ask(due.pop(0), own)
        began = time.monotonic()
        watcher.push(frame, notes)
        watching_s += time.monotonic() - began
        watched_s = frame.time + frame.duration
    watcher.end()
    for question in due:
        rows += ask(question, own)
    if "other" in config.contexts:
        for question in following:
            rows += ask(question, ["other"])
    return rows, watched_s, watching_s


def _frames(videos: Videos, name: str, fps: float) -> Iterator[tuple[Frame, tuple[Note, ...]]]:
    """Yield frames in order, each with what was said until then."""
    from streammem.audio.track import SpeechOptions
    from streammem.engine.speech import open_speech
    from streammem.video import SourceOptions, open_with

    for part in videos.find(name):
        with open_with(str(part.path), SourceOptions(fps=fps)) as source:
            track = open_speech(source, SpeechOptions()).subtitles
            waiting = list(track.notes) if track else []
            for frame in source:
                said = [note for note in waiting if note.start <= frame.time]
                waiting = waiting[len(said) :]
                shifted = tuple(note.shifted(part.offset) for note in said)
                yield replace(frame, time=frame.time + part.offset), shifted


def _answers(
    watcher: Watcher,
    question: SuiteQuestion,
    contexts: Sequence[str],
    *,
    config: RunConfig,
    suite: str,
    video: str,
    judge: Judge | None,
) -> Iterator[dict[str, Any]]:
    """Ask a question by each context, and score the replies."""
    by_context: dict[str, dict[str, Any]] = {}
    for context in contexts:
        asked, ask_as = question, context
        if context == "shuffled":
            ask_as = "blind" if config.is_blind else "memory"
            if not question.options:
                continue
            if config.scorer == "likelihood" and ask_as in by_context:
                # Options are scored each by itself: their order changes nothing.
                yield {**by_context[ask_as], "context": context}
                continue
            asked = _shuffled(question, config.seed)
        began = time.monotonic()
        reply = watcher.ask(Asked(asked.text, asked.options), ask_as)
        took = time.monotonic() - began
        scored = score(asked, reply, SUITES[suite].official)
        late = question.time is not None and any(
            span.end > question.time + LATE_S for span in reply.cited
        )
        by_context[context] = {
            "id": question.id, "kind": question.kind, "video": video,
            "cluster": question.cluster or video, "context": context,
            "strict": scored.strict, "official": round(scored.official, 4),
            "choice": scored.choice, "text": reply.text, "f1": scored.f1, "hit": scored.hit,
            "seen": reply.seen, "score": reply.score,
            "late": late,
            "cited": [[round(a, 2), round(b, 2)] for a, b in reply.cited[:4]],
            "seconds": round(took, 4), "tokens": reply.tokens, "bytes": watcher.num_bytes,
        }  # fmt: skip
        if judge and question.check == "text":
            verdict = judge(question.text, question.references, reply.text)
            by_context[context]["judged"] = verdict
        yield by_context[context]


def _shuffled(question: SuiteQuestion, seed: int) -> SuiteQuestion:
    """Put the options in another order, the same for equal seeds."""
    key = int.from_bytes(hashlib.blake2b(question.id.encode(), digest_size=8).digest())
    order = np.random.default_rng([seed, key]).permutation(len(question.options)).tolist()
    return replace(
        question,
        options=tuple(question.options[i] for i in order),
        answer=tuple(sorted(order.index(i) for i in question.answer)),
    )


def _settings(found: QuestionSet, config: RunConfig, model: str) -> dict[str, Any]:
    settings = {"suite": found.suite, "digest": found.digest, "model": model, **asdict(config)}
    settings["questions"] = len(found.questions)
    return dict(json.loads(json.dumps(settings)))  # as it reads back


class _Log:
    """The answers of a run, a line each, and after those of a video one that closes it.

    Args:
        folder: that holds them; None holds them in RAM alone.
        settings: of the run.

    Raises:
        ConfigError: the folder holds a run with other settings, or cannot be written.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.rows: list[dict[str, Any]] = []
        self.watched_s = self.watching_s = 0.0
        self._done: set[str] = set()
        self.fingerprint = ""
        self._path = None if folder is None else folder / PREDICTIONS
        units: Sequence[tuple[str, list[dict[str, Any]], dict[str, Any]]] = ()
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                log = read_answers(self._path)
                self._check(log, settings)
                units = log.units
            lines: list[dict[str, Any]] = [{"settings": settings}]
            for name, rows, ends in units:
                lines += [*rows, ends]
                self._keep(name, rows, ends)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_file(self._path, text.encode())  # a kill now loses nothing of what was answered
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written ({error.strerror})") from error

    def _check(self, log: "Log", settings: dict[str, Any]) -> None:
        keys = dict.fromkeys([*settings, *log.settings])
        unlike = [key for key in keys if log.settings.get(key) != settings.get(key)]
        if unlike:
            raise ConfigError(
                f"{self._path}: holds a run with another {', '.join(unlike)}; give a new folder"
            )

    def check_model(self, fingerprint: str) -> None:
        """Note whose answers these are.

        Raises:
            ConfigError: the answers that are kept are of a model with other weights.
        """
        if self.fingerprint and fingerprint != self.fingerprint:
            raise ConfigError(
                f"{self._path}: holds answers of a model with other weights (fingerprint "
                f"{self.fingerprint[:12]}, now {fingerprint[:12]}); give a new folder"
            )
        self.fingerprint = fingerprint

    def finish(self) -> None:
        """Note that every question was asked."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"finished": True}) + "\n")

    def has(self, video: str) -> bool:
        return video in self._done

    def write(
        self, video: str, rows: list[dict[str, Any]], watched_s: float, watching_s: float
    ) -> None:
        ends = {
            "done": video, "watched_s": round(watched_s, 3), "watching_s": round(watching_s, 3),
            "fingerprint": self.fingerprint,
        }  # fmt: skip
        self._keep(video, rows, ends)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in (*rows, ends))

    def _keep(self, video: str, rows: list[dict[str, Any]], ends: dict[str, Any]) -> None:
        self._done.add(video)
        self.rows += rows
        self.watched_s += ends["watched_s"]
        self.watching_s += ends["watching_s"]
        self.fingerprint = ends.get("fingerprint", self.fingerprint)


class Log(NamedTuple):
    """A file of answers as it was read.

    Attributes:
        settings: of the run.
        units: of each complete video its name, its rows and the line that closes them.
        finished: whether every question was asked.
    """

    settings: dict[str, Any]
    units: list[tuple[str, list[dict[str, Any]], dict[str, Any]]]
    finished: bool


def read_answers(path: Path) -> Log:
    """Read answers; of a video that was interrupted none.

    Raises:
        DatasetError: missing, or not such a file.
    """
    try:
        first, *lines = path.read_text("utf-8").split("\n")  # a reply may hold other ends of lines
        settings = json.loads(first)["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: holds no answers of a run ({error})") from error
    units, rows, finished = [], list[dict[str, Any]](), False
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # torn by an interruption
            continue
        if "finished" in row:
            finished = True
        elif "done" in row:
            units.append((row["done"], rows, row))
            rows = []
        else:
            rows.append(row)
    return Log(settings, units, finished)
