"""VideoLLaMB's training: bridge and language model by next-token loss, its towers frozen.

One step at a time, on one device; what the examples are made of is the caller's business.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.errors import ConfigError
from streammem.models.videollamb.bridge import ParentBridge

LossOn = Literal["last", "every"]


@dataclass(frozen=True, slots=True)
class ParentRecipe:
    """How to train; the defaults are the parent's script.

    Attributes:
        loss_on: the answer is learned from the ``last`` segment's tokens, or again from those of
            ``every`` segment, which costs the language model as many passes.
        detach_cache: let no gradient reach back through the cache; the recurrence keeps its own.
        window: segments that gradients flow back through (truncated back-propagation); what came
            before a window is a given, memory and cache alike. 0 truncates nowhere.
        cache: see ``ParentOptions``.
        steps: of the optimiser, >= 1.
        rate: peak learning rate, after a linear start over ``warmup`` of the steps; then a cosine
            falls to 0.
        warmup: share of the steps, in [0, 1].
    """

    loss_on: LossOn = "last"
    detach_cache: bool = False
    window: int = 0
    cache: Literal["memory", "hidden"] = "memory"
    steps: int = 1000
    rate: float = 2e-5
    warmup: float = 0.03

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup <= 1 or not 0 < self.rate < math.inf:
            raise ConfigError("steps must be >= 1, warmup in [0, 1], rate a number > 0")
        if self.window < 0:
            raise ConfigError("window must be >= 0")
        if self.loss_on not in ("last", "every") or self.cache not in ("memory", "hidden"):
            raise ConfigError("loss_on is last or every, cache is memory or hidden")


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


def train(
    bridge: ParentBridge, language: nn.Module, examples: Sequence[Example], recipe: ParentRecipe
) -> list[float]:
    """Train both in place, an example a step, in turn; return the loss of every step.

    Args:
        bridge: put into training mode, so that dropout is on, and back at the end.
        language: a causal language model of transformers; its parameters are trained too.
        examples: at least one.
        recipe: see there.
    """
    parameters = [*bridge.parameters(), *language.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: pace(step, recipe))
    bridge.train()
    language.train()
    losses = []
    for step in range(recipe.steps):
        value = loss(bridge, language, examples[step % len(examples)], recipe)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        losses.append(value.item())  # one a step, which takes a forward and a backward pass
    bridge.eval()
    language.eval()
    return losses


def pace(step: int, recipe: ParentRecipe) -> float:
    """Share of the peak rate at a step: a linear start, then a cosine to 0."""
    start = math.ceil(recipe.warmup * recipe.steps)
    if step < start:
        return step / start
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, recipe.steps - start)))
