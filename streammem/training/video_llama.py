"""Video-LLaMA's training: the last Q-Former of a branch, its positions and its projection.

    stage = "video-llama"                 # the recipe of a run, in TOML
    model = "configs/mine.toml"           # what is trained; its checkpoints may be "fresh"
    data = ["captions.json"]              # items as those of VideoLLaMB's training
    branch = "pictures"                   # or sound, which may learn from pictures

Towers, the Q-Former of one frame and the language model are frozen. The parent's two stages are
two recipes, of ``captions`` and of ``conversations``; the second starts from the checkpoint of the
first.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from streammem.audio.recogniser import pieces
from streammem.audio.scene_sound import SoundWindow
from streammem.config import override, read_toml
from streammem.errors import ConfigError, SourceError
from streammem.models import checkpoint
from streammem.models.backbones.imagebind import ImageBindVision
from streammem.models.video_llama.branches import PictureBranch, SoundBranch
from streammem.models.video_llama.prompts import time_line
from streammem.models.video_llama.published import (
    FAMILY,
    VideoLlamaFile,
    find,
    open_model,
    open_vision,
)
from streammem.models.video_llama.video_llama import VideoLlama
from streammem.perception.frames import spread
from streammem.training.loop import Schedule, check_matplotlib, draw_curves, train_stage
from streammem.training.minigpt4_video import pace
from streammem.training.processes import join_processes
from streammem.training.recipe import resolve_data
from streammem.training.videollamb import CHECKPOINT, HELD, Item, claim, read_items
from streammem.video import SourceOptions, open_with
from streammem.video.sound import file_sound

STAGE = FAMILY
LEARNED = {
    "pictures": ("positions", "video_reader", "projection"),
    "sound": ("positions", "reader", "projection"),
}
MAX_WORDS = 50  # of a caption that is cleaned
AREAS, RATIOS = (0.5, 1.0), (0.75, 4 / 3)  # of a random crop: share of the picture, width to height


@dataclass(frozen=True, slots=True)
class VideoLlamaRecipe:
    """A training run; the defaults are the parent's first stage of the pictures' branch.

    Attributes:
        stage: ``video-llama``, which tells this recipe from others.
        model: the Video-LLaMA that is trained, as ``--model`` takes it.
        data: files of items, absolute or relative to ``$STREAMMEM_DATA``; see
            ``training.videollamb.read_items``.
        validation: files of items whose mean loss is measured at the end and every
            ``evaluate_every`` steps.
        branch: which one learns.
        hears: of the sound's branch: ``pictures`` through ImageBind's branch of pictures, as the
            parent, or the ``sound`` of the videos.
        text: ``captions``: of each conversation the first answer alone, right behind the tokens;
            ``conversations``: as in use, with the loss of all answers.
        end: what ends a caption.
        clean: write captions in small letters, without the signs ``. ! " ( ) * # : ; ~``, and at
            most 50 words of each.
        frames: of a video, in [1, positions].
        sampling: ``even``, or ``headtail``: half of the frames drawn from either half of the video.
        crop: cut a random part of at least half the area, one for all frames of a video.
        steps, accumulate, rate, least_rate, first_rate, warmup_steps, weight_decay,
        evaluate_every, save_every_s, seed: see ``MiniGPT4Recipe``.
        max_text: tokens of text; beyond it is cut off.
    """

    stage: str = STAGE
    model: str = ""
    data: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    branch: Literal["pictures", "sound"] = "pictures"
    hears: Literal["pictures", "sound"] = "pictures"
    text: Literal["captions", "conversations"] = "captions"
    end: str = "\n"
    clean: bool = False
    frames: int = 8
    sampling: Literal["even", "headtail"] = "headtail"
    crop: bool = True
    steps: int = 12_500
    accumulate: int = 32
    rate: float = 1e-4
    least_rate: float = 8e-5
    first_rate: float = 1e-6
    warmup_steps: int = 2500
    weight_decay: float = 0.05
    max_text: int = 320
    evaluate_every: int = 0
    save_every_s: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        rates = (self.rate, self.least_rate, self.first_rate)
        if self.steps < 1 or not all(0 < r < math.inf for r in rates) or max(rates) > self.rate:
            raise ConfigError("steps must be >= 1, the rates numbers > 0, and rate the greatest")
        if min(self.warmup_steps, self.evaluate_every, self.seed) < 0 or self.save_every_s < 0:
            raise ConfigError("warmup_steps, evaluate_every, seed and save_every_s must be >= 0")
        if min(self.accumulate, self.frames, self.max_text) < 1 or self.weight_decay < 0:
            raise ConfigError("accumulate, frames and max_text must be >= 1, weight_decay >= 0")
        for name, known in (
            ("branch", ("pictures", "sound")), ("hears", ("pictures", "sound")),
            ("text", ("captions", "conversations")), ("sampling", ("even", "headtail")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}: give {' or '.join(known)}")


class Target(NamedTuple):
    """Token ids around the tokens of a branch.

    Attributes:
        before: ids before them.
        after: ids behind them.
        learned: whether each of ``after`` is part of the loss.
    """

    before: list[int]
    after: list[int]
    learned: list[bool]


class VideoLlamaStage:
    """Trains a branch of a Video-LLaMA on items.

    Args:
        model: put into training in place.
        recipe: see there.
        items: to learn from.
        validation: whose loss ``evaluate`` measures; may be empty.
        eyes: ImageBind's branch of pictures, where sound learns from pictures.
    """

    name = STAGE

    def __init__(
        self,
        model: VideoLlama,
        recipe: VideoLlamaRecipe,
        items: Sequence[Item],
        validation: Sequence[Item] = (),
        eyes: ImageBindVision | None = None,
    ) -> None:
        self._model, self._recipe, self._eyes = model, recipe, eyes
        self._items, self._validation = items, validation
        branch = model.pictures if recipe.branch == "pictures" else model.sound
        if branch is None:
            raise ConfigError(f'{model.name}: has no branch of sound; name sound, or "fresh"')
        self._branch: PictureBranch | SoundBranch = branch
        parts = {name: getattr(branch, name) for name in LEARNED[recipe.branch]}
        self.module = nn.ModuleDict(parts).requires_grad_(True).float()

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of one item."""
        return self.loss_of(self._items[int(rng.integers(len(self._items)))], rng)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the mean loss of the validation items, of frames at even places, uncropped."""
        values = [float(self.loss_of(item)) for item in self._validation]
        return {"val_loss": round(sum(values) / len(values), 4)} if values else {}

    def loss_of(self, item: Item, rng: np.random.Generator | None = None) -> Tensor:
        """Mean cross-entropy of an item's answers.

        Args:
            item: see ``Item``.
            rng: of frames and crops; None takes even places and whole pictures.
        """
        # 1. What the branch reads, of frozen parts; then its tokens, which learn.
        pixels, times = self._read(item, rng)
        tokens = self._tokens(item, pixels, times)
        # 2. Words around them.
        target = self.target(item, times)
        language: Any = self._model.language.model
        embed = language.get_input_embeddings()
        device = embed.weight.device
        before, after = (torch.tensor(i, device=device) for i in (target.before, target.after))
        x = torch.cat([embed(before), tokens.to(embed.weight), embed(after)])
        # 3. The loss: each token is predicted by the one before it.
        logits = language(inputs_embeds=x[None]).logits[0, -len(after) - 1 : -1].float()
        learned = torch.tensor(target.learned, device=device)
        return F.cross_entropy(logits[learned], after[learned])

    def target(self, item: Item, times: Sequence[float]) -> Target:
        """Tokenise what stands around the branch's tokens."""
        language, recipe = self._model.language, self._recipe
        tokenizer = language.tokenizer
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id

        def ids(text: str) -> list[int]:
            read = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            return list(read.input_ids)

        if recipe.text == "captions":
            caption = item.turns[0][1]
            caption = cleaned(caption) if recipe.clean else caption
            told = ids(caption + recipe.end)[: recipe.max_text]
            return Target([begin], told, [True] * len(told))
        tag = "Video" if item.is_video else "Image"
        line = f"{time_line(times)} " if item.is_video else " "
        if self._model.options.chat == "llama2":
            before = [begin, *ids(f"[INST] <<SYS>>\n\n<</SYS>>\n\n<{tag}>")]
            after, learned = list[int](), list[bool]()
            for number, (question, answer) in enumerate(item.turns):
                opened = f"</{tag}> {line}{question} [/INST]" if not number else ""
                asked = ids(opened) if opened else [begin, *ids(f"[INST] {question} [/INST]")]
                told = [*ids(answer), end]
                after += asked + told
                learned += [False] * len(asked) + [True] * len(told)
        else:
            before = [begin, *ids(f"\n\n###Human: <{tag}>")]
            text, spans = f"</{tag}> {line}", list[tuple[int, int]]()
            for number, (question, answer) in enumerate(item.turns):
                text += f"{'' if not number else 'Human: '}{question}\n###Assistant:"
                start = len(ids(text))
                text += f" {answer}\n###"
                spans.append((start, len(ids(text))))
            after = ids(text)
            learned = [any(a <= i < b for a, b in spans) for i in range(len(after))]
        after, learned = after[: recipe.max_text], learned[: recipe.max_text]
        if not any(learned):  # the question alone is too long: its last token is all that is left
            learned[-1] = True
        return Target(before, after, learned)

    def _tokens(self, item: Item, pixels: Tensor, times: Sequence[float]) -> Tensor:
        """Return what the branch makes of an item: [queries, L], with gradients."""
        if isinstance(self._branch, PictureBranch):
            with torch.no_grad():
                frames = self._branch.frames(pixels)
            return self._branch.read(frames)
        if self._recipe.hears == "pictures":
            assert self._eyes is not None
            with torch.no_grad():
                clips = self._eyes(pixels).float()
        else:
            sound = pieces(file_sound(item.path, item.path.name))
            scene = SoundWindow(sound, _raise).scene(0.0, times[-1])
            heard = self._model.hear(scene)
            if heard is None:
                raise SourceError(f"{item.path}: has no sound to learn from")
            clips = heard.clone().to(pixels.device)  # a clone may take gradients
        return self._branch.read(clips, scaled=False)

    def _read(self, item: Item, rng: np.random.Generator | None) -> tuple[Tensor, list[float]]:
        """Choose an item's frames; crop and squeeze them: [T, S, S, 3], and their seconds."""
        pictures, times = _decoded(item)
        chosen = spread(len(pictures), self._recipe.frames if item.is_video else 1)
        if rng is not None and self._recipe.sampling == "headtail" and len(chosen) > 1:
            half, size = len(pictures) // 2, len(chosen) // 2
            head = rng.choice(half, size, replace=False)
            tail = half + rng.choice(len(pictures) - half, len(chosen) - size, replace=False)
            chosen = sorted(int(i) for i in (*head, *tail))
        shown = [pictures[i] for i in chosen]
        if rng is not None and self._recipe.crop:
            shown = cropped(shown, rng)
        side = self._side
        squeezed = [
            np.array(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC))
            for p in shown
        ]
        return torch.from_numpy(np.stack(squeezed)), [times[i] for i in chosen]

    @cached_property
    def _side(self) -> int:
        return self._eyes.config.side if self._eyes else self._model.pictures.sizes.tower.side


def cleaned(caption: str) -> str:
    """Write a caption as the parent's first stage learns it."""
    plain = re.sub(r'[.!"()*#:;~]', " ", caption.lower())
    return " ".join(plain.split()[:MAX_WORDS])


def cropped(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Cut the same random part out of all pictures, [H, W, 3] of one size each."""
    height, width = pictures[0].shape[:2]
    area = height * width * rng.uniform(*AREAS)
    ratio = math.exp(rng.uniform(*np.log(RATIOS)))
    wide = min(width, max(1, round(math.sqrt(area * ratio))))
    high = min(height, max(1, round(math.sqrt(area / ratio))))
    left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    return [np.ascontiguousarray(p[top : top + high, left : left + wide]) for p in pictures]


def _decoded(item: Item) -> tuple[list[np.ndarray], list[float]]:
    """Decode at most ``HELD`` frames, evenly; of a still its one."""
    source = open_with(str(item.path), SourceOptions(fps=None))
    kept, times, stride = list[np.ndarray](), list[float](), 1
    try:
        for number, frame in enumerate(source):
            if number % stride:
                continue
            kept.append(frame.pixels)
            times.append(frame.time)
            if len(kept) > HELD:
                kept, times, stride = kept[::2], times[::2], 2 * stride
    finally:
        source.close()
    if not kept:
        raise SourceError(f"{item.path}: has no frames")
    return kept, times


def _raise(reason: str) -> None:
    raise SourceError(reason)


def is_recipe(path: Path) -> bool:
    """Return whether a recipe is one of a Video-LLaMA."""
    return read_toml(path).get("stage") == STAGE


def run_recipe(recipe_path: Path, out: Path, device: str | None = None) -> dict[str, Any]:
    """Train a Video-LLaMA by a recipe, or continue a killed run of it.

    Args:
        recipe_path: TOML; see ``VideoLlamaRecipe``.
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
    recipe = override(VideoLlamaRecipe(), read_toml(recipe_path), f"{recipe_path}: ")
    if not recipe.model or not recipe.data:
        raise ConfigError(f"{recipe_path}: name the model that is trained, and data")
    text = recipe_path.read_text()
    check_matplotlib()
    checkpoint.check_device(device or "cpu")
    items, validation = (
        [item for name in names for item in read_items(resolve_data(name))]
        for names in (recipe.data, recipe.validation)
    )
    said = find(recipe.model, checkpoint.CONFIGS)
    if said is None:
        raise ConfigError(f"{recipe_path}: model {recipe.model}: is no Video-LLaMA")
    with join_processes(device) as (group, own_device):
        with group.first_process_first():
            claim(out, text)
        torch.manual_seed(recipe.seed)  # of what is fresh
        keys = checkpoint.load_own(said.keys)
        model = open_model(recipe.model, said, keys, device=own_device)
        eyes = None
        if (recipe.branch, recipe.hears) == ("sound", "pictures"):
            eyes = open_vision(said, device=own_device)
        # 2. Train.
        stage = VideoLlamaStage(model, recipe, items, validation, eyes)
        schedule = Schedule(
            steps=recipe.steps,
            lr=recipe.rate,
            weight_decay=recipe.weight_decay,
            evaluate_every=recipe.evaluate_every,
            seed=recipe.seed,
            accumulate=recipe.accumulate,
            pace=lambda step: pace(step, cast(Any, recipe)),
            betas=(0.9, 0.999),
            save_every_s=recipe.save_every_s,
        )
        last = train_stage(stage, schedule, out, recipe=text, group=group)
        # 3. Write the checkpoint, the curve and the figures.
        figures: dict[str, Any] = {}
        if group.is_first:
            path = write_checkpoint(model, said, recipe, out)
            draw_curves([stage.name], out)
            parameters = sum(p.numel() for p in stage.module.parameters())
            figures = {"checkpoint": str(path), "items": len(items)}
            figures |= {"parameters": parameters, "steps": recipe.steps, **last}
            (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        group.wait()
    return figures


def write_checkpoint(
    model: VideoLlama, said: VideoLlamaFile, recipe: VideoLlamaRecipe, out: Path
) -> Path:
    """Write what was trained in the parent's layout, and a TOML file of the whole model.

    Returns:
        The TOML file: a model for ``load``, with the options that it began with.
    """
    branch = model.pictures if recipe.branch == "pictures" else model.sound
    assert branch is not None
    state, parts = branch.state_dict(), LEARNED[recipe.branch]
    tensors = {
        name: state[own].detach().cpu().clone()
        for name, own in branch.published().items()
        if own.partition(".")[0] in parts
    }
    path, toml = out / f"{CHECKPOINT}.pth", out / f"{CHECKPOINT}.toml"
    torch.save({"model": tensors}, path)
    files = {"tower": said.tower, "reader": said.reader, "imagebind": said.imagebind}
    files |= {"pictures": said.pictures, "sound": said.sound, "language": said.language}
    files |= {"keys": said.keys, recipe.branch: str(path.absolute())}
    lines = [f"family = {json.dumps(FAMILY)}"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in files.items()]
    lines += ["", "[options]"]
    options, plain = said.options, type(said.options)()
    for name in type(options).__dataclass_fields__:
        if (value := getattr(options, name)) != getattr(plain, name):
            lines.append(f"{name} = {json.dumps(value)}")
    toml.write_text("\n".join(lines) + "\n")
    return toml
