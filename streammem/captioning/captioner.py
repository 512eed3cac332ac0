"""What may be said of a picture: the model's words, as far as they are likely to be right.

Of several captions the one that fits best is taken (``choice.py``); what confidence rests on stands
in ``confidence.py``. No words are made here: a caption that is not sure enough ends after its first
noun phrase, or is withheld.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from streammem.engine.session_config import SessionConfig
from streammem.errors import ConfigError
from streammem.models.confidence import first_phrase, signs
from streammem.models.tiny.model import StreamModel
from streammem.types import Caption, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """What is said, decided once.

    Attributes:
        text: the model's words; empty where nothing is sure.
        confidence: of the text; of all that is withheld where nothing is said.
        unsure: whether the model would have said more.
        key: [K] unit key of the text, for the cache.
    """

    text: str
    confidence: float
    unsure: bool
    key: np.ndarray

    def of(self, segment: Segment) -> Caption:
        """Return it as the caption of a segment."""
        reason: Literal["unsure"] | None = "unsure" if self.unsure else None
        return Caption(segment.id, segment.start, segment.end, self.text, self.confidence, reason)


def level_of(model: StreamModel, config: SessionConfig) -> float:
    """Return the confidence in [0, 1] below which less is said; 0 where everything is.

    Without a fit of its own a model's confidence is a bare cosine, and replies to an instruction of
    the user's are no captions of the kind that was fitted.
    """
    if model.certainty is None:
        return 0.0
    if config.min_confidence is not None:
        return config.min_confidence
    return model.certainty.whole if config.instruction is None else 0.0


def candidates_of(model: StreamModel, config: SessionConfig) -> int:
    """Return among how many captions of a scene one is chosen.

    Raises:
        ConfigError: several are asked for, but the model cannot choose.
    """
    if model.choice is None:
        if (config.candidates or 1) > 1:
            raise ConfigError(
                f"candidates {config.candidates}: {model.name} has not learned to choose among "
                "captions and says the likeliest; leave candidates out"
            )
        return 1
    if config.candidates is not None:
        return config.candidates
    decoding = config.caption or model.decoding
    trained = config.instruction is None and decoding.num_beams == 1 and decoding.temperature == 0
    return model.choice.candidates if trained else 1


def weigh(model: StreamModel, text: str, pictures: np.ndarray, config: SessionConfig) -> Spoken:
    """Decide how much of a caption is said.

    Args:
        model: whose words they are.
        text: the whole caption.
        pictures: [V, K] unit keys of what it describes, V >= 1.
        config: of the session.
    """
    level, phrase = level_of(model, config), first_phrase(text)
    if not level:
        phrase = text
    keys = model.sentence_keys([text] if phrase == text else [text, phrase])
    whole, part = (confidence(model, pictures, key) for key in (keys[0], keys[-1]))
    if whole >= level:
        return Spoken(text, whole, unsure=False, key=keys[0])
    assert model.certainty is not None  # else the level is 0
    if whole < min(level, model.certainty.least):
        return Spoken("", whole, unsure=True, key=keys[0])
    return Spoken(phrase, part, unsure=True, key=keys[-1])


def confidence(model: StreamModel, pictures: np.ndarray, words: np.ndarray) -> float:
    """Return how likely words [K] are right of pictures [V, K], in [0, 1].

    Where a model has no fit, it is their cosine.
    """
    seen = signs(pictures, words, model.background.numpy())
    sure = model.certainty(seen) if model.certainty else seen[0]
    return round(float(min(1.0, max(0.0, sure))), 3)
