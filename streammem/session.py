"""A session: one stream through one model. Single-threaded, deterministic, bounded.

``push`` is the frame-rate path and never runs the language model; ``caption`` and ``ask`` are the
slow path. Threads live in ``live.py``.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image
from torch import Tensor

from streammem.backbones.language import GenerationConfig
from streammem.gate import Encoded, encode
from streammem.memory.abstain import normalise, threshold
from streammem.memory.cache import CacheConfig, MemoryCache
from streammem.memory.entry import Entry, Hit
from streammem.memory.keysets import visual_keys
from streammem.memory.memory import Memory
from streammem.model import Passage, VideoModel, spread
from streammem.openscene import BRIDGE_FRAMES, Held, hold, keyframe, places, thinned
from streammem.scenetilling import SceneState, Score, flush, initial, push
from streammem.session_config import SessionConfig
from streammem.types import Answer, Caption, Evidence, Frame, Moment, Reason, Segment

# Nominal rate of false sightings. On held-out photos, 10 to 100 in a memory, about one question in
# five about an absent thing passed, and about half of those about present things.
FALSE_SIGHTINGS = 0.3


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
        memory: [M, D] recurrent memory tokens.
        next_segment: id of the open segment.
        frames: frames pushed so far.
        closed_until: seconds, end of the last closed segment; -inf before there is one.
    """

    scene: SceneState
    held: tuple[Held, ...]
    now: tuple[Held, ...]
    memory: Tensor
    encoded: Encoded | None = None
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
        on_score: called with the time (s) and each settled similarity and depth, for plots.

    Raises:
        StoreError: the memory cannot be opened, or was made by another model.
    """

    model: VideoModel
    config: SessionConfig = field(default_factory=SessionConfig)
    memory: str | Path | None = None
    read_only: bool = False
    source: str = ""
    on_score: Callable[[float, Score], None] | None = None

    def __post_init__(self) -> None:
        self._scenes = self.config.scenes or self.model.scenes
        bridge = self.model.bridge
        key_dim = self.model.background.shape[1]
        token_shape = (bridge.config.memory_tokens, bridge.config.dim)
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
        recurrent = self.kept.recurrent(bridge.initial_memory()[0].detach().clone())
        self.state = SessionState(
            initial(self._scenes), (), (), recurrent, next_segment=self.kept.next_segment
        )

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
        encoded = encode(self.model, frame.pixels, self.state.encoded, self.config.still)
        pushed = push(self.state.scene, encoded.seen.embedding, self._scenes)
        newest = hold(self.state.frames, frame, encoded.seen)
        self.state = replace(
            self.state,
            scene=pushed.state,
            encoded=encoded,
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
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))

    def caption(self, segment: Segment, on_text: Callable[[str], None] | None = None) -> Caption:
        """Describe a segment.

        Args:
            segment: as ``push`` or ``flush`` returned it.
            on_text: called with each piece of text as it is generated.
        """
        prompt = self.model.caption_prompt(self.tokens(segment.id), self.config.instruction)
        text = _say(self.model, prompt, self.config.caption or self.model.decoding, on_text)
        return self.add_caption(segment, text)

    def captions(self, segments: Sequence[Segment]) -> list[Caption]:
        """Describe segments in one batch, which takes less time than one after another."""
        tokens = [self.tokens(segment.id) for segment in segments]
        decoding = self.config.caption or self.model.decoding
        texts = self.model.captions(tokens, decoding, self.config.instruction) if tokens else []
        return [self.add_caption(s, text) for s, text in zip(segments, texts, strict=True)]

    def add_caption(self, segment: Segment, text: str) -> Caption:
        """Store what was said of a segment, found from then on by its words too.

        Returns:
            The caption with its confidence: how far picture and words agree in the key space.
        """
        key = self.model.sentence_keys([text])[0]
        entry = self.kept.set_caption(segment.id, text, key)
        agreement = float((entry.visual_keys @ key).max())
        return Caption(segment.id, segment.start, segment.end, text, _confidence(agreement))

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer from what was seen so far, with the evidence it rests on.

        Args:
            question: free text.
            on_text: called with each piece of the answer as it is generated.

        Raises:
            ValueError: an empty question.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        key = self.model.sentence_keys([question])[0]
        hits = self._chosen(key)
        unsaid = [hit.entry for hit in hits if hit.entry.caption is None]
        self.captions([Segment(e.segment, e.start, e.end, None, None) for e in unsaid])
        entries = sorted((self.cache.get(h.entry.segment) or h.entry for h in hits), key=_start)
        passages = self._passages(entries)
        prompt = self.model.answer_prompt(passages, question)
        text = _say(self.model, prompt, self.config.answer, on_text)
        evidence = tuple(self._evidence(hit) for hit in hits)
        return Answer(question, text, self._seen(key, hits), "model", evidence)

    def find(self, query: str, count: int = 5) -> tuple[Moment, ...]:
        """Find the moments that a description fits best.

        Args:
            query: for example ``a man in a red hat``.
            count: moments at most.
        """
        hits = self.cache.search(self.model.sentence_keys([query])[0], count)
        moments = []
        for rank, hit in enumerate(hits, start=1):
            found = self._evidence(hit)
            moments.append(
                Moment(
                    found.source, found.segment, found.start, found.end, found.score,
                    keyframe=found.keyframe, caption=found.caption, speech=found.speech, rank=rank,
                )
            )  # fmt: skip
        return tuple(moments)

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
        tokens = self.model.look([f.patches for f in shown if f.patches is not None], places(shown))
        keys = np.stack([f.key for f in frames])
        clusters = visual_keys(keys)
        related = self.kept.related_tokens(clusters[0], self.config.retrieved)
        memory = self.model.remember(self.state.memory, tokens, related)
        segment = Segment(self.state.next_segment, frames[0].time, end, depth, reason)
        self.kept.append(
            Entry(
                segment=segment.id,
                start=segment.start,
                end=segment.end,
                frames=len(frames),
                visual_keys=clusters,
                text_keys=np.zeros((0, keys.shape[1]), np.float32),
                tokens=tokens.half().cpu().numpy(),
                keyframe=keyframe(full, clusters[0]),
                source=self.source,
            ),
            memory,
        )
        self.state = replace(
            self.state, held=rest, memory=memory, next_segment=segment.id + 1, closed_until=end
        )
        return segment

    def _report(self, scores: Sequence[Score]) -> None:
        if self.on_score and scores:
            first = self.state.held[0].number
            for score in scores:
                self.on_score(self.state.held[score.frame - first].time, score)

    # -- answering --

    def _chosen(self, key: np.ndarray) -> list[Hit]:
        context, count = self.config.context, self.config.passages
        if context == "now":
            return []
        if context == "uniform":
            entries = self.cache.entries()
            return [_scored(entries[i], key) for i in spread(len(entries), count)]
        return list(self.cache.search(key, count))

    def _passages(self, entries: Sequence[Entry]) -> list[Passage]:
        with_tokens = self.config.context != "captions"
        passages = []
        for entry in entries:
            tokens = self.kept.tokens(entry.segment)
            shown = tokens if with_tokens else tokens[:0]
            passages.append(Passage(entry.start, entry.end, shown, entry.caption))
        now = self.state.now
        if now and self.config.context in ("memory", "now"):
            patches = [f.patches for f in now if f.patches is not None]
            tokens = self.model.look(patches, places(now))
            passages.append(Passage(now[0].time, now[-1].end, tokens, None))
        return passages

    def _seen(self, key: np.ndarray, hits: Sequence[Hit]) -> bool:
        if not hits:
            return bool(self.state.now)
        background = self.model.background.numpy() @ key
        best = np.array([max(hit.visual for hit in hits)])
        size = max(2, sum(len(e.visual_keys) for e in self.cache.entries()))
        return bool(normalise(best, background, size)[0] > threshold(FALSE_SIGHTINGS))

    def _evidence(self, hit: Hit) -> Evidence:
        entry = self.cache.get(hit.entry.segment) or hit.entry
        speech = " ".join(note.text for note in entry.notes) or None
        return Evidence(
            entry.source, entry.segment, entry.start, entry.end, hit.score,
            keyframe=self.kept.keyframe_path(entry.segment),
            caption=entry.caption, speech=speech,
        )  # fmt: skip


def _say(
    model: VideoModel,
    prompt: list[str | Tensor],
    decoding: GenerationConfig,
    on_text: Callable[[str], None] | None,
) -> str:
    said = []
    for piece in model.stream(prompt, decoding):
        said.append(piece)
        if on_text:
            on_text(piece)
    return "".join(said).strip()


def _scored(entry: Entry, key: np.ndarray) -> Hit:
    score = float((entry.visual_keys @ key).max())
    return Hit(entry, score, score, None, score)


def _confidence(agreement: float) -> float:
    return round(min(1.0, max(0.0, agreement)), 3)


def _start(entry: Entry) -> float:
    return entry.start
