"""Answering: a question becomes operator, time and anchor, these become segments, these an answer.

    answerer = Answerer(model, memory, AnswerConfig(passages=4), describer)
    present = Present((), memory.next_segment, recurrent)
    answer = answerer.ask("When does the dog swim?", present)
    answer.text, answer.seen, answer.evidence
    answerer.find("a dog in the water", 5, present)

What is counted or measured is computed over the timeline and given as it is; sentences are the
language model's own. Changes nothing in the memory but captions that it needs.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from streammem.errors import ConfigError
from streammem.memory.chapters import ChapterRows, default_count, divide
from streammem.memory.entry import Entry, Now, caption_of, decode_keyframe
from streammem.memory.memory import Memory
from streammem.memory.named import NamedThing, Taught, named_in
from streammem.memory.retrieval import (
    DEFAULT_RANKERS,
    EVERYTHING,
    SEEN,
    Clip,
    Hit,
    Query,
    Window,
    check_rankers,
    clipped,
    content_words,
    counted,
    rate,
    scale_of,
    shown_by,
)
from streammem.models.backbones.language import GenerationConfig
from streammem.models.protocols import EvidenceItem, StreamModel, readable
from streammem.models.tiny.model import ANSWER_DECODING
from streammem.perception.frames import SegmentFrames, places, spread
from streammem.qa.checking import check
from streammem.qa.goldfish import as_text, latin_only, nearest_documents, within_limit
from streammem.qa.lookups import Lookups
from streammem.qa.question import (
    AskedQuestion,
    LastSeenQuestion,
    PastTurn,
    Present,
    SaidQuestion,
    find_time,
    looked_at,
    narrowed,
    read_last_seen,
    read_said,
    read_said_description,
    resolved,
    split_options,
    wall_end,
    window_of,
)
from streammem.qa.speech import (
    ALL_WORDS,
    NEAR_BEST,
    NEAR_MEANING,
    NO_WORDS,
    NOTHING_SAID,
    SAID,
    Meanings,
    Quote,
    by_speaker,
    excerpt,
    first_said,
    ranked,
    sentence_of,
    sentences,
    text_of,
    typical,
)
from streammem.qa.steps import StepLimits, answer_in_steps
from streammem.qa.timeline import (
    Appearance,
    Finding,
    after,
    compute,
    find_appearances,
    last_sighting_text,
    newest_of,
    oldest_first,
    value,
)
from streammem.types import (
    Answer,
    Chapter,
    DecidedBy,
    Evidence,
    Moment,
    Note,
    Step,
    TimeSpan,
    wall_clock,
)

MAX_TURNS = 4
NOTHING_SEEN = "nothing was seen then"
MAX_QUOTES = 3  # of a chapter
MAX_SPEECH = 600  # characters of what was said in a scene that a prompt shows
GIVEN = "a picture that was given with the question"

Context = Literal["memory", "now", "uniform", "captions", "goldfish", "goldfish-again"]
Letters = Literal["all", "latin"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
OnText = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AnswerConfig:
    """How questions are answered; ``SessionConfig`` has these options under the same names.

    Attributes:
        passages: segments shown to the language model for an answer, >= 1.
        context: what an answer is read from: ``memory``, or a control: the last frames only
            (``now``), segments spread evenly (``uniform``), captions without tokens (``captions``),
            or Goldfish's way: the text alone of the segments that the ``passages`` nearest captions
            and transcripts are of (``goldfish``), or besides what the model says when it sees each
            of them again with the question (``goldfish-again``).
        remark: let the model add a sentence of its own to an answer that was computed.
        timezone: name in the time zone database, as in ``Europe/Berlin``, that wall-clock words
            are read in; None takes this computer's.
        rankers: ranking rules by name, applied in this order; see ``memory.retrieval.RANKERS``.
        decoding: of answers; ``SessionConfig.answer``.
        steps: times that the generator is asked for one answer, in [1, 32]. Above 1 it may look
            things up before it answers, see ``lookups.py``, and every question is answered in its
            words; what is computed is handed to it.
        steps_s: seconds after which it must answer, > 0.
        verify: let a generator that reads pictures look at the nearest scenes where the keys say
            "not seen": its yes overrules them.
        letters: of the text that Goldfish's contexts read: ``all``, or ``latin`` ones with digits
            and apostrophes alone, as Goldfish, in which text in other scripts vanishes.

    Raises:
        ConfigError: a value that cannot be meant.
    """

    passages: int = 4
    context: Context = "memory"
    remark: bool = False
    timezone: str | None = None
    rankers: tuple[str, ...] = DEFAULT_RANKERS
    decoding: GenerationConfig = ANSWER_DECODING
    steps: int = 1
    steps_s: float = 300.0
    verify: bool = False
    letters: Letters = "all"

    def __post_init__(self) -> None:
        _ = self.limits  # refuses steps that cannot be meant
        if self.letters not in ("all", "latin"):
            raise ConfigError(f"letters={self.letters!r}: give all or latin")
        if self.context not in CONTEXTS:
            raise ConfigError(f"context {self.context!r}: give one of {', '.join(CONTEXTS)}")
        if self.passages < 1:
            raise ConfigError("passages must be >= 1")
        check_rankers(self.rankers)
        try:
            self.zone()
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            known = "give one such as Europe/Berlin"
            raise ConfigError(f"timezone {self.timezone!r}: not known; {known}") from error

    @property
    def limits(self) -> StepLimits:
        """How long the generator may look."""
        return StepLimits(self.steps, self.steps_s)

    def zone(self) -> tzinfo | None:
        """Return the time zone; None is this computer's."""
        return None if self.timezone is None else ZoneInfo(self.timezone)


class Describer(Protocol):
    """What an answerer needs of a captioner."""

    def describe(self, entries: Sequence[Entry]) -> object:
        """Caption these rows, which have tokens and no caption, and keep the captions."""
        ...


@dataclass(eq=False)
class Answerer:
    """Answers questions from one memory and keeps the last few turns.

    Args:
        model: reads questions and writes answers.
        memory: what was seen.
        config: options.
        describer: captions the rows that an answer rests on.
        wall_clock: returns the present in Unix seconds, for "yesterday" and the age of rows.
        file_of: returns the video file that a row was seen in, where it is at hand, for pictures
            that were never stored.
        keys_elsewhere: keys in other memories that a question is compared with as well: scores
            are those of one memory that holds all.

    Raises:
        ConfigError: steps of a generator that calls no tools, ``verify`` of one that reads no
            pictures.
    """

    model: StreamModel
    memory: Memory
    config: AnswerConfig
    describer: Describer
    wall_clock: Callable[[], float] = time.time
    file_of: Callable[[Entry], Path | None] = field(default=lambda entry: None)
    keys_elsewhere: int = 0
    turns: deque[PastTurn] = field(default_factory=lambda: deque(maxlen=MAX_TURNS))
    # Rows, by first and last segment, that were described in vain: nothing of them was sure.
    _unsure: frozenset[tuple[int, int]] = frozenset()
    _meanings: Meanings = field(init=False)
    _things: tuple[tuple[Taught, ...], tuple[NamedThing, ...]] = ((), ())

    def __post_init__(self) -> None:
        self._meanings = Meanings(self.model.text_encoder)
        if self.config.steps == 1 and not self.config.verify:
            return  # asked no more than this: what it reads may not be known before it is open
        reads, name = self.model.answer_generator.reads, self.model.name
        if self.config.steps > 1 and not reads.tools:
            raise ConfigError(
                f"steps {self.config.steps}: {name} cannot call tools, so it answers in one step; "
                "leave steps out, or answer with a model that calls tools"
            )
        if self.config.verify and not reads.pictures:
            raise ConfigError(
                f"verify: {name} reads no pictures, so it cannot check what was not seen; leave "
                "verify out, or answer with a model that reads pictures"
            )

    def ask(
        self,
        text: str,
        present: Present,
        on_text: OnText | None = None,
        pictures: Sequence[np.ndarray] = (),
        within: Window = EVERYTHING,
        *,
        in_words: bool = False,
    ) -> Answer:
        """Answer from what was seen so far.

        Args:
            text: the question. Options that it lists behind it, as in ``A. red``, are shown to the
                model, which then answers in its own words; they are not looked for.
            present: where the stream stands.
            on_text: called with each piece of the answer as it comes, and with empty ones while a
                server is waited for; of a computed one with what was computed as a whole, then with
                each piece of the model's remark.
            pictures: [H, W, 3] uint8 RGB each, which the question is about; the model then answers
                in its own words, since nothing is computed from them.
            within: the part of the memory to answer from; times in the question narrow it.
            in_words: compute nothing; the model answers in its own words.

        Raises:
            ConfigError: time words that name no time, or more pictures than the generator reads.
        """
        most = self.model.answer_generator.reads.pictures
        if len(pictures) > most:
            raise ConfigError(f"{len(pictures)} pictures with a question; the model reads {most}")
        now = self._now(present)
        clean, options = split_options(_encodable(text))
        in_words = in_words or bool(options)
        zone, newest = self.config.zone(), newest_of(self.memory.entries(), within.source)
        words = find_time(clean, now=now.wall, zone=zone, newest=wall_end(newest))
        about = words.text if words and words.text else clean
        reading, back = resolved(self.model.text_encoder.read_question(about), self.turns)
        window = narrowed(window_of(words, newest, now), within)
        question = AskedQuestion(
            text, about, reading, window, now, back, looked_at(window, zone), within,
            options,
        )  # fmt: skip
        computes = self.config.context in ("memory", "captions") and not (in_words or pictures)
        if computes and (said := read_said(about)):
            return self._said(question, said, on_text, present)
        in_one_step = self.config.steps == 1  # else what is computed is handed to the model
        computed: Answer | None = None
        if computes and (lost := read_last_seen(about)):
            computed = self._last_seen(question, lost, on_text if in_one_step else None)
        elif computes and reading.operator not in ("describe", "now"):
            computed = self._computed(question, on_text if in_one_step else None)
        if computed and in_one_step:
            return computed
        if computed:
            self.turns.pop()  # this turn is noted once more
        if within != EVERYTHING or (words and not words.from_end):
            present = present._replace(now=())  # it is not what was asked about
        known = computed.text if computed else ""
        return self._in_words(question, present, on_text, pictures, known)

    def thing_of(self, text: str) -> str:
        """Return what a question asks about, without its time words; the question where unclear."""
        words = find_time(_encodable(text), now=self.wall_clock(), zone=self.config.zone())
        about = words.text if words and words.text else _encodable(text)
        return self.model.text_encoder.read_question(about).anchor or about

    def lookups(self, present: Present, within: Window = EVERYTHING) -> Lookups:
        """Return the functions by which a model, or an agent, looks into the memory."""
        now = self._now(present)
        return Lookups(
            memory=self.memory,
            query_of=lambda text: self._query(_encodable(text), now, within),
            describe=self._described,
            now=now,
            rankers=self.config.rankers,
            zone=self.config.zone(),
            within=within,
            file_of=self.file_of,
        )

    def find(
        self, query: str, count: int, present: Present, within: Window = EVERYTHING
    ) -> tuple[Moment, ...]:
        """Find the moments that a description fits best, best first.

        Scenes that show it come before those in which it is only said; of "they mention the
        harbour" those in which it is said.
        """
        text = _encodable(query)
        said = read_said_description(text)
        asked = self._query(said.topic if said and said.topic else text, self._now(present), within)
        if said and said.topic:
            asked = asked._replace(spoken=True, heard=True, things=(), name=None)
        hits: Sequence[Hit] = self.memory.search(asked, within, count, self.config.rankers)
        if heard := [clip.entry for clip in _heard_clips(present, within)]:
            # Of the open scene only what is said is found: its row is not there to be shown.
            words = [h for h in rate(heard, asked, self.config.rankers) if h.matched == "speech"]
            hits = sorted((*hits, *words), key=lambda hit: (-hit.ranked, -hit.cosine))[:count]
        return tuple(
            Moment(**self._fields(hit, asked.words), rank=rank)
            for rank, hit in enumerate(hits, start=1)
        )

    def evidence(self, question: str, present: Present) -> tuple[tuple[Evidence, ...], bool]:
        """Return all rows, those nearest to a question first, and whether they show what it asks.

        For a generator that answers from everything: it is not told what was found.
        """
        query = self._query(_encodable(question), self._now(present), EVERYTHING)
        hits = self.memory.search(query, rankers=self.config.rankers)
        rows = tuple(Evidence(**self._fields(hit, query.words)) for hit in hits)
        return rows, any(hit.seen for hit in hits)

    def chapters(
        self, count: int | None, within: Window = EVERYTHING, gap_s: float = math.inf
    ) -> tuple[Chapter, ...]:
        """Divide what was seen into chapters, each with the captions of its central scenes.

        Each also quotes what is typical of what was said in it.

        Args:
            count: chapters at most; by default the square root of the number of rows, 24 at most.
            within: what overlaps it.
            gap_s: see ``divide``.
        """
        entries = [clip.entry for clip in self._clips(within)]
        parts = divide(entries, default_count(len(entries)) if count is None else count, gap_s)
        captions = self._described([entry for part in parts for entry in part.central])
        said = [sentences([Clip(row, -math.inf, math.inf) for row in part.rows]) for part in parts]
        return tuple(
            self._chapter(part, captions, quotes)
            for part, quotes in zip(parts, typical(said, MAX_QUOTES), strict=True)
        )

    def _chapter(
        self, part: ChapterRows, captions: Mapping[int, str], quotes: Sequence[Quote]
    ) -> Chapter:
        rows = part.rows
        shown = [caption_of(self._row(entry)) for entry in part.central if captions[entry.segment]]
        said = tuple(replace(c, text=c.text.replace("\n", " / ")) for c in shown)
        wall = _wall_start(rows[0], self.config.zone())
        segments = sum(row.merged for row in rows)
        spoken = tuple(Note(quote.start, quote.end, quote.text) for quote in quotes)
        return Chapter(rows[0].source, rows[0].start, rows[-1].end, segments, said, wall, spoken)

    # -- where something was seen last --

    def _last_seen(
        self, question: AskedQuestion, asked: LastSeenQuestion, on_text: OnText | None
    ) -> Answer:
        """Answer with the last sighting, what it showed and what came after it."""
        # 1. The action where one is asked about, else the thing; what the thing was taught as.
        phrases = [phrase for phrase in (asked.action, asked.thing) if phrase]
        queries = [
            self._query(phrase, question.now, question.window, question.about) for phrase in phrases
        ]
        if asked.action:  # a picture of the thing does not show what was done to it
            queries[0] = queries[0]._replace(things=())
        queries = [query._replace(heard=False) for query in queries]
        # 2. Its appearances in the time asked about, or else before it.
        window, number = question.window, 0
        found: tuple[Appearance, ...] = ()
        tries = [(each, n) for each in _and_before(window) for n in range(len(queries))]
        for window, number in tries:
            self._described([hit.entry for hit in self._search(queries[number], window)])
            scores = alone = self._scores(queries[number], window)
            if number < len(queries) - 1:
                # On one scale with the action, which has no name.
                alone = self._scores(queries[-1]._replace(name=None), window)
            # A scene that shows the thing is near its action, too: it shows the action where it
            # fits that at least as well as the thing alone.
            matching = {s for s, score in scores.items() if score >= max(SEEN, alone[s])}
            found = find_appearances(self._clips(window), _of(matching))
            if found:
                break
        in_time = bool(found) and window == question.window
        seen = in_time and number == 0
        # 3. The words of that sighting, and what came next.
        rows = oldest_first(self.memory.entries(), lambda entry: entry)
        last = found[-1] if found else None
        following = after(self._clips(question.within), last, 2) if last else ()
        shown = [last.clips[-1].entry, *(clip.entry for clip in following)] if last else []
        captions = self._described(shown)
        text = last_sighting_text(
            asked, found, following, captions,
            seen_thing_only=bool(asked.action) and number == 1,
            in_time=in_time, is_newest=bool(last and rows[-1].segment == shown[0].segment),
            age_s=shown[0].age(question.now) if shown else 0.0,
            named=len({entry.source for entry in rows}) > 1, zone=self.config.zone(),
        )  # fmt: skip
        if on_text:
            on_text(text)
        # 4. Evidence: the sighting and what followed; the nearest there is where nothing was seen.
        query = queries[number if found else -1]
        if shown:
            hits = rate([self._row(entry) for entry in shown], query, self.config.rankers)
        else:
            hits = tuple(self._search(query, question.window))
        self.turns.append(PastTurn(asked.thing, tuple(entry.segment for entry in shown[:1])))
        return Answer(
            question.text, text, seen, "computed",
            tuple(Evidence(**self._fields(hit, query.words)) for hit in hits),
            looked_at=question.looked_at,
        )  # fmt: skip

    # -- what was said --

    def _said(
        self,
        question: AskedQuestion,
        asked: SaidQuestion,
        on_text: OnText | None,
        present: Present,
    ) -> Answer:
        """Answer with the sentences that were said, or that there was none."""
        # 1. The sentences of the window, those of the speaker who is asked about first.
        clips = self._clips(question.window) + _heard_clips(present, question.window)
        heard = by_speaker(sentences(clips), asked.speaker)
        looked, whole = question.looked_at, read_said(_encodable(question.text))
        if not heard and asked.topic and whole and whole.topic != asked.topic:
            # "What did they say about the car that comes on Monday?": the time is of the topic.
            clips = self._clips(question.within) + _heard_clips(present, question.within)
            heard, asked, looked = by_speaker(sentences(clips), whole.speaker), whole, None
        anything = not asked.topic
        near = [replace(q, score=1.0) for q in heard] if anything else ranked(heard, asked.topic)
        margin = NEAR_BEST
        # Whether, and how often, is told of words that were said, not of what is like them.
        is_plain = asked.kind in ("whether", "count") or (near and near[0].score >= ALL_WORDS)
        if heard and not is_plain:
            alike = self._meanings.ranked(heard, asked.topic, _encodable(question.text))
            if alike[0].score >= SAID or not near:
                near, margin = alike, NEAR_MEANING
        least = max(SAID, near[0].score - margin) if near else SAID
        found = [quote for quote in near if quote.score >= least]
        # 2. The answer: quotes with their times.
        shown = found if asked.kind == "count" else found[: self.config.passages]
        named = len({quote.entry.source for quote in heard}) > 1
        text = text_of(asked, shown, len(found) - len(shown), named=named)
        if not heard:
            rows = (*self.memory.entries(), *filter(None, [present.heard]))
            known = any(note.kind == "speech" for entry in rows for note in entry.notes)
            text = NOTHING_SAID if known else NO_WORDS
        if on_text:
            on_text(text)
        # 3. The evidence: what is quoted; the nearest there is where nothing is.
        cited = shown or near[: self.config.passages]
        self.turns.append(PastTurn(asked.topic, tuple(quote.entry.segment for quote in cited)))
        return Answer(
            question.text, text, bool(found), "computed",
            tuple(self._quoted(quote) for quote in cited), looked_at=looked,
        )  # fmt: skip

    def _quoted(self, quote: Quote) -> Evidence:
        entry, wall_start = self._row(quote.entry), None
        if entry.wall_start is not None:
            at = entry.wall_start + quote.start - entry.start
            wall_start = wall_clock(at, self.config.zone())
        return Evidence(
            source=entry.source,
            segment=entry.segment,
            start=quote.start,
            end=quote.end,
            score=quote.score,
            keyframe=self._keyframe_path(entry),
            caption=entry.caption,
            speech=quote.text,
            wall_start=wall_start,
            matched="speech",
            quote=quote.text,
            said_at=quote.at,
            reason="unsure" if _is_cut(entry) else None,
        )

    # -- computed --

    def _computed(self, question: AskedQuestion, on_text: OnText | None) -> Answer:
        anchor = question.reading.anchor or question.about
        if not self._clips(question.window):
            return self._nothing_seen(question, anchor, on_text)
        anchors = [anchor, *filter(None, [question.reading.second])]
        queries = [
            self._query(each, question.now, question.window, question.about)._replace(heard=False)
            for each in anchors
        ]
        query = queries[0]
        # 1. The words of the nearest scenes count too: they are what the answer would print.
        if question.reading.anchor and not question.back:
            for each in queries:
                self._described([hit.entry for hit in self._search(each, question.window)])
        # 2. What matches, and what the operator makes of it.
        finding, decided_by = self._finding(question, queries), None
        checks = self.config.verify and not question.back and not question.reading.second
        if checks and not finding.appearances:
            nearest = self._search(query, question.window)
            also, decided_by = self._checked([hit.entry for hit in nearest], anchor, on_text)
            finding = self._finding(question, queries, also)
        captions = self._described(finding.answers[: self.config.passages])
        # 3. The value as data, then the model's sentence.
        named = len({entry.source for entry in self.memory.entries()}) > 1
        text = value(finding, captions, named=named, zone=self.config.zone())
        if finding.unseen:
            text += f": {' and '.join(anchors[i] for i in finding.unseen)}"
            query = queries[finding.unseen[0]]  # the evidence is what is nearest to that
        if on_text:
            on_text(text)
        remark = self._remark(question, finding, text, on_text)
        # 4. Evidence: every row it rests on; the nearest there is where nothing was seen.
        if finding.appearances:
            hits = rate([self._row(entry) for entry in finding.used], query, self.config.rankers)
        else:
            hits = tuple(self._search(query, question.window))
        shown = finding.answers or finding.used
        self.turns.append(PastTurn(anchor, tuple(entry.segment for entry in shown)))
        return Answer(
            question.text, text, bool(finding.appearances), "computed",
            tuple(Evidence(**self._fields(hit, query.words)) for hit in hits),
            remark=remark, looked_at=question.looked_at, decided_by=decided_by,
        )  # fmt: skip

    def _nothing_seen(self, question: AskedQuestion, anchor: str, on_text: OnText | None) -> Answer:
        """Answer where there is nothing to show, without the model."""
        if on_text:
            on_text(NOTHING_SEEN)
        self.turns.append(PastTurn(anchor, ()))
        return Answer(question.text, NOTHING_SEEN, False, "computed", looked_at=question.looked_at)

    def _checked(
        self, entries: Sequence[Entry], anchor: str, on_text: OnText | None
    ) -> tuple[frozenset[int], DecidedBy | None]:
        """Let the generator look at rows; return those that it says show it, and who decided."""
        shown = [entry for entry in entries if self.memory.keyframe(entry.segment)]
        items = self._items(shown, looks=True)  # whatever the context: that is what it is asked for
        on_wait = (lambda: on_text("")) if on_text else None
        verdicts = check(self.model.answer_generator, items, anchor, on_wait)
        yes = {e.segment for e, verdict in zip(shown, verdicts, strict=True) if verdict}
        decided = any(verdict is not None for verdict in verdicts)
        return frozenset(yes), "model" if decided else "keys"

    def _finding(
        self,
        question: AskedQuestion,
        queries: Sequence[Query],
        also: frozenset[int] = frozenset(),
    ) -> Finding:
        """Compute what a question asks.

        Args:
            question: as it was read.
            queries: of its anchor, and of the second one where it has one.
            also: segments that match the anchor whatever their keys say.
        """
        reading, count = question.reading, self.config.passages
        operator = reading.operator
        if operator == "between" and not reading.second:
            operator = "when"  # one thing has nothing between
        clips = self._clips(question.window)
        if question.back:  # what "that" was lies anywhere
            found = find_appearances(
                self._clips(Window()),
                lambda e: any(e.segment <= id_ <= e.last for id_ in question.back),
            )
            return compute(operator, clips, found, (), {}, count)
        if not reading.anchor and operator in ("first", "last"):
            in_order = oldest_first(clips, lambda clip: clip.entry)
            one = in_order[0 if operator == "first" else -1]
            return compute(operator, clips, (Appearance((one,)),), (), {}, 1)
        matching = [self._matching(query, question.window) for query in queries]
        matching[0] |= dict.fromkeys(also, SEEN)

        def appearances(scores: dict[int, float]) -> tuple[Appearance, ...]:
            return find_appearances(clips, lambda entry: entry.segment in scores)

        found, *others = map(appearances, matching)
        return compute(operator, clips, found, others[0] if others else (), matching[0], count)

    def _matching(self, query: Query, window: Window) -> dict[int, float]:
        """Return the score of every segment of the window that counts as showing it."""
        hits = self.memory.search(query, window, rankers=self.config.rankers)
        return {hit.entry.segment: hit.ranked for hit in counted(hits, query)}

    def _scores(self, query: Query, window: Window) -> dict[int, float]:
        """Return how likely each segment of the window shows what is looked for, in [0, 1]."""
        hits = self.memory.search(query, window, rankers=self.config.rankers)
        return {hit.entry.segment: hit.score for hit in hits}

    def _remark(
        self, question: AskedQuestion, finding: Finding, text: str, on_text: OnText | None
    ) -> str | None:
        """Let the model add a sentence to what was computed."""
        if not (self.config.remark and finding.appearances):
            return None
        items = self._items(finding.answers[: self.config.passages])
        asked = _encodable(question.prompted)
        if on_text:
            on_text("\n")
        return self._generate(items, f"({text})\n{asked}", on_text)[0]

    # -- in the model's words --

    def _in_words(
        self,
        question: AskedQuestion,
        present: Present,
        on_text: OnText | None,
        pictures: Sequence[np.ndarray],
        computed: str = "",
    ) -> Answer:
        reading, now = question.reading, present.now
        # 1. The rows to read from; none of the past where the present is asked about.
        pointed = reading.anchor not in question.about  # "that" was replaced
        about = f"{reading.anchor}: {question.about}" if pointed else question.about
        if computed:  # from the anchor, so that this is what it hands on
            about = reading.anchor or question.about
        query = self._query(about, question.now, question.window, question.about)
        query = query._replace(words=content_words(reading.anchor or about))
        hits: Sequence[Hit] = ()
        as_goldfish = self.config.context in ("goldfish", "goldfish-again")
        if as_goldfish:
            hits = self._documents(question, query)
        elif self.config.context != "now" and not (reading.operator == "now" and now):
            choose = self._spread if self.config.context == "uniform" else self._search
            hits = choose(query, question.window)
        shows_now = now if self.config.context in ("memory", "now") else ()
        if not hits and not shows_now:
            return self._nothing_seen(question, reading.anchor, on_text)
        # 2. The prompt: what they show and their captions, in time order, then the present.
        self._described([hit.entry for hit in hits])
        hits = rate([self._row(hit.entry) for hit in hits], query, self.config.rankers)
        if self.config.context != "uniform":
            hits = sorted(hits, key=lambda hit: -hit.ranked)
        by_stream = sorted(hits, key=lambda hit: (hit.entry.start, hit.entry.segment))
        in_order = oldest_first(by_stream, lambda hit: hit.entry)
        items = self._items(
            [hit.entry for hit in in_order], [hit.score for hit in in_order], query.words
        )
        if shows_now:
            items.append(self._present_item(present))
        asked = _encodable(question.prompted)
        if as_goldfish:
            items = self._texts(items, [hit.entry for hit in in_order], asked)
        text, left_out, steps = "", 0, tuple[Step, ...]()
        if self.config.steps > 1 and not pictures:
            asked = _with_numbers(asked, [hit.entry for hit in in_order], computed)
            lookups = self.lookups(present, question.within)
            text, steps = answer_in_steps(
                self.model.answer_generator,
                items,
                asked,
                lookups,
                self.config.decoding,
                self.config.limits,
                on_wait=(lambda: on_text("")) if on_text else None,
            )
            if text and on_text:
                on_text(text)
        if not text:
            text, left_out = self._generate(items, asked, on_text, pictures)
        # 3. Whether it was seen, and the evidence: what it looked up, too; the present where
        # nothing else was shown.
        known = {hit.entry.segment for hit in hits}
        looked = dict.fromkeys(s for step in steps for s in step.segments if s not in known)
        rows = [row for row in map(self.memory.get, looked) if row is not None]
        if rows:
            hits = sorted(
                (*hits, *rate(rows, query, self.config.rankers)), key=lambda hit: -hit.ranked
            )
        evidence = [Evidence(**self._fields(hit, query.words)) for hit in hits]
        seen, decided_by = any(hit.seen for hit in hits), None
        if self.config.verify and hits and not seen and reading.anchor:
            nearest = [hit.entry for hit in hits[: self.config.passages]]
            yes, decided_by = self._checked(nearest, reading.anchor, on_text)
            seen = bool(yes)
        if not hits:
            evidence = [self._present_evidence(present, query)]
            seen = not reading.anchor or evidence[0].score >= SEEN
        self.turns.append(PastTurn(reading.anchor, tuple(hit.entry.segment for hit in hits[:1])))
        return Answer(
            question.text, text, seen, "model", tuple(evidence),
            looked_at=question.looked_at, left_out=left_out, steps=steps,
            decided_by=decided_by,
        )  # fmt: skip

    def _spread(self, query: Query, window: Window) -> Sequence[Hit]:
        """Return rows that lie evenly over the window, oldest first."""
        entries = [clip.entry for clip in self._clips(window)]
        chosen = [entries[i] for i in spread(len(entries), self.config.passages)]
        return rate(chosen, query, self.config.rankers)

    def _documents(self, question: AskedQuestion, query: Query) -> Sequence[Hit]:
        """Return the rows whose caption or transcript is nearest to the bare question."""
        rows = [clip.entry for clip in self._clips(question.window)]
        self._described(rows)  # a caption is a document, so each row needs one
        key = self.model.text_encoder.sentence_keys([_encodable(question.text)])[0]
        chosen = nearest_documents([self._row(row) for row in rows], key, self.config.passages)
        return rate(chosen, query, self.config.rankers)

    def _texts(
        self, items: Sequence[EvidenceItem], entries: Sequence[Entry], question: str
    ) -> list[EvidenceItem]:
        """Turn evidence into text; first ask of each row again, where the context says so."""
        again = self.config.context == "goldfish-again"
        texts = []
        for item, entry in zip(items, entries, strict=True):
            reply = self._generate([item], question, None)[0] if again else ""
            text = as_text(item, entry.notes, reply)
            texts.append(latin_only(text) if self.config.letters == "latin" else text)
        return within_limit(texts)

    def _items(
        self,
        entries: Sequence[Entry],
        scores: Sequence[float] = (),
        words: frozenset[str] = frozenset(),
        *,
        looks: bool = False,
    ) -> list[EvidenceItem]:
        """Make evidence of rows and their scores, with what the generator reads of them.

        Of what was said it is shown MAX_SPEECH characters, those that share ``words`` first. It
        ``looks`` at them also where it answers from their text alone.
        """
        reads = self.model.answer_generator.reads
        shows = looks or self.config.context not in ("captions", "goldfish")
        items = []
        for entry, score in zip(entries, scores or [1.0] * len(entries), strict=True):
            tokens = self.memory.tokens(entry.segment) if reads.tokens and shows else None
            jpeg = self.memory.keyframe(entry.segment) if reads.pictures and shows else None
            keyframes = (decode_keyframe(jpeg),) if jpeg else ()
            heard = excerpt(entry.notes, words, MAX_SPEECH) if entry.notes else ()
            caption = self._row(entry).caption
            items.append(
                EvidenceItem(
                    entry.start,
                    entry.end,
                    tokens,
                    caption,
                    keyframes,
                    " ".join(note.shown for note in heard) or None,
                    score,
                    entry.notes,
                    heard=heard,
                )
            )
        return items

    def _present_item(self, present: Present) -> EvidenceItem:
        now, tokens = present.now, None
        if (encoder := self.model.segment_encoder) is not None:
            patches = [frame.patches for frame in now if frame.patches is not None]
            times = [frame.time for frame in now]
            frames = SegmentFrames(present.segment, patches, places(now), times)
            tokens = encoder.encode_segment(frames, present.memory, None).tokens
        keyframes = tuple(frame.picture for frame in now if frame.picture is not None)
        return EvidenceItem(now[0].time, now[-1].end, tokens, keyframes=keyframes)

    def _present_evidence(self, present: Present, query: Query) -> Evidence:
        now = present.now
        keys = np.stack([frame.key for frame in now])
        cosine = float((keys @ query.key).max())
        (score,) = scale_of(query).probability(shown_by(query, [keys])).tolist()
        return Evidence(
            present.source, present.segment, now[0].time, now[-1].end, score, cosine=cosine
        )

    def _generate(
        self,
        items: Sequence[EvidenceItem],
        question: str,
        on_text: OnText | None,
        pictures: Sequence[np.ndarray] = (),
    ) -> tuple[str, int]:
        """Let the generator answer from evidence; pass its pieces on.

        Returns:
            The whole answer, and how many pictures of the evidence it had no room for.
        """
        generator = self.model.answer_generator
        reads = generator.reads
        # The pictures of the question come first: evidence has what is left of the places.
        shown = readable(items, reads._replace(pictures=reads.pictures - len(pictures)))
        left_out = sum(len(item.keyframes) for item in items) if reads.pictures else 0
        left_out -= sum(len(item.keyframes) for item in shown)
        if pictures:
            end = max((item.end for item in items), default=0.0)
            shown.append(EvidenceItem(end, end, caption=GIVEN, keyframes=tuple(pictures)))
        prompt = generator.answer_prompt(shown, question)
        pieces = []
        for piece in generator.stream(prompt, self.config.decoding):
            pieces.append(piece)
            if on_text:
                on_text(piece)
        return "".join(pieces).strip(), left_out

    def _described(self, entries: Sequence[Entry]) -> dict[int, str]:
        """Caption what has none yet and can be, once; return captions by segment."""
        bare = [e for e in map(self._row, entries) if e.caption is None]
        bare = [e for e in bare if _ids(e) not in self._unsure]
        bare = [e for e in bare if self._can_be_described(e)]
        if bare:
            self.describer.describe(bare)
            unsure = {_ids(e) for e in bare if self._row(e).caption is None}
            if unsure:  # no more of them than there are rows
                self._unsure = (self._unsure | unsure) & set(map(_ids, self.memory.entries()))
        rows = map(self._row, entries)
        cut = " … (unsure)"
        return {e.segment: (e.caption or "") + cut * _is_cut(e) for e in rows}

    def _can_be_described(self, entry: Entry) -> bool:
        reads = self.model.generator.reads
        if reads.tokens and self.memory.tokens(entry.segment).numel():
            return True
        return bool(reads.pictures and self.memory.keyframe(entry.segment))

    # -- what is found --

    def _now(self, present: Present) -> Now:
        """Return the present; the source that goes on stands where its last frame ends."""
        now = self.memory.now(self.wall_clock())
        if not present.now:
            return now
        end = max(now.ends.get(present.source, 0.0), *(frame.end for frame in present.now))
        return now._replace(ends={**now.ends, present.source: end})

    @property
    def things(self) -> tuple[NamedThing, ...]:
        """Return the things that the memory was taught, as rows are compared with them."""
        taught = self.memory.taught()
        if taught is not self._things[0]:
            background = self.model.text_encoder.background.numpy()
            self._things = taught, tuple(NamedThing.of(each, background) for each in taught)
        return self._things[1]

    def _query(self, text: str, now: Now, window: Window, asked: str = "") -> Query:
        """Return what a description is looked for by.

        Args:
            text: of it.
            now: when it is asked.
            window: where it is looked for.
            asked: the question that it was read from, which names a thing in full.
        """
        encoder = self.model.text_encoder
        key = encoder.sentence_keys([text])[0]
        background = encoder.background.numpy() @ key
        if window == EVERYTHING:
            num_keys = self.memory.num_keys
        else:
            num_keys = sum(len(clip.entry.visual_keys) for clip in self._clips(window))
        num_keys += self.keys_elsewhere
        words = content_words(text)
        things: tuple[NamedThing, ...] = ()
        if known := self.things:
            things = named_in(known, text) or tuple(
                thing for thing in named_in(known, asked) if content_words(thing.name) & words
            )
        name = None if things else encoder.name_readout(text)
        return Query(
            key, now, background, encoder.null, words, num_keys,
            heard=not things, things=things, name=name,
        )  # fmt: skip

    def _search(self, query: Query, window: Window) -> Sequence[Hit]:
        return self.memory.search(query, window, self.config.passages, self.config.rankers)

    def _clips(self, window: Window) -> tuple[Clip, ...]:
        return clipped(self.memory.entries(), window)

    def _keyframe_path(self, entry: Entry) -> str | None:
        is_kept = self.memory.get(entry.segment) is not None  # the open scene is not
        return self.memory.keyframe_path(entry.segment) if is_kept else None

    def _row(self, entry: Entry) -> Entry:
        """Return a row as it is now: captions and merges change it."""
        return self.memory.get(entry.segment) or entry

    def _fields(self, hit: Hit, words: frozenset[str]) -> dict[str, Any]:
        """Return the fields of a hit's ``Evidence``, with the row's text as it is now.

        Args:
            hit: a row.
            words: of the question, which decide what is quoted of a row that was matched by speech.
        """
        entry = self._row(hit.entry)
        quote = sentence_of(entry, words) if hit.matched == "speech" else None
        return {
            "source": entry.source,
            "segment": entry.segment,
            "start": entry.start,
            "end": entry.end,
            "score": hit.score,
            "keyframe": self._keyframe_path(entry),
            "caption": entry.caption,
            "speech": " ".join(note.shown for note in entry.notes) or None,
            "matched": hit.matched,
            "cosine": hit.cosine,
            "wall_start": _wall_start(entry, self.config.zone()),
            "quote": quote and quote.text,
            "said_at": quote and first_said(quote.notes, words),
            "reason": "unsure" if _is_cut(entry) else None,
            "names": tuple(thing.name for thing in self.things if thing.excess(entry) >= 0),
        }


def _heard_clips(present: Present, window: Window) -> tuple[Clip, ...]:
    """Return what was said in the open scene, cut to a window."""
    return clipped([present.heard], window) if present.heard else ()


def _of(segments: Container[int]) -> Callable[[Entry], bool]:
    return lambda entry: entry.segment in segments


def _and_before(window: Window) -> tuple[Window, ...]:
    """Return a window, and the time before it where it has a begin."""
    stream, wall = window.stream, window.wall
    if stream is None and wall is None:
        return (window,)
    before = window._replace(
        stream=stream and TimeSpan(-math.inf, stream.start),
        wall=wall and TimeSpan(-math.inf, wall.start),
    )
    return window, before


def _encodable(text: str) -> str:
    """Replace what no tokenizer takes: halves of a surrogate pair, as a shell may pass them on."""
    return text.encode("utf-8", "replace").decode()


def _with_numbers(question: str, entries: Sequence[Entry], computed: str) -> str:
    """Add to a question what a model needs to look further: the numbers of what it is shown."""
    lines = [question]
    if computed:
        lines.append(f"(Computed from what was seen, perhaps wrong: {computed})")
    if entries:
        numbers = ", ".join(str(entry.segment) for entry in entries)
        lines.append(f"(The scenes shown are, in this order, numbers {numbers}.)")
    return "\n".join(lines)


def _ids(entry: Entry) -> tuple[int, int]:
    return entry.segment, entry.last


def _is_cut(entry: Entry) -> bool:
    """Return whether its caption, of which there is some, was cut as unsure."""
    return bool(entry.caption and caption_of(entry).reason)


def _wall_start(entry: Entry, zone: tzinfo | None) -> str | None:
    return None if entry.wall_start is None else wall_clock(entry.wall_start, zone)
