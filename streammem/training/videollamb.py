"""VideoLLaMB's training: bridge and language model by next-token loss, its towers frozen.

    stage = "videollamb"                  # the recipe of a run, in TOML
    model = "videollamb-7b-published"     # what is trained, as --model takes it
    data = ["instructions.json"]          # in the parent's format, see ``read_items``

The towers, the cuts and the segments are those of ``models/videollamb/offline.py``; items, steps
and files are those of every published model (``published.py``).
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from streammem.errors import CheckpointError, ConfigError
from streammem.models.backbones.languagebind import pad
from streammem.models.videollamb.bridge import ParentBridge, pool
from streammem.models.videollamb.offline import choose, segments_of
from streammem.models.videollamb.published import BRIDGE, weights_folder
from streammem.models.videollamb.shards import open_shards
from streammem.models.videollamb.videollamb import PERSON, VideoLLaMB, opening_of
from streammem.training.published import (
    CHECKPOINT,
    Dialogue,
    PublishedRecipe,
    PublishedStage,
    answer_loss,
    decoded,
)

LossOn = Literal["last", "every"]
Learns = Literal["all", "bridge"]


@dataclass(frozen=True)
class ParentRecipe(PublishedRecipe):
    """A training run; the defaults are the parent's script, but for its size.

    The parent had 32 items a step in all. The model's options decide frames, cuts and prompt;
    ``weights`` of it may be an untrained bridge.

    Attributes:
        learns: ``all``: bridge and language model, as the parent; ``bridge``: the bridge alone.
            What learns is float32, with gradient and AdamW 16 bytes a parameter.
        loss_on: the answer is learned from the ``last`` segment's tokens, or again from those of
            ``every`` segment, which costs the language model as many passes.
        detach_cache: let no gradient reach back through the cache; the recurrence keeps its own.
        window: segments that gradients flow back through (truncated back-propagation); what came
            before a window is a given, memory and cache alike. 0 truncates nowhere.
        cache: see ``ParentOptions``; in a run it is the model's own.
        warmup: share of the steps, in [0, 1], of a linear start; then a cosine falls to 0.
        max_tokens: of an item, visual ones included; beyond it an answer is cut off.
    """

    stage: str = "videollamb"
    learns: Learns = "all"
    loss_on: LossOn = "last"
    detach_cache: bool = False
    window: int = 0
    cache: Literal["memory", "hidden"] = "memory"
    rate: float = 2e-5
    warmup: float = 0.03
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup <= 1 or self.window < 0 or self.max_tokens < 1:
            raise ConfigError("warmup must be in [0, 1], window >= 0, max_tokens >= 1")

    def pace(self, step: int) -> float:
        """Return a linear start, then a cosine to 0."""
        start = math.ceil(self.warmup * self.steps)
        if step < start:
            return step / start
        return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, self.steps - start)))


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
    before, after = (
        embed(torch.tensor(list(ids), device=device)) for ids in (example.before, example.after)
    )
    losses = [
        answer_loss(language, torch.cat([before, tokens.to(before), after]), example.answer)
        for tokens in (shown if recipe.loss_on == "every" else shown[-1:])
    ]
    return torch.stack(losses).mean()


class VideoLLaMBStage(PublishedStage):
    """Trains a VideoLLaMB's bridge, and its language model; see ``PublishedStage``."""

    RECIPE = ParentRecipe

    def __init__(
        self,
        model: VideoLLaMB,
        recipe: ParentRecipe,
        items: Sequence[Dialogue],
        validation: Sequence[Dialogue] = (),
    ) -> None:
        recipe = replace(recipe, cache=model.options.cache)
        super().__init__(model, recipe, items, validation)
        self._language: nn.Module = model.language.model
        parts: dict[str, nn.Module] = {"bridge": model.bridge}
        if recipe.learns == "all":
            parts["language"] = self._language
        # In bfloat16 a step of 2e-5 of a weight's size would be lost.
        self.module = nn.ModuleDict(parts).requires_grad_(True).float()

    def loss_of(self, item: Dialogue, turn: int) -> Tensor:
        """Return the loss of an item's turn, after those before it."""
        return loss(self._model.bridge, self._language, self.example(item, turn), self._recipe)

    def write(self, said: Any, out: Path) -> Path:
        """Write ``checkpoint/`` in the published layout, a model for ``load``."""
        write_checkpoint(weights_folder(said.weights), self.module, out / CHECKPOINT)
        return out / CHECKPOINT

    def example(self, item: Dialogue, turn: int = 0) -> Example:
        """Encode an item's pictures, and tokenise its conversation up to the answer of a turn."""
        pooled = segments_of_item(self._model, item)
        language, prompt = self._model.language, self._model.options.prompt
        tokenizer, ids = language.tokenizer, language.text_ids
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
def _pooled(model: VideoLLaMB, item: Dialogue) -> list[Tensor]:
    if not item.is_video:
        side = model.image_tower.config.side
        (padded,), _ = decoded(item.path, lambda picture: torch.from_numpy(pad(picture, side)))
        return [pool(model.image_tower(padded[None]), model.options.pool).flatten(0, 1)]
    frames = torch.stack(decoded(item.path, model.pixels)[0])
    return segments_of(model, frames[choose(model, len(frames))]).pooled


def segments_of_item(model: VideoLLaMB, item: Dialogue) -> list[Tensor]:
    """Return pooled patches [S, D] of each segment of a video, or of the one of a picture.

    Raises:
        SourceError: it cannot be read, or has no frame.
    """
    return [segment.clone() for segment in _pooled(model, item)]  # a clone may take gradients


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


STAGE = VideoLLaMBStage
