"""Sessions that read a video as a whole, or clip by clip, as the code of published models does.

    session = open_session(model, config, finite=True)   # or a plain one, by ``cuts``
    for event in watch(session, "holiday.mp4"):          # captions come after the last frame
        ...
    session.ask("Who enters last?").text                 # from what the model's ``sees`` shows

Frames, keys, memory, captions and commands are those of any session. Where a VideoLLaMB's segments
begin and what its bridge makes of them comes from ``models/videollamb/offline.py``; which frames
and subtitles of a clip a MiniGPT4-Video reads, from ``models/minigpt4_video/interleaving.py``; a
Video-LLaMA reads eight frames and eight clips of sound of a whole video.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from streammem.audio.scene_sound import SceneSound
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError
from streammem.memory.retrieval import Window
from streammem.models.minigpt4_video.interleaving import (
    Shot,
    cues_of,
    parents_shots,
    placed,
    shortened,
)
from streammem.models.protocols import ComposedModel, EncodedSegment, EvidenceItem, StreamModel
from streammem.models.published import PublishedModel
from streammem.models.videollamb.offline import choose, read
from streammem.models.videollamb.videollamb import VideoLLaMB
from streammem.perception.frames import (
    BufferedFrame,
    Perceived,
    SceneBuffer,
    segment_frames,
    spread,
)
from streammem.types import Answer, Frame, Note, Reason, Segment

HELD = 1024  # frames; at full size one takes 0.3 MB: 224 x 224 pixels and a picture for keyframes
UNBOUNDED = 1 << 62  # the lag of a buffer that thins no scene


def open_by_cuts(
    model: StreamModel,
    config: SessionConfig,
    memory: str | Path | None = None,
    *,
    finite: bool,
) -> Session:
    """Open a session of the kind that ``cuts`` asks for: a stream, or a whole video.

    Args:
        model: see ``Session``.
        config: its ``cuts`` go before the model's.
        memory: see ``Session``.
        finite: whether the source ends.

    Raises:
        ConfigError: a whole video is asked for of another model, or of a source without end.
        StoreError: see ``Session``.
    """
    cuts = chosen_cuts(model, config.cuts)
    model = with_cuts(model, cuts)
    if cuts == "streaming":
        return Session(model, config, memory=memory)
    if not finite:
        raise ConfigError(
            f"cuts={cuts} reads a video as a whole, and this source has no end that is known; "
            "give --set cuts=streaming"
        )
    video = _video_model(model)
    assert video is not None
    kinds: dict[str, Any] = {
        "segments": WholeVideoSession, "clips": ClipSession, "one": OneVideoSession
    }  # fmt: skip
    session: Session = kinds[video.whole](model, config, memory=memory)
    return session


def chosen_cuts(model: StreamModel, cuts: str | None = None) -> str:
    """Return where sessions of a model cut a video: ``cuts``, or its own where that is None.

    Raises:
        ConfigError: ``cuts`` that this model does not have.
    """
    video = _video_model(model)
    if video is None:
        if cuts in (None, "streaming"):
            return "streaming"
        raise ConfigError(f"cuts={cuts}: {model.name} reads no whole videos; leave cuts out")
    chosen: str = cuts or video.options.cuts
    if chosen not in video.cuts:
        raise ConfigError(f"cuts={chosen}: {model.name} takes {', '.join(video.cuts)}")
    return chosen


def with_cuts(model: StreamModel, cuts: str) -> StreamModel:
    """Return the model with these ``cuts`` in place of its own; all of its parts keep theirs."""
    video = _video_model(model)
    if video is None or video.options.cuts == cuts:
        return model
    options: Any = dataclasses.replace(video.options, cuts=cuts)
    changed: Any = dataclasses.replace(video, options=options)
    if model is video:
        return cast(StreamModel, changed)
    parts = {
        "perceiver": model.perceiver,
        "segment_encoder": model.segment_encoder,
        "generator": model.generator,
        "answer_generator": model.answer_generator,
    }
    swapped = {name: changed for name, part in parts.items() if part is video}
    return dataclasses.replace(cast(ComposedModel, model), **swapped)


def _video_model(model: StreamModel) -> PublishedModel | None:
    """Return the model that reads whole videos, if one does.

    Others may write in its place, but where its segments are read together.
    """
    encoder = model.segment_encoder
    if not isinstance(encoder, PublishedModel):
        return None
    return encoder if encoder is model or encoder.whole != "segments" else None


class VideoBuffer(SceneBuffer):
    """Frames of a video, evenly, at most ``most`` and the newest: when full, every second goes."""

    def __init__(self, most: int, now_frames: int = 0) -> None:
        super().__init__(UNBOUNDED, now_frames)
        self._most, self._stride, self._first = most, 1, 0

    def push(self, frame: Frame, perceived: Perceived) -> None:
        """Keep the next frame; the one before it goes unless it stands on the stride."""
        if not self.frames:
            self._stride, self._first = 1, self.num_frames
        elif (self.frames[-1].number - self._first) % self._stride:
            self.frames = self.frames[:-1]
        super().push(frame, perceived)
        if len(self.frames) > self._most:
            self._stride *= 2
            on_stride = [f for f in self.frames if (f.number - self._first) % self._stride == 0]
            newest = [self.frames[-1]] if on_stride[-1] is not self.frames[-1] else []
            self.frames = (*on_stride, *newest)


class WholeVideoSession(Session):
    """A session whose segments all close at the flush, by rules that need the whole video.

    ``push`` only perceives; ``flush`` cuts, bridges and stores; there is no ``snapshot`` between.
    Every frame is perceived anew, as the parent does it, so ``still`` has no effect, and no segment
    goes on over the next. At most ``HELD`` frames wait however long the video is, or 2 x
    ``ParentOptions.frames`` where that is more; of more frames every second, fourth, ... one is
    chosen among.

    Args:
        model: whose ``cuts`` are not ``streaming``.
        config: see ``Session``.
        memory: see ``Session``; a memory that is asked later is asked as any other.
        on_score: never called: there are no scores while frames come.
    """

    whole = True

    def __init__(
        self,
        model: VideoLLaMB,
        config: SessionConfig | None = None,
        memory: str | Path | None = None,
        on_score: Callable[..., None] | None = None,
    ) -> None:
        config = dataclasses.replace(
            config or SessionConfig(), still=0.0, epsilon=0.0, now_frames=0
        )
        super().__init__(model, config, memory=memory, on_score=on_score)
        self._video = model
        # Frames are cut by what `read` computes of the chosen ones: no tower sees one that arrives.
        options = dataclasses.replace(model.options, scene_features="keys")
        self._perceiver = dataclasses.replace(model, options=options)
        self._buffer = VideoBuffer(max(HELD, 2 * model.options.frames))
        self._waiting: list[EncodedSegment] = []  # of the video, not closed yet
        self._items: dict[int, EvidenceItem] = {}  # of the video, by segment, not rounded

    def push(self, frame: Frame) -> tuple[Segment, ...]:
        """Perceive the next frame; closes nothing.

        Raises:
            ValueError: time runs backward.
        """
        if not self._time <= frame.time < float("inf"):
            raise ValueError(f"frame at {frame.time:.3f} s: the stream is at {self._time:.3f} s")
        self._buffer.push(frame, self._perceiver.perceive(frame.pixels))
        self._time = frame.time
        return ()

    def flush(self, end: float | None = None) -> tuple[Segment, ...]:
        """Read the video and close its segments. Idempotent; frames pushed later are another video.

        Args:
            end: see ``Session.flush``.
        """
        self._closed, self._said = {}, {}
        frames = self._buffer.frames
        if not frames:
            return ()
        until = frames[-1].end if end is None else max(end, frames[-1].time)
        # 1. The frames that are read; fewer than eight are repeated, each with a share of the time.
        chosen = choose(self._video, len(frames))
        if len(chosen) > len(frames):
            frames = _repeated(frames, chosen, until)
            self._buffer.frames, chosen = frames, list(range(len(frames)))
        # 2. Cut and bridge them.
        patches = [frames[place].patches for place in chosen]
        reading = read(self._video, torch.stack([p for p in patches if p is not None]))
        # 3. Close a segment from each first frame to the next one's.
        self._waiting = [
            EncodedSegment(*pair) for pair in zip(reading.rows, reading.recalled, strict=True)
        ]
        self._items = {}
        firsts = [0, *(chosen[start] for start in reading.starts[1:]), len(frames)]
        closed, requests = [], {}
        for place, after in pairwise(firsts):
            rows = self._waiting[0].tokens
            last = after == len(frames)
            ends = until if last else frames[after].time
            segment = self._close(after - place, ends, None, "end" if last else "cut")
            self._items[segment.id] = EvidenceItem(segment.start, segment.end, rows)
            # A memory keeps rows in 8-bit levels; what is said now is of the rows as they are.
            requests[segment.id] = self._closed[segment.id]._replace(tokens=rows)
            closed.append(segment)
        self._closed, self._time = requests, until
        return tuple(closed)

    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        pictures: Sequence[np.ndarray] = (),
        between: tuple[float, float] | Window | None = None,
    ) -> Answer:
        """Answer in the model's own words from the whole video, nothing chosen by the question.

        Evidence and ``seen`` come from the keys, as in any session, and do not change the words.
        With pictures, or about a part of the video, it answers as any session does.
        """
        if not self._items or len(pictures) or between is not None:
            return super().ask(question, on_text, pictures, between)
        answer = _answered(self, list(self._items.values()), question, on_text)
        own = tuple(item for item in answer.evidence if item.segment in self._items)
        return dataclasses.replace(answer, evidence=own)

    def _encode(
        self, frames: Sequence[BufferedFrame], key: np.ndarray, sound: SceneSound | None
    ) -> EncodedSegment:
        return self._waiting.pop(0)


class ClosedClip(NamedTuple):
    """A closed clip.

    Attributes:
        segment: its span.
        times: seconds of all of its frames that were held.
        tokens: of those that were read, not rounded.
        said: in it, as far as it was known when it closed.
    """

    segment: Segment
    times: tuple[float, ...]
    tokens: Tensor
    said: tuple[Note, ...]


class ClipSession(Session):
    """A session whose segments are whole videos, or clips of ``clip_s`` seconds: MiniGPT4-Video's.

    A whole video is asked in one prompt of all its frames and subtitles, as MiniGPT4-Video is;
    clips are captioned one by one and found again, as Goldfish does it. There is no ``snapshot``
    within a clip. Every frame is perceived anew, no clip goes on over the next, and frames are
    held as in a ``WholeVideoSession``.

    Args:
        model: whose segment encoder is a MiniGPT4-Video with ``cuts`` other than ``streaming``.
        config: see ``Session``.
        memory: see ``Session``.
        on_score: never called: there are no scores.
    """

    def __init__(
        self,
        model: StreamModel,
        config: SessionConfig | None = None,
        memory: str | Path | None = None,
        on_score: Callable[..., None] | None = None,
    ) -> None:
        config = dataclasses.replace(
            config or SessionConfig(), still=0.0, epsilon=0.0, now_frames=0
        )
        super().__init__(model, config, memory=memory, on_score=on_score)
        video: Any = model.segment_encoder
        self._video, self.whole = video, video.options.cuts == "whole"
        self._buffer = VideoBuffer(HELD)
        self._clip: ClosedClip | None = None  # the last one

    def push(self, frame: Frame) -> tuple[Segment, ...]:
        """Perceive the next frame; closes the clip before it, if it is full.

        Raises:
            ValueError: time runs backward.
        """
        if self.time_offset:
            frame = dataclasses.replace(frame, time=frame.time + self.time_offset)
        if not self._time <= frame.time < math.inf:
            raise ValueError(f"frame at {frame.time:.3f} s: the stream is at {self._time:.3f} s")
        closed: list[Segment] = []
        self._closed, self._said = {}, {}
        held = self._buffer.frames
        if not self.whole and held and frame.time >= held[0].time + self._video.options.clip_s:
            closed.append(self._close_clip(frame.time, "max"))
        self._buffer.push(frame, self.model.perceiver.perceive(frame.pixels))
        self._time = frame.time
        return tuple(closed)

    def flush(self, end: float | None = None) -> tuple[Segment, ...]:
        """Close the video, or the open clip. Idempotent.

        Args:
            end: see ``Session.flush``.
        """
        self._closed, self._said = {}, {}
        frames = self._buffer.frames
        if not frames:
            return ()
        until = frames[-1].end if end is None else max(end + self.time_offset, frames[-1].time)
        segment = self._close_clip(until, "end")
        self._time = until
        return (segment,)

    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        pictures: Sequence[np.ndarray] = (),
        between: tuple[float, float] | Window | None = None,
    ) -> Answer:
        """Answer; of a whole video in the model's own words, nothing chosen by the question.

        Evidence and ``seen`` come from the keys, as in any session, and do not change the words.
        With pictures, about a part of the video, or of clips, it answers as any session does.
        """
        clip = self._clip
        if not self.whole or clip is None or len(pictures) or between is not None:
            return super().ask(question, on_text, pictures, between)
        # What was recognised since the video ended stands beside its frames, too.
        row = self.memory.get(clip.segment.id)
        item = self._item(clip, row.notes if row and row.notes else clip.said)
        return _answered(self, [item], question, on_text)

    def _close_clip(self, until: float, reason: Reason) -> Segment:
        """Close the frames held as one segment that ends at ``until``."""
        # 1. Which frames are read: what is said does not change it.
        frames = self._buffer.frames
        times = tuple(frame.time for frame in frames)
        self._chosen = [frames[shot.frame] for shot in self._shots(times, until, ())]
        # 2. Close the segment: `_encode` reads them.
        segment = self._close(len(frames), until, None, reason)
        said = self.notes(segment)
        # 3. What is generated now is of the tokens as they are, beside captions placed by rule.
        self._clip = ClosedClip(segment, times, self._tokens, said)
        item = self._item(self._clip, said)
        request = self._closed[segment.id]
        self._closed[segment.id] = request._replace(
            tokens=item.tokens, notes=item.notes, times=item.times
        )
        return segment

    def _item(self, clip: ClosedClip, said: Sequence[Note]) -> EvidenceItem:
        """Return the evidence of a clip, with each caption timed as its frame is."""
        shots = self._shots(clip.times, clip.segment.end, said)
        shown = tuple(clip.times[shot.frame] for shot in shots)
        notes = tuple(
            Note(time, time, shot.caption)
            for time, shot in zip(shown, shots, strict=True)
            if shot.caption
        )
        start, end = clip.segment.start, clip.segment.end
        return EvidenceItem(start, end, clip.tokens, notes=notes, times=shown)

    def _shots(self, times: Sequence[float], until: float, said: Sequence[Note]) -> list[Shot]:
        """Choose of frames shown at ``times``, and place what is said beside them."""
        options, (most, words, _) = self._video.options, self._video.limits
        if options.subtitles == "each":
            step = max(1, len(times) // most)
            floor = range(0, len(times), step)[:most]
            chosen = spread(len(times), most) if options.sampling == "even" else floor
            captions = shortened(placed([times[i] for i in chosen], said), words)
            return [Shot(*pair) for pair in zip(chosen, captions, strict=True)]
        start, length = times[0], until - times[0]
        return parents_shots(
            options.subtitles,
            cues_of([Note(n.start - start, n.end - start, n.text) for n in said]),
            num_frames=len(times), total=len(times), most=most, words=words,
            fps=len(times) / length if length > 0 else 1.0,
        )  # fmt: skip

    def _encode(
        self, frames: Sequence[BufferedFrame], key: np.ndarray, sound: SceneSound | None
    ) -> EncodedSegment:
        self._tokens = self._video.pack([f.patches for f in self._chosen if f.patches is not None])
        return EncodedSegment(self._tokens, self.recurrent)


class OneVideoSession(ClipSession):
    """A session whose one segment is the whole video, with its sound: Video-LLaMA's.

    Captions and answers are of the frames that ``VideoLlama.choose`` chooses of the whole.
    """

    def _close_clip(self, until: float, reason: Reason) -> Segment:
        frames = self._buffer.frames
        self._chosen = [frames[place] for place in self._video.choose(len(frames))]
        segment = self._close(len(frames), until, None, reason)
        self._clip = ClosedClip(segment, (), self._tokens, ())
        # What is generated now is of the tokens as they are.
        self._closed[segment.id] = self._closed[segment.id]._replace(tokens=self._tokens)
        return segment

    def _item(self, clip: ClosedClip, said: Sequence[Note]) -> EvidenceItem:
        return EvidenceItem(clip.segment.start, clip.segment.end, clip.tokens)

    def _encode(
        self, frames: Sequence[BufferedFrame], key: np.ndarray, sound: SceneSound | None
    ) -> EncodedSegment:
        read = segment_frames(self.next_segment, self._chosen)._replace(sound=sound)
        encoded: EncodedSegment = self._video.encode_segment(read, self.recurrent, None)
        self._tokens = encoded.tokens
        return encoded


def _answered(
    session: Session,
    items: Sequence[EvidenceItem],
    question: str,
    on_text: Callable[[str], None] | None,
) -> Answer:
    """Answer from all of a video; evidence and ``seen`` come from the keys beside it."""
    if not question.strip():
        raise ValueError("the question is empty")
    generator, pieces = session.model.answer_generator, []
    for piece in generator.stream(generator.answer_prompt(items, question), session.config.answer):
        pieces.append(piece)
        if on_text:
            on_text(piece)
    evidence, seen = session.answerer.evidence(question, session.present())
    return Answer(question, "".join(pieces).strip(), seen, "model", evidence)


def _repeated(
    frames: Sequence[BufferedFrame], chosen: Sequence[int], until: float
) -> tuple[BufferedFrame, ...]:
    """Lay the chosen frames, some of which repeat, evenly over the time of all."""
    start = frames[0].time
    step = (until - start) / len(chosen)
    return tuple(
        dataclasses.replace(
            frames[place], time=start + number * step, end=start + (number + 1) * step
        )
        for number, place in enumerate(chosen)
    )
