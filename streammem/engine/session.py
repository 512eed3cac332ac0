"""A session: one stream through one model. Single-threaded, deterministic, bounded.

``push`` is the frame-rate path and never runs the language model; ``caption`` and ``ask`` are the
slow path. Threads live in ``live.py``.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image
from torch import Tensor

from streammem.captioning.captioner import Spoken, candidates_of, level_of, weigh
from streammem.engine.session_config import SessionConfig
from streammem.memory.cache import CacheConfig
from streammem.memory.entry import Entry, visual_keys
from streammem.memory.memory import Memory
from streammem.models.backbones.language import Replies
from streammem.models.tiny.model import Scene, StreamModel, chosen, spread
from streammem.perception.background import Backdrop, settled
from streammem.perception.gate import Encoded, encode, glance_at
from streammem.perception.scene_buffer import BRIDGE_FRAMES, Held, hold, keyframe, places, thinned
from streammem.perception.scenetilling import SceneState, Score, flush, initial, push
from streammem.qa.answerer import Answerer, say
from streammem.qa.question import Present
from streammem.types import (
    Answer,
    Caption,
    Chapter,
    Frame,
    Moment,
    Reason,
    Segment,
    TimeSpan,
)


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
            3 pm"; None where it is not known. May be set anew while the stream runs.
        on_score: called with the time (s) and each settled similarity and depth, for plots.

    Raises:
        ConfigError: more candidates than the model can choose among.
        StoreError: the memory cannot be opened, or was made by another model.

    Attributes:
        memory: what was seen, as a ``Memory``.
        candidates: among how many captions of a scene one is chosen.
    """

    def __init__(  # noqa: PLR0913 - all but the model have a default that holds
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
        self._scenes = self.config.scenes or self.model.scenes
        self.candidates = candidates_of(self.model, self.config)
        key_dim = self.model.background.shape[1]
        token_shape = self.model.token_shape
        if memory is None:
            self.memory = Memory(CacheConfig(key_dim, token_shape, self.config.max_segments))
        else:
            self.memory = Memory.open(
                memory,
                self.model.fingerprint,
                key_dim=key_dim,
                token_shape=token_shape,
                max_segments=self.config.max_segments,
                mode="r" if self.read_only else "rw",
            )
        recurrent = self.memory.recurrent(self.model.initial_memory())
        self.state = SessionState(
            initial(self._scenes), (), (), recurrent, next_segment=self.memory.next_segment
        )
        self.answerer = Answerer(self.model, self.memory, self.config.answering, self)

    @property
    def withholds(self) -> bool:
        """Whether other words may be said than come first, so that none is said before."""
        return self.candidates > 1 or level_of(self.model, self.config) > 0

    def close(self) -> None:
        """Release a durable memory; idempotent. The open segment is not kept: flush first."""
        self.memory.close()

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
        encoded = encode(self.model, frame.pixels, self.state.encoded, self.config.still, box)
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
        return self.memory.tokens(segment)

    def keyframe(self, segment: int) -> np.ndarray:
        """Return a segment's keyframe, [H, W, 3] uint8 RGB, longer side at most 320 pixels.

        Raises:
            KeyError: no such segment, or its keyframe was dropped.
        """
        jpeg = self.memory.keyframe(segment)
        if jpeg is None:
            raise KeyError(f"no keyframe of segment {segment} in this memory")
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))

    def caption(self, segment: Segment, on_text: Callable[[str], None] | None = None) -> Caption:
        """Describe a segment.

        Args:
            segment: as ``push`` or ``flush`` returned it.
            on_text: called with each piece of text as it is generated; once, with all that is said,
                where less may be said than is generated.
        """
        if on_text is None or self.withholds:
            caption = self.captions([segment])[0]
            if on_text and caption.text:
                on_text(caption.text)
            return caption
        prompt = self.model.caption_prompt(self.tokens(segment.id), self.config.instruction)
        text = say(self.model, prompt, self.config.caption or self.model.decoding, on_text)
        return self.add_caption(segment, text)

    def captions(self, segments: Sequence[Segment]) -> list[Caption]:
        """Describe segments in one batch, which takes less time than one after another."""
        tokens = [self.tokens(segment.id) for segment in segments]
        decoding = self.config.caption or self.model.decoding
        instruction, count = self.config.instruction, self.candidates
        said = self.model.captions(tokens, decoding, instruction, count) if tokens else []
        return [self.add_caption(s, replies) for s, replies in zip(segments, said, strict=True)]

    def describe(self, entries: Sequence[Entry]) -> None:
        """Caption rows of the memory, for an answer that rests on them."""
        self.captions([Segment(e.segment, e.start, e.end, None, None) for e in entries])

    def add_caption(self, segment: Segment, said: str | Replies) -> Caption:
        """Store what is said of a segment, found from then on by its words too.

        Args:
            segment: closed.
            said: a whole caption of it, or several of which one is chosen.

        Returns:
            The caption: as much of the text as is sure, see ``SessionConfig.min_confidence``.

        Raises:
            KeyError: no such segment.
        """
        entry = self.memory.get(segment.id)
        if entry is None:
            raise KeyError(f"no segment {segment.id} in this session")
        text = said if isinstance(said, str) else chosen(self.model, said, entry.visual_keys)
        return self.keep(segment, weigh(self.model, text, entry.visual_keys, self.config))

    def keep(self, segment: Segment, spoken: Spoken) -> Caption:
        """Store what was decided to be said of a segment; nothing where nothing is said."""
        if spoken.text:
            self.memory.set_caption(segment.id, spoken.text, spoken.key)
        return spoken.of(segment)

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
        return self.answerer.ask(question, self._present(), on_text)

    def find(self, query: str, count: int = 5) -> tuple[Moment, ...]:
        """Find the moments that a description fits best.

        Args:
            query: for example ``a man in a red hat``.
            count: moments at most.
        """
        return self.answerer.find(query, count, self._present())

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
        return self.answerer.chapters(count, TimeSpan(*between) if between else None)

    def _present(self) -> Present:
        return Present(self.state.now, self.state.next_segment, self.state.memory)

    # -- closing --

    def _close_at(self, boundary: int, depth: float | None, reason: Reason) -> Segment:
        held = self.state.held
        count = sum(1 for frame in held if frame.number < boundary)
        return self._close(count, held[count].time, depth, reason)

    def _close(self, count: int, end: float, depth: float | None, reason: Reason) -> Segment:
        """Close the first ``count`` held frames as a segment that ends at ``end``."""
        frames, rest = self.state.held[:count], self.state.held[count:]
        full = [f for f in frames if f.patches is not None]
        shown = [full[i] for i in spread(len(full), BRIDGE_FRAMES)]
        keys = np.stack([f.key for f in frames])
        clusters = visual_keys(keys)
        wanted = self.config.retrieved if self.model.reads_related else 0
        related = self.memory.related_tokens(clusters[0], wanted)
        scene = _scene(self.state.next_segment, shown)
        tokens, memory = self.model.take_in(scene, self.state.memory, related)
        segment = Segment(self.state.next_segment, frames[0].time, end, depth, reason)
        self.memory.append(
            Entry(
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
            ),
            memory,
        )
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


def _scene(number: int, frames: Sequence[Held]) -> Scene:
    return Scene(number, [f.patches for f in frames if f.patches is not None], places(frames))
