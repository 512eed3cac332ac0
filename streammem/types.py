"""The values that cross module borders: frames in, events out.

No behaviour beyond printing lives here, and nothing that needs torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Literal, NamedTuple

import numpy as np

Reason = Literal["cut", "max", "end"]
Method = Literal["model", "computed"]
Matched = Literal["picture", "name", "caption", "speech"]
DecidedBy = Literal["keys", "model"]


class TimeSpan(NamedTuple):
    """An interval of time [start, end), in seconds; ``end`` may be inf."""

    start: float
    end: float


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded picture.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, upright (rotation already applied).
        time: presentation time in seconds. Of a file, on its own clock, as players show it: the
            first frame's is ``VideoSource.start_time``, 0 in most files. Of a live source, since
            its first frame.
        duration: seconds that the frame is shown; the last frame's end is ``time + duration``.
        index: number of the frame among all frames of the source, from 0.
    """

    pixels: np.ndarray
    time: float
    duration: float
    index: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A scene: the half-open span [start, end) in seconds.

    Attributes:
        id: number within the session, from 0.
        depth: SceneTilling's depth score of the boundary that ends it; None without one.
        reason: ``cut`` (a boundary), ``max`` (the length bound), ``end`` (the stream's end); None
            where it is not known any more, as in a memory.
    """

    id: int
    start: float
    end: float
    depth: float | None
    reason: Reason | None

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"[{clock(self.start)}-{clock(self.end)}] scene {self.id}{why}"


@dataclass(frozen=True, slots=True)
class Caption:
    """The language model's words for a segment.

    Attributes:
        confidence: in [0, 1], how likely all nouns of the text are right, or a noun of it where the
            text was not chosen among several; None where no score exists.
        reason: ``unsure`` where the model is not sure enough of all that it said; the text is then
            its first words, which may be all of them, or empty. An empty one always has it.
        likelihood: in (0, 1], the geometric mean of the probabilities that the model itself gave
            the words' tokens. It was fitted to nothing: it ranks one model's captions, and is no
            probability that they are right. None where the model states none, or ``confidence``
            decides what is given.
    """

    segment: int
    start: float
    end: float
    text: str
    confidence: float | None = None
    reason: Literal["unsure"] | None = None
    likelihood: float | None = None

    def __str__(self) -> str:
        said = [self.text] if self.text else []
        if self.reason:
            said.append("… (unsure)" if said else "(unsure)")
        return " ".join([f"[{clock(self.start)}-{clock(self.end)}]", *said])


@dataclass(frozen=True, slots=True)
class Evidence:
    """A segment that an answer rests on, or a moment that was found.

    Attributes:
        source: name of the source that the segment was seen in.
        score: in [0, 1], how likely the segment shows what was asked for; seen from 0.5 on. One
            scale for pictures and words, and whether the answer is "seen" or "not seen".
        keyframe: path of a stored picture, if any.
        caption: the segment's caption, if it has one.
        speech: what was said meanwhile, if known.
        wall_start: ISO 8601 with offset, the wall clock at ``start``, if known.
        matched: what the score rests on most; ``name`` where the picture counts more than its
            cosine because the name of what was asked for is read off its keys.
        cosine: similarity in [-1, 1] of the question and the segment's nearest key; None where
            it was not compared.
        quote: the sentence that it rests on, where it was matched by speech.
        said_at: seconds, when that was said.
        reason: ``unsure`` where the caption was cut, as a ``Caption``'s; it then names nothing.
        names: of the taught things that the segment shows; see ``memory/named.py``.
    """

    source: str
    segment: int
    start: float
    end: float
    score: float
    keyframe: str | None = None
    caption: str | None = None
    speech: str | None = None
    wall_start: str | None = None
    matched: Matched = "picture"
    cosine: float | None = None
    quote: str | None = None
    said_at: float | None = None
    reason: Literal["unsure"] | None = None
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        by = "" if self.matched == "picture" else f" by {self.matched}"
        text = f" {self.caption}{' … (unsure)' * bool(self.reason)}" if self.caption else ""
        if self.quote is not None and self.said_at is not None:
            text = f" “{self.quote}” (said at {clock(self.said_at)})"
        span = with_wall_clock(f"[{clock(self.start)}-{clock(self.end)}]", self.wall_start)
        named = f" [{', '.join(self.names)}]" if self.names else ""
        return f"{span} score {self.score:.2f}{by}{named}{text}"


@dataclass(frozen=True, slots=True)
class Moment(Evidence):
    """An evidence with its rank, from 1."""

    rank: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """A function of the memory that the model called while it looked for an answer.

    Attributes:
        call: name of the function; see ``qa.lookups.LOOKUPS``.
        arguments: as the model gave them; text that is no JSON object stands under ``text``.
        text: of the result, as the model read it.
        segments: ids of the scenes that the result shows.
        pictures: that it has.
        failed: whether the call could not be meant; ``text`` says why.
    """

    call: str
    arguments: Mapping[str, object]
    text: str
    segments: tuple[int, ...] = ()
    pictures: int = 0
    failed: bool = False

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.call}({given}): {' | '.join(self.text.splitlines())}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to a question.

    Attributes:
        seen: whether what was asked about was seen; if not, ``evidence`` is the nearest there is.
        method: ``model`` (its own words) or ``computed`` (counted or measured over the timeline).
        remark: what the model says of a computed answer, in its own words; None where it says
            nothing.
        looked_at: the time that was asked about and on which clock it was taken; None where the
            question names no time.
        left_out: pictures of the evidence that the model had no room for, the weakest first.
        steps: what the model looked up on the way, in order; see ``AnswerConfig.steps``.
        decided_by: of an answer that was checked: whether the keys or the model decided ``seen``;
            None where nothing was checked. See ``AnswerConfig.verify``.
    """

    question: str
    text: str
    seen: bool
    method: Method
    evidence: tuple[Evidence, ...] = ()
    remark: str | None = None
    looked_at: str | None = None
    left_out: int = 0
    steps: tuple[Step, ...] = ()
    decided_by: DecidedBy | None = None

    def __str__(self) -> str:
        said = [self.text, *([self.remark] if self.remark else [])]
        when = [f"  ({remark})" for remark in self.remarks]
        lines = [*said, *when, *(f"  {item}" for item in self.evidence)]
        return "\n".join(lines)

    @property
    def remarks(self) -> list[str]:
        """What a reader should know of how it was made."""
        when = [f"looked at {self.looked_at}"] if self.looked_at else []
        if not self.left_out:
            return when
        pictures = "1 picture" if self.left_out == 1 else f"{self.left_out} pictures"
        return [*when, f"no room for {pictures} of the weakest evidence"]


@dataclass(frozen=True, slots=True)
class Chapter:
    """A stretch of a memory whose scenes are more like each other than like their neighbours.

    Attributes:
        source: name of the source that it was seen in.
        segments: scenes in it.
        captions: of its most central scenes, in time order.
        wall_start: ISO 8601 with offset, the wall clock at ``start``, if known.
        quotes: sentences that are typical of what is said in it, in time order.
    """

    source: str
    start: float
    end: float
    segments: int
    captions: tuple[Caption, ...] = ()
    wall_start: str | None = None
    quotes: tuple["Note", ...] = ()

    def __str__(self) -> str:
        scenes = "1 scene" if self.segments == 1 else f"{self.segments} scenes"
        span = with_wall_clock(f"{clock(self.start)}-{clock(self.end)}", self.wall_start)
        heading = f"{span} {self.source} ({scenes})"
        said: list[Caption | Note] = [*self.captions, *self.quotes]
        lines = sorted(said, key=lambda item: item.start)  # stable
        return "\n".join([" ".join(heading.split()), *(f"  {item}" for item in lines)])


@dataclass(frozen=True, slots=True)
class Note:
    """A piece of speech or subtitle, or a sound event, on the same timeline.

    Attributes:
        word_starts: seconds at which each word of ``text.split()`` begins, rising; empty where
            that is not known.
        kind: ``sound`` where it names a sound, as in "applause"; no words were said then.
    """

    start: float
    end: float
    text: str
    word_starts: tuple[float, ...] = ()
    kind: Literal["speech", "sound"] = "speech"

    def __str__(self) -> str:
        text = f"“{self.text}”" if self.kind == "speech" else self.shown
        return f"[{clock(self.start)}-{clock(self.end)}] {text}"

    @property
    def shown(self) -> str:
        """The text among what is said: a sound stands in parentheses, as in subtitles."""
        return self.text if self.kind == "speech" else f"({self.text})"

    def shifted(self, offset: float) -> "Note":
        """Return the note as it is on a clock that is ahead by so many seconds."""
        if not offset:
            return self
        starts = tuple(at + offset for at in self.word_starts)
        return Note(self.start + offset, self.end + offset, self.text, starts, self.kind)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know and that did not stop the work.

    Attributes:
        is_failure: whether something is missing that should be there.
    """

    message: str
    is_failure: bool = True

    def __str__(self) -> str:
        return f"warning: {self.message}"


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that was waited for has appeared.

    Attributes:
        query: what was waited for, in the user's words.
        time: seconds; of the frame in which it was seen. Where it is the scene's caption that
            names it, which comes later, of the scene's start.
        score: in [0, 1], how likely the frame, or the scene, shows it; on the scale of evidence.
        segment: id of the scene that was open then.
        keyframe: path of the stored frame, if any.
        confirmed: True where the model was asked and sees it in the frame; None where it was not
            asked, or gave no answer. What it denies is not reported.
        matched: what the score rests on.
    """

    query: str
    time: float
    score: float
    segment: int
    keyframe: str | None = None
    confirmed: bool | None = None
    matched: Literal["picture", "caption"] = "picture"

    def __str__(self) -> str:
        shown = f" {self.keyframe}" if self.keyframe else ""
        by = "" if self.matched == "picture" else f" by {self.matched}"
        score = f"score {self.score:.2f}{by}{', confirmed' if self.confirmed else ''}"
        return f"[{clock(self.time)}] alert: {self.query} ({score}){shown}"


@dataclass(frozen=True, slots=True)
class Until:
    """The condition that a source was watched until holds now.

    Attributes:
        condition: in the user's words.
        time: seconds; of the frame in which the model found it to hold.
        segment: id of the scene that was open then.
    """

    condition: str
    time: float
    segment: int

    def __str__(self) -> str:
        return f"[{clock(self.time)}] it holds: {self.condition}"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A step of a plan.

    Attributes:
        state: ``done``; ``doing``: the last step that was seen; ``missing``: not seen, while a
            later one was; ``open``: not seen yet.
        spans: when it was seen; several where it was repeated, the first and the newest 99.
        segments: ids of the scenes that show it, in order, the first and the newest 99.
        late: whether it was seen only after a later step had begun.
    """

    name: str
    state: Literal["done", "doing", "missing", "open"]
    spans: tuple[TimeSpan, ...] = ()
    segments: tuple[int, ...] = ()
    late: bool = False

    def __str__(self) -> str:
        shown = ", ".join(f"{clock(start)}-{clock(end)}" for start, end in self.spans)
        return f"{self.state:8}{self.name}{f' [{shown}]' if shown else ''}{' late' * self.late}"


@dataclass(frozen=True, slots=True)
class NextStep:
    """What may come next: how likely, in (0, 1], among the open steps, or among all actions."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How far a goal has come.

    Attributes:
        goal: in the user's words.
        time: seconds; of the end of the last scene that it takes in.
        progress: in [0, 1], the share of steps that were seen; None where no steps were given.
        steps: in their order; without given ones the last actions that were seen.
        next: what may come next, the likeliest first.
        alerts: steps that were left out or came out of order, each told once.
        certainty: in [0, 1], of what the last scene is taken for: a step, or none.
        next_from: what ``next`` rests on: the given steps; without them past actions, and a
            planning adapter where there is one.
    """

    goal: str
    time: float
    progress: float | None
    steps: tuple[PlanStep, ...]
    next: tuple[NextStep, ...] = ()
    alerts: tuple[str, ...] = ()
    certainty: float = 0.0
    next_from: Literal["steps", "past", "past and adapter"] = "steps"

    def __str__(self) -> str:
        seen, known = sum(bool(step.spans) for step in self.steps), "next"
        if self.progress is None:
            lines = [f"[{clock(self.time)}] {self.goal} (no steps given)"]
            known = f"next, guessed from {self.next_from.replace('past', 'past actions')}"
        else:
            bar = "#" * round(20 * self.progress)
            lines = [f"[{clock(self.time)}] {self.goal} [{bar:-<20}] {seen} of {len(self.steps)}"]
        lines += [f"  {step}" for step in self.steps]
        if self.next:
            likely = ", ".join(f"{each.name} {each.probability:.2f}" for each in self.next)
            lines.append(f"  {known}: {likely}")
        return "\n".join([*lines, *(f"  ! {text}" for text in self.alerts)])


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of a run. ``captured`` = ``frames`` + ``waiting`` + both kinds of dropped.

    Attributes:
        frames: frames perceived.
        segments: segments closed.
        captions: captions emitted.
        perceive_s: CPU seconds spent in perception.
        speak_s: CPU seconds spent in the language model.
        captured: frames that the source gave at the rate asked for.
        waiting: of these, frames that wait for perception.
        dropped_full: of these, frames dropped because too many waited.
        dropped_at_stop: of these, frames that were still waiting when the run was stopped.
        captions_skipped: captions that were not made because speech had fallen behind.
        connections: times that a live source was connected and gave a picture.
        damaged: pictures of a live source that could not be decoded.
        lag_s: seconds of video between the newest frame captured and the newest perceived.
        caption_lag_s: seconds from the end of the last captioned scene of a live source to its
            caption's first word.
        candidates: captions generated of a scene, of which one is chosen; 0 without captions, and
            for a live source until it is known how many there is time for.
        fewest_candidates: of which a caption was chosen; fewer where scenes of live sources waited
            for words at the same time. 0 before the first caption.
        alerts_refused: alerts that the model was asked about and denied.
        sound_s: seconds of sound that came beside the pictures of a live source, with speech on.
        sound_skipped_s: of these, seconds that were not recognised, as recognition fell behind.
        note_lag_s: seconds of sound that had come after the end of the last note when it was final.
        requests: to model servers meanwhile, likewise ``retries``, ``failures`` and ``tokens`` of
            prompts and replies; 0 without one.
    """

    frames: int
    segments: int
    captions: int
    perceive_s: float
    speak_s: float
    captured: int = 0
    waiting: int = 0
    dropped_full: int = 0
    dropped_at_stop: int = 0
    captions_skipped: int = 0
    connections: int = 0
    damaged: int = 0
    lag_s: float = 0.0
    caption_lag_s: float = 0.0
    candidates: int = 0
    fewest_candidates: int = 0
    alerts_refused: int = 0
    sound_s: float = 0.0
    sound_skipped_s: float = 0.0
    note_lag_s: float = 0.0
    requests: int = 0
    retries: int = 0
    failures: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        fewer = 0 < self.fewest_candidates < self.candidates
        best_of = f"{self.fewest_candidates} to {self.candidates}" if fewer else self.candidates
        best_of = f", each the best of {best_of}" if self.candidates else ""
        served = f", model server {self.requests} requests ({self.retries} again, {self.failures} "
        served = f"{served}failed), {self.tokens} tokens" if self.requests else ""
        heard = f", {self.sound_s:.0f} s of sound ({self.sound_skipped_s:.0f} skipped), words "
        heard = f"{heard}{self.note_lag_s:.1f} s behind" if self.sound_s else ""
        return (
            f"{self.frames} of {self.captured} frames ({self.dropped_full} dropped behind, "
            f"{self.dropped_at_stop} at the stop, {self.waiting} waiting), "
            f"{self.segments} segments, {self.captions} captions, "
            f"{self.captions_skipped} skipped, "
            f"perception {self.perceive_s:.1f} s, language model {self.speak_s:.1f} s of CPU, "
            f"{self.lag_s:.1f} s behind, captions {self.caption_lag_s:.1f} s"
            f"{best_of}{heard}{served}"
        )


Event = Segment | Caption | Moment | Answer | Chapter | Note | Alert | Until | Plan | Notice | Stats


def encodable(text: str) -> str:
    """Escape lone surrogates, of file names that are not UTF-8, as JSON does."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def clock(seconds: float) -> str:
    """Format seconds as ``MM:SS.d``, with hours where there are any.

    Args:
        seconds: >= 0.

    Returns:
        For example ``00:31.4`` or ``1:02:03.5``.
    """
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    clock_text = f"{minutes:02d}:{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{clock_text}" if hours else clock_text


def wall_clock(unix_s: float, zone: tzinfo | None = None) -> str:
    """Format a moment as ISO 8601 with its offset from UTC, to the millisecond.

    Args:
        unix_s: Unix seconds.
        zone: None is this computer's.

    Returns:
        For example ``2026-05-03T16:40:00.000+02:00``.
    """
    at = datetime.fromtimestamp(unix_s, zone).astimezone(zone)
    return at.isoformat(timespec="milliseconds")


def with_wall_clock(text: str, wall_start: str | None) -> str:
    """Put the wall clock, to the second, behind a text; nothing where it is not known."""
    if wall_start is None:
        return text
    return f"{text} ({datetime.fromisoformat(wall_start).isoformat(' ', 'seconds')})"
