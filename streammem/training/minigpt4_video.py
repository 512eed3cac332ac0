"""MiniGPT4-Video's training: projection and LoRA by next-token loss, all else frozen.

    stage = "minigpt4-video"              # the recipe of a run, in TOML
    model = "configs/mine.toml"           # what is trained; its checkpoint may be "fresh"
    data = ["captions.json"]              # items as those of VideoLLaMB's training

Three stages of the parent are three recipes, each of which starts from the checkpoint of the one
before. Subtitles beside or in a video stand between its frames as in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streammem.audio.track import SpeechOptions, open_track
from streammem.errors import ConfigError
from streammem.models.minigpt4_video.interleaving import placed, shortened
from streammem.models.minigpt4_video.language import LoraLinear
from streammem.models.minigpt4_video.minigpt4_video import MiniGPT4Video
from streammem.models.minigpt4_video.published import LLAMA
from streammem.perception.frames import spread
from streammem.training.published import (
    Blip2Recipe,
    Dialogue,
    PublishedStage,
    answer_loss,
    decoded,
    write_torch,
)

Template = Literal["video", "align", "caption"]
# Of stills, what stands before and behind a picture.
TEMPLATES: dict[str, tuple[str, str]] = {
    "caption": ("<Img>", "</Img> [caption] {}"),
    "align": ("[INST] <Img>", "</Img> {} [/INST] "),
}


@dataclass(frozen=True)
class MiniGPT4Recipe(Blip2Recipe):
    """A training run; the defaults are the parent's second and third stage on LLaMA-2.

    Attributes:
        template: what stands around the pictures: ``video`` is the prompt of use; ``align`` and
            ``caption`` are of stills, the parent's two ways to ask in its first stage.
        dropout: on the input of the adapters.
        max_tokens: of a prompt; beyond it fewer frames are shown.
        max_answer: tokens of an answer; beyond is cut off.
    """

    stage: str = "minigpt4-video"
    template: Template = "video"
    steps: int = 50_000
    accumulate: int = 4
    dropout: float = 0.05
    max_tokens: int = 3600
    max_answer: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.max_tokens, self.max_answer) < 1 or not 0 <= self.dropout < 1:
            raise ConfigError("max_tokens and max_answer must be >= 1, dropout in [0, 1)")


class Learned(nn.Module):
    """What is trained: the projection, and the two products of each adapter."""

    def __init__(self, model: MiniGPT4Video, dropout: float) -> None:
        super().__init__()
        self.proj = model.encoder.llama_proj
        language: Any = model.language.model
        adapters = {n: m for n, m in language.named_modules() if isinstance(m, LoraLinear)}
        for adapter in adapters.values():
            adapter.dropout.p = dropout
        self.names = list(adapters)
        self.a = nn.ParameterList(m.lora_A for m in adapters.values())
        self.b = nn.ParameterList(m.lora_B for m in adapters.values())
        self._adapters = list(adapters.values())
        self.requires_grad_(True).float()

    def train(self, mode: bool = True) -> "Learned":
        """Switch dropout too: the adapters belong to the language model."""
        for adapter in getattr(self, "_adapters", ()):
            adapter.dropout.train(mode)
        return super().train(mode)

    def published(self) -> dict[str, Tensor]:
        """Return the tensors by the parent's names."""
        tensors = {"llama_proj.weight": self.proj.weight, "llama_proj.bias": self.proj.bias}
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            tensors[f"{LLAMA}{name}.lora_A.weight"] = a
            tensors[f"{LLAMA}{name}.lora_B.weight"] = b
        return {name: value.detach().cpu() for name, value in tensors.items()}


class MiniGPT4Stage(PublishedStage):
    """Trains a MiniGPT4-Video's projection and adapters, which are attached."""

    RECIPE = MiniGPT4Recipe

    def __init__(
        self,
        model: MiniGPT4Video,
        recipe: MiniGPT4Recipe,
        items: Sequence[Dialogue],
        validation: Sequence[Dialogue] = (),
    ) -> None:
        super().__init__(model, recipe, items, validation)
        self.module: Learned = Learned(model, recipe.dropout)

    @classmethod
    def options(cls, said: Any, recipe: MiniGPT4Recipe) -> Any:
        """Return options with adapters beside the base, and the prompt of training."""
        return replace(
            said.options, lora="attached", prompt="trained", fit="frames", cuts="streaming",
            sampling="even", subtitles="each", max_tokens=recipe.max_tokens,
        )  # fmt: skip

    def loss_of(self, item: Dialogue, turn: int) -> Tensor:
        """Mean cross-entropy of the answer's tokens and of the end, after pictures and question."""
        language, (question, answer) = self._model.language, item.turns[turn]
        # 1. Frames: the tower is frozen, the projection learns.
        pixels, captions = self._read(item)
        with torch.no_grad():
            features = self._model.encoder.features(pixels)
        frames = self.module.proj(features.float())
        # 2. The prompt, then the answer, of which the loss is.
        if self._recipe.template == "video":
            prompt = self._model.prompt(frames, captions, question)
        else:
            before, behind = TEMPLATES[self._recipe.template]
            begin = self._model.begin()
            prompt = [begin, before, frames[0], behind.format(question)]
        told = language.text_ids(answer)[: self._recipe.max_answer]
        told.append(language.tokenizer.eos_token_id)
        return answer_loss(language.model, language.embed(prompt), told)

    def _read(self, item: Dialogue) -> tuple[Tensor, list[str]]:
        """Read an item's frames evenly, and what is said beside each."""
        kept, times = decoded(item.path, self._model.pixels)
        most, words, _ = self._model.limits
        chosen = spread(len(kept), most if item.is_video else 1)
        track = open_track(item.path, SpeechOptions()) if item.is_video else None
        captions = placed([times[i] for i in chosen], track.notes if track else ())
        return torch.stack([kept[i] for i in chosen]), shortened(captions, words)

    def write(self, said: Any, out: Path) -> Path:
        """Write what was trained in the parent's layout, and a TOML file of the whole model."""
        return write_torch(said, "checkpoint", self.module.published(), out)


STAGE = MiniGPT4Stage
