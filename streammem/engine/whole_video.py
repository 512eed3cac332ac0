"""Sessions that read a video as a whole once its source has ended, as VideoLLaMB's own code does.

    session = open_session(model, config, finite=True)   # or a plain one, by ``cuts``
    for event in watch(session, "holiday.mp4"):          # captions come after the last frame
        ...
    session.ask("Who enters last?").text                 # from what the model's ``sees`` shows

Frames, keys, memory, captions and commands are those of any session; where segments begin and what
the bridge makes of them comes from ``models/videollamb/offline.py``.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from streammem.audio.scene_sound import SceneSound
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError
from streammem.memory.retrieval import Window
from streammem.models.protocols import EncodedSegment, EvidenceItem, StreamModel
from streammem.models.videollamb.offline import choose, read
from streammem.models.videollamb.videollamb import VideoLLaMB
from streammem.perception.perceiver import Perceived
from streammem.perception.scene_buffer import BufferedFrame, SceneBuffer
from streammem.types import Answer, Frame, Segment

HELD = 1024  # frames; at full size one takes 0.3 MB: 224 x 224 pixels and a picture for keyframes
UNBOUNDED = 1 << 62  # the lag of a buffer that thins no scene


def open_session(
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
    whole = whole_video_model(model, config.cuts)
    if whole is None:
        return Session(model, config, memory=memory)
    if not finite:
        raise ConfigError(
            f"cuts={whole.options.cuts} reads a video as a whole, and this source has no end that "
            "is known; give --set cuts=streaming"
        )
    return WholeVideoSession(whole, config, memory=memory)


def whole_video_model(model: StreamModel, cuts: str | None = None) -> VideoLLaMB | None:
    """Return the model that reads whole videos, with ``cuts`` in place of its own; None if none.

    Raises:
        ConfigError: ``cuts`` that need a VideoLLaMB, and this is none.
    """
    if not isinstance(model, VideoLLaMB):
        if cuts in (None, "streaming"):
            return None
        raise ConfigError(f"cuts={cuts}: only a VideoLLaMB reads whole videos, not {model.name}")
    chosen = cuts or model.options.cuts
    if chosen == "streaming":
        return None
    options = dataclasses.replace(model.options, cuts=chosen)  # type: ignore[arg-type]
    return dataclasses.replace(model, options=options)


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
        if not question.strip():
            raise ValueError("the question is empty")
        generator, pieces = self.model.answer_generator, []
        prompt = generator.answer_prompt(list(self._items.values()), question)
        for piece in generator.stream(prompt, self.config.answer):
            pieces.append(piece)
            if on_text:
                on_text(piece)
        evidence, seen = self.answerer.evidence(question, self.present())
        own = tuple(item for item in evidence if item.segment in self._items)
        return Answer(question, "".join(pieces).strip(), seen, "model", own)

    def _encode(
        self, frames: Sequence[BufferedFrame], key: np.ndarray, sound: SceneSound | None
    ) -> EncodedSegment:
        return self._waiting.pop(0)


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
