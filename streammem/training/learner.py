"""The model in training: frozen backbones, learned parts, and the weights they start from.

learner = Learner.open(recipe, open_by_name(recipe.backbones), init=None)
stage = WordStage(learner.bridge, space, pictures, validation)
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from streammem.errors import CheckpointError, ConfigError
from streammem.models.backbones.efficientnet import EfficientNetLite, open_net
from streammem.models.backbones.language import CausalLanguageModel
from streammem.models.backbones.products import has_bfloat16
from streammem.models.backbones.text import TEXT_DIM, SentenceEncoder
from streammem.models.backbones.vision import VisionEncoder
from streammem.models.checkpoint import (
    ANSWERS,
    LORA,
    PRESETS,
    backbone_path,
    load_own,
    lora_of,
    open_vision,
    read_tensors,
)
from streammem.models.checkpoint_config import read_config
from streammem.models.tiny.bridge import BridgeConfig, MemoryBridge
from streammem.models.tiny.keys import PictureKey, TextKey, WordsOfCells
from streammem.models.tiny.model import VideoModel
from streammem.models.tiny.questions import QuestionHead
from streammem.models.tiny.words import WordsOfTokens
from streammem.training.features import PatchStatistics
from streammem.training.lora import add_lora, fill_lora, lora_tensors
from streammem.training.recipe import BackboneNames, LoraOptions, Recipe

TRAINABLE = "efficientnet-lite2"


@dataclass(frozen=True, slots=True)
class Backbones:
    """Functions that open the frozen models; each is called when its model is first needed."""

    vision: Callable[[], VisionEncoder]
    language: Callable[[], CausalLanguageModel]
    sentences: Callable[[], SentenceEncoder]


def open_by_name(names: BackboneNames, device: str = "cpu") -> Backbones:
    """Open backbones by the names that a checkpoint carries, the language model on ``device``.

    The language model is prepared for sampling anew at every step, which bfloat16 makes short.
    """
    return Backbones(
        vision=lambda: open_vision(names.vision),
        language=lambda: CausalLanguageModel.open(
            backbone_path(names.language),
            device=device,
            decoding="bfloat16" if has_bfloat16() else "auto",
        ),
        sentences=lambda: SentenceEncoder(Path(backbone_path(names.sentences))),
    )


class Learner:
    """The learned parts of a model in training, and its frozen backbones.

    Args:
        recipe: sizes, seed, names.
        backbones: opened lazily.
        start: a checkpoint to start from; None starts from seeded random values.
        lora: the tensors of that checkpoint's LoRA, and its alpha / r.
        answers: the tensors of its LoRA that answers, of the same alpha / r.
        init: its folder or the preset's name, for messages.
        device: of the learned parts; ``backbones`` opens its language model there too.
    """

    def __init__(
        self,
        recipe: Recipe,
        backbones: Backbones,
        start: VideoModel | None = None,
        lora: tuple[dict[str, Tensor], float] = ({}, 1.0),
        *,
        answers: dict[str, Tensor] | None = None,
        init: Path | str = "",
        device: str = "cpu",
    ) -> None:
        self.device, self.init = device, init
        self.recipe, self.backbones, self.start = recipe, backbones, start
        self._lora, self._lora_scale = lora
        self._adapted = False
        self._measured = start is not None
        self.words_of_cells: WordsOfCells | None = None  # set after the vision stage
        # Set after the stage of things; a start's own until then.
        self.words: WordsOfTokens | None = start.words if start else None
        self._answers = answers or {}

    @classmethod
    def open(
        cls, recipe: Recipe, backbones: Backbones, init: Path | str | None, *, device: str = "cpu"
    ) -> "Learner":
        """Open a learner, from the checkpoint or preset ``init`` if it is given.

        Raises:
            CheckpointError: the checkpoint's sizes or backbones are not the recipe's.
        """
        if init is None:
            return cls(recipe, backbones, device=device)
        start = load_own(str(init))
        folder = PRESETS.get(str(init), Path(init))
        config, tensors = read_config(folder), read_tensors(folder)
        sizes, names = dataclasses.asdict(recipe.bridge), dataclasses.asdict(recipe.backbones)
        names["key_dim"] = recipe.key_dim
        for part, wanted in ((config.bridge, sizes), (config, names)):
            for key, value in wanted.items():
                if (found := getattr(part, key)) != value:
                    raise CheckpointError(
                        f"{init}: its {key} is {found}, the recipe's {value}; make them the same"
                    )
        lora, answers = lora_of(tensors, LORA), lora_of(tensors, ANSWERS)
        scaled = (lora, config.lora_scale)
        return cls(recipe, backbones, start, scaled, answers=answers, init=init, device=device)

    @cached_property
    def vision(self) -> VisionEncoder:
        """The frame encoder; before ``retune`` the one that the run starts from."""
        return self.start.vision if self.start else self.backbones.vision()

    @cached_property
    def net(self) -> EfficientNetLite:
        """The frame encoder's net, for training.

        Raises:
            ConfigError: the recipe's encoder cannot be trained here.
        """
        name = self.recipe.backbones.vision
        if name != TRAINABLE:
            raise ConfigError(f"stage vision: trains {TRAINABLE} only, not {name}; leave it out")
        changes = self.start.vision.changes if self.start else {}
        return open_net(Path(backbone_path(name)), changes).to(self.device)

    @property
    def encoder_changes(self) -> Mapping[str, Tensor]:
        """What training added to the frame encoder's parameters; empty for one not trained here."""
        return self.vision.changes

    def retune(self, tuned: Mapping[str, Tensor]) -> None:
        """Replace ``vision`` by an encoder with the trained parameters of ``net``."""
        name = self.recipe.backbones.vision
        published = dict(open_net(Path(backbone_path(name)), {}).named_parameters())
        changes = {key: value - published[key].detach() for key, value in tuned.items()}
        self.vision = open_vision(name, changes)

    @cached_property
    def language(self) -> CausalLanguageModel:
        """The language model, plain until ``adapt``."""
        return self.backbones.language()

    @cached_property
    def bridge(self) -> MemoryBridge:
        if self.start:
            return self.start.bridge.to(self.device)
        config = BridgeConfig(
            patch_dim=self.vision.patch_dim,
            patches=self.vision.patches,
            language_dim=self.language.width,
            language_norm=self.language.embedding_norm,
            **dataclasses.asdict(self.recipe.bridge),
        )
        torch.manual_seed(self.recipe.seed)  # after the backbones: opening them may draw numbers
        return MemoryBridge(config).to(self.device)

    @cached_property
    def picture_key(self) -> PictureKey:
        if self.start:
            return self.start.picture_key.to(self.device)
        patch_dim = self.vision.patch_dim
        torch.manual_seed(self.recipe.seed)
        return PictureKey(patch_dim, self.recipe.key_dim).to(self.device)

    @cached_property
    def text_key(self) -> TextKey:
        if self.start:
            return self.start.text_key.to(self.device)
        torch.manual_seed(self.recipe.seed)
        return TextKey(TEXT_DIM, self.recipe.key_dim).to(self.device)

    def plain_keys(self) -> tuple[PictureKey, TextKey]:
        """Return both keys for training, without their evidence, which training makes stale."""
        for key in (self.picture_key, self.text_key):
            key.requires_grad_(True).evidence = None
        return self.picture_key, self.text_key

    @cached_property
    def questions(self) -> QuestionHead:
        """The head that reads questions; new if the starting checkpoint has none."""
        if self.start and self.start.questions:
            return self.start.questions.to(self.device)
        torch.manual_seed(self.recipe.seed)
        return QuestionHead(TEXT_DIM).to(self.device)

    @property
    def lora(self) -> dict[str, Tensor]:
        """The LoRA's tensors, named as in a checkpoint."""
        return lora_tensors(self.language) if self._adapted else self._lora

    @property
    def lora_scale(self) -> float:
        """Alpha / r of ``lora``."""
        return self.recipe.lora.scale if self._adapted else self._lora_scale

    def adapt(self) -> CausalLanguageModel:
        """Return the language model with its LoRA, which the first call adds."""
        if not self._adapted:
            options: LoraOptions = self.recipe.lora
            add_lora(self.language, options, seed=self.recipe.seed)
            if self._lora:
                fill_lora(self.language, self._lora, self._lora_scale / options.scale)
            self._adapted = True
        return self.language

    @cached_property
    def answering(self) -> CausalLanguageModel:
        """A language model of its own for answers; its LoRA goes on from that of captions."""
        language = self.backbones.language()
        add_lora(language, self.recipe.lora, seed=self.recipe.seed)
        if start := self._answers or self.lora:
            fill_lora(language, start, self.lora_scale / self.recipe.lora.scale)
        return language

    @property
    def answers(self) -> dict[str, Tensor]:
        """The tensors of the LoRA that answers, at ``lora_scale``; empty without one."""
        if "answering" not in self.__dict__:
            return self._answers
        factor = self.recipe.lora.scale / self.lora_scale
        tensors = lora_tensors(self.answering)
        return {k: v * (factor if k.endswith(".B") else 1.0) for k, v in tensors.items()}

    def measure(self, statistics: PatchStatistics) -> None:
        """Set the scale of patches, once; the weights of a checkpoint keep their own."""
        if self._measured:
            return
        self._measured = True
        for module in (self.bridge, self.picture_key):
            module.patch_mean.copy_(statistics.mean)
            module.patch_std.copy_(statistics.std)
