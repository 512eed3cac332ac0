"""The captioner: a generator's words for a segment, as far as they are likely to be right.

    captioner = Captioner(model, CaptionConfig())
    (scored,) = captioner.caption([CaptionRequest(segment, keys, tokens)])
    print(scored.of(segment))

Of several replies the one is taken that fits the segment's keys best, and names what its tokens
show. Its confidence is computed from keys, and from what the other replies name
(``models/caption_scores.py``). No words are made here: a caption that is not sure enough ends
before its first doubtful noun, or is left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from streammem.errors import ConfigError
from streammem.models.backbones.language import GenerationConfig, GrowingReply, Prompt, Replies
from streammem.models.caption_scores import (
    ConfidenceModel,
    NounModel,
    best_reply,
    confidence_features,
    first_phrase,
    noun_features,
    nouns_of,
    sure_beginnings,
)
from streammem.models.protocols import EvidenceItem, NamingEncoder, StreamModel, readable
from streammem.types import Caption, Note, Segment


@dataclass(frozen=True, slots=True)
class CaptionConfig:
    """How captions are made; ``SessionConfig`` describes each option.

    Attributes:
        decoding: None takes the generator's.
        instruction: None takes the generator's.
        candidates: None takes the model's.
        min_confidence: None takes the level of the model's fit.
    """

    decoding: GenerationConfig | None = None
    instruction: str | None = None
    candidates: int | None = None
    min_confidence: float | None = None


class CaptionRequest(NamedTuple):
    """A segment, or a part of an open scene, that is to be described.

    Attributes:
        segment: its span; its reason is None while the scene is open.
        keys: [V, K] unit visual keys of it, V >= 1.
        tokens: [M, D] what the segment encoder made of it; None without one.
        keyframes: pictures [H, W, 3] uint8 RGB of it, for a generator that reads pictures.
        notes: what is said in it, as far as it is known.
        times: seconds of the frames that ``tokens`` are of, where they are known.
    """

    segment: Segment
    keys: np.ndarray
    tokens: Tensor | None = None
    keyframes: tuple[np.ndarray, ...] = ()
    notes: tuple[Note, ...] = ()
    times: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCaption:
    """A caption and how sure it is, decided once.

    Attributes:
        text: the generator's words; empty where nothing is sure, or the reply was empty.
        confidence: of the text; of the whole reply where nothing of it is sure.
        unsure: whether the reply as a whole was less sure than the level, or empty. Then its
            beginning is given, which is all of it where it goes no further than its first noun.
        key: [K] unit key of the text, for the cache.
        likelihood: see ``Caption``.
    """

    text: str
    confidence: float
    unsure: bool
    key: np.ndarray
    likelihood: float | None = None

    def of(self, segment: Segment) -> Caption:
        """Return it as the caption of a segment."""
        reason: Literal["unsure"] | None = "unsure" if self.unsure else None
        return Caption(
            segment.id, segment.start, segment.end, self.text, self.confidence, reason,
            self.likelihood,
        )  # fmt: skip


class Captioner:
    """Captions segments of any stream with one model. It holds no state of a stream.

    Args:
        model: whose generator writes, and whose text encoder judges.
        config: options.

    Attributes:
        decoding: of a reply.
        candidates: replies to a segment, of which one is chosen.
        level: confidence in [0, 1] below which less of a reply alone is given; 0 where everything
            is. One of several has the level of its own fit, where there is one.

    Raises:
        ConfigError: more candidates than the model can choose among.
    """

    def __init__(self, model: StreamModel, config: CaptionConfig = CaptionConfig()) -> None:
        self._model, self._config = model, config
        self.decoding = config.decoding or model.generator.decoding
        own = config.instruction is None
        if not own:  # which may ask for other words
            self.decoding = replace(self.decoding, vocabulary="all")
        if model.reranker is None:
            if (config.candidates or 1) > 1:
                raise ConfigError(
                    f"candidates {config.candidates}: {model.name} has not learned to choose among "
                    "captions and says the likeliest; leave candidates out"
                )
            self.candidates = 1
        elif config.candidates is not None:
            self.candidates = config.candidates
        else:
            greedy = self.decoding.num_beams == 1 and self.decoding.temperature == 0
            self.candidates = model.reranker.candidates if own and greedy else 1
        self.level = self._level(model.confidence_model)

    @property
    def withholds(self) -> bool:
        """Whether a caption may differ from the first words that are generated."""
        return self.candidates > 1 or self.level > 0

    @property
    def can_describe(self) -> bool:
        """Whether the generator reads anything of what was seen: tokens or pictures."""
        reads = self._model.generator.reads
        return bool(reads.pictures) or (reads.tokens and self._model.segment_encoder is not None)

    def prompt(self, request: CaptionRequest) -> Prompt:
        """Build the prompt that describes a segment, of what the generator can read."""
        span = request.segment
        item = EvidenceItem(
            span.start, span.end, request.tokens, keyframes=request.keyframes,
            notes=request.notes, times=request.times,
        )  # fmt: skip
        (item,) = readable([item], self._model.generator.reads)
        return self._model.generator.caption_prompt(item, self._config.instruction)

    def caption(self, requests: Sequence[CaptionRequest]) -> list[ScoredCaption]:
        """Describe segments in one batch, which takes less time than one after another."""
        if not requests:  # which opens no language model
            return []
        prompts = [self.prompt(request) for request in requests]
        found = self._model.generator.replies(prompts, self.decoding, self.candidates)
        replies = [each for each in found if each is not None]
        return [self.score(*pair) for pair in zip(requests, replies, strict=True)]

    def stream(self, request: CaptionRequest, on_text: Callable[[str], None]) -> ScoredCaption:
        """Describe a segment and pass its words on as they come.

        Where less may be given than is generated, ``on_text`` is called once, with all that is.
        """
        if self.withholds:
            (scored,) = self.caption([request])
            if scored.text:
                on_text(scored.text)
            return scored
        pieces = []
        for piece in self._model.generator.stream(self.prompt(request), self.decoding):
            pieces.append(piece)
            if piece:  # it is empty while a server is waited for
                on_text(piece)
        return self.score(request, (GrowingReply("".join(pieces).strip(), [], []),))

    def choose(self, request: CaptionRequest, replies: Replies) -> tuple[GrowingReply, np.ndarray]:
        """Return the best of the replies to a segment, and the unit key [K] of its text."""
        model, sentence_keys = self._model, self._model.text_encoder.sentence_keys
        naming = None
        if request.tokens is not None and isinstance(model.segment_encoder, NamingEncoder):
            naming = partial(model.segment_encoder.naming, request.tokens)
        reply, key = best_reply(model.reranker, sentence_keys, replies, request.keys, naming)
        return reply, sentence_keys([reply.text])[0] if key is None else key

    def score(self, request: CaptionRequest, replies: Replies) -> ScoredCaption:
        """Choose the best of the replies to a segment, and decide how much of it is given."""
        model, encoder = self._model, self._model.text_encoder
        # 1. The best reply, and what its confidence rests on.
        reply, key = self.choose(request, replies)
        seen = confidence_features(request.keys, key, encoder.background.numpy())
        others = [other.text for other in replies if other is not reply]
        # 2. How sure it is as a whole, and that anything of it is there. Of one reply alone only
        #    keys tell that.
        fit = model.confidence_model
        by_noun = fit.nouns if fit and others else None
        nouns = nouns_of(reply.text) if by_noun else []
        if by_noun:
            chances = by_noun(noun_features(nouns, seen, others))
            beginnings = sure_beginnings(chances)
            whole, anything, least = beginnings[-1], float(chances.mean()), by_noun.least
        else:
            whole = anything = self._confidence(seen)
            least = fit.least if fit else 0.0
        level = self._level(by_noun or fit)
        # 3. All of it, nothing of it, or its beginning.
        if reply.text and _rounded(whole) >= level:
            own = model.generator.reads.pictures and not level  # of the model's own words
            likelihood = likelihood_of(reply) if own else None
            return ScoredCaption(
                reply.text, _rounded(whole), unsure=False, key=key, likelihood=likelihood
            )
        if _rounded(anything) < min(level, least):
            return ScoredCaption("", _rounded(whole), unsure=True, key=key)
        if nouns:  # as far as all nouns are sure enough, and up to the first one in any case
            last = max(1, int((beginnings >= level).sum())) - 1
            phrase, confidence = reply.text[: nouns[last].end], beginnings[last]
        else:
            phrase = first_phrase(reply.text)
        if phrase != reply.text:
            (key,) = encoder.sentence_keys([phrase])
        if not nouns:
            seen = confidence_features(request.keys, key, encoder.background.numpy())
            confidence = self._confidence(seen)
        return ScoredCaption(phrase, _rounded(confidence), unsure=True, key=key)

    def _level(self, fit: ConfidenceModel | NounModel | None) -> float:
        """Return the confidence below which less is given than a reply that a fit judges.

        Without a fit a model's confidence is a bare cosine, and replies to an instruction of the
        user's are no captions of the kind that was fitted.
        """
        if fit is None:
            return 0.0
        if self._config.min_confidence is not None:
            return self._config.min_confidence
        return fit.whole if self._config.instruction is None else 0.0

    def _confidence(self, seen: np.ndarray) -> float:
        """Return how likely a caption's noun is right by keys alone; without a fit the cosine."""
        return self._model.confidence_model(seen) if self._model.confidence_model else seen[0]


def _rounded(confidence: float) -> float:
    """Return a confidence as it is given, in [0, 1]."""
    return round(float(min(1.0, max(0.0, confidence))), 3)


def likelihood_of(reply: GrowingReply) -> float | None:
    """Return the geometric mean of the probabilities of a reply's tokens; None without any."""
    known = [value for value in reply.log_probs if math.isfinite(value)]
    if not known or len(known) < len(reply.log_probs):
        return None
    return round(min(1.0, math.exp(sum(known) / len(known))), 3)
