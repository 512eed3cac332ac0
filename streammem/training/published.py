"""A training run of a published model: its recipe, its items, its loop.

    figures = run_parent_recipe(Path("configs/train/videollamb.toml"), Path("out"))

What is a family's own, see ``models/published.py``, is a module beside this one of the family's
name, which has ``STAGE``: what learns, by which loss, and how it is written.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.config import check_choices, override, read_toml
from streammem.errors import ConfigError, DatasetError, SourceError
from streammem.models import checkpoint
from streammem.models.published import (
    FAMILIES,
    PublishedFile,
    PublishedModel,
    find,
    open_published,
)
from streammem.training.features import replace_text
from streammem.training.loop import Schedule, check_matplotlib, draw_curves, train_stage
from streammem.training.processes import join_processes
from streammem.training.recipe import resolve_data
from streammem.video import SourceOptions, open_with

T = TypeVar("T")
CHECKPOINT = "checkpoint"
RECIPE = "recipe.toml"
PLACEHOLDERS = ("<video>", "<image>")  # of the parents' data; where pictures stand is known
HELD = 1024  # frames of a video; of a longer one every second, fourth, ... is chosen among


@dataclass(frozen=True)
class PublishedRecipe:
    """A training run of any family; each has its parent's script as defaults.

    Attributes:
        stage: the family, which tells this recipe from those of others and of our own model.
        model: the published model that is trained, as ``--model`` takes it.
        data: files of items, absolute or relative to ``$STREAMMEM_DATA``; see ``read_items``.
        validation: files of items whose mean loss is measured at the end and every
            ``evaluate_every`` steps.
        steps: of the optimiser, >= 1.
        accumulate: items a step and process, one after another, >= 1.
        rate: peak learning rate.
        weight_decay: on matrices.
        evaluate_every: steps; 0 evaluates at the end only.
        save_every_s: seconds between interim weights, which take 12 bytes a parameter that learns.
        seed: of the order of items and of dropout, >= 0.
    """

    stage: str = ""
    model: str = ""
    data: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    steps: int = 1000
    accumulate: int = 1
    rate: float = 1e-4
    weight_decay: float = 0.0
    evaluate_every: int = 0
    save_every_s: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.steps < 1 or not 0 < self.rate < math.inf:
            raise ConfigError("steps must be >= 1, rate a number > 0")
        if min(self.evaluate_every, self.seed, self.weight_decay, self.save_every_s) < 0:
            raise ConfigError("evaluate_every, seed, weight_decay and save_every_s must be >= 0")
        if self.accumulate < 1:
            raise ConfigError("accumulate must be >= 1")

    def pace(self, step: int) -> float:
        """Return the share of the peak rate at a step."""
        raise NotImplementedError


@dataclass(frozen=True)
class Blip2Recipe(PublishedRecipe):
    """A recipe with the schedule of BLIP-2's code, on which two of the parents are built.

    Attributes:
        least_rate: where its cosine ends.
        first_rate: where its linear start begins.
        warmup_steps: of the linear start; the cosine runs from step 0, as the parents' does.
    """

    weight_decay: float = 0.05
    least_rate: float = 8e-5
    first_rate: float = 1e-6
    warmup_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not min(self.least_rate, self.first_rate) > 0 or self.warmup_steps < 0:
            raise ConfigError("least_rate and first_rate must be > 0, warmup_steps >= 0")
        if max(self.least_rate, self.first_rate) > self.rate:
            raise ConfigError("rate must be the greatest of the rates")

    def pace(self, step: int) -> float:
        """Return a linear start, then a cosine that began at step 0."""
        if step < self.warmup_steps:
            risen = (self.rate - self.first_rate) * step / self.warmup_steps
            return (self.first_rate + risen) / self.rate
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return ((self.rate - self.least_rate) * cosine + self.least_rate) / self.rate


class Dialogue(NamedTuple):
    """A video or a picture, and a conversation about it.

    Attributes:
        path: of the file.
        is_video: whether it is a video.
        turns: questions and their answers.
    """

    path: Path
    is_video: bool
    turns: tuple[tuple[str, str], ...]


class PublishedStage(ABC):
    """Trains a published model on items; ``module`` is exactly what learns.

    Args:
        model: put into training in place.
        recipe: see there.
        items: to learn from.
        validation: whose loss ``evaluate`` measures; may be empty.
    """

    RECIPE: ClassVar[type[PublishedRecipe]]
    module: nn.Module

    def __init__(
        self,
        model: Any,
        recipe: Any,
        items: Sequence[Dialogue],
        validation: Sequence[Dialogue] = (),
    ) -> None:
        self._model, self._recipe = model, recipe
        self._items, self._validation = items, validation
        self.name: str = self.RECIPE().stage

    @classmethod
    def options(cls, said: Any, recipe: Any) -> Any:
        """Return how the model is run while it is trained."""
        return said.options

    @classmethod
    def open(
        cls,
        model: PublishedModel,
        said: PublishedFile,
        recipe: PublishedRecipe,
        items: tuple[Sequence[Dialogue], Sequence[Dialogue]],
        device: str,
    ) -> Self:
        """Make the stage of an opened model, with items to learn from and of validation."""
        return cls(model, recipe, *items)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of one item, of one of its turns."""
        item = self._items[int(rng.integers(len(self._items)))]
        return self.loss_of(item, int(rng.integers(len(item.turns))))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the mean loss of all turns of the validation items."""
        return mean_loss(
            self.loss_of(item, turn) for item in self._validation for turn in range(len(item.turns))
        )

    @abstractmethod
    def loss_of(self, item: Dialogue, turn: int) -> Tensor:
        """Return the loss of an item's turn."""

    @abstractmethod
    def write(self, said: Any, out: Path) -> Path:
        """Write what was trained below ``out``; returns a model for ``load``."""


def mean_loss(losses: Any) -> dict[str, float]:
    """Return the figure of a validation: the mean of losses, if there are any."""
    values = [float(value) for value in losses]
    return {"val_loss": round(sum(values) / len(values), 4)} if values else {}


def answer_loss(
    model: nn.Module, before: Tensor, told: Sequence[int], learned: Sequence[bool] = ()
) -> Tensor:
    """Mean cross-entropy of tokens, each predicted by those before it.

    Args:
        model: of transformers.
        before: [N, L] embeddings that stand before the tokens, >= 1.
        told: ids.
        learned: whether each counts; all if empty.
    """
    embed = model.get_input_embeddings()  # type: ignore[operator]
    target = torch.tensor(list(told), device=before.device)
    x = torch.cat([before, embed(target)])
    logits = model(inputs_embeds=x[None]).logits[0, -len(target) - 1 : -1].float()
    if learned:
        kept = torch.tensor(list(learned), device=before.device)
        logits, target = logits[kept], target[kept]
    return F.cross_entropy(logits, target)


def read_items(path: Path) -> list[Dialogue]:
    """Read items in the parents' format: a JSON array, or a JSON object a line.

    An item has ``video`` or ``image``, a path relative to the file's folder, and ``conversations``:
    a list of ``{"from": "human" or "gpt", "value": TEXT}``, in turn.

    Raises:
        DatasetError: unreadable, or malformed; names the item.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        listed = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, lines))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not a file of items ({error})") from error
    items = []
    for number, row in enumerate(listed, start=1):
        try:
            kind = "video" if "video" in row else "image"
            said = [(turn["from"], _plain(turn["value"])) for turn in row["conversations"]]
            place = path.parent / row[kind]
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{path}: item {number}: has no {error}") from error
        turns = tuple((q, a) for (_, q), (_, a) in zip(said[::2], said[1::2], strict=False))
        speakers = [speaker for speaker, _ in said]
        if not turns or speakers != ["human", "gpt"] * len(turns) or not all(map(all, turns)):
            raise DatasetError(f"{path}: item {number}: give human and gpt in turn, with words")
        if not place.is_file():
            raise DatasetError(f"{path}: item {number}: {place} is missing")
        items.append(Dialogue(place, kind == "video", turns))
    if not items:
        raise DatasetError(f"{path}: holds no items")
    return items


def _plain(text: str) -> str:
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, "")
    return text.strip()


def decoded(path: Path, prepare: Callable[[np.ndarray], T]) -> tuple[list[T], list[float]]:
    """Decode frames of a video, evenly, fewer than ``HELD`` + 1; of a still its one.

    Args:
        path: of the file.
        prepare: takes [H, W, 3] uint8 RGB of each frame that is held.

    Returns:
        What it gives, and their seconds.

    Raises:
        SourceError: it cannot be read, or has no frame.
    """
    source = open_with(str(path), SourceOptions(fps=None))
    kept, times, stride = list[T](), list[float](), 1
    try:
        for number, frame in enumerate(source):
            if number % stride:
                continue
            kept.append(prepare(frame.pixels))
            times.append(frame.time)
            if len(kept) > HELD:
                kept, times, stride = kept[::2], times[::2], 2 * stride
    finally:
        source.close()
    if not kept:
        raise SourceError(f"{path}: has no frames")
    return kept, times


def stage_class(path: Path) -> type[PublishedStage] | None:
    """Return the stage that a recipe names; None for one of our own model."""
    family = str(read_toml(path).get("stage"))
    if family not in FAMILIES:
        return None
    found: type[PublishedStage] = import_module(
        f"streammem.training.{family.replace('-', '_')}"
    ).STAGE
    return found


def read_parent_recipe(path: Path) -> Any:
    """Read a recipe of a published model, of any family.

    Raises:
        ConfigError: unreadable, of our own model, or an option that is unknown, missing or outside
            its range.
    """
    kind = stage_class(path)
    if kind is None:
        raise ConfigError(f"{path}: stage: give one of {', '.join(FAMILIES)}")
    recipe = override(kind.RECIPE(), read_toml(path), f"{path}: ")
    if not recipe.model or not recipe.data:
        raise ConfigError(f"{path}: name the model that is trained, and data")
    return recipe


def run_parent_recipe(recipe_path: Path, out: Path, device: str | None = None) -> dict[str, Any]:
    """Train a published model by a recipe, or continue a killed run of it.

    Args:
        recipe_path: TOML; see ``PublishedRecipe``.
        out: gets the checkpoint in the parent's layout, from which ``load`` and the next stage
            start, ``figures.json``, ``loss.png``, and what a resumed run needs.
        device: see ``join_processes``.

    Returns:
        The content of ``figures.json``; empty in processes other than the first.

    Raises:
        ConfigError: an invalid recipe, or an output folder of another run.
        DatasetError: items that are missing or malformed.
        BackboneError, CheckpointError: the model cannot be opened.
    """
    # 1. Check everything that could fail after hours.
    recipe, text = read_parent_recipe(recipe_path), recipe_path.read_text()
    check_matplotlib()
    checkpoint.check_device(device or "cpu")
    items, validation = (
        [item for name in names for item in read_items(resolve_data(name))]
        for names in (recipe.data, recipe.validation)
    )
    said, kind = find(recipe.model, checkpoint.CONFIGS), stage_class(recipe_path)
    if kind is None or said is None or said.family != recipe.stage:
        raise ConfigError(f"{recipe_path}: model {recipe.model}: is no {recipe.stage}")
    with join_processes(device) as (group, own_device):
        _check_folder(out, text)
        torch.manual_seed(recipe.seed)  # of what is fresh
        opened = replace(said, options=kind.options(said, recipe))
        keys = checkpoint.load_own(said.keys)
        model = open_published(recipe.model, opened, keys, device=own_device)
        # 2. Train.
        stage = kind.open(model, said, recipe, (items, validation), own_device)
        group.wait()  # until all have looked at the folder
        if group.is_first:  # no earlier: a run that is refused holds no folder
            out.mkdir(parents=True, exist_ok=True)
            replace_text(out / RECIPE, text)
        schedule = Schedule(
            steps=recipe.steps,
            lr=recipe.rate,
            weight_decay=recipe.weight_decay,
            evaluate_every=recipe.evaluate_every,
            seed=recipe.seed,
            accumulate=recipe.accumulate,
            pace=recipe.pace,
            betas=(0.9, 0.999),
            save_every_s=recipe.save_every_s,
        )
        last = train_stage(stage, schedule, out, recipe=text, group=group)
        # 3. Write the checkpoint, the curve and the figures.
        figures: dict[str, Any] = {}
        if group.is_first:
            path = stage.write(said, out)
            draw_curves([stage.name], out)
            parameters = sum(p.numel() for p in stage.module.parameters())
            figures = {"checkpoint": str(path), "items": len(items)}
            figures |= {"parameters": parameters, "steps": recipe.steps, **last}
            (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        group.wait()
    return figures


def _check_folder(out: Path, text: str) -> None:
    """Refuse the output folder of a run of another recipe.

    Raises:
        ConfigError: it is that.
    """
    path = out / RECIPE
    if path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{out}: holds a run of another recipe; give another output folder, or remove this one"
        )


def vars_of(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that may have slots."""
    return {name: getattr(value, name) for name in type(value).__dataclass_fields__}


def write_torch(said: Any, field: str, tensors: dict[str, Tensor], out: Path) -> Path:
    """Write tensors as the parents do, and a TOML file of the whole model with them.

    Args:
        said: what the model was opened from.
        field: of it, that names the file of these tensors.
        tensors: by the parent's names.
        out: gets ``checkpoint.pth`` and ``checkpoint.toml``.

    Returns:
        The TOML file: a model for ``load``, with the options and sessions that it began with.
    """
    path, toml = out / f"{CHECKPOINT}.pth", out / f"{CHECKPOINT}.toml"
    torch.save({"model": tensors}, path)
    files = {n: value for n, value in vars_of(said).items() if value and isinstance(value, str)}
    lines = [
        f"{name} = {json.dumps(value)}"
        for name, value in (files | {field: str(path.absolute())}).items()
    ]
    for table, values in (("options", said.options), ("session", said.session)):
        plain = vars_of(type(values)())
        stated = [(n, value) for n, value in vars_of(values).items() if value != plain[n]]
        lines += ["", f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in stated)]
    toml.write_text("\n".join(lines) + "\n")
    return toml
