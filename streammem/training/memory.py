"""Memory stage: the gates learn to keep what was seen, over chains of segments.

Only ``bridge.remember`` and the initial memory learn; what a segment's tokens are stays frozen, so
they are computed once.
"""

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from streammem.memory.bridge import MemoryBridge
from streammem.training.pictures import PictureSet
from streammem.training.words import TOP, WordHead, WordSpace, word_loss

SHORTEST, LONGEST = 4, 32  # segments of a chain
WINDOW = 8  # segments that gradients flow back through
REPEATED_SHARE = 0.15  # of a chain's segments that show a picture again
MAX_RETRIEVED = 4  # past segments whose tokens are given beside the memory
SLOT_SHARE = 0.3  # of a slot's mean token that an untrained gate adds to keep slots apart
STARTED_WITH = 256  # pictures whose tokens an untrained memory starts from
EVALUATED_CHAINS, EVALUATED_LENGTH = 128, 24
STEPS_BACK = (1, 4, 16)
HEAD_FACTOR = 10.0  # on the learning rate: a scale and biases of order 1 to 10
NAMED = 100  # words that a memory may name in evaluation; a chain of 24 pictures has about 150


class MemoryStage:
    """After a chain the memory must still name what its pictures showed, old and recent alike.

    The memory is scored as one picture's tokens are, against the union of its chain's words. The
    scoring head learns from single pictures only, so the memory has to speak the tokens' language.

    Args:
        bridge: its gate and initial memory are trained in place, the rest is frozen.
        space: words to name.
        pictures: training set, with captions.
        validation: whose chains are measured, with captions.
        batch: chains a step.
    """

    name = "memory"

    def __init__(
        self,
        bridge: MemoryBridge,
        space: WordSpace,
        pictures: PictureSet,
        validation: PictureSet,
        *,
        batch: int = 16,
    ) -> None:
        self.bridge, self.space, self.batch = bridge, space, batch
        self.pictures, self.validation = pictures, validation
        bridge.eval().requires_grad_(False)
        if not bridge.remember.gate.weight.any():  # as it was made: never trained
            sample = pictures.select(range(0, len(pictures), 1 + len(pictures) // STARTED_WITH))
            start_as_running_mean(bridge, look_tokens(bridge, sample))
        bridge.remember.requires_grad_(True)
        bridge.initial.requires_grad_(True)
        self.head = WordHead(space.prior).to(pictures.device)
        slots = nn.ParameterDict({"slots": bridge.initial})
        self.module = nn.ModuleDict(
            {"remember": bridge.remember, "initial": slots, "head": self.head}
        )

    @cached_property
    def _shares(self) -> Tensor:
        return self.space.shares(self.pictures.captions)

    @cached_property
    def _tokens(self) -> Tensor:
        return look_tokens(self.bridge, self.pictures)

    @cached_property
    def _validation_tokens(self) -> Tensor:
        return look_tokens(self.bridge, self.validation)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        gate = [*self.bridge.remember.parameters(), self.bridge.initial]
        return [(gate, 1.0), (list(self.head.parameters()), HEAD_FACTOR)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        chains = draw_chains(rng, self.batch, length, len(self.pictures))
        tokens, shares = self._drawn(self._tokens, chains), self._shares[chains]  # [B, T, ...]
        memory = self.bridge.initial_memory(len(chains))
        losses = []
        for begin in range(0, length, WINDOW):
            end = min(begin + WINDOW, length)
            # Truncated back-propagation: what came before the window is a given.
            memory = memory if begin == 0 else memory.detach()
            for step in range(begin, end):
                retrieved = draw_retrieved(tokens, step, rng)
                memory = self.bridge.remember(memory, tokens[:, step], retrieved)
            losses.append(self._named_loss(memory, shares[:, :end]))
        single = word_loss(self._scores(tokens[:, 0]), shares[:, 0])
        return torch.stack(losses).mean() + single

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Share of the best words of the picture k segments ago among the memory's ``NAMED``.

        Beside it the prior's share, and that of the mean of the chain's tokens.
        """
        length = min(EVALUATED_LENGTH, len(self.validation))
        rng = np.random.default_rng(0)
        chains = np.stack(
            [
                rng.choice(len(self.validation), length, replace=False)
                for _ in range(EVALUATED_CHAINS)
            ]
        )
        tokens = self._drawn(self._validation_tokens, chains)  # [B, T, M, D]
        shares = self.space.shares(self.validation.captions)
        memory = self.bridge.initial_memory(len(chains))
        for step in range(length):
            memory = self.bridge.remember(memory, tokens[:, step], None)
        named = {
            "memory": self._scores(memory),
            "mean": self._scores(tokens.mean(1)),
            "prior": self.space.prior.expand(len(chains), -1),
        }
        return {
            f"{who}@{back}": round(share_named(scores, shares[chains[:, -back]]), 4)
            for who, scores in named.items()
            for back in STEPS_BACK
            if back <= length
        }

    def _drawn(self, tokens: Tensor, chains: np.ndarray) -> Tensor:
        return tokens[chains].to(self.bridge.initial.device).float()

    def _scores(self, tokens: Tensor) -> Tensor:
        return self.head(self.space.cosines(self.bridge.to_language(tokens)))

    def _named_loss(self, memory: Tensor, shares: Tensor) -> Tensor:
        """Score memories [B, M, D] against the union of their pictures' words [B, T, W]."""
        frozen = {name: value.detach() for name, value in self.head.named_parameters()}
        cosines = self.space.cosines(self.bridge.to_language(memory))
        logits = torch.func.functional_call(self.head, frozen, (cosines,))
        # Each of T pictures may bring a word, so a word's odds are about T times its prior's.
        # The maximum makes a word count the same whenever it was seen.
        return word_loss(logits + math.log(shares.shape[1]), shares.amax(1))


@torch.no_grad()
def start_as_running_mean(bridge: MemoryBridge, tokens: Tensor) -> None:
    """Set an untrained gate to a running mean of each slot, from which learning gets further.

    The memory starts at the slots' mean tokens, and attention with identity matrices lets each
    slot read mostly the token that is like it. From random matrices, hundreds of steps learn no
    more than the prior.

    Args:
        bridge: its gate and initial memory are set.
        tokens: [N, M, D] of pictures.
    """
    gate, attention = bridge.remember, bridge.remember.attention
    identity = torch.eye(bridge.config.dim, device=bridge.initial.device)
    attention.query.weight.copy_(identity)
    attention.key_value.weight.copy_(torch.cat([identity, identity]))
    attention.out.weight.copy_(identity)
    for linear in (attention.query, attention.key_value, attention.out):
        linear.bias.zero_()
    last: nn.Linear = gate.mlp[3]  # type: ignore[assignment]
    last.weight.zero_()
    last.bias.zero_()
    bridge.initial.copy_(tokens.float().mean(0))
    gate.slots.copy_(SLOT_SHARE * bridge.initial)


@torch.no_grad()
def look_tokens(bridge: MemoryBridge, pictures: PictureSet) -> Tensor:
    """Return every picture's tokens [N, M, D] float16 on the CPU, each a one-frame segment."""
    batches = []
    for begin in tqdm(range(0, len(pictures), 64), desc="looking", unit="batch", leave=False):
        chosen = range(begin, min(begin + 64, len(pictures)))
        batches.append(bridge.look(*pictures.whole(chosen)).half().cpu())
    return torch.cat(batches)


def draw_chains(rng: np.random.Generator, batch: int, length: int, count: int) -> np.ndarray:
    """Draw chains of pictures, some of them shown again later on.

    Returns:
        [batch, length] indices in [0, count).
    """
    chains = rng.integers(count, size=(batch, length))
    again = rng.random((batch, length)) < REPEATED_SHARE
    for step in range(1, length):
        earlier = chains[np.arange(batch), rng.integers(step, size=batch)]
        chains[:, step] = np.where(again[:, step], earlier, chains[:, step])
    return chains


def draw_retrieved(tokens: Tensor, step: int, rng: np.random.Generator) -> Tensor | None:
    """Draw earlier segments' tokens as a cache would give them: [B, R * M, D], or none."""
    count = int(rng.integers(MAX_RETRIEVED + 1))
    if not count or not step:
        return None
    return tokens[:, rng.integers(step, size=count)].flatten(1, 2)


def share_named(scores: Tensor, shares: Tensor) -> float:
    """Measure how many of the pictures' best words are among the words that scores put first.

    Args:
        scores: [B, W].
        shares: [B, W] share of a picture's captions that contain each word; its ``TOP`` best
            words, those that are there at all, count.
    """
    scores, words = scores.cpu(), scores.shape[1]
    best = scores.topk(min(NAMED, max(TOP, words // 4), words)).indices
    named = torch.zeros_like(shares, dtype=torch.bool).scatter_(1, best, value=True)
    top = shares.topk(min(TOP, words))
    there = top.values > 0
    return float((named.gather(1, top.indices) & there).sum() / there.sum().clamp(min=1))
