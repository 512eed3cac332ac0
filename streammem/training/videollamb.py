"""VideoLLaMB's training: bridge and language model by next-token loss, its towers frozen.

    stage = "videollamb"                  # the recipe of a run, in TOML
    model = "videollamb-7b-published"     # what is trained, as --model takes it
    data = ["instructions.json"]          # in the parent's format, see ``read_items``

The towers, the cuts and the segments are those of ``models/videollamb/offline.py``; steps, resuming
and processes are those of every stage (``loop.py``, ``processes.py``).
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from streammem.config import override, read_toml
from streammem.errors import CheckpointError, ConfigError, DatasetError, SourceError
from streammem.models import checkpoint
from streammem.models.backbones.languagebind import crop, pad
from streammem.models.videollamb.bridge import ParentBridge, pool
from streammem.models.videollamb.offline import choose, segments_of
from streammem.models.videollamb.published import BRIDGE, find, open_model, weights_folder
from streammem.models.videollamb.shards import open_shards
from streammem.models.videollamb.videollamb import PERSON, VideoLLaMB, opening_of
from streammem.training.loop import Schedule, check_matplotlib, draw_curves, train_stage
from streammem.training.processes import join_processes
from streammem.training.recipe import resolve_data
from streammem.video import SourceOptions, open_with

STAGE = "videollamb"
CHECKPOINT = "checkpoint"
PLACEHOLDERS = ("<video>", "<image>")  # of the parent's data; where pictures stand is known
HELD = 1024  # frames of a video; of a longer one every second, fourth, ... is chosen among

LossOn = Literal["last", "every"]
Learns = Literal["all", "bridge"]


@dataclass(frozen=True, slots=True)
class ParentRecipe:
    """A training run; the defaults are the parent's script, but for its size.

    Attributes:
        stage: ``videollamb``, which tells this recipe from those of our own model.
        model: the VideoLLaMB that is trained, as ``--model`` takes it; its options decide frames,
            cuts and prompt. ``weights`` of it may be an untrained bridge.
        data: files of items, absolute or relative to ``$STREAMMEM_DATA``; see ``read_items``.
        validation: files of items whose mean loss is measured at the end and every
            ``evaluate_every`` steps.
        learns: ``all``: bridge and language model, as the parent; ``bridge``: the bridge alone.
            What learns is float32, with gradient and AdamW 16 bytes a parameter.
        loss_on: the answer is learned from the ``last`` segment's tokens, or again from those of
            ``every`` segment, which costs the language model as many passes.
        detach_cache: let no gradient reach back through the cache; the recurrence keeps its own.
        window: segments that gradients flow back through (truncated back-propagation); what came
            before a window is a given, memory and cache alike. 0 truncates nowhere.
        cache: see ``ParentOptions``; in a run it is the model's own.
        steps: of the optimiser, >= 1.
        accumulate: items a step and process, one after another, >= 1; the parent had 32 a step in
            all.
        rate: peak learning rate, after a linear start over ``warmup`` of the steps; then a cosine
            falls to 0.
        warmup: share of the steps, in [0, 1].
        max_tokens: of an item, visual ones included; beyond it an answer is cut off.
        evaluate_every: steps; 0 evaluates at the end only.
        save_every_s: seconds between interim weights, which take 12 bytes a parameter that learns.
        seed: of the order of items and of dropout, >= 0.
    """

    stage: str = STAGE
    model: str = ""
    data: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    learns: Learns = "all"
    loss_on: LossOn = "last"
    detach_cache: bool = False
    window: int = 0
    cache: Literal["memory", "hidden"] = "memory"
    steps: int = 1000
    accumulate: int = 1
    rate: float = 2e-5
    warmup: float = 0.03
    max_tokens: int = 2048
    evaluate_every: int = 0
    save_every_s: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup <= 1 or not 0 < self.rate < math.inf:
            raise ConfigError("steps must be >= 1, warmup in [0, 1], rate a number > 0")
        if min(self.window, self.evaluate_every, self.seed) < 0 or self.save_every_s < 0:
            raise ConfigError("window, evaluate_every, save_every_s and seed must be >= 0")
        if self.accumulate < 1 or self.max_tokens < 1:
            raise ConfigError("accumulate and max_tokens must be >= 1")
        if self.loss_on not in ("last", "every") or self.cache not in ("memory", "hidden"):
            raise ConfigError("loss_on is last or every, cache is memory or hidden")
        if self.learns not in ("all", "bridge"):
            raise ConfigError("learns is all or bridge")


class Example(NamedTuple):
    """A video and what is said of it.

    Attributes:
        segments: of each, [S, D] the pooled patches of its frames.
        before: ids of the prompt up to the visual tokens.
        after: ids of the rest of the prompt.
        answer: ids that are learned, the end of the sequence among them.
    """

    segments: Sequence[Tensor]
    before: Sequence[int]
    after: Sequence[int]
    answer: Sequence[int]


def loss(
    bridge: ParentBridge, language: nn.Module, example: Example, recipe: ParentRecipe
) -> Tensor:
    """Mean cross-entropy of the answer's tokens, each from the last segment or from every one."""
    device = bridge.projector.read_memory_emb.device
    memory, shown = bridge.initial_memory(), []
    cache: list[Tensor] = []
    for number, segment in enumerate(example.segments):
        if number and recipe.window and number % recipe.window == 0:
            memory, cache = memory.detach(), [kept.detach() for kept in cache]
        read = bridge.read(segment[None].to(memory), memory, number)
        kept = read.memory if recipe.cache == "memory" else read.hidden
        cache.append(kept.detach() if recipe.detach_cache else kept)
        memory = bridge.recall(read.memory, torch.cat(cache, dim=1))
        shown.append(bridge.to_language(read.hidden[0]))
    embed = language.get_input_embeddings()  # type: ignore[operator]
    before, after, answer = (
        torch.tensor(list(ids), device=device)
        for ids in (example.before, example.after, example.answer)
    )
    losses = []
    for tokens in shown if recipe.loss_on == "every" else shown[-1:]:
        x = torch.cat([embed(before), tokens.to(embed.weight), embed(after), embed(answer)])
        logits = language(inputs_embeds=x[None]).logits[0, -len(answer) - 1 : -1]
        losses.append(F.cross_entropy(logits.float(), answer))
    return torch.stack(losses).mean()


class Item(NamedTuple):
    """A video or a picture, and a conversation about it.

    Attributes:
        path: of the file.
        is_video: whether it is a video.
        turns: questions and their answers.
    """

    path: Path
    is_video: bool
    turns: tuple[tuple[str, str], ...]


def read_items(path: Path) -> list[Item]:
    """Read items in the parent's format: a JSON array, or a JSON object a line.

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
        items.append(Item(place, kind == "video", turns))
    if not items:
        raise DatasetError(f"{path}: holds no items")
    return items


def _plain(text: str) -> str:
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, "")
    return text.strip()


class VideoLLaMBStage:
    """Trains a VideoLLaMB's bridge, and its language model, on items.

    Args:
        model: put into training in place.
        recipe: see there.
        items: to learn from.
        validation: whose loss ``evaluate`` measures; may be empty.
    """

    name = STAGE

    def __init__(
        self,
        model: VideoLLaMB,
        recipe: ParentRecipe,
        items: Sequence[Item],
        validation: Sequence[Item] = (),
    ) -> None:
        self._model, self._recipe = model, replace(recipe, cache=model.options.cache)
        self._items, self._validation = items, validation
        self._language: nn.Module = model.language.model
        parts: dict[str, nn.Module] = {"bridge": model.bridge}
        if recipe.learns == "all":
            parts["language"] = self._language
        # In bfloat16 a step of 2e-5 of a weight's size would be lost.
        self.module = nn.ModuleDict(parts).requires_grad_(True).float()

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of one item, of one of its turns."""
        item = self._items[int(rng.integers(len(self._items)))]
        turn = int(rng.integers(len(item.turns)))
        return loss(self._model.bridge, self._language, self.example(item, turn), self._recipe)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the mean loss of all turns of the validation items."""
        values = [
            float(loss(self._model.bridge, self._language, self.example(item, turn), self._recipe))
            for item in self._validation
            for turn in range(len(item.turns))
        ]
        return {"val_loss": round(sum(values) / len(values), 4)} if values else {}

    def example(self, item: Item, turn: int = 0) -> Example:
        """Encode an item's pictures, and tokenise its conversation up to the answer of a turn."""
        pooled = segments_of_item(self._model, item)
        tokenizer, prompt = self._model.language.tokenizer, self._model.options.prompt

        def ids(text: str) -> list[int]:
            read = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            return list(read.input_ids)

        before = [tokenizer.bos_token_id, *ids(opening_of(PERSON[prompt]))]
        after: list[int] = []
        for number, (question, answer) in enumerate(item.turns[: turn + 1]):
            opened = f"\n{question} ASSISTANT:" if not number else f"USER: {question} ASSISTANT:"
            after += ids(opened)
            told = [*ids(answer), tokenizer.eos_token_id]
            if number < turn:
                after += told
        room = self._recipe.max_tokens - len(before) - len(after) - max(map(len, pooled))
        return Example(pooled, before, after, told[: max(1, room)])


@torch.inference_mode()
def _pooled(model: VideoLLaMB, item: Item) -> list[Tensor]:
    if not item.is_video:
        source = open_with(str(item.path), SourceOptions(fps=None))
        picture = next(iter(source)).pixels
        source.close()
        padded = torch.from_numpy(pad(picture, model.image_tower.config.side))
        return [pool(model.image_tower(padded[None]), model.options.pool).flatten(0, 1)]
    frames = torch.stack(_crops(model, item.path))
    return segments_of(model, frames[choose(model, len(frames))]).pooled


def segments_of_item(model: VideoLLaMB, item: Item) -> list[Tensor]:
    """Return pooled patches [S, D] of each segment of a video, or of the one of a picture.

    Raises:
        SourceError: it cannot be read, or has no frame.
    """
    return [segment.clone() for segment in _pooled(model, item)]  # a clone may take gradients


def _crops(model: VideoLLaMB, path: Path) -> list[Tensor]:
    """Decode a video and crop its frames, evenly, fewer than ``HELD`` + 1."""
    source = open_with(str(path), SourceOptions(fps=None))
    kept, stride = list[Tensor](), 1
    try:
        for number, frame in enumerate(source):
            if number % stride:
                continue
            kept.append(torch.from_numpy(crop(frame.pixels, model.side, model.options.shrink)))
            if len(kept) > HELD:
                kept, stride = kept[::2], 2 * stride
    finally:
        source.close()
    if not kept:
        raise SourceError(f"{path}: has no frames")
    return kept


def is_recipe(path: Path) -> bool:
    """Return whether a recipe is one of a VideoLLaMB."""
    return read_toml(path).get("stage") == STAGE


def read_recipe(path: Path) -> ParentRecipe:
    """Read a recipe.

    Raises:
        ConfigError: unreadable, or an option that is unknown, missing or outside its range.
    """
    recipe = override(ParentRecipe(), read_toml(path), f"{path}: ")
    if not recipe.model or not recipe.data:
        raise ConfigError(f"{path}: name the model that is trained, and data")
    return recipe


def run_recipe(recipe_path: Path, out: Path, device: str | None = None) -> dict[str, Any]:
    """Train a VideoLLaMB by a recipe, or continue a killed run of it.

    Args:
        recipe_path: TOML; see ``ParentRecipe``.
        out: gets ``checkpoint/`` in the published layout (a model for ``load``), ``figures.json``,
            ``loss.png``, and what a resumed run needs.
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
        raise ConfigError(f"{recipe_path}: model {recipe.model}: is no VideoLLaMB")
    with join_processes(device) as (group, own_device):
        with group.first_process_first():
            claim(out, text)
        model = open_model(recipe.model, said, checkpoint.load_own(said.keys), device=own_device)
        # 2. Train.
        stage = VideoLLaMBStage(model, recipe, items, validation)
        schedule = Schedule(
            steps=recipe.steps,
            lr=recipe.rate,
            weight_decay=0.0,
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
            write_checkpoint(weights_folder(said.weights), stage.module, out / CHECKPOINT)
            draw_curves([stage.name], out)
            parameters = sum(p.numel() for p in stage.module.parameters())
            figures = {"checkpoint": str(out / CHECKPOINT), "items": len(items)}
            figures |= {"parameters": parameters, "steps": recipe.steps, **last}
            (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        group.wait()
    return figures


def claim(out: Path, text: str) -> None:
    """Make an output folder and note the recipe in it.

    Raises:
        ConfigError: it holds a run of another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.toml"
    if path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{out}: holds a run of another recipe; give another output folder, or remove this one"
        )
    path.write_text(text)


def write_checkpoint(source: Path, trained: nn.Module, folder: Path) -> None:
    """Write a checkpoint in the published layout: ``source`` with what was trained in its place.

    Args:
        source: folder of the checkpoint that was trained.
        trained: modules ``bridge`` and perhaps ``language``.
        folder: made if need be. One shard is in memory at a time; each keeps its dtypes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = open_shards(source)
    names = dict(_published_names(trained.state_dict()))
    if "lm_head.weight" not in shards.files:  # tied to the embeddings
        names.pop("lm_head.weight", None)
    if missing := sorted(set(names) - set(shards.files)):
        raise CheckpointError(f"{source}: has no {missing[0]}")
    for file in sorted(set(shards.files.values())):
        own = [name for name, place in shards.files.items() if place == file]
        tensors = shards.tensors({name: name for name in own}, None)
        for name in own:
            if name in names:
                tensors[name] = names[name].detach().to("cpu", tensors[name].dtype).contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors writes files that only their owner may read
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".model", ".txt"):  # index, tokenizer, sizes
            shutil.copyfile(path, folder / path.name)


def _published_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        yield (f"{BRIDGE}{rest}" if part == "bridge" else rest), tensor


def pace(step: int, recipe: ParentRecipe) -> float:
    """Share of the peak rate at a step: a linear start, then a cosine to 0."""
    start = math.ceil(recipe.warmup * recipe.steps)
    if step < start:
        return step / start
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, recipe.steps - start)))
