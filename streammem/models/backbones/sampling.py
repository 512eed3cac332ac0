"""How the next token is chosen from a model's logits, for rows that draw independently.

It runs no model (see ``decoding.py``) and knows no text (see ``language.py``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from streammem.errors import ConfigError

# Ranks sorted first to find a nucleus: of a caption's words it nearly always holds, and sorting
# a vocabulary of 49,152 takes longer than a row's share of a step.
LIKELY = 256
# Below it differences of logits overflow; at it all but equal ones have no probability left.
COLDEST = 1e-30
# Room for both is set aside before the first word.
MOST_TOKENS, MOST_BEAMS = 4096, 32
AllowedTokens = Literal["all", "captions"]


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How to decode.

    Attributes:
        max_new_tokens: upper bound of generated tokens, in [1, 4096].
        temperature: >= 0, finite; 0 decodes greedily, higher values flatten the distribution.
        top_k: likeliest tokens that are sampled, >= 0; 0 samples all.
        repetition_penalty: >= 1; what a token that the reply has already is made less likely by,
            see ``penalised``; 1 changes nothing. Of language models in this process.
        top_p: nucleus of the distribution that is sampled, in (0, 1]; of what ``top_k`` leaves.
        num_beams: beams kept, in [1, 32]; > 1 needs temperature 0 and cannot be streamed.
        length_penalty: exponent of the length norm of a beam's score; higher favours long text.
        seed: of sampling, in [0, 2^63).
        vocabulary: tokens that a reply may have: ``all``, or ``captions``, those of the captions
            that the model has learned from, which takes less time. Beams, and models without such
            a list, take all.
    """

    max_new_tokens: int = 48
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0
    top_k: int = 0
    repetition_penalty: float = 1.0
    vocabulary: AllowedTokens = "all"

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= MOST_TOKENS or not 1 <= self.num_beams <= MOST_BEAMS:
            raise ConfigError(
                f"max-new-tokens must be in [1, {MOST_TOKENS}], num-beams in [1, {MOST_BEAMS}]"
            )
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ConfigError("temperature must be a number >= 0 and top-p in (0, 1]")
        if self.top_k < 0:
            raise ConfigError(f"top-k {self.top_k}: give a number of tokens, or 0 for all")
        if not 1 <= self.repetition_penalty < math.inf:
            raise ConfigError("repetition-penalty must be a number >= 1")
        if not math.isfinite(self.length_penalty) or not 0 <= self.seed < 1 << 63:
            raise ConfigError("length-penalty must be a number, and seed in [0, 2^63)")
        if self.vocabulary not in ("all", "captions"):
            raise ConfigError(f"vocabulary {self.vocabulary!r}: give all or captions")
        if self.num_beams > 1 and self.temperature > 0:
            raise ConfigError("num-beams > 1 decodes by score: it needs temperature 0")


def penalised(
    logits: Tensor,
    replies: Sequence[Sequence[int]],
    penalty: float,
    few: Tensor | None = None,
) -> Tensor:
    """Make the tokens of each reply so far less likely.

    Args:
        logits: [B, V]; they stay as they are.
        replies: tokens of each row; those of its prompt do not count.
        penalty: positive logits are divided by it, others multiplied.
        few: [V] int64, the tokens whose logits they are, in order; None for all tokens.

    Source: CTRL (arXiv 1909.05858), section 4.1, with the sign that transformers gives it.
    """
    if penalty == 1:
        return logits
    logits = logits.clone()
    for row, ids in zip(logits, replies, strict=True):
        places = _columns(ids, few, logits.device)
        said = row[places]
        row[places] = torch.where(said > 0, said / penalty, said * penalty)
    return logits


def _columns(tokens: Sequence[int], few: Tensor | None, device: torch.device) -> Tensor:
    """Return the columns of logits that tokens have, of those that have one."""
    ids = torch.tensor(sorted(set(tokens)), dtype=torch.long, device=device)
    if few is None:
        return ids
    places = torch.searchsorted(few, ids).clamp_max(len(few) - 1)
    return places[few[places] == ids]


def pick(
    logits: Tensor,
    config: GenerationConfig,
    generators: Sequence[torch.Generator | None],
    rows: Sequence[int] | None = None,
    few: Tensor | None = None,
    among: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> tuple[Tensor, Tensor]:
    """Choose the next token of each of N replies.

    Args:
        logits: [B, V].
        config: temperature 0 takes the likeliest token and draws nothing.
        generators: one a reply, on the CPU; a reply draws one number, beside any others. A reply
            without one takes its likeliest token at any temperature.
        rows: the row of ``logits`` that each reply goes on from: replies that are alike so far
            share one. None gives each its own.
        few: [V] int64, the tokens whose logits they are, in order; None for all tokens.
        among: of replies, by their number, the tokens of which each takes the likeliest; it is
            free where none of them has a logit.

    Returns:
        Tokens [N] and their log-probabilities [N] float32, of the softmax at the temperature
        (at 1 if that is 0) before ``top_k`` and the nucleus are cut out.
    """
    of = list(range(len(logits)) if rows is None else rows)
    tokens = torch.zeros(len(of), dtype=torch.long, device=logits.device)
    log_probs = torch.zeros(len(of), device=logits.device)
    for row in set(of):  # one by one: a row fits a processor's cache, all of them do not
        scores = _heated(logits[row].float(), config.temperature).log_softmax(-1)
        own = [number for number, its in enumerate(of) if its == row]
        drawing = [number for number in own if config.temperature > 0 and generators[number]]
        if len(drawing) < len(own):
            tokens[own] = logits[row].argmax()
        if drawing:
            draws = [
                torch.rand(1, generator=generators[number], dtype=torch.float64)
                for number in drawing
            ]
            tokens[drawing] = _drawn(scores.exp(), config, torch.cat(draws).to(scores.device))
        for number in set(own).intersection(among):
            some = _columns(among[number], few, scores.device)
            if len(some):
                tokens[number] = some[scores[some].argmax()]
        log_probs[own] = scores[tokens[own]]
    return tokens if few is None else few[tokens], log_probs


def _heated(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature; the greatest logit becomes 0, so that none overflows."""
    if temperature in (0, 1):
        return logits
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, COLDEST)


def _drawn(probabilities: Tensor, config: GenerationConfig, draws: Tensor) -> Tensor:
    """Invert the cumulative distribution of the nucleus of [V] at ``draws`` [N] in [0, 1)."""
    top_k, top_p = config.top_k, config.top_p
    if top_p == 1 and not top_k:  # all tokens, in any order: no need to sort them
        mass = probabilities.double().cumsum(0)
        return _reached(mass, draws * mass[-1])
    size = len(probabilities)
    ranked, order = probabilities.topk(min(top_k or LIKELY, size))  # [R]
    if not top_k and size > LIKELY and bool(ranked.sum() < top_p):
        ranked, order = probabilities.sort(descending=True, stable=True)
    mass = ranked.double().cumsum(0)
    # The smallest set whose mass reaches top_p: a token stays if the mass before it is short.
    # What top_k leaves counts as the whole.
    needed = top_p * mass[-1] if top_k else top_p
    last = (mass - ranked < needed).sum() - 1
    return order[_reached(mass, draws * mass[last])]


def _reached(mass: Tensor, aims: Tensor) -> Tensor:
    """First ranks [N] whose cumulative ``mass`` [R] lies above the aims [N].

    A draw is at most 1 - 2^-53, and such a part of a number rounds to less than the number: an
    aim stays below the mass that it is a part of, and no token without probability is chosen.
    """
    return torch.searchsorted(mass, aims, right=True)
