"""What a session asks of a model: four parts, each of which may come from another model.

    perceiver        a frame          -> embedding, key, patches     (perception/frames.py)
    segment_encoder  frames, memory   -> tokens, memory              optional
    text_encoder     sentences        -> keys; a question -> what it asks for
    generator        a prompt         -> text; one for captions, another for answers where wanted

A class that plays several parts returns itself for each; ``ComposedModel`` joins parts of several
models, such as our perception and keys with a language model behind a server. No weights here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from torch import Tensor

from streammem.memory.retrieval import GumbelNull, NameReadout
from streammem.models.backbones.language import GenerationConfig, Prompt, Replies
from streammem.models.caption_scores import ConfidenceModel, Reranker
from streammem.models.tiny.questions import QuestionReading
from streammem.perception.frames import Perceiver, SegmentFrames, spread
from streammem.types import Note


class EncodedSegment(NamedTuple):
    """What a segment leaves behind.

    Attributes:
        tokens: of the encoder's ``token_shape``; for the cache, captions and answers.
        memory: the recurrent memory after it, shaped as ``initial_memory``.
    """

    tokens: Tensor
    memory: Tensor


class EvidenceItem(NamedTuple):
    """A part of the past as a generator may read it; ``readable`` leaves out what it cannot.

    Attributes:
        start: seconds.
        end: seconds.
        tokens: [M, D] the segment encoder's tokens of it; None or [0, D] without.
        caption: what was captioned of it, if anything.
        keyframes: pictures [H, W, 3] uint8 RGB of it, in time order.
        speech: what was heard meanwhile, if known.
        score: in [0, 1], how likely it shows what is asked for; where there is no room for all, the
            weakest is left out first.
        notes: all that was said meanwhile, for a generator that places words beside frames.
        times: seconds of the frames that ``tokens`` are of, where they are known.
        heard: the notes that ``speech`` is made of, for a generator that reads their times.
    """

    start: float
    end: float
    tokens: Tensor | None = None
    caption: str | None = None
    keyframes: tuple[np.ndarray, ...] = ()
    speech: str | None = None
    score: float = 1.0
    notes: tuple[Note, ...] = ()
    times: tuple[float, ...] = ()
    heard: tuple[Note, ...] = ()


class Reads(NamedTuple):
    """What a generator can read besides text.

    Attributes:
        tokens: visual tokens of the segment encoder beside it.
        pictures: pictures in one prompt at most; 0 for none.
        tools: whether it can call tools; it then is a ``ToolGenerator``.
    """

    tokens: bool = False
    pictures: int = 0
    tools: bool = False


class Tool(NamedTuple):
    """A function that a generator may call.

    Attributes:
        name: of letters and underscores.
        help: what it does, for the model.
        parameters: JSON schema of its arguments, of type ``object``.
    """

    name: str
    help: str
    parameters: Mapping[str, Any]


class ToolCall(NamedTuple):
    """A call that a generator asks for. Nothing of it is trusted.

    Attributes:
        name: of the tool; perhaps of none that there is.
        arguments: by name; or the text itself where the model wrote no JSON object.
    """

    name: str
    arguments: Mapping[str, Any] | str


class ToolTurn(NamedTuple):
    """A call and what came of it.

    Attributes:
        call: as the generator asked.
        result: text and pictures [H, W, 3] uint8 RGB, in order; a text with its time stands before
            every picture.
    """

    call: ToolCall
    result: Sequence[str | np.ndarray]


class SegmentEncoder(Protocol):
    """Reads the frames of a segment into tokens, and the tokens into a recurrent memory."""

    @property
    def token_shape(self) -> tuple[int, int]:
        """(M, D) of a segment's tokens."""
        ...

    @property
    def reads_related(self) -> bool:
        """Whether ``encode_segment`` reads tokens of related past segments."""
        ...

    def initial_memory(self) -> Tensor:
        """Return the memory before the first segment."""
        ...

    def encode_segment(
        self, frames: SegmentFrames, memory: Tensor, related: Tensor | None
    ) -> EncodedSegment:
        """Read a segment with the memory before it and the tokens of related segments."""
        ...


class TextEncoder(Protocol):
    """Maps sentences into the perceiver's key space, and reads questions."""

    @property
    def background(self) -> Tensor:
        """[B, K] unit keys of unrelated pictures, the scale of "not seen"."""
        ...

    @property
    def null(self) -> GumbelNull:
        """How far the best of many unrelated pictures' keys reaches."""
        ...

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        """Map sentences to unit keys [N, K] float32."""
        ...

    def sentence_meanings(self, sentences: Sequence[str]) -> np.ndarray:
        """Map sentences to unit rows [N, M] float32, near where sentences mean the like.

        They are compared with each other alone; keys of pictures lie elsewhere.
        """
        ...

    def name_readout(self, description: str) -> NameReadout | None:
        """Return what reads the thing that a description names off visual keys.

        None where it names none that is known, or more than one.
        """
        ...

    def read_question(self, question: str) -> QuestionReading:
        """Read what is asked for, and of what."""
        ...


class Generator(Protocol):
    """Writes text from prompts of text, visual tokens and pictures."""

    @property
    def reads(self) -> Reads:
        """What it can read besides text."""
        ...

    @property
    def decoding(self) -> GenerationConfig:
        """How captions are decoded unless a session asks otherwise."""
        ...

    @property
    def batches(self) -> bool:
        """Whether ``replies`` continues prompts together, in less time than one by one."""
        ...

    def caption_prompt(self, item: EvidenceItem, instruction: str | None = None) -> Prompt:
        """Build the prompt that describes a part of the past; None takes its own instruction."""
        ...

    def answer_prompt(self, items: Sequence[EvidenceItem], question: str) -> Prompt:
        """Build the prompt that answers from evidence, which comes in time order."""
        ...

    def replies(
        self, prompts: Sequence[Prompt], decoding: GenerationConfig, candidates: int = 1
    ) -> Iterator[Replies | None]:
        """Yield ``candidates`` replies to each prompt, in order; None after other steps.

        Each is to the letter what its prompt gives alone.
        """
        ...

    def stream(self, prompt: Prompt, decoding: GenerationConfig) -> Iterator[str]:
        """Yield a reply piece by piece; with beams as one; empty pieces while it is waited for."""
        ...


class ToolGenerator(Generator, Protocol):
    """A generator that can call tools, as its ``reads.tools`` declares."""

    def converse(
        self,
        prompt: Prompt,
        turns: Sequence[ToolTurn],
        tools: Sequence[Tool],
        decoding: GenerationConfig,
    ) -> Iterator[str | ToolCall | None]:
        """Go on after a prompt and the calls made so far; yield None after other steps.

        Args:
            prompt: of ``answer_prompt``.
            turns: calls and their results, oldest first; of their pictures and the prompt's
                together at most ``reads.pictures``.
            tools: that may be called now; with none the reply must be text.
            decoding: of the text.

        Yields:
            Last the answer, or the one call that is wanted next; of several only the first.
        """
        ...


@runtime_checkable
class NamingEncoder(Protocol):
    """A segment encoder whose tokens tell which of many named things are there."""

    def naming(self, tokens: Tensor, texts: Sequence[str]) -> np.ndarray:
        """Return how many of the things that each of N texts names are there, less the others.

        Args:
            tokens: [M, D] of one segment.
            texts: such as captions of it.

        Returns:
            [N]: the sum of 2 p - 1 over the things, with p how likely each is there.
        """
        ...


@runtime_checkable
class LikelihoodGenerator(Protocol):
    """A generator that states how likely given replies are; evaluation chooses options by it."""

    def log_probs(self, prompt: Prompt, texts: Sequence[str]) -> list[list[float]]:
        """Return the log-probability of each token of each text behind a prompt."""
        ...


class StreamModel(Protocol):
    """What a session works with.

    Attributes:
        name: the preset or folder that it was loaded from.
        fingerprint: a checksum of what decides the meaning of a stored memory.
        generator: writes captions.
        answer_generator: writes answers; the same one unless another is wanted.
        confidence_model: how sure a caption of the generator is, from keys; None without a fit.
        reranker: how the best of its captions is chosen; None: the likeliest.
        session_options: fields of ``SessionConfig`` that its sessions have otherwise by default.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def perceiver(self) -> Perceiver: ...
    @property
    def segment_encoder(self) -> SegmentEncoder | None: ...
    @property
    def text_encoder(self) -> TextEncoder: ...
    @property
    def generator(self) -> Generator: ...
    @property
    def answer_generator(self) -> Generator: ...
    @property
    def confidence_model(self) -> ConfidenceModel | None: ...
    @property
    def reranker(self) -> Reranker | None: ...
    @property
    def session_options(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, eq=False)
class ComposedModel:
    """A ``StreamModel`` of parts that come from one model or from several.

    Args:
        answer_generator: None takes ``generator``.
    """

    name: str
    fingerprint: str
    perceiver: Perceiver
    text_encoder: TextEncoder
    generator: Generator
    segment_encoder: SegmentEncoder | None = None
    confidence_model: ConfidenceModel | None = None
    reranker: Reranker | None = None
    session_options: Mapping[str, Any] = field(default_factory=dict)
    answer_generator: Generator = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer_generator", self.answer_generator or self.generator)

    @classmethod
    def of(cls, model: StreamModel, **parts: Any) -> Self:
        """Return a model like another one, but for these parts."""
        others: dict[str, Any] = {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "perceiver": model.perceiver,
            "text_encoder": model.text_encoder,
            "generator": model.generator,
            "segment_encoder": model.segment_encoder,
            "confidence_model": model.confidence_model,
            "reranker": model.reranker,
            "session_options": model.session_options,
            "answer_generator": model.answer_generator,
        }
        return cls(**others | parts)


def readable(items: Sequence[EvidenceItem], reads: Reads) -> list[EvidenceItem]:
    """Leave out of evidence what a generator cannot read.

    Of more pictures than it reads each item keeps an equal share, first the items of which there
    are few; pictures of an item that keeps fewer are spread evenly over it. Where there is not one
    for each, the weakest items keep none.
    """
    left, shares = reads.pictures, dict[int, int]()
    for place in sorted(range(len(items)), key=lambda i: (len(items[i].keyframes), items[i].score)):
        shares[place] = min(len(items[place].keyframes), left // (len(items) - len(shares)))
        left -= shares[place]
    shown = []
    for place, item in enumerate(items):
        keyframes = item.keyframes
        if shares[place] < len(keyframes):
            keyframes = tuple(keyframes[i] for i in spread(len(keyframes), shares[place]))
        shown.append(
            item._replace(tokens=item.tokens if reads.tokens else None, keyframes=keyframes)
        )
    return shown
