"""Answering: a question becomes operator, time and anchor, these become segments, these an answer.

What is counted or measured is computed over the timeline and given as it is; sentences are the
language model's own. Changes nothing in the memory but captions that it needs.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from torch import Tensor

from streammem.engine.session_config import SessionConfig
from streammem.memory.abstention import FALSE_SIGHTINGS, normalise, threshold
from streammem.memory.chapters import Part, default_count, divide
from streammem.memory.entry import Entry, Hit, decode_keyframe
from streammem.memory.memory import Memory
from streammem.models.backbones.language import GenerationConfig, Prompt
from streammem.models.protocols import (
    EvidenceItem,
    Generator,
    SegmentFrames,
    StreamModel,
    readable,
    spread,
)
from streammem.models.tiny.questions import Reading
from streammem.perception.scene_buffer import BufferedFrame, places
from streammem.qa.operators import Finding, compute, value
from streammem.qa.time_expressions import TimeWords, find_time
from streammem.qa.timeline import Bounds, Event, Stretch, events, within
from streammem.types import Answer, Caption, Chapter, Evidence, Moment, Segment

MAX_TURNS = 4
MAX_PROMPTED = 600  # characters of a question; a longer one would crowd out what was seen

_BACK = frozenset("that it this then these those them him her he she they there".split())  # noqa: SIM905

OnText = Callable[[str], None]
Row = tuple[int, int]  # the first segment of an entry and its last: it may grow


class Window(NamedTuple):
    """What part of the memory a question is about; None does not restrict."""

    stream: Bounds | None = None
    wall: Bounds | None = None
    source: str | None = None


class Present(NamedTuple):
    """Where a stream stands.

    Attributes:
        now: its last frames; none where it does not go on.
        segment: id of the open segment.
        memory: recurrent memory tokens.
    """

    now: Sequence[BufferedFrame]
    segment: int
    memory: Tensor


class Question(NamedTuple):
    """A question as it is worked on.

    Attributes:
        text: as it was asked.
        about: without its time words.
        reading: operator and anchors, with "that" replaced.
        window: when.
        back: segments that "before that" or "after that" points to; often none.
    """

    text: str
    about: str
    reading: Reading
    window: Window
    back: tuple[int, ...] = ()


class Turn(NamedTuple):
    """What a later question may point back to: what was asked about, and the segments told of."""

    anchor: str
    segments: tuple[int, ...]


@dataclass(eq=False)
class Answerer:
    """Answers questions from one memory and keeps the last few turns.

    Args:
        model: reads questions and speaks.
        kept: what is remembered.
        config: options.
        describe: gives segments their captions and keeps them.
        wall_clock: gives the present Unix time, for "yesterday".
    """

    model: StreamModel
    kept: Memory
    config: SessionConfig
    describe: Callable[[Sequence[Segment]], object]
    wall_clock: Callable[[], float] = time.time
    turns: deque[Turn] = field(default_factory=lambda: deque(maxlen=MAX_TURNS))
    _silent: frozenset[Row] = frozenset()  # described in vain: nothing of it was sure

    def ask(self, text: str, present: Present, on_text: OnText | None = None) -> Answer:
        """Answer from what was seen so far.

        Args:
            text: the question.
            present: where the stream stands.
            on_text: called with each piece of the answer as it comes; of a computed one with what
                was computed as a whole, then with each piece of the model's remark.

        Raises:
            ConfigError: time words that name no time.
        """
        clean = _encodable(text)
        words = find_time(clean, now=self.wall_clock(), zone=self._zone)
        about = words.text if words and words.text else clean
        reading, back = self._resolved(self.model.text_encoder.read_question(about))
        question = Question(text, about, reading, self._window(words, present), back)
        computes = self.config.context in ("memory", "captions")
        if computes and reading.operator not in ("describe", "now"):
            return self._computed(question, on_text)
        if words and not words.from_end:
            present = present._replace(now=())  # it is not what was asked about
        return self._spoken(question, present, on_text)

    def find(self, query: str, count: int) -> tuple[Moment, ...]:
        """Find the moments that a description fits best, best first."""
        hits = self.kept.cache.search(
            self.model.text_encoder.sentence_keys([_encodable(query)])[0], count
        )
        found = [self._evidence(hit) for hit in hits]
        return tuple(
            Moment(
                item.source, item.segment, item.start, item.end, item.score,
                keyframe=item.keyframe, caption=item.caption, speech=item.speech, rank=rank,
            )
            for rank, item in enumerate(found, start=1)
        )  # fmt: skip

    def chapters(self, count: int | None, between: Bounds | None) -> tuple[Chapter, ...]:
        """Divide what was seen into chapters, each with the captions of its central scenes.

        Args:
            count: chapters at most; by default the square root of the number of rows, 24 at most.
            between: [a, b) seconds; what overlaps it.
        """
        entries = [s.entry for s in self._stretches(Window(stream=between))]
        parts = divide(entries, default_count(len(entries)) if count is None else count)
        captions = self._described([entry for part in parts for entry in part.central])
        return tuple(_chapter(part, captions) for part in parts)

    # -- what is asked --

    @property
    def _zone(self) -> tzinfo | None:
        return ZoneInfo(self.config.timezone) if self.config.timezone else None

    def _window(self, words: TimeWords | None, present: Present) -> Window:
        entries = self.kept.cache.entries()
        if words is None or not entries:
            return Window()
        span, newest = (words.start, words.end), entries[-1]
        if not words.from_end:
            return Window(wall=span) if words.wall else Window(stream=span)
        if words.wall and newest.wall_start is not None:
            at = self.wall_clock()
            return Window(wall=(at + span[0], at + span[1]))
        end = max([newest.end, *(frame.end for frame in present.now)])
        return Window(stream=(end + span[0], end + span[1]), source=newest.source)

    def _resolved(self, reading: Reading) -> tuple[Reading, tuple[int, ...]]:
        """Put what the last turn was about in the place of "that"; segments, if it is a time."""
        words = set(reading.anchor.lower().split())
        around = reading.operator in ("before", "after")
        if not self.turns or not (words <= _BACK if words else around):
            return reading, ()
        turn = self.turns[-1]
        return reading._replace(anchor=turn.anchor), turn.segments if around else ()

    # -- computed --

    def _computed(self, question: Question, on_text: OnText | None) -> Answer:
        anchor = question.reading.anchor or question.about
        finding = self._finding(question, anchor)
        captions = self._described(finding.answers[: self.config.passages])
        if finding.events:
            hits = self._scored(finding.used, anchor)
        else:
            hits = self._nearest(anchor, question.window)
        named = len({entry.source for entry in self.kept.cache.entries()}) > 1
        text = value(finding, captions, named=named, zone=self._zone)
        if on_text:
            on_text(text)
        remark = self._remark(question, finding, text, on_text)
        told = finding.answers or finding.used
        self.turns.append(Turn(anchor, tuple(entry.segment for entry in told)))
        evidence = tuple(map(self._evidence, hits))
        return Answer(
            question.text, text, bool(finding.events), "computed", evidence, remark=remark
        )

    def _finding(self, question: Question, anchor: str) -> Finding:
        operator = question.reading.operator
        stretches = self._stretches(question.window)
        if not stretches:
            return Finding(operator, ())
        if question.back:  # what "that" was lies anywhere
            back = question.back
            everything = self._stretches(Window())
            found = events(everything, lambda e: any(e.segment <= id_ <= e.last for id_ in back))
            return compute(operator, stretches, found, (), {}, self.config.passages)
        if not question.reading.anchor and operator in ("first", "last"):
            one = stretches[0 if operator == "first" else -1]
            return compute(operator, stretches, (Event((one,)),), (), {}, 1)
        scores = self._matching(anchor, stretches)
        found = events(stretches, lambda entry: entry.segment in scores)
        seconds: tuple[Event, ...] = ()
        if question.reading.second:
            later = self._matching(question.reading.second, stretches)
            seconds = events(stretches, lambda entry: entry.segment in later)
        return compute(operator, stretches, found, seconds, scores, self.config.passages)

    def _remark(
        self, question: Question, finding: Finding, text: str, on_text: OnText | None
    ) -> str | None:
        """Let the model say a sentence over what was computed."""
        if not (self.config.remark and finding.events):
            return None
        passages = self._passages(finding.answers[: self.config.passages])
        asked = _encodable(question.text[:MAX_PROMPTED])
        generator = self.model.generator
        items = readable(passages, generator.reads)
        prompt = generator.answer_prompt(items, f"({text})\n{asked}")
        if on_text:
            on_text("\n")
        return generate(generator, prompt, self.config.answer, on_text)

    # -- in the model's words --

    def _spoken(self, question: Question, present: Present, on_text: OnText | None) -> Answer:
        reading, window, now = question.reading, question.window, present.now
        pointed = question.reading.anchor not in question.about  # "that" was replaced
        about = f"{reading.anchor}: {question.about}" if pointed else question.about
        key = self.model.text_encoder.sentence_keys([about])[0]
        hits = self._chosen(key, window, present=reading.operator == "now" and bool(now))
        self._described([hit.entry for hit in hits])
        rows = sorted((self._row(hit.entry) for hit in hits), key=lambda e: (e.start, e.segment))
        passages = self._passages(rows)
        if now and self.config.context in ("memory", "now"):
            passages.append(self._shown(present))
        generator = self.model.generator
        items = readable(passages, generator.reads)
        prompt = generator.answer_prompt(items, _encodable(question.text[:MAX_PROMPTED]))
        text = generate(generator, prompt, self.config.answer, on_text)
        best = [hit.visual for hit in hits] or [float(f.key @ key) for f in now if reading.anchor]
        seen = bool(self._passes(key, best, self._num_keys()).any()) if best else bool(now)
        self.turns.append(Turn(reading.anchor, tuple(hit.entry.segment for hit in hits[:1])))
        return Answer(question.text, text, seen, "model", tuple(map(self._evidence, hits)))

    def _chosen(self, key: np.ndarray, window: Window, *, present: bool = False) -> Sequence[Hit]:
        """Choose what is shown; nothing of the past where the ``present`` is asked about."""
        if self.config.context == "now" or present:
            return []
        if self.config.context == "uniform":
            entries = [stretch.entry for stretch in self._stretches(window)]
            return [_hit(entries[i], key) for i in spread(len(entries), self.config.passages)]
        return self._search(key, window)

    def _passages(self, entries: Sequence[Entry]) -> list[EvidenceItem]:
        reads, shows = self.model.generator.reads, self.config.context != "captions"
        items = []
        for entry in entries:
            tokens = self.kept.tokens(entry.segment) if reads.tokens and shows else None
            jpeg = self.kept.keyframe(entry.segment) if reads.pictures and shows else None
            keyframes = (decode_keyframe(jpeg),) if jpeg else ()
            speech = " ".join(note.text for note in entry.notes) or None
            caption = self._row(entry).caption
            items.append(EvidenceItem(entry.start, entry.end, tokens, caption, keyframes, speech))
        return items

    def _shown(self, present: Present) -> EvidenceItem:
        now, tokens = present.now, None
        if (encoder := self.model.segment_encoder) is not None:
            patches = [frame.patches for frame in now if frame.patches is not None]
            frames = SegmentFrames(present.segment, patches, places(now))
            tokens = encoder.encode_segment(frames, present.memory, None).tokens
        keyframes = tuple(frame.picture for frame in now if frame.picture is not None)
        return EvidenceItem(now[0].time, now[-1].end, tokens, keyframes=keyframes)

    def _described(self, entries: Sequence[Entry]) -> dict[int, str]:
        """Caption what has none yet and can be, once; return captions by segment."""
        unsaid = [e for e in map(self._row, entries) if e.caption is None]
        unsaid = [e for e in unsaid if _name(e) not in self._silent]
        unsaid = [e for e in unsaid if self._can_be_described(e)]
        self.describe([Segment(e.segment, e.start, e.end, None, None) for e in unsaid])
        silent = {_name(e) for e in unsaid if self._row(e).caption is None}
        if silent:  # no more of them than there are rows
            self._silent = (self._silent | silent) & set(map(_name, self.kept.cache.entries()))
        return {e.segment: e.caption or "" for e in map(self._row, entries)}

    def _can_be_described(self, entry: Entry) -> bool:
        reads = self.model.generator.reads
        if reads.tokens and self.kept.tokens(entry.segment).numel():
            return True
        return bool(reads.pictures and self.kept.keyframe(entry.segment))

    # -- what is found --

    def _stretches(self, window: Window) -> tuple[Stretch, ...]:
        entries = self.kept.cache.entries()
        if window.source is not None:
            entries = tuple(entry for entry in entries if entry.source == window.source)
        return within(entries, window.stream, window.wall)

    def _search(self, key: np.ndarray, window: Window) -> Sequence[Hit]:
        return self.kept.cache.search(
            key,
            self.config.passages,
            between=window.stream,
            wall=window.wall,
            source=window.source,
        )

    def _nearest(self, anchor: str, window: Window) -> Sequence[Hit]:
        return self._search(self.model.text_encoder.sentence_keys([anchor])[0], window)

    def _scored(self, entries: Sequence[Entry], anchor: str) -> Sequence[Hit]:
        key = self.model.text_encoder.sentence_keys([anchor])[0]
        return [_hit(self._row(entry), key) for entry in entries]

    def _matching(self, anchor: str, stretches: Sequence[Stretch]) -> dict[int, float]:
        """Return the score of every segment above the threshold of "not seen"."""
        if not stretches:
            return {}
        key = self.model.text_encoder.sentence_keys([anchor])[0]
        rows = [stretch.entry for stretch in stretches]
        sizes = np.array([len(row.visual_keys) for row in rows])
        cosines = np.concatenate([row.visual_keys for row in rows]) @ key
        best = np.maximum.reduceat(cosines, np.cumsum(sizes) - sizes)  # of each row
        passed = self._passes(key, best, int(sizes.sum()))
        return {rows[i].segment: float(best[i]) for i in np.flatnonzero(passed)}

    def _passes(self, key: np.ndarray, cosines: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
        """Tell which visual cosines are more than the best of ``n`` chance matches."""
        background = self.model.text_encoder.background.numpy() @ key
        scores = normalise(
            np.asarray(cosines), background, max(2, n), self.model.text_encoder.chance
        )
        return scores > threshold(FALSE_SIGHTINGS)

    def _num_keys(self) -> int:
        return sum(len(entry.visual_keys) for entry in self.kept.cache.entries())

    def _row(self, entry: Entry) -> Entry:
        """Return a row as it is now: captions and merges change it."""
        return self.kept.cache.get(entry.segment) or entry

    def _evidence(self, hit: Hit) -> Evidence:
        entry = self._row(hit.entry)
        speech = " ".join(note.text for note in entry.notes) or None
        return Evidence(
            entry.source, entry.segment, entry.start, entry.end, hit.score,
            keyframe=self.kept.keyframe_path(entry.segment),
            caption=entry.caption, speech=speech,
        )  # fmt: skip


def generate(
    generator: Generator, prompt: Prompt, decoding: GenerationConfig, on_text: OnText | None
) -> str:
    """Generate a reply, pass its pieces on, and return it whole."""
    pieces = []
    for piece in generator.stream(prompt, decoding):
        pieces.append(piece)
        if on_text:
            on_text(piece)
    return "".join(pieces).strip()


def _encodable(text: str) -> str:
    """Replace what no tokenizer takes: halves of a surrogate pair, as a shell may pass them on."""
    return text.encode("utf-8", "replace").decode()


def _name(entry: Entry) -> Row:
    return entry.segment, entry.last


def _chapter(part: Part, captions: Mapping[int, str]) -> Chapter:
    rows = part.rows
    said = tuple(
        Caption(e.segment, e.start, e.end, captions[e.segment].replace("\n", " / "))
        for e in part.central
        if captions[e.segment]
    )
    segments = sum(row.merged for row in rows)
    return Chapter(rows[0].source, rows[0].start, rows[-1].end, segments, said)


def _hit(entry: Entry, key: np.ndarray) -> Hit:
    score = float((entry.visual_keys @ key).max())
    return Hit(entry, score, score, None, score)
