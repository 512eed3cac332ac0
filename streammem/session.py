"""A session: one stream through one model. Single-threaded, deterministic, bounded.

``push`` is the frame-rate path and never runs the language model; ``caption`` and ``ask`` are the
slow path. Threads live in ``live.py``.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from streammem.backbones.language import GenerationConfig
from streammem.errors import ConfigError
from streammem.memory.abstain import normalise, threshold
from streammem.memory.cache import CacheConfig, MemoryCache
from streammem.memory.entry import MAX_KEYFRAME_BYTES, Entry, Hit
from streammem.memory.keysets import visual_keys
from streammem.model import (
    ANSWER_DECODING,
    Passage,
    Perceived,
    VideoModel,
    spread,
)
from streammem.scenetilling import SceneState, SceneTillingConfig, Score, flush, initial, push
from streammem.types import Answer, Caption, Evidence, Frame, Moment, Reason, Segment

Context = Literal["memory", "now", "uniform", "captions"]
CONTEXTS: tuple[Context, ...] = ("memory", "now", "uniform", "captions")
BRIDGE_FRAMES = 8
KEYFRAME_SIDE = 320
JPEG_QUALITY = 80
FALSE_SIGHTINGS = 0.1  # questions about absent things that may pass as seen


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a session remembers, speaks and answers.

    Attributes:
        scenes: SceneTilling's options; None takes the model's.
        max_segments: rows that the cache keeps, >= 4.
        retrieved: related past segments that the bridge attends to, >= 0.
        passages: segments shown to the language model for an answer, >= 1.
        now_frames: last frames shown to it besides, >= 0.
        context: what an answer is read from: ``memory``, or a control: the last frames only
            (``now``), segments spread evenly (``uniform``), captions without tokens (``captions``).
        caption: decoding of captions; None takes the model's.
        answer: decoding of answers.
        instruction: what a caption is asked by; None takes what the model was trained with.
    """

    scenes: SceneTillingConfig | None = None
    max_segments: int = 4096
    retrieved: int = 4
    passages: int = 4
    now_frames: int = 4
    context: Context = "memory"
    caption: GenerationConfig | None = None
    answer: GenerationConfig = ANSWER_DECODING
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ConfigError(f"context {self.context!r}: give one of {', '.join(CONTEXTS)}")
        if self.retrieved < 0 or self.passages < 1 or self.now_frames < 0:
            raise ConfigError("retrieved and now_frames must be >= 0, passages >= 1")
        CacheConfig(max_segments=self.max_segments)  # refuses what the cache would


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A frame of the open scene.

    Attributes:
        number: of the frame among all pushed.
        key: [K] its key.
        patches: [P, V] float16; None once the scene is long and has enough others.
        picture: small, for a keyframe; None together with ``patches``.
    """

    number: int
    time: float
    end: float
    key: np.ndarray
    patches: Tensor | None
    picture: np.ndarray | None


@dataclass(frozen=True, slots=True, eq=False)
class SessionState:
    """All that a stream has left behind, the cache aside: a value of bounded size.

    Attributes:
        scene: SceneTilling's state.
        held: frames of the open scene and those waiting for a boundary's decision; keys of all
            (``max_frames`` + ``max_lag``), patches of the newest ``max_lag`` and of at most
            2 x ``BRIDGE_FRAMES`` older ones.
        now: the last ``now_frames`` frames.
        memory: [M, D] recurrent memory tokens.
        next_segment: id of the open segment.
        frames: frames pushed so far.
        closed_until: seconds, end of the last closed segment; -inf before there is one.
    """

    scene: SceneState
    held: tuple[Held, ...]
    now: tuple[Held, ...]
    memory: Tensor
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
        source: name of the stream in evidence.
        on_score: called with the time (s) and each settled similarity and depth, for plots.
    """

    model: VideoModel
    config: SessionConfig = field(default_factory=SessionConfig)
    source: str = ""
    on_score: Callable[[float, Score], None] | None = None

    def __post_init__(self) -> None:
        self._scenes = self.config.scenes or self.model.scenes
        bridge = self.model.bridge
        self.cache = MemoryCache(
            CacheConfig(
                key_dim=self.model.background.shape[1],
                token_shape=(bridge.config.memory_tokens, bridge.config.dim),
                max_segments=self.config.max_segments,
            )
        )
        self.state = SessionState(
            initial(self._scenes), (), (), bridge.initial_memory()[0].detach().clone()
        )

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
        seen = self.model.perceive(frame.pixels)
        pushed = push(self.state.scene, seen.embedding, self._scenes)
        newest = _hold(self.state.frames, frame, seen)
        self.state = replace(
            self.state,
            scene=pushed.state,
            held=_thinned((*held, newest), self._scenes.max_lag + self._scenes.flash_frames + 1),
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
        entry = self.cache.get(segment)
        if entry is None:
            raise KeyError(f"no segment {segment} in this session")
        return torch.from_numpy(entry.tokens.astype(np.float32))

    def keyframe(self, segment: int) -> np.ndarray:
        """Return a segment's keyframe, [H, W, 3] uint8 RGB, longer side at most 320 pixels.

        Raises:
            KeyError: no such segment, or its keyframe was dropped.
        """
        entry = self.cache.get(segment)
        if entry is None or entry.keyframe is None:
            raise KeyError(f"no keyframe of segment {segment} in this session")
        return np.asarray(Image.open(io.BytesIO(entry.keyframe)).convert("RGB"))

    def caption(self, segment: Segment, on_text: Callable[[str], None] | None = None) -> Caption:
        """Describe a segment.

        Args:
            segment: as ``push`` or ``flush`` returned it.
            on_text: called with each piece of text as it is generated.
        """
        prompt = self.model.caption_prompt(self.tokens(segment.id), self.config.instruction)
        text = _say(self.model, prompt, self.config.caption or self.model.decoding, on_text)
        return self.add_caption(segment, text)

    def add_caption(self, segment: Segment, text: str) -> Caption:
        """Store what was said of a segment, found from then on by its words too.

        Returns:
            The caption with its confidence: how far picture and words agree in the key space.
        """
        key = self.model.sentence_keys([text])[0]
        entry = self.cache.set_caption(segment.id, text, key)
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
        for hit in hits:
            if hit.entry.caption is None:
                self._describe(hit.entry)
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
                    caption=found.caption, speech=found.speech, rank=rank,
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
        tokens = self.model.look(
            [f.patches for f in shown if f.patches is not None], _places(shown)
        )
        keys = np.stack([f.key for f in frames])
        clusters = visual_keys(keys)
        memory = self.model.remember(self.state.memory, tokens, self._related(clusters[0]))
        segment = Segment(self.state.next_segment, frames[0].time, end, depth, reason)
        self.cache.append(
            Entry(
                segment=segment.id,
                start=segment.start,
                end=segment.end,
                frames=len(frames),
                visual_keys=clusters,
                text_keys=np.zeros((0, keys.shape[1]), np.float32),
                tokens=tokens.half().cpu().numpy(),
                keyframe=_keyframe(full, clusters[0]),
                source=self.source,
            )
        )
        self.state = replace(
            self.state, held=rest, memory=memory, next_segment=segment.id + 1, closed_until=end
        )
        return segment

    def _related(self, key: np.ndarray) -> Tensor | None:
        if not self.config.retrieved or not len(self.cache):
            return None
        hits = self.cache.related(key, self.config.retrieved)
        return torch.cat([torch.from_numpy(h.entry.tokens.astype(np.float32)) for h in hits])

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
            tokens = torch.from_numpy(entry.tokens.astype(np.float32))
            shown = tokens if with_tokens else tokens[:0]
            passages.append(Passage(entry.start, entry.end, shown, entry.caption))
        now = self.state.now
        if now and self.config.context in ("memory", "now"):
            patches = [f.patches for f in now if f.patches is not None]
            tokens = self.model.look(patches, _places(now))
            passages.append(Passage(now[0].time, now[-1].end, tokens, None))
        return passages

    def _describe(self, entry: Entry) -> None:
        segment = Segment(entry.segment, entry.start, entry.end, None, "cut")
        self.caption(segment)

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
            caption=entry.caption, speech=speech,
        )  # fmt: skip


def _hold(number: int, frame: Frame, seen: Perceived) -> Held:
    picture = Image.fromarray(frame.pixels)
    picture.thumbnail((KEYFRAME_SIDE, KEYFRAME_SIDE))
    small = np.asarray(picture)
    end = frame.time + frame.duration
    return Held(number, frame.time, end, seen.key, seen.patches, small)


def _thinned(held: tuple[Held, ...], lag: int) -> tuple[Held, ...]:
    """Drop patches of a long scene's older frames, evenly: every 2nd, 4th, ... keeps its own.

    Frames younger than ``lag`` keep theirs, since a boundary may yet fall before them. Strides
    are powers of two, so what was kept at one length is kept at the next or dropped for good.
    """
    older = len(held) - lag
    if older <= 2 * BRIDGE_FRAMES:
        return held
    stride = 1 << (older // (2 * BRIDGE_FRAMES)).bit_length()
    first = held[0].number
    return tuple(
        f if f.patches is None or i >= older or (f.number - first) % stride == 0
        else replace(f, patches=None, picture=None)
        for i, f in enumerate(held)
    )  # fmt: skip


def _places(frames: Sequence[Held]) -> list[float]:
    """Place frames in [0, 1] between the first and the last; one frame stands in the middle."""
    first, span = frames[0].time, frames[-1].time - frames[0].time
    return [(f.time - first) / span if span > 0 else 0.5 for f in frames]


def _keyframe(frames: Sequence[Held], key: np.ndarray) -> bytes:
    """Encode the frame nearest to the segment's main key as a JPEG that an entry may hold."""
    best = max(frames, key=lambda f: float(f.key @ key))
    assert best.picture is not None  # these frames have kept their patches, and so this
    picture = Image.fromarray(best.picture)
    while True:
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=JPEG_QUALITY)
        if out.tell() <= MAX_KEYFRAME_BYTES:
            return out.getvalue()
        picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))


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
