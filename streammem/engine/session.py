"""A session: one stream through one model. Single-threaded, deterministic, bounded.

``push`` is the frame-rate path and never runs the language model; ``caption`` and ``ask`` are the
slow path. Threads live in ``live.py``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from streammem.captioning.captioner import Captioner, CaptionRequest, ScoredCaption
from streammem.engine.session_config import SessionConfig
from streammem.memory.cache import CacheConfig, MemoryCache
from streammem.memory.entry import Entry, decode_keyframe
from streammem.memory.keysets import visual_keys
from streammem.memory.memory import Memory
from streammem.models.protocols import SegmentFrames, StreamModel, spread
from streammem.perception.background import Backdrop, settled
from streammem.perception.gate import Encoded, encode, glance_at
from streammem.perception.scene_buffer import (
    BRIDGE_FRAMES,
    KEYFRAME_SIDE,
    Held,
    hold,
    keyframe,
    places,
    thinned,
)
from streammem.perception.scenetilling import SceneState, Score, flush, initial, push
from streammem.qa.answerer import Answerer, Present
from streammem.types import Answer, Caption, Chapter, Frame, Moment, Reason, Segment


@dataclass(frozen=True, slots=True, eq=False)
class SessionState:
    """All that a stream has left behind, the cache aside: a value of bounded size.

    Attributes:
        scene: SceneTilling's state.
        held: frames of the open scene and those waiting for a boundary's decision; keys of all
            (``max_frames`` + ``max_lag``), patches of the newest ``max_lag`` and of at most
            2 x ``BRIDGE_FRAMES`` older ones.
        now: the last ``now_frames`` frames.
        encoded: the last frame that was encoded; later ones that look like it are not.
        backdrop: of a fixed camera.
        memory: recurrent memory, shaped as the model's ``initial_memory``.
        next_segment: id of the open segment.
        frames: frames pushed so far.
        closed_until: seconds, end of the last closed segment; -inf before there is one.
    """

    scene: SceneState
    held: tuple[Held, ...]
    now: tuple[Held, ...]
    memory: Tensor
    encoded: Encoded | None = None
    backdrop: Backdrop | None = None
    next_segment: int = 0
    frames: int = 0
    closed_until: float = -math.inf


@dataclass(eq=False)
class Session:
    """Perceives frames, remembers segments, and speaks about them.

    Sessions of one model share nothing but its weights.

    Args:
        model: what sees and speaks.
        config: options.
        memory: folder of a durable memory, made where there is none; None keeps it in RAM. What
            is in it stays findable, and the recurrent memory goes on from it.
        read_only: open the memory for questions only, also while another process writes it.
        source: name of the stream in evidence.
        wall_zero: wall clock at stream time 0, Unix seconds, for questions such as "yesterday at
            3 pm"; None where nobody knows it. May be set anew while the stream runs.
        on_score: called with the time (s) and each settled similarity and depth, for plots.

    Raises:
        ConfigError: more candidates than the model can choose among.
        StoreError: the memory cannot be opened, or was made by another model.

    Attributes:
        captioner: makes and scores its captions.
    """

    model: StreamModel
    config: SessionConfig = field(default_factory=SessionConfig)
    memory: str | Path | None = None
    read_only: bool = False
    source: str = ""
    on_score: Callable[[float, Score], None] | None = None
    wall_zero: float | None = None

    def __post_init__(self) -> None:
        self._scenes = self.config.scenes or self.model.perceiver.scenes
        self.captioner = Captioner(self.model, self.config.captioning)
        key_dim = self.model.text_encoder.background.shape[1]
        encoder = self.model.segment_encoder
        token_shape = encoder.token_shape if encoder else (0, 0)
        if self.memory is None:
            self.kept = Memory(CacheConfig(key_dim, token_shape, self.config.max_segments))
        else:
            self.kept = Memory.open(
                self.memory,
                self.model.fingerprint,
                key_dim=key_dim,
                token_shape=token_shape,
                max_segments=self.config.max_segments,
                mode="r" if self.read_only else "rw",
            )
        recurrent = self.kept.recurrent(encoder.initial_memory() if encoder else torch.zeros(0, 0))
        self.state = SessionState(
            initial(self._scenes), (), (), recurrent, next_segment=self.kept.next_segment
        )
        self._closed: dict[int, CaptionRequest] = {}  # by the last push or flush alone
        self.answerer = Answerer(self.model, self.kept, self.config, self._describe)

    @property
    def cache(self) -> MemoryCache:
        """What is findable now."""
        return self.kept.cache

    def close(self) -> None:
        """Release a durable memory; idempotent. The open segment is not kept: flush first."""
        self.kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- the frame-rate path --

    def push(self, frame: Frame) -> tuple[Segment, ...]:
        """Take in the next frame.

        Args:
            frame: not earlier than the one before, nor than the end of the last segment.

        Returns:
            The segments that it closed; mostly none. They never change afterwards.

        Raises:
            ValueError: time runs backward.
        """
        held = self.state.held
        newest_time = held[-1].time if held else self.state.closed_until
        if not newest_time <= frame.time < math.inf:
            raise ValueError(f"frame at {frame.time:.3f} s: the stream is at {newest_time:.3f} s")
        backdrop = self._backdrop(frame)
        box = backdrop.changed if backdrop else None
        encoded = encode(
            self.model.perceiver, frame.pixels, self.state.encoded, self.config.still, box
        )
        self._closed = {}
        pushed = push(self.state.scene, encoded.seen.embedding, self._scenes)
        newest = hold(self.state.frames, frame, encoded.seen)
        self.state = replace(
            self.state,
            scene=pushed.state,
            encoded=encoded,
            backdrop=backdrop,
            held=thinned((*held, newest), self._scenes.max_lag + self._scenes.flash_frames + 1),
            now=(*self.state.now, newest)[-self.config.now_frames :]
            if self.config.now_frames
            else (),
            frames=self.state.frames + 1,
        )
        self._report(pushed.scores)
        return tuple(self._close_at(b.index, b.depth, b.reason) for b in pushed.boundaries)

    def flush(self, end: float | None = None) -> tuple[Segment, ...]:
        """Close the open segment, as the end of the stream does. Idempotent.

        Args:
            end: seconds, the stream's end, at least the last frame's time; the last frame's own
                end by default.
        """
        pushed = flush(self.state.scene, self._scenes)
        self.state = replace(self.state, scene=pushed.state)
        self._report(pushed.scores)
        closed = [self._close_at(b.index, b.depth, b.reason) for b in pushed.boundaries]
        if self.state.held:
            last = self.state.held[-1]
            until = last.end if end is None else max(end, last.time)
            closed.append(self._close(len(self.state.held), until, None, "end"))
        return tuple(closed)

    # -- the slow path --

    def tokens(self, segment: int) -> Tensor:
        """Return a segment's memory tokens [M, D].

        Raises:
            KeyError: no such segment.
        """
        return self.kept.tokens(segment)

    def keyframe(self, segment: int) -> np.ndarray:
        """Return a segment's keyframe, [H, W, 3] uint8 RGB, longer side at most 320 pixels.

        Raises:
            KeyError: no such segment, or its keyframe was dropped.
        """
        jpeg = self.kept.keyframe(segment)
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
        entry = self.cache.get(segment.id)
        if entry is None:
            raise KeyError(f"no segment {segment.id} in this session")
        reads = self.model.generator.reads
        tokens = self.tokens(segment.id) if reads.tokens else None
        jpeg = self.kept.keyframe(segment.id) if reads.pictures else None
        keyframes = (self.keyframe(segment.id),) if jpeg else ()
        return CaptionRequest(segment, entry.visual_keys, tokens, keyframes)

    def blank_request(self) -> CaptionRequest:
        """Return a request that shows nothing, to open the language model with."""
        span, encoder = Segment(0, 0.0, 0.0, None, None), self.model.segment_encoder
        reads = self.model.generator.reads
        tokens = torch.zeros(encoder.token_shape) if encoder and reads.tokens else None
        blank = (np.zeros((KEYFRAME_SIDE, KEYFRAME_SIDE, 3), np.uint8),) if reads.pictures else ()
        return CaptionRequest(span, self.model.text_encoder.background[:1].numpy(), tokens, blank)

    def keep(self, segment: Segment, scored: ScoredCaption) -> Caption:
        """Keep what was decided to be said of a segment; nothing where nothing is said."""
        if scored.text:
            self.kept.set_caption(segment.id, scored.text, scored.key)
        return scored.of(segment)

    def _describe(self, segments: Sequence[Segment]) -> None:
        """Caption segments in one batch and keep the captions, for an answer."""
        requests = [self.request(segment) for segment in segments]
        for segment, scored in zip(segments, self.captioner.caption(requests), strict=True):
            self.keep(segment, scored)

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer from what was seen so far, with the evidence it rests on.

        The last turns are remembered, so that "and after that?" can follow.

        Args:
            question: free text.
            on_text: called with each piece of the answer as it comes.

        Raises:
            ValueError: an empty question.
            ConfigError: a time in it that there is not.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        state = self.state
        present = Present(state.now, state.next_segment, state.memory)
        return self.answerer.ask(question, present, on_text)

    def find(self, query: str, count: int = 5) -> tuple[Moment, ...]:
        """Find the moments that a description fits best.

        Args:
            query: for example ``a man in a red hat``.
            count: moments at most.
        """
        return self.answerer.find(query, count)

    def chapters(
        self, count: int | None = None, between: tuple[float, float] | None = None
    ) -> tuple[Chapter, ...]:
        """Divide what was seen into chapters, with captions of their most central scenes.

        Args:
            count: chapters at most; by default the square root of the scenes, 24 at most.
            between: [a, b) seconds; only what overlaps it.

        Raises:
            ConfigError: count below 1.
        """
        return self.answerer.chapters(count, between)

    # -- closing --

    def _close_at(self, boundary: int, depth: float | None, reason: Reason) -> Segment:
        held = self.state.held
        count = sum(1 for frame in held if frame.number < boundary)
        return self._close(count, held[count].time, depth, reason)

    def _close(self, count: int, end: float, depth: float | None, reason: Reason) -> Segment:
        """Close the first ``count`` held frames as a segment that ends at ``end``."""
        frames, rest = self.state.held[:count], self.state.held[count:]
        full = [f for f in frames if f.picture is not None]
        keys = np.stack([f.key for f in frames])
        clusters = visual_keys(keys)
        tokens, memory = torch.zeros(0, 0), self.state.memory
        if (encoder := self.model.segment_encoder) is not None:
            wanted = self.config.retrieved if encoder.reads_related else 0
            related = self.kept.related_tokens(clusters[0], wanted)
            shown = [full[i] for i in spread(len(full), BRIDGE_FRAMES)]
            read = segment_frames(self.state.next_segment, shown)
            tokens, memory = encoder.encode_segment(read, memory, related)
        segment = Segment(self.state.next_segment, frames[0].time, end, depth, reason)
        entry = Entry(
            segment=segment.id,
            start=segment.start,
            end=segment.end,
            frames=len(frames),
            visual_keys=clusters,
            caption_keys=keys[:0],
            note_keys=keys[:0],
            tokens=tokens.half().cpu().numpy(),
            keyframe=keyframe(full, clusters[0]),
            source=self.source,
            wall_start=None if self.wall_zero is None else self.wall_zero + segment.start,
        )
        row = self.kept.append(entry, memory)
        # Of the row, whose tokens are rounded: a caption made later from disk is the same.
        seen = torch.from_numpy(row.tokens.astype(np.float32)) if row.tokens.size else None
        pictures = [full[i] for i in spread(len(full), self.model.generator.reads.pictures)]
        keyframes = tuple(f.picture for f in pictures if f.picture is not None)
        self._closed[segment.id] = CaptionRequest(segment, row.visual_keys, seen, keyframes)
        self.state = replace(
            self.state, held=rest, memory=memory, next_segment=segment.id + 1, closed_until=end
        )
        return segment

    def _backdrop(self, frame: Frame) -> Backdrop | None:
        if not self.config.fixed:
            return None
        glance = glance_at(frame.pixels)
        return settled(self.state.backdrop, glance, frame.time, max(1.0, self.config.still))

    def _report(self, scores: Sequence[Score]) -> None:
        if self.on_score and scores:
            first = self.state.held[0].number
            for score in scores:
                self.on_score(self.state.held[score.frame - first].time, score)


def segment_frames(number: int, frames: Sequence[Held]) -> SegmentFrames:
    """Return frames as a segment encoder reads them."""
    patches = [frame.patches for frame in frames if frame.patches is not None]
    return SegmentFrames(number, patches, places(frames))
