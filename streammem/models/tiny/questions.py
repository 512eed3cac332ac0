"""Questions: what is asked for (an operator) and of what (an anchor), read by a small head.

Not here: time words (`qa/question.py`), and what an operator does with a timeline (`timeline.py`).
"""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Operator = Literal[
    "describe", "when", "exists", "first", "last", "before", "after", "how often", "how long",
    "between", "now",
]  # fmt: skip
OPERATORS: tuple[Operator, ...] = get_args(Operator)
PUNCTUATION = " ?!.,;:\"'“”"
TAGS = 3  # outside, the anchor, the second anchor (`between` alone has one)

# Words that ask, and are in no anchor: of "did the camera ever catch a dog" the dog is looked for.
_ASKING = re.compile(
    r"\b(?:camera|video|film|movie|recording|footage)(?: ever| first| last| also)*"
    r" (?:(?:capture|contain|display|film|get|record|see|show|spot)(?:s|d|ed|n)?"
    r"|catch(?:es)?|caught)\b(?! up\b)"
    r"|\b(?:is|are|was|were|has|have|had) there(?: ever| first| last| been)*\b(?= \w)"
    r"|\b(?:come|came|comes|be|been) (?:in|into|on) (?:view|sight|screen|the (?:picture|screen))\b"
    r"|\b(?:to )?be(?:en)? seen\b",
    re.IGNORECASE,
)

Span = tuple[int, int]


class QuestionReading(NamedTuple):
    """A question as it was understood.

    Attributes:
        operator: what is asked for.
        anchor: what is looked for, in the question's own words; empty where nothing is.
        second: the later of two anchors, of ``between``; empty otherwise.
    """

    operator: Operator = "describe"
    anchor: str = ""
    second: str = ""


class QuestionHead(nn.Module):
    """Reads operator and anchors off the word pieces of a frozen sentence encoder.

    The operator's scores are the mean of a linear map over the pieces plus their smooth maximum
    (logsumexp) under another: one word such as "often" may decide, or the sentence as a whole.
    A piece's tag comes from a linear map of it and its two neighbours.
    """

    def __init__(self, text_dim: int = 384) -> None:
        super().__init__()
        self.whole = nn.Linear(text_dim, len(OPERATORS))
        self.piece = nn.Linear(text_dim, len(OPERATORS))
        self.tag = nn.Conv1d(text_dim, TAGS, 3, padding=1)

    def forward(self, states: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Score questions.

        Args:
            states: [B, T, E] word pieces, T >= 1.
            real: [B, T] bool, False on padding; at least one True a row.

        Returns:
            Operator scores [B, O] and tag scores [B, T, 3].
        """
        shown = states * real[..., None]
        mean = shown.sum(1) / real.sum(1, keepdim=True)
        pieces = self.piece(states).masked_fill(~real[..., None], -torch.inf)
        scores = self.whole(mean) + pieces.logsumexp(1)
        return scores, self.tag(shown.transpose(1, 2)).transpose(1, 2)

    @torch.inference_mode()
    def read(self, question: str, states: Tensor, spans: Sequence[Span]) -> QuestionReading:
        """Read one question.

        Args:
            question: text.
            states: [T, E] its word pieces; with none of them it is ``describe``.
            spans: [begin, end) of each in the question, in characters.
        """
        if not len(states):
            return QuestionReading()
        scores, tags = self(states[None], states.new_ones(1, len(states), dtype=torch.bool))
        inner = range(1, len(spans) - 1)
        joints = [at for at in inner if _words(question, spans, (at, at + 1)) in ("and", "&")]
        if not joints:  # nothing lies between one thing
            scores[0, OPERATORS.index("between")] = -torch.inf
        operator = OPERATORS[int(scores[0].argmax())]
        gains = tags[0] - tags[0, :, :1]  # [T, 3] log-odds against lying outside
        asking = [found.span() for found in _ASKING.finditer(question)]
        names = [not any(a <= begin and end <= b for a, b in asking) for begin, end in spans]
        gains[~torch.tensor(names)] = -torch.inf
        if operator != "between":
            run = best_run(gains[:, 1].tolist())
            return QuestionReading(operator, _words(question, spans, run))
        pair = best_pair(gains[:, 1].tolist(), gains[:, 2].tolist(), joints)
        return QuestionReading(operator, *(_words(question, spans, run) for run in pair))


def best_run(gains: Sequence[float]) -> Span:
    """Return the [begin, end) of greatest sum; (0, 0) where every gain is negative."""
    best, best_sum = (0, 0), 0.0
    begin, total = 0, 0.0
    for at, gain in enumerate(gains):
        if total <= 0:
            begin, total = at, 0.0
        total += gain
        if total > best_sum:
            best, best_sum = (begin, at + 1), total
    return best


def best_pair(
    first: Sequence[float], second: Sequence[float], joints: Sequence[int]
) -> tuple[Span, Span]:
    """Return two runs of greatest sum, neither empty, the second after the first.

    Args:
        first: gains of each piece as part of the first run.
        second: likewise of the second.
        joints: pieces that may join the two and are in neither, such as "and"; at least one, each
            with a piece before and one behind it.
    """
    best, best_sum = ((0, 0), (0, 0)), -math.inf
    for cut in joints:
        left, right = _some_run(first[:cut]), _some_run(second[cut + 1 :])
        right = right[0] + cut + 1, right[1] + cut + 1
        total = sum(first[slice(*left)]) + sum(second[slice(*right)])
        if total >= best_sum:
            best, best_sum = (left, right), total
    return best


def _some_run(gains: Sequence[float]) -> Span:
    """Return the run of greatest sum, or else the one piece that speaks least against it."""
    run = best_run(gains)
    at = max(range(len(gains)), key=gains.__getitem__)
    return run if run[1] else (at, at + 1)


def _words(question: str, spans: Sequence[Span], run: Span) -> str:
    """Return the whole words that a run of pieces lies in."""
    if not run[1]:
        return ""
    begin, end = spans[run[0]][0], spans[run[1] - 1][1]
    while begin and question[begin - 1].isalnum():
        begin -= 1
    while end < len(question) and question[end].isalnum():
        end += 1
    return question[begin:end].strip(PUNCTUATION)
