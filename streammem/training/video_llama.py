"""Video-LLaMA's training: the last Q-Former of a branch, its positions and its projection.

    stage = "video-llama"                 # the recipe of a run, in TOML
    model = "configs/mine.toml"           # what is trained; its checkpoints may be "fresh"
    data = ["captions.json"]              # items as those of VideoLLaMB's training
    branch = "pictures"                   # or sound, which may learn from pictures

Towers, the Q-Former of one frame and the language model are frozen. The parent's two stages are
two recipes, of ``captions`` and of ``conversations``; the second starts from the checkpoint of the
first.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from streammem.audio.scene_sound import SoundWindow
from streammem.errors import ConfigError, SourceError
from streammem.models.backbones.imagebind import ImageBindVision
from streammem.models.video_llama.branches import PictureBranch, SoundBranch
from streammem.models.video_llama.prompts import time_line
from streammem.models.video_llama.published import open_picture_branch
from streammem.models.video_llama.video_llama import VideoLlama
from streammem.perception.frames import spread
from streammem.training.published import (
    Blip2Recipe,
    Dialogue,
    PublishedStage,
    answer_loss,
    decoded,
    mean_loss,
    write_torch,
)
from streammem.video.sound import file_sound

LEARNED = {
    "pictures": ("positions", "video_reader", "projection"),
    "sound": ("positions", "reader", "projection"),
}
MAX_WORDS = 50  # of a caption that is cleaned
AREAS, RATIOS = (0.5, 1.0), (0.75, 4 / 3)  # of a random crop: share of the picture, width to height


@dataclass(frozen=True)
class VideoLlamaRecipe(Blip2Recipe):
    """A training run; the defaults are the parent's first stage of the pictures' branch.

    Attributes:
        branch: which one learns.
        hears: of the sound's branch: ``pictures`` through ImageBind's branch of pictures, as the
            parent, or the ``sound`` of the videos.
        text: ``captions``: of each conversation the first answer alone, right behind the tokens;
            ``conversations``: as in use, with the loss of all answers.
        mask: of conversations: the loss is of all ``answers`` alone, or as ``published``, of
            Vicuna's alone: of the questions' first two tokens too, and a token later with every
            turn. The first question's two stand before the pictures, and nothing learns from them.
        end: what ends a caption.
        clean: write captions in small letters, without the signs ``. ! " ( ) * # : ; ~``, and at
            most 50 words of each.
        frames: of a video, in [1, positions].
        sampling: ``even``, or ``headtail``: half of the frames drawn from either half of the video.
        crop: cut a random part of at least half the area, one for all frames of a video.
        max_text: tokens of text; beyond it is cut off.
    """

    stage: str = "video-llama"
    branch: Literal["pictures", "sound"] = "pictures"
    hears: Literal["pictures", "sound"] = "pictures"
    text: Literal["captions", "conversations"] = "captions"
    mask: Literal["answers", "published"] = "answers"
    end: str = "\n"
    clean: bool = False
    frames: int = 8
    sampling: Literal["even", "headtail"] = "headtail"
    crop: bool = True
    steps: int = 12_500
    accumulate: int = 32
    warmup_steps: int = 2500
    max_text: int = 320

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.frames, self.max_text) < 1:
            raise ConfigError("frames and max_text must be >= 1")


class BranchPrompt(NamedTuple):
    """Token ids around the tokens of a branch.

    Attributes:
        before: ids before them.
        after: ids behind them.
        learned: whether each of ``after`` is part of the loss.
    """

    before: list[int]
    after: list[int]
    learned: list[bool]


class VideoLlamaStage(PublishedStage):
    """Trains a branch of a Video-LLaMA; see ``PublishedStage``.

    Args:
        eyes: ImageBind's branch of pictures, where sound learns from pictures.
    """

    RECIPE = VideoLlamaRecipe

    def __init__(
        self,
        model: VideoLlama,
        recipe: VideoLlamaRecipe,
        items: Sequence[Dialogue],
        validation: Sequence[Dialogue] = (),
        eyes: ImageBindVision | None = None,
    ) -> None:
        super().__init__(model, recipe, items, validation)
        self._eyes = eyes
        branch = model.pictures if recipe.branch == "pictures" else model.sound
        if branch is None:
            raise ConfigError(f'{model.name}: has no branch of sound; name sound, or "fresh"')
        if recipe.mask == "published" and model.options.chat != "vicuna":
            raise ConfigError(f'mask = "published": {model.name} has no chat="vicuna"')
        self._branch: PictureBranch | SoundBranch = branch
        parts = {name: getattr(branch, name) for name in LEARNED[recipe.branch]}
        self.module = nn.ModuleDict(parts).requires_grad_(True).float()

    @classmethod
    def open(cls, model: Any, said: Any, recipe: Any, items: Any, device: str) -> Self:
        """Open ImageBind's branch of pictures too, where it is needed."""
        through = (recipe.branch, recipe.hears) == ("sound", "pictures")
        eyes = open_picture_branch(said, device=device) if through else None
        return cls(model, recipe, items[0], items[1], eyes)

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of one item."""
        return self.loss_of(self._items[int(rng.integers(len(self._items)))], rng=rng)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the mean loss of the validation items, of frames at even places, uncropped."""
        return mean_loss(self.loss_of(item) for item in self._validation)

    def loss_of(
        self, item: Dialogue, turn: int = 0, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Mean cross-entropy of an item's answers.

        Args:
            item: see ``Dialogue``.
            turn: not read: all answers are learned, or of captions the first.
            rng: of frames and crops; None takes even places and whole pictures.
        """
        # 1. What the branch reads, of frozen parts; then its tokens, which learn.
        pixels, times = self._read(item, rng)
        tokens = self._tokens(item, pixels, times)
        # 2. Words around them, and the loss of those that are learned.
        target = self.target(item, times)
        language: Any = self._model.language.model
        embed = language.get_input_embeddings()
        before = embed(torch.tensor(target.before, device=embed.weight.device))
        x = torch.cat([before, tokens.to(embed.weight)])
        return answer_loss(language, x, target.after, target.learned)

    def target(self, item: Dialogue, times: Sequence[float]) -> BranchPrompt:
        """Tokenise what stands around the branch's tokens."""
        language, recipe = self._model.language, self._recipe
        tokenizer = language.tokenizer
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        ids = language.text_ids
        if recipe.text == "captions":
            caption = item.turns[0][1]
            caption = cleaned(caption) if recipe.clean else caption
            told = ids(caption + recipe.end)[: recipe.max_text]
            return BranchPrompt([begin], told, [True] * len(told))
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
            text, spans, sizes = f"</{tag}> {line}", list[tuple[int, int]](), list[int]()
            for number, (question, answer) in enumerate(item.turns):
                asked = f"Human: {question}\n" if number else f"{text}{question}\n"
                pieces = f"###{asked}" if number else asked, f"###Assistant: {answer}\n"
                sizes += [len(ids(piece)) for piece in pieces]
                text = f"{text if number else ''}{asked}###Assistant:"
                start = len(ids(text))
                text += f" {answer}\n###"
                spans.append((start, len(ids(text))))
            after = ids(text)
            learned = [any(a <= i < b for a, b in spans) for i in range(len(after))]
            if recipe.mask == "published":
                begun = len(ids(f"###Human: <{tag}>")) + self._branch.queries
                first = 1 + len(ids("\n\n")) - len(before) - self._branch.queries
                learned = published_mask(len(after), first, [sizes[0] + begun, *sizes[1:]])
        after, learned = after[: recipe.max_text], learned[: recipe.max_text]
        if not any(learned):  # the question alone is too long: its last token is all that is left
            learned[-1] = True
        return BranchPrompt(before, after, learned)

    def _tokens(self, item: Dialogue, pixels: Tensor, times: Sequence[float]) -> Tensor:
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
            sound = file_sound(item.path, item.path.name)
            scene = SoundWindow(sound, _raise).scene(0.0, times[-1])
            heard = self._model.hear(scene)
            if heard is None:
                raise SourceError(f"{item.path}: has no sound to learn from")
            clips = heard.clone().to(pixels.device)  # a clone may take gradients
        return self._branch.read(clips, scaled=False)

    def _read(self, item: Dialogue, rng: np.random.Generator | None) -> tuple[Tensor, list[float]]:
        """Choose an item's frames; crop and squeeze them: [T, S, S, 3], and their seconds."""
        # Frames are squeezed as they come: a film at its full size would take gigabytes.
        part = crop_of(rng) if rng is not None and self._recipe.crop else None
        side = self._side

        def squeezed(picture: np.ndarray) -> np.ndarray:
            shown = Image.fromarray(part(picture) if part else picture)
            return np.array(shown.resize((side, side), Image.Resampling.BICUBIC))

        pictures, times = decoded(item.path, squeezed)
        chosen = spread(len(pictures), self._recipe.frames if item.is_video else 1)
        if rng is not None and self._recipe.sampling == "headtail" and len(chosen) > 1:
            half, size = len(pictures) // 2, len(chosen) // 2
            head = rng.choice(half, size, replace=False)
            tail = half + rng.choice(len(pictures) - half, len(chosen) - size, replace=False)
            chosen = sorted(int(i) for i in (*head, *tail))
        shown = torch.from_numpy(np.stack([pictures[i] for i in chosen]))
        return shown, [times[i] for i in chosen]

    @cached_property
    def _side(self) -> int:
        return self._eyes.config.side if self._eyes else self._model.pictures.sizes.tower.side

    def write(self, said: Any, out: Path) -> Path:
        """Write what was trained in the parent's layout, and a TOML file of the whole model."""
        state, parts = self._branch.state_dict(), LEARNED[self._recipe.branch]
        tensors = {
            name: state[own].detach().cpu().clone()
            for name, own in self._branch.published().items()
            if own.partition(".")[0] in parts
        }
        return write_torch(said, self._recipe.branch, tensors, out)


def published_mask(count: int, first: int, sizes: Sequence[int]) -> list[bool]:
    """Tell which tokens the parent's loss is of.

    It counts each piece with a beginning-of-sequence of its own, so that what it leaves out lies a
    token later with every piece; and of a question it leaves out all but two tokens.

    Args:
        count: tokens behind the pictures.
        first: place of the first question among them; < 0, as it begins before the pictures.
        sizes: tokens of the pieces: a question, an answer, a question, ...
    """
    learned, at = [True] * count, first
    for number, size in enumerate(sizes):
        if number % 2 == 0:
            masked = range(max(0, at + 2), min(count, at + size + 1))
            learned[masked.start : masked.stop] = [False] * len(masked)
        at += size + 1
    return learned


def cleaned(caption: str) -> str:
    """Write a caption as the parent's first stage learns it."""
    plain = re.sub(r'[.!"()*#:;~]', " ", caption.lower())
    return " ".join(plain.split()[:MAX_WORDS])


def crop_of(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Draw what cuts a part out of a picture [H, W, 3], the same of all that have one size."""
    share, ratio = rng.uniform(*AREAS), math.exp(rng.uniform(*np.log(RATIOS)))
    across, down = rng.random(2)

    def cut(picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        area = height * width * share
        wide = min(width, max(1, round(math.sqrt(area * ratio))))
        high = min(height, max(1, round(math.sqrt(area / ratio))))
        left, top = int(across * (width - wide + 1)), int(down * (height - high + 1))
        return np.ascontiguousarray(picture[top : top + high, left : left + wide])

    return cut


def _raise(reason: str) -> None:
    raise SourceError(reason)


STAGE = VideoLlamaStage
