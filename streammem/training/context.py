"""The data that the stages of one run share: features, pictures, words, sentences.

    context = TrainingContext(recipe, out, learner, sources)
    stage = make_stage(context, recipe.stages[0])

Each is made when a stage first needs it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streammem.errors import DatasetError
from streammem.models.backbones.vision import VisionEncoder
from streammem.models.tiny.keys import PictureKey
from streammem.training.features import (
    CachedFeatures,
    cache_features,
    embed_captions,
    patch_statistics,
)
from streammem.training.keys import Embedded
from streammem.training.learner import Learner
from streammem.training.pictures import PictureSet
from streammem.training.processes import SINGLE_PROCESS, ProcessGroup
from streammem.training.recipe import Recipe
from streammem.training.records import TRAIN, VALIDATION, CaptionedSource, sentence
from streammem.training.sentences import Sentences, embed_sentences
from streammem.training.text import SentencePrefix
from streammem.training.words import WordSpace

BACKGROUND = 512  # pictures whose keys calibrate "not seen"


class TrainingContext:
    """The data that the stages of one run share, made when first needed.

    Args:
        recipe: of the run.
        out: its folder.
        learner: the model in training.
        sources: records of the recipe's ``data``, by its entries.
        texts: its sentences without pictures.
        group: of processes; the first makes features that do not exist yet.

    Attributes:
        own_captions: that the model has drawn itself and learns from.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        learner: Learner,
        sources: dict[str, CaptionedSource],
        group: ProcessGroup = SINGLE_PROCESS,
        texts: Sequence[str] = (),
    ) -> None:
        self.recipe, self.out, self.learner, self._sources = recipe, out, learner, sources
        self.group, self._texts = group, texts
        self.own_captions = list[str]()
        self.features_folder = Path(recipe.features) if recipe.features else out / "features"

    @cached_property
    def features(self) -> dict[str, CachedFeatures]:
        return self.cached(self.learner.vision, self.features_folder)

    def cached(self, encoder: VisionEncoder, folder: Path) -> dict[str, CachedFeatures]:
        """Open or make an encoder's features of every source."""
        with self.group.first_process_first():
            return {
                entry: cache_features(source, encoder, folder, crops=self.recipe.crops)
                for entry, source in self._sources.items()
            }

    @cached_property
    def pictures(self) -> PictureSet:
        """The training pictures."""
        pictures = joined([cached.split(TRAIN) for cached in self.features.values()], "training")
        self.learner.measure(patch_statistics(pictures, self.recipe.seed))
        return replace(pictures, device=self.learner.device)

    @cached_property
    def validation(self) -> PictureSet:
        """The captioned validation pictures that figures are measured on."""
        return self.validation_of(self.features)

    def validation_of(self, features: dict[str, CachedFeatures]) -> PictureSet:
        """Select the captioned validation pictures of the entries that are measured."""
        entries = self.recipe.validation or self.recipe.pictures
        sets = [features[entry].split(VALIDATION).captioned() for entry in entries]
        return replace(joined(sets, "captioned validation"), device=self.learner.device)

    @cached_property
    def validation_things(self) -> PictureSet:
        """The validation pictures, of all data, that list what they show; perhaps none."""
        return self._validation_with("things")

    @cached_property
    def validation_asked(self) -> PictureSet:
        """The validation pictures, of all data, that people ask about; perhaps none."""
        return self._validation_with("questions")

    def _validation_with(self, part: str) -> PictureSet:
        sets = [cached.split(VALIDATION) for cached in self.features.values()]
        total = joined(sets, "validation")
        chosen = [i for i, of in enumerate(getattr(total, part)) if of]
        return replace(total.select(chosen), device=self.learner.device)

    @cached_property
    def captioned(self) -> PictureSet:
        """The training pictures that have captions."""
        return joined([self.pictures.captioned()], "captioned training")

    @cached_property
    def words(self) -> WordSpace:
        return WordSpace(self.captioned.captions, self.learner.language)

    def captions_of(self, split: str) -> list[str]:
        """List the captions of all pictures of a split."""
        records = [record for source in self._sources.values() for record in source.records]
        return [caption for r in records if r.split == split for caption in r.captions]

    @property
    def captions(self) -> list[str]:
        """The captions that the language model learns from, with and without pictures."""
        return [*self.captions_of(TRAIN), *self._texts, *self.own_captions]

    def embedded(self, pictures: PictureSet) -> Embedded:
        """Add the sentence embeddings of every picture's captions."""
        name = self.recipe.backbones.sentences
        open_sentences = self.learner.backbones.sentences
        folder = self.features_folder
        with self.group.first_process_first():
            embeddings = embed_captions(pictures.captions, open_sentences, name, folder)
        return Embedded(pictures, embeddings)

    @property
    def has_sentences(self) -> bool:
        """Whether the recipe lists sentences without pictures."""
        return bool(self._texts)

    @cached_property
    def sentences(self) -> Sentences:
        """The embedded sentences without pictures, except captions of validation pictures.

        Raises:
            DatasetError: there are none.
        """
        known = {sentence(caption) for caption in self.captions_of(VALIDATION)}
        texts = [text for text in dict.fromkeys(self._texts) if text not in known]
        if not texts:
            raise DatasetError("data: there is no sentence without a picture; add a text file")
        name = self.recipe.backbones.sentences
        with self.group.first_process_first():
            return embed_sentences(
                texts, self.learner.backbones.sentences, name, self.features_folder
            )

    @cached_property
    def prefix(self) -> SentencePrefix:
        """The map from sentences to pseudo visual tokens; for training only."""
        config = self.learner.bridge.config
        torch.manual_seed(self.recipe.seed)
        return SentencePrefix(config.memory_tokens, config.dim).to(self.learner.device)

    def center(self) -> Tensor:
        """Return the mean frame embedding of the training pictures, [D]."""
        frames = np.concatenate([cached.training_frames() for cached in self.features.values()])
        return torch.from_numpy(frames.mean(0))

    @torch.no_grad()
    def background(self) -> Tensor:
        """Return the keys of a seeded sample of training pictures, [BACKGROUND, K]."""
        key: PictureKey = self.learner.picture_key
        chosen = self.pictures.draw(np.random.default_rng(self.recipe.seed), BACKGROUND)
        patches, _ = self.pictures.whole(chosen)
        return torch.cat([key(batch) for batch in patches[:, 0].split(64)])


def joined(sets: list[PictureSet], what: str) -> PictureSet:
    """Join sets of pictures.

    Raises:
        DatasetError: there is no picture in them; the message calls them ``what``.
    """
    total = sets[0]
    for pictures in sets[1:]:
        total = total + pictures
    if not len(total):
        raise DatasetError(f"data: there is no {what} picture; add data")
    return total
