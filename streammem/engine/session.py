"""A session: one stream through one model. Single-threaded, deterministic, bounded.

``push`` is the frame-rate path and never runs the language model; ``caption`` and ``ask`` are the
slow path. Threads live in ``reader.py`` and in the language model's scheduler.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from streammem.audio.scene_sound import SceneSound, SoundWindow
from streammem.audio.track import SpeechTrack
from streammem.captioning.captioner import Captioner, CaptionRequest, ScoredCaption
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError
from streammem.memory.entry import Entry, Sureness, decode_keyframe, fitting_notes, visual_keys
from streammem.memory.memory import CacheConfig, Memory
from streammem.memory.named import Taught
from streammem.memory.retrieval import EVERYTHING, Window, clipped
from streammem.memory.timeline import offset_after
from streammem.models.protocols import EncodedSegment, LikelihoodGenerator, StreamModel
from streammem.models.tiny.planning import open_planning
from streammem.perception.background import Background, BackgroundState, Box
from streammem.perception.frames import (
    KEYFRAME_SIDE,
    BufferedFrame,
    Encoded,
    PixelGate,
    SceneBuffer,
    SceneBufferState,
    keyframe,
    segment_frames,
    spread,
    thumbnail,
    tilling_of,
)
from streammem.perception.scenetilling import Pushed, SceneTilling, SceneTillingState, Score
from streammem.qa.answerer import Answerer
from streammem.qa.lookups import Lookups
from streammem.qa.next_action import PastFollower
from streammem.qa.plan import PlanFollower
from streammem.qa.question import Present
from streammem.qa.teaching import picture_at, renewed, taught_with
from streammem.types import (
    Answer,
    Caption,
    Chapter,
    Frame,
    Moment,
    Note,
    Plan,
    Reason,
    Segment,
    TimeSpan,
    encodable,
)

PAUSE_S = 600.0  # without a scene: another activity of a day


@dataclass(frozen=True, slots=True, eq=False)
class SessionState:
    """Everything a session remembers of its stream, the memory aside: a value of bounded size.

    Attributes:
        tilling: SceneTilling's state.
        buffer: the frames of the open scene and the last ``now_frames``.
        encoded: the last frame that was encoded.
        background: of a fixed camera.
        recurrent: recurrent memory, shaped as the model's ``initial_memory``.
        next_segment: id of the open segment.
        time: seconds, which no later frame may precede; -inf at first.
        time_offset: seconds, see ``Session``.
    """

    tilling: SceneTillingState
    buffer: SceneBufferState
    encoded: Encoded | None
    background: BackgroundState | None
    recurrent: Tensor
    next_segment: int
    time: float
    time_offset: float = 0.0


class Session:
    """Perceives frames, remembers and captions segments, and answers questions about them.

    Sessions of one model share nothing but its weights.

    Args:
        model: perceives, captions and answers.
        config: options.
        memory: folder of a durable memory, made where there is none; None keeps it in RAM. What
            is in it stays findable, and the recurrent memory goes on from it.
        read_only: open the memory for questions only, also while another process writes it.
        source: name of the stream in evidence.
        wall_zero: wall clock at 0 of the memory's timeline, Unix seconds, for questions such as
            "yesterday at 3 pm"; None where it is unknown. May be set anew while the stream runs.
        on_score: called with the time (s) and each settled similarity and depth, for plots.

    Raises:
        ConfigError: more candidates than the model can choose among; steps of a model that calls no
            tools, or ``verify`` of one that reads no pictures.
        StoreError: the memory cannot be opened, or was made by another model.

    Attributes:
        memory: what was seen, as a ``Memory``.
        captioner: makes and scores its captions.
        next_segment: id of the open segment.
        recurrent: recurrent memory, shaped as the model's ``initial_memory``.
        whole: whether segments close only once the source has ended, see ``whole_video.py``.
        time_offset: seconds that ``push`` and ``flush`` add to the times of the source to have
            those of the memory's timeline, which all that comes out of a session is timed by; see
            ``go_on``.
        speech: what is said in the source, on its own clock: each segment that closes is kept with
            the notes that begin in it. Set before the first frame; None without any.
        sound: of the source, on its own clock, for a model that listens; likewise.
        unkept: returns what was said that no row of the memory holds yet, by the memory's clock, in
            order of time: words of the open segment, which answers know already.
        on_wait: called between the pieces of an answer; ``watch`` perceives then what has come.
    """

    whole = False

    def __init__(
        self,
        model: StreamModel,
        config: SessionConfig | None = None,
        memory: str | Path | None = None,
        read_only: bool = False,
        source: str = "",
        on_score: Callable[[float, Score], None] | None = None,
        wall_zero: float | None = None,
    ) -> None:
        self.model, self.config = model, config or SessionConfig()
        self.read_only, self.source = read_only, source
        self.on_score, self.wall_zero = on_score, wall_zero
        self.captioner = Captioner(self.model, self.config.captioning)
        key_dim = self.model.text_encoder.background.shape[1]
        self._generator = self.model.generator
        self._encoder = encoder = self.model.segment_encoder
        token_shape = encoder.token_shape if encoder else (0, 0)
        if memory is None:
            self.memory = Memory(
                CacheConfig(key_dim, token_shape, self.config.max_segments, self.config.epsilon)
            )
        else:
            self.memory = Memory.open(
                memory,
                self.model.fingerprint,
                key_dim=key_dim,
                token_shape=token_shape,
                max_segments=self.config.max_segments,
                epsilon=self.config.epsilon,
                mode="r" if self.read_only else "rw",
            )
        scenes = self.config.scenes or self.model.perceiver.scenes
        # Only a ``SceneTilling`` measures scores.
        self._tilling = SceneTilling(scenes) if on_score else tilling_of(model.perceiver, scenes)
        self._gate = PixelGate(self.model.perceiver, self.config.still)
        fixed, still = self.config.fixed, self.config.still
        self._background = Background(max(1.0, still)) if fixed else None
        self._buffer = SceneBuffer(self._tilling.lag, self.config.now_frames)
        self._time, self.time_offset = -math.inf, 0.0
        self.on_wait: Callable[[], None] | None = None
        self.unkept: Callable[[], Sequence[Note]] = tuple
        self.speech: SpeechTrack | None = None
        self.sound: SoundWindow | None = None
        self._closed: dict[int, CaptionRequest] = {}  # by the last push or flush alone
        self._said: dict[int, tuple[Note, ...]] = {}  # likewise
        self.answerer = Answerer(self.model, self.memory, self.config.answering, self)
        self._go_on_from_memory()

    @property
    def num_frames(self) -> int:
        """Frames pushed so far."""
        return self._buffer.num_frames

    @property
    def newest(self) -> BufferedFrame | None:
        """The last frame; None before the first, and after a flush with ``now_frames`` = 0."""
        return self._buffer.newest

    @property
    def open_frames(self) -> tuple[BufferedFrame, ...]:
        """The frames of the open scene, and those in which a boundary may still be found."""
        return self._buffer.frames

    @property
    def settled_frames(self) -> tuple[BufferedFrame, ...]:
        """The frames that belong to the open scene, whatever follows."""
        frames, before = self._buffer.frames, self._tilling.settled_before
        return frames[: before - frames[0].number] if frames else ()

    def refresh(self) -> bool:
        """Take over what another process has written to a memory that is only read.

        Returns:
            False where the memory must be opened anew.

        Raises:
            StoreError: it is damaged; close the session.
        """
        if not self.memory.refresh():
            return False
        self._go_on_from_memory()
        return True

    def _go_on_from_memory(self) -> None:
        encoder = self._encoder
        self.recurrent = self.memory.recurrent(
            encoder.initial_memory() if encoder else torch.zeros(0, 0)
        )
        self.next_segment = self.memory.next_segment
        for taught in self.memory.taught():  # whose keys a reindex makes another model's
            if (now := renewed(self.model, taught)) is not taught:
                self.memory.teach(now, renew=True)

    def close(self) -> None:
        """Release a durable memory; idempotent. The open segment is not kept: flush first."""
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
        if kind is not None:
            self.memory.close_in_vain()

    @property
    def source(self) -> str:
        """Name of the stream in evidence; what is not UTF-8 in a file's name is escaped."""
        return self._source

    @source.setter
    def source(self, name: str) -> None:
        self._source = encodable(name)

    # -- the frame-rate path --

    def go_on(self, time: float, wall_zero: float | None) -> None:
        """Place a live source behind what the memory has seen of it; before its first frame.

        One of an unknown wall clock that comes later than that already, keeps its times.

        Args:
            time: seconds of the source's own clock, of its first frame.
            wall_zero: Unix seconds at 0 of that clock; None where it is unknown.
        """
        newest = self.memory.newest(self.source)
        offset = offset_after(newest, time, wall_zero)
        if wall_zero is None:
            offset = max(0.0, offset)
        self.time_offset = max(offset, self._time - time)

    def push(self, frame: Frame) -> tuple[Segment, ...]:
        """Take in the next frame.

        Args:
            frame: not earlier than the one before, nor than the end of the last segment; timed
                by the source's clock.

        Returns:
            The segments that it closed; mostly none. They never change afterwards.

        Raises:
            ValueError: time runs backward.
        """
        if self.time_offset:
            frame = replace(frame, time=frame.time + self.time_offset)
        if not self._time <= frame.time < math.inf:
            raise ValueError(f"frame at {frame.time:.3f} s: the stream is at {self._time:.3f} s")
        # 1. Encode it, or that part of a fixed camera's picture which has changed. A frame that
        # fails here leaves no trace.
        encoded_before = self._gate.snapshot()
        background_before = self._background.snapshot() if self._background else None
        try:
            box = None
            if self._background:
                box = self._background.push(thumbnail(frame.pixels), frame.time)
            encoded = self._gate.encode(frame.pixels, box)
            pushed = self._tilling.push(encoded.perceived.embedding)
        except BaseException:
            self._gate.restore(encoded_before)
            if self._background:
                self._background.restore(background_before)
            raise
        # 2. Keep what its segment may need.
        self._buffer.push(frame, encoded.perceived)
        self._time = frame.time
        # 3. Close the scenes whose ends are settled now.
        return tuple(self._close_settled(pushed))

    def flush(self, end: float | None = None) -> tuple[Segment, ...]:
        """Close the open segment, as the end of the stream does. Idempotent.

        Args:
            end: seconds of the source's clock, the stream's end, at least the last frame's time;
                the last frame's own end by default.
        """
        closed = self._close_settled(self._tilling.flush())
        if frames := self._buffer.frames:
            until = frames[-1].end
            if end is not None:
                until = max(end + self.time_offset, frames[-1].time)
            closed.append(self._close(len(frames), until, None, "end"))
            self._time = until
        return tuple(closed)

    def snapshot(self) -> SessionState:
        """Return what later calls go on from, the memory aside; they do not change it."""
        return SessionState(
            tilling=self._tilling.snapshot(),
            buffer=self._buffer.snapshot(),
            encoded=self._gate.snapshot(),
            background=self._background.snapshot() if self._background else None,
            recurrent=self.recurrent,
            next_segment=self.next_segment,
            time=self._time,
            time_offset=self.time_offset,
        )

    def restore(self, state: SessionState) -> None:
        """Go on from a snapshot of a session with the same model and options.

        Args:
            state: of a session whose memory held what this one's holds.
        """
        self._tilling.restore(state.tilling)
        self._buffer.restore(state.buffer)
        self._gate.restore(state.encoded)
        if self._background:
            self._background.restore(state.background)
        self.recurrent, self.next_segment = state.recurrent, state.next_segment
        self._time, self.time_offset = state.time, state.time_offset

    def notes(self, segment: Segment) -> tuple[Note, ...]:
        """Return the notes that a segment was kept with, of the last ``push`` or ``flush``."""
        return self._said.get(segment.id, ())

    # -- the slow path --

    def tokens(self, segment: int) -> Tensor:
        """Return a segment's memory tokens [M, D].

        Raises:
            KeyError: no such segment.
        """
        return self.memory.tokens(segment)

    def keyframe(self, segment: int) -> np.ndarray:
        """Return a segment's keyframe, [H, W, 3] uint8 RGB, longer side at most 320 pixels.

        Raises:
            KeyError: no such segment, or its keyframe was dropped.
        """
        jpeg = self.memory.keyframe(segment)
        if jpeg is None:
            raise KeyError(f"no keyframe of segment {segment} in this memory")
        return decode_keyframe(jpeg)

    def caption(self, segment: Segment, on_text: Callable[[str], None] | None = None) -> Caption:
        """Describe a segment and keep its caption, by whose words it is found from then on.

        Args:
            segment: as ``push`` or ``flush`` returned it.
            on_text: called with each piece of text as it is generated; once, with all that is
                given, where less may be given than is generated.

        Returns:
            The caption: as much of it as is sure, see ``SessionConfig.min_confidence``.

        Raises:
            KeyError: no such segment.
        """
        request = self.request(segment)
        if on_text:
            return self.keep(segment, self.captioner.stream(request, on_text))
        (scored,) = self.captioner.caption([request])
        return self.keep(segment, scored)

    def request(self, segment: Segment) -> CaptionRequest:
        """Return what a captioner needs of a segment; at once of one that has just closed.

        Raises:
            KeyError: no such segment.
        """
        if segment.id in self._closed:
            return self._closed[segment.id]
        entry = self.memory.get(segment.id)
        if entry is None:
            raise KeyError(f"no segment {segment.id} in this session")
        reads = self._generator.reads
        tokens = self.tokens(segment.id) if reads.tokens else None
        jpeg = self.memory.keyframe(segment.id) if reads.pictures else None
        keyframes = (self.keyframe(segment.id),) if jpeg else ()
        return CaptionRequest(segment, entry.visual_keys, tokens, keyframes, entry.notes)

    def blank_request(self) -> CaptionRequest:
        """Return a request that shows nothing, to open the language model with."""
        span, encoder = Segment(0, 0.0, 0.0, None, None), self.model.segment_encoder
        reads = self._generator.reads
        tokens = torch.zeros(encoder.token_shape) if encoder and reads.tokens else None
        blank = (np.zeros((KEYFRAME_SIDE, KEYFRAME_SIDE, 3), np.uint8),) if reads.pictures else ()
        return CaptionRequest(span, self.model.text_encoder.background[:1].numpy(), tokens, blank)

    def keep(self, segment: Segment, scored: ScoredCaption) -> Caption:
        """Keep a segment's caption and how sure it is; that none was given where it is withheld."""
        caption = scored.of(segment)
        sureness = Sureness(caption.confidence, caption.reason == "unsure", caption.likelihood)
        key = scored.key if scored.text else None
        self.memory.set_caption(segment.id, scored.text, key, sureness)
        return caption

    def add_notes(self, segment: int, notes: Sequence[Note]) -> None:
        """Keep what was said in a segment and known only after it closed.

        Args:
            segment: any id that a row of the memory stands for.
            notes: in order of time, by the memory's clock; at least one.

        Raises:
            KeyError: no such segment.
        """
        said = self.model.text_encoder.sentence_keys([note.text for note in notes])
        self.memory.add_notes(segment, tuple(notes), visual_keys(said)[0])

    def describe(self, entries: Sequence[Entry]) -> None:
        """Caption rows of the memory in one batch, for an answer that rests on them."""
        segments = [Segment(e.segment, e.start, e.end, None, None) for e in entries]
        requests = [self.request(segment) for segment in segments]
        for segment, scored in zip(segments, self.captioner.caption(requests), strict=True):
            self.keep(segment, scored)

    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        pictures: Sequence[np.ndarray] = (),
        between: tuple[float, float] | Window | None = None,
    ) -> Answer:
        """Answer from what was seen so far, with the evidence it rests on.

        The last turns are remembered, so that "and after that?" can follow.

        Args:
            question: free text.
            on_text: called with each piece of the answer as it comes; with empty ones while a
                server is waited for.
            pictures: [H, W, 3] uint8 RGB each, which the question is about.
            between: [a, b) seconds, or a window of the wall clock; answer from this part alone.

        Raises:
            ValueError: an empty question.
            ConfigError: a time in it that there is not, or more pictures than the model reads.
        """
        if not question.strip():
            raise ValueError("the question is empty")

        def passed_on(piece: str) -> None:
            if on_text:
                on_text(piece)
            if self.on_wait:
                self.on_wait()

        return self.answerer.ask(
            question, self.present(), passed_on, pictures, within=_window(between)
        )

    def find(
        self, query: str, count: int = 5, between: tuple[float, float] | Window | None = None
    ) -> tuple[Moment, ...]:
        """Find the moments that a description fits best.

        Args:
            query: for example ``a man in a red hat``.
            count: moments at most.
            between: as for ``ask``.
        """
        return self.answerer.find(query, count, self.present(), _window(between))

    def lookups(self, between: tuple[float, float] | Window | None = None) -> Lookups:
        """Return the functions by which a model, or an agent, looks into the memory.

        Args:
            between: as for ``ask``; nothing else is found or shown.
        """
        return self.answerer.lookups(self.present(), _window(between))

    def chapters(
        self,
        count: int | None = None,
        between: tuple[float, float] | Window | None = None,
    ) -> tuple[Chapter, ...]:
        """Divide what was seen into chapters, with captions of their most central scenes.

        Args:
            count: chapters at most; by default the square root of the scenes, 24 at most.
            between: as for ``ask``; only what overlaps it.

        Raises:
            ConfigError: count below 1.
        """
        return self.answerer.chapters(count, _window(between))

    def day(self, day: date, count: int | None = None) -> tuple[Chapter, ...]:
        """List what was done on a day, by the wall clock: its chapters are activities.

        A pause of ``PAUSE_S`` ends an activity.

        Args:
            day: in the time zone of ``SessionConfig.timezone``.
            count: activities at most, where no pause parts more; as for ``chapters``.

        Returns:
            By the wall clock; those of several sources may overlap. Nothing of rows whose wall
            clock is unknown.

        Raises:
            ConfigError: count below 1, or a day that no clock shows.
        """
        zone = self.config.answering.zone()
        try:
            begin, end = (
                datetime(each.year, each.month, each.day, tzinfo=zone).timestamp()
                for each in (day, day + timedelta(days=1))
            )
        except (ValueError, OverflowError, OSError) as error:
            raise ConfigError(f"{day}: is no day of this computer's clock") from error
        found = self.answerer.chapters(count, Window(wall=TimeSpan(begin, end)), PAUSE_S)
        return tuple(sorted(found, key=lambda c: datetime.fromisoformat(c.wall_start or "")))

    def days(self) -> tuple[date, ...]:
        """Return the days on which scenes began, by the wall clock, oldest first."""
        zone = self.config.answering.zone()
        walls = (row.wall_start for row in self.memory.entries() if row.wall_start is not None)
        return tuple(sorted({datetime.fromtimestamp(wall, zone).date() for wall in walls}))

    def plan(
        self,
        goal: str,
        steps: Sequence[str] = (),
        between: tuple[float, float] | Window | None = None,
        *,
        likelihood: bool = False,
    ) -> Plan:
        """Tell how far a goal has come: steps done, the one in progress, what may come next.

        Args:
            goal: in your words.
            steps: descriptions of what each shows, in their order; see ``follow``.
            between: as for ``ask``. Of several sources the newest one counts, unless the window
                names another.
            likelihood: see ``follow``.

        Returns:
            The plan, with every alert so far; see ``qa/plan.py`` to follow it as scenes close.

        Raises:
            ConfigError: an empty goal or step, or the same step twice; or as ``follow``.
        """
        followed = self.follow(goal, steps, likelihood=likelihood)
        return followed.push_all(self.newest_rows(between))

    def newest_rows(self, between: tuple[float, float] | Window | None = None) -> tuple[Entry, ...]:
        """Return the memory's rows of the source that was seen last, oldest first.

        Args:
            between: as for ``ask``; only what overlaps it.
        """
        rows = [clip.entry for clip in clipped(self.memory.entries(), _window(between))]
        return tuple(row for row in rows if row.source == rows[-1].source)

    def follow(
        self, goal: str, steps: Sequence[str] = (), *, likelihood: bool = False
    ) -> PlanFollower | PastFollower:
        """Return what follows a plan over rows of the memory, oldest first.

        Args:
            goal: in your words.
            steps: descriptions of what each shows, in their order, with which rows are compared as
                they close. None: what may come next is predicted from past actions, which are read
                off the rows' captions and speech; see ``SessionConfig.planning``.
            likelihood: weigh the steps of each row also by how likely the generator finds their
                descriptions as its caption, which takes it about as long as a caption.

        Raises:
            ConfigError: an empty goal or step, the same step twice, or ``likelihood`` of a
                generator that tells none.
        """
        if steps:
            likelihoods = self._step_likelihoods() if likelihood else None
            return PlanFollower(self.model.text_encoder, goal, steps, likelihoods=likelihoods)
        planning = self.config.planning
        return PastFollower(goal, open_planning(planning) if planning else None)

    def _step_likelihoods(self) -> Callable[[Sequence[str], Entry], np.ndarray]:
        generator = self._generator
        if not isinstance(generator, LikelihoodGenerator):
            raise ConfigError(f"{self.model.name}: tells no likelihoods; leave likelihood out")

        def nats(request: CaptionRequest, names: Sequence[str]) -> np.ndarray:
            found = generator.log_probs(self.captioner.prompt(request), names)
            return np.array([np.mean(row) for row in found])

        @cache
        def of_nothing(names: tuple[str, ...]) -> np.ndarray:
            return nats(self.blank_request(), names)

        def likelihoods(names: Sequence[str], row: Entry) -> np.ndarray:
            segment = Segment(row.segment, row.start, row.end, None, None)
            shown: np.ndarray = nats(self.request(segment), names) - of_nothing(tuple(names))
            return shown

        return likelihoods

    def teach(
        self,
        name: str,
        pictures: Sequence[np.ndarray] = (),
        *,
        at: float | None = None,
        box: Box | None = None,
        source: str | None = None,
        person: bool = False,
    ) -> Taught:
        """Give a thing a name, by which it is found and named in evidence from then on.

        Args:
            name: as questions will name it, such as ``my cup``.
            pictures: [H, W, 3] uint8 RGB each; of a name that is known they are further ones.
            at: seconds of a moment that was seen and shows it, besides.
            box: where in that moment's picture; see ``qa.teaching.picture_at``.
            source: that the moment is of.
            person: it is a person. Off by default: see docs/guide/assistant.md.

        Returns:
            The thing with all its pictures.

        Raises:
            ConfigError: no picture, a name that cannot be asked for, or a picture that looks like
                people without ``person``.
            StoreError: the disk is full or fails.
        """
        given: list[tuple[np.ndarray, int | None]] = [(picture, None) for picture in pictures]
        if at is not None:
            given.append(picture_at(self.memory, self.answerer.file_of, at, box, source))
        return self.memory.teach(taught_with(self.model, name, given, person=person))

    def forget_name(self, name: str) -> None:
        """Forget a name and its pictures, for good.

        Raises:
            KeyError: no such name.
            StoreError: the memory is read-only, or the disk fails.
        """
        self.memory.forget_name(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that were taught."""
        return tuple(taught.name for taught in self.memory.taught())

    def present(self) -> Present:
        """Return where the stream stands: its last frames, the open segment, what is said in it."""
        now = self._buffer.now
        return Present(now, self.next_segment, self.recurrent, self.source, self._heard_now())

    def _heard_now(self) -> Entry | None:
        frames, notes = self._buffer.frames, fitting_notes(self.unkept())
        if not (frames and notes):
            return None
        start = min(frames[0].time, notes[0].start)
        return Entry(
            segment=self.next_segment,
            start=start,
            end=max(frames[-1].end, *(note.end for note in notes)),
            frames=len(frames),
            visual_keys=visual_keys(np.stack([frame.key for frame in frames])),
            caption_keys=np.zeros((0, frames[0].key.shape[0]), np.float32),
            note_keys=visual_keys(
                self.model.text_encoder.sentence_keys([note.text for note in notes])
            ),
            tokens=np.zeros((0, 0), np.float16),
            source=self.source,
            wall_start=None if self.wall_zero is None else self.wall_zero + start,
            notes=notes,
        )

    # -- closing --

    def _close_settled(self, pushed: Pushed) -> list[Segment]:
        """Report scores, and close a segment at each boundary."""
        if self.on_score and pushed.scores:
            frames = self._buffer.frames
            for score in pushed.scores:
                self.on_score(frames[score.frame - frames[0].number].time, score)
        self._closed, self._said = {}, {}
        closed = []
        for boundary in pushed.boundaries:
            frames = self._buffer.frames
            count = boundary.index - frames[0].number
            end = frames[count].time
            closed.append(self._close(count, end, boundary.depth, boundary.reason))
        return closed

    def _close(self, count: int, end: float, depth: float | None, reason: Reason) -> Segment:
        """Close the first ``count`` buffered frames as a segment that ends at ``end``."""
        # 1. Of its frames: keys, a keyframe, and what a generator may be shown.
        frames = self._buffer.frames[:count]
        full = [f for f in frames if f.picture is not None]
        keys = np.stack([f.key for f in frames])
        clusters = visual_keys(keys)
        jpeg = keyframe(full, clusters[0])
        pictures: tuple[np.ndarray, ...] = ()
        if count_shown := self._generator.reads.pictures:
            shown = [full[i] for i in spread(len(full), count_shown)]
            pictures = tuple(f.picture for f in shown if f.picture is not None)
        # 2. What is heard meanwhile, on the source's own clock: words, and sound for the encoder.
        segment = Segment(self.next_segment, frames[0].time, end, depth, reason)
        offset, sound = self.time_offset, None
        if self.sound:
            sound = self.sound.scene(segment.start - offset, end - offset)
        notes, note_keys = tuple[Note, ...](), keys[:0]
        if self.speech:
            said = self.speech.within(segment.start - offset, end - offset)
            notes = tuple(note.shifted(offset) for note in said)
        if notes:
            note_keys = visual_keys(
                self.model.text_encoder.sentence_keys([note.text for note in notes])
            )
        # 3. Its tokens, read beside those of its like, and the recurrent memory after it.
        tokens, recurrent = self._encode(full, clusters[0], sound)
        # 4. Store all that, and only then forget the frames: those whose segment cannot be written
        # stay.
        row = self.memory.append(
            Entry(
                segment=segment.id,
                start=segment.start,
                end=segment.end,
                frames=len(frames),
                visual_keys=clusters,
                caption_keys=keys[:0],
                note_keys=note_keys,
                tokens=tokens.half().cpu().numpy(),
                keyframe=jpeg,
                source=self.source,
                wall_start=None if self.wall_zero is None else self.wall_zero + segment.start,
                notes=fitting_notes(notes) if notes else (),
            ),
            recurrent,
        )
        self._said[segment.id] = notes
        self._buffer.drop(count)
        self.recurrent, self.next_segment = recurrent, segment.id + 1
        # 5. Hand on what a caption needs: of the row, whose tokens are rounded, so that a caption
        # made later from disk is the same.
        seen = torch.from_numpy(row.tokens.astype(np.float32)) if row.tokens.size else None
        self._closed[segment.id] = CaptionRequest(segment, row.visual_keys, seen, pictures, notes)
        return segment

    def _encode(
        self, frames: Sequence[BufferedFrame], key: np.ndarray, sound: SceneSound | None
    ) -> EncodedSegment:
        """Read the closing segment with what the memory has of its like.

        Sessions of whole videos read other frames, see ``whole_video.py``.
        """
        encoder, related = self._encoder, None
        if encoder is None:
            return EncodedSegment(torch.zeros(0, 0), self.recurrent)
        if encoder.reads_related:
            related = self.memory.related_tokens(key, self.config.retrieved)
        read = segment_frames(self.next_segment, frames)._replace(sound=sound)
        return encoder.encode_segment(read, self.recurrent, related)


def _window(between: tuple[float, float] | Window | None) -> Window:
    if between is None or isinstance(between, Window):
        return between or EVERYTHING
    return Window(stream=TimeSpan(*between))
