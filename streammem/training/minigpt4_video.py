"""MiniGPT4-Video's training: projection and LoRA by next-token loss, all else frozen.

    stage = "minigpt4-video"              # the recipe of a run, in TOML
    model = "configs/mine.toml"           # what is trained; its checkpoint may be "fresh"
    data = ["captions.json"]              # items as those of VideoLLaMB's training

Three stages of the parent are three recipes, each of which starts from the checkpoint of the one
before. Subtitles beside or in a video stand between its frames as in use.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.audio.track import SpeechOptions, open_track
from streammem.config import override, read_toml
from streammem.errors import ConfigError, SourceError
from streammem.models import checkpoint
from streammem.models.minigpt4_video.interleaving import placed, shortened
from streammem.models.minigpt4_video.language import LoraLinear
from streammem.models.minigpt4_video.minigpt4_video import MiniGPT4Video
from streammem.models.minigpt4_video.published import (
    FAMILY,
    LLAMA,
    MiniGPT4File,
    find,
    open_model,
)
from streammem.perception.frames import spread
from streammem.training.loop import Schedule, check_matplotlib, draw_curves, train_stage
from streammem.training.processes import join_processes
from streammem.training.recipe import resolve_data
from streammem.training.videollamb import CHECKPOINT, HELD, Item, claim, read_items
from streammem.video import SourceOptions, open_with

STAGE = FAMILY
Template = Literal["video", "align", "caption"]
# Of stills, what stands before and behind a picture.
TEMPLATES: dict[str, tuple[str, str]] = {
    "caption": ("<Img>", "</Img> [caption] {}"),
    "align": ("[INST] <Img>", "</Img> {} [/INST] "),
}


@dataclass(frozen=True, slots=True)
class MiniGPT4Recipe:
    """A training run; the defaults are the parent's second and third stage on LLaMA-2.

    Attributes:
        stage: ``minigpt4-video``, which tells this recipe from others.
        model: the MiniGPT4-Video that is trained, as ``--model`` takes it.
        data: files of items, absolute or relative to ``$STREAMMEM_DATA``; see
            ``training.videollamb.read_items``.
        validation: files of items whose mean loss is measured at the end and every
            ``evaluate_every`` steps.
        template: what stands around the pictures: ``video`` is the prompt of use; ``align`` and
            ``caption`` are of stills, the parent's two ways to ask in its first stage.
        steps: of the optimiser, >= 1.
        accumulate: items a step and process, one after another, >= 1.
        rate: peak learning rate.
        least_rate: where its cosine ends.
        first_rate: where its linear start begins.
        warmup_steps: of the linear start; the cosine runs from step 0, as the parent's does.
        weight_decay: on matrices.
        dropout: on the input of the adapters.
        max_tokens: of a prompt; beyond it fewer frames are shown.
        max_answer: tokens of an answer; beyond it is cut off.
        evaluate_every: steps; 0 evaluates at the end only.
        save_every_s: seconds between interim weights.
        seed: of the order of items and of dropout, >= 0.
    """

    stage: str = STAGE
    model: str = ""
    data: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    template: Template = "video"
    steps: int = 50_000
    accumulate: int = 4
    rate: float = 1e-4
    least_rate: float = 8e-5
    first_rate: float = 1e-6
    warmup_steps: int = 1000
    weight_decay: float = 0.05
    dropout: float = 0.05
    max_tokens: int = 3600
    max_answer: int = 256
    evaluate_every: int = 0
    save_every_s: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        rates = (self.rate, self.least_rate, self.first_rate)
        if self.steps < 1 or not all(0 < r < math.inf for r in rates) or max(rates) > self.rate:
            raise ConfigError("steps must be >= 1, the rates numbers > 0, and rate the greatest")
        if min(self.warmup_steps, self.evaluate_every, self.seed) < 0 or self.save_every_s < 0:
            raise ConfigError("warmup_steps, evaluate_every, seed and save_every_s must be >= 0")
        if min(self.accumulate, self.max_tokens, self.max_answer) < 1:
            raise ConfigError("accumulate, max_tokens and max_answer must be >= 1")
        if not 0 <= self.dropout < 1 or self.weight_decay < 0:
            raise ConfigError("dropout must be in [0, 1), weight_decay >= 0")
        if self.template not in ("video", *TEMPLATES):
            raise ConfigError(f"template {self.template!r}: give video, align or caption")


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


class MiniGPT4Stage:
    """Trains a MiniGPT4-Video's projection and adapters on items.

    Args:
        model: with adapters attached; put into training in place.
        recipe: see there.
        items: to learn from.
        validation: whose loss ``evaluate`` measures; may be empty.
    """

    name = STAGE

    def __init__(
        self,
        model: MiniGPT4Video,
        recipe: MiniGPT4Recipe,
        items: Sequence[Item],
        validation: Sequence[Item] = (),
    ) -> None:
        self._model, self._recipe = model, recipe
        self._items, self._validation = items, validation
        self.module = Learned(model, recipe.dropout)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of one item, of one of its turns."""
        item = self._items[int(rng.integers(len(self._items)))]
        return self.loss_of(item, int(rng.integers(len(item.turns))))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the mean loss of all turns of the validation items."""
        values = [
            float(self.loss_of(item, turn))
            for item in self._validation
            for turn in range(len(item.turns))
        ]
        return {"val_loss": round(sum(values) / len(values), 4)} if values else {}

    def loss_of(self, item: Item, turn: int) -> Tensor:
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
        read = language.embed(prompt)
        ids = language.tokenizer(answer, add_special_tokens=False, split_special_tokens=True)
        told = [*ids.input_ids[: self._recipe.max_answer], language.tokenizer.eos_token_id]
        target = torch.tensor(told, device=read.device)
        embed = language.model.get_input_embeddings()
        x = torch.cat([read, embed(target)])
        logits = language.model(inputs_embeds=x[None]).logits[0, -len(told) - 1 : -1]
        return F.cross_entropy(logits.float(), target)

    def _read(self, item: Item) -> tuple[Tensor, list[str]]:
        """Read an item's frames evenly, and what is said beside each."""
        source = open_with(str(item.path), SourceOptions(fps=None))
        kept, times, stride = list[Tensor](), list[float](), 1
        try:
            for number, frame in enumerate(source):
                if number % stride:
                    continue
                kept.append(self._model.squashed(frame.pixels))
                times.append(frame.time)
                if len(kept) > HELD:
                    kept, times, stride = kept[::2], times[::2], 2 * stride
        finally:
            source.close()
        if not kept:
            raise SourceError(f"{item.path}: has no frames")
        most, words, _ = self._model.limits
        chosen = spread(len(kept), most if item.is_video else 1)
        track = open_track(item.path, SpeechOptions()) if item.is_video else None
        captions = placed([times[i] for i in chosen], track.notes if track else ())
        return torch.stack([kept[i] for i in chosen]), shortened(captions, words)


def is_recipe(path: Path) -> bool:
    """Return whether a recipe is one of a MiniGPT4-Video."""
    return read_toml(path).get("stage") == STAGE


def read_recipe(path: Path) -> MiniGPT4Recipe:
    """Read a recipe.

    Raises:
        ConfigError: unreadable, or an option that is unknown, missing or outside its range.
    """
    recipe = override(MiniGPT4Recipe(), read_toml(path), f"{path}: ")
    if not recipe.model or not recipe.data:
        raise ConfigError(f"{path}: name the model that is trained, and data")
    return recipe


def run_recipe(recipe_path: Path, out: Path, device: str | None = None) -> dict[str, Any]:
    """Train a MiniGPT4-Video by a recipe, or continue a killed run of it.

    Args:
        recipe_path: TOML; see ``MiniGPT4Recipe``.
        out: gets ``checkpoint.pth`` in the parent's layout, ``checkpoint.toml``, a model for
            ``load`` and for the next stage, ``figures.json``, ``loss.png``, and what a resumed run
            needs.
        device: see ``join_processes``.

    Returns:
        The content of ``figures.json``; empty in processes other than the first.

    Raises:
        ConfigError: an invalid recipe, or an output folder of another run.
        DatasetError: items that are missing or malformed.
        BackboneError, CheckpointError: the model cannot be opened.
    """
    # 1. Check everything that could fail after hours.
    recipe, text = read_recipe(recipe_path), recipe_path.read_text()
    check_matplotlib()
    checkpoint.check_device(device or "cpu")
    items, validation = (
        [item for name in names for item in read_items(resolve_data(name))]
        for names in (recipe.data, recipe.validation)
    )
    said = find(recipe.model, checkpoint.CONFIGS)
    if said is None:
        raise ConfigError(f"{recipe_path}: model {recipe.model}: is no MiniGPT4-Video")
    options = replace(
        said.options, lora="attached", prompt="trained", fit="frames", cuts="streaming",
        sampling="even", subtitles="each", max_tokens=recipe.max_tokens,
    )  # fmt: skip
    with join_processes(device) as (group, own_device):
        with group.first_process_first():
            claim(out, text)
        keys = checkpoint.load_own(said.keys)
        opened = replace(said, options=options)
        model = open_model(recipe.model, opened, keys, device=own_device)
        # 2. Train.
        stage = MiniGPT4Stage(model, recipe, items, validation)
        schedule = Schedule(
            steps=recipe.steps,
            lr=recipe.rate,
            weight_decay=recipe.weight_decay,
            evaluate_every=recipe.evaluate_every,
            seed=recipe.seed,
            accumulate=recipe.accumulate,
            pace=lambda step: pace(step, recipe),
            betas=(0.9, 0.999),
            save_every_s=recipe.save_every_s,
        )
        last = train_stage(stage, schedule, out, recipe=text, group=group)
        # 3. Write the checkpoint, the curve and the figures.
        figures: dict[str, Any] = {}
        if group.is_first:
            path = write_checkpoint(stage.module, said, out)
            draw_curves([stage.name], out)
            parameters = sum(p.numel() for p in stage.module.parameters())
            figures = {"checkpoint": str(path), "items": len(items)}
            figures |= {"parameters": parameters, "steps": recipe.steps, **last}
            (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        group.wait()
    return figures


def write_checkpoint(trained: Learned, said: MiniGPT4File, out: Path) -> Path:
    """Write what was trained in the parent's layout, and a TOML file of the whole model.

    Returns:
        The TOML file: a model for ``load``, with the options that it began with.
    """
    path, toml = out / f"{CHECKPOINT}.pth", out / f"{CHECKPOINT}.toml"
    torch.save({"model": trained.published()}, path)
    lines = [
        f"{name} = {json.dumps(value)}"
        for name, value in (
            ("family", FAMILY), ("checkpoint", str(path.absolute())), ("vision", said.vision),
            ("language", said.language), ("keys", said.keys),
        )
    ]  # fmt: skip
    lines += ["", "[options]", f"lora_alpha = {said.options.lora_alpha}"]
    lines += [f"heads = {said.options.heads}"]
    toml.write_text("\n".join(lines) + "\n")
    return toml


def pace(step: int, recipe: MiniGPT4Recipe) -> float:
    """Share of the peak rate at a step: a linear start, then a cosine that began at step 0."""
    if step < recipe.warmup_steps:
        risen = (recipe.rate - recipe.first_rate) * step / recipe.warmup_steps
        return (recipe.first_rate + risen) / recipe.rate
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return ((recipe.rate - recipe.least_rate) * cosine + recipe.least_rate) / recipe.rate
