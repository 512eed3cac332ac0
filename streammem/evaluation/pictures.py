"""A model as the suites ask it: about still pictures, each a segment of one frame.

asked = PictureModel(load("streammem-tiny"))
asked.caption_pictures(pictures)                      # one caption a picture
asked.caption_pictures(pictures, features="other")    # a control: of another one's features
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from streammem.captioning.captioner import Captioner, CaptionRequest
from streammem.errors import BackboneError
from streammem.evaluation.captions import ShownFeatures
from streammem.memory.retrieval import GumbelNull, NameReadout
from streammem.models.backbones.text import SentenceEncoder
from streammem.models.tiny.model import VideoModel
from streammem.models.tiny.questions import QuestionReading
from streammem.models.videollamb.videollamb import VideoLLaMB
from streammem.perception.frames import Perceived
from streammem.types import Segment

PICTURE_REQUEST = "Describe this image in one sentence."  # of VideoLLaMB


@dataclass(frozen=True, eq=False)
class PictureModel:
    """Captions still pictures, with controls, and gives keys of pictures and sentences.

    Args:
        model: that is evaluated; of VideoLLaMB, keys are those that it is lent.

    Raises:
        BackboneError: it is neither streammem-tiny nor VideoLLaMB.
    """

    model: VideoModel | VideoLLaMB

    def __post_init__(self) -> None:
        if not isinstance(self.model, VideoModel | VideoLLaMB):
            raise BackboneError(
                f"{self.model.name}: the suites are for streammem-tiny and VideoLLaMB"
            )

    def caption_pictures(
        self, pictures: Sequence[np.ndarray], *, features: ShownFeatures = "own"
    ) -> list[str]:
        """Caption each picture; see ``captions.CaptioningModel``."""
        if features == "other":
            pictures = [*pictures[1:], *pictures[:1]]
        if isinstance(self.model, VideoModel):
            return _captions(self.model, pictures, blank=features == "blank")
        if features == "blank":
            pictures = [np.full_like(picture, 127) for picture in pictures]
        shown = [self.model.see(picture) for picture in pictures]
        prompts = [self.model.prompt([tokens], PICTURE_REQUEST) for tokens in shown]
        return self.model.language.generate(prompts, self.model.decoding)

    def picture_keys(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Map pictures [H, W, 3] uint8 RGB to unit keys [N, K] float32."""
        return np.stack([self.model.text_encoder.perceive(picture).key for picture in pictures])

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        """Map sentences to unit keys [N, K] float32."""
        return self.model.text_encoder.sentence_keys(sentences)

    def read_questions(self, questions: Sequence[str]) -> list[QuestionReading]:
        """Read what is asked for, and of what."""
        return self.model.text_encoder.read_questions(questions)

    def name_readout(self, description: str) -> NameReadout | None:
        """Return what reads the thing that a description names off keys."""
        return self.model.text_encoder.name_readout(description)

    @property
    def background(self) -> Tensor:
        """[B, K] unit keys of unrelated pictures."""
        return self.model.text_encoder.background

    @property
    def null(self) -> GumbelNull:
        """How far the best of many unrelated pictures' keys reaches."""
        return self.model.text_encoder.null

    @property
    def sentences(self) -> SentenceEncoder:
        """The frozen sentence encoder."""
        return self.model.text_encoder.sentences


def _captions(model: VideoModel, pictures: Sequence[np.ndarray], *, blank: bool) -> list[str]:
    """Caption each by itself, the best of several where a session reranks; blank: mean patches."""
    seen = [model.perceive(picture) for picture in pictures]
    if blank:
        patches = model.bridge.patch_mean.expand(model.vision.patches, -1)
        key = model.picture_key(patches[None])[0].cpu().numpy()
        seen = [Perceived(each.embedding, patches.half().cpu(), key) for each in seen]
    captioner = Captioner(model)
    requests = [
        CaptionRequest(
            Segment(i, 0.0, 1.0, None, None),
            each.key[None],
            model.encode_frames([each.patches], [0.5]),
        )
        for i, each in enumerate(seen)
    ]
    prompts = [captioner.prompt(request) for request in requests]
    replies = model.language.candidates(prompts, captioner.decoding, captioner.candidates)
    chosen = map(captioner.choose, requests, replies)
    return [reply.text for reply, _ in chosen]
