"""Operators stage: a head learns a question's operator and anchors from a frozen encoder's states.

    stage = OperatorStage(QuestionHead(384), encoder, (captions, validation_captions), batch=64)

Questions are made from captions by the grammar in ``phrasings.py``.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streammem.models.backbones.text import SentenceEncoder, TokenStates
from streammem.models.tiny.questions import (
    OPERATORS,
    PUNCTUATION,
    Operator,
    QuestionHead,
    QuestionReading,
)
from streammem.training.phrasings import Anchors, QuestionExample, anchors_of, draw_question

NUM_TRAINING = 6000
NUM_VALIDATION = 1500
DROPOUT = 0.1

# The control, regular expressions: the first that matches gives the operator, and the text after it
# is the anchor. Written with the training phrasings in view.
CONTROL: tuple[tuple[Operator, str], ...] = (
    ("between", r"between (?P<a>.+?) and (?P<b>.+)"),
    ("before", r"before (?P<a>.+)"),
    ("after", r"after (?P<a>.+)"),
    ("how often", r"(?:how often|how many times|count)(?: \w+)? (?P<a>.+)"),
    ("how long", r"(?:how long|how much time|how many (?:minutes|seconds))(?: \w+)? (?P<a>.+)"),
    ("first", r"first (?:\w+ )?(?P<a>.+)?"),
    ("last", r"last (?:\w+ )?(?P<a>.+)?"),
    ("now", r"(?P<a>.*)\b(?:now|moment|currently)"),
    ("when", r"(?:when|what time|point)(?: \w+)? (?P<a>.+)"),
    ("exists", r"(?:is|was|are|were) there (?P<a>.+)"),
    ("exists", r"(?:^|[,:] )(?:is|was|did|does|do|has|have|can|any)(?: you see)? (?P<a>.+)"),
    ("describe", r"what \w+ \w+ (?P<a>.+)|(?P<b>.+)"),
)


class OperatorStage:
    """Trains a question head by cross-entropy of the operator and of each word piece's tag.

    Args:
        head: trained in place.
        encoder: frozen; used in the constructor only.
        captions: of training and of validation pictures; figures use things of the latter only
            that the former do not have.
        batch: questions a step.
        seed: of the questions.
    """

    name = "operators"

    def __init__(
        self,
        head: QuestionHead,
        encoder: SentenceEncoder,
        captions: tuple[Sequence[str], Sequence[str]],
        *,
        batch: int,
        seed: int = 0,
    ) -> None:
        self.module: nn.Module = head
        self._head, self._batch = head, batch
        known, other = map(anchors_of, captions)
        unseen = Anchors(
            tuple(sorted(set(other.things) - set(known.things))) or other.things,
            tuple(sorted(set(other.actions) - set(known.actions))),
        )
        rng = np.random.default_rng(seed)
        self.questions = [draw_question(known, rng) for _ in range(NUM_TRAINING)]
        self.held_out = [draw_question(unseen, rng, held_out=True) for _ in range(NUM_VALIDATION)]
        device = head.whole.weight.device
        self._states = _states(encoder, self.questions, device)
        self._held_out_states = _states(encoder, self.held_out, device)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.module.parameters()), 1.0)]

    def loss(self, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(len(self.questions), size=self._batch).tolist()
        batch = [self._states[i] for i in chosen]
        questions = [self.questions[i] for i in chosen]
        states = nn.utils.rnn.pad_sequence([s.states for s in batch], batch_first=True)
        lengths = torch.tensor([len(s.spans) for s in batch])
        real = torch.arange(states.shape[1]) < lengths[:, None]  # [B, T]
        scores, tags = self._head(F.dropout(states, DROPOUT), real.to(states.device))
        operators = torch.tensor([OPERATORS.index(question.operator) for question in questions])
        labels = nn.utils.rnn.pad_sequence(
            [torch.tensor(tags_of(q, s.spans)) for q, s in zip(questions, batch, strict=True)],
            batch_first=True,
            padding_value=-100,
        )
        return F.cross_entropy(scores, operators.to(scores.device)) + F.cross_entropy(
            tags.flatten(0, 1), labels.flatten().to(tags.device)
        )

    def evaluate(self) -> dict[str, float]:
        """Score unseen phrasings of unseen things; a majority and expressions are the controls."""
        read = [
            self._head.read(question.text, *states)
            for question, states in zip(self.held_out, self._held_out_states, strict=True)
        ]
        matched = [control(question.text) for question in self.held_out]
        common = Counter(question.operator for question in self.held_out).most_common(1)[0][1]
        return {
            "operator": _operator_share(self.held_out, read),
            "anchor": _anchor_share(self.held_out, read),
            "operator_regex": _operator_share(self.held_out, matched),
            "anchor_regex": _anchor_share(self.held_out, matched),
            "operator_majority": round(common / len(self.held_out), 4),
        }


def tags_of(question: QuestionExample, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Tag each word piece: 0 outside, n in the nth anchor."""
    return [
        next((n for n, (a, b) in enumerate(question.anchors, 1) if a <= begin and end <= b), 0)
        for begin, end in spans
    ]


def control(question: str) -> QuestionReading:
    """Read a question by regular expressions."""
    text = question.strip(PUNCTUATION)
    for operator, pattern in CONTROL:
        if found := re.search(pattern, text, re.IGNORECASE):
            anchors = [(part or "").strip(PUNCTUATION) for part in found.groups()]
            second = anchors[1] if operator == "between" else ""
            return QuestionReading(operator, anchors[0], second)
    return QuestionReading("describe", text)


def _states(
    encoder: SentenceEncoder, questions: Sequence[QuestionExample], device: torch.device
) -> list[TokenStates]:
    found = encoder.token_states([question.text for question in questions])
    return [TokenStates(states.to(device), spans) for states, spans in found]


def _operator_share(questions: Sequence[QuestionExample], read: Sequence[QuestionReading]) -> float:
    right = [q.operator == r.operator for q, r in zip(questions, read, strict=True)]
    return round(sum(right) / len(right), 4)


def _anchor_share(questions: Sequence[QuestionExample], read: Sequence[QuestionReading]) -> float:
    right = []
    for question, reading in zip(questions, read, strict=True):
        wanted = [question.text[a:b].strip(PUNCTUATION) for a, b in question.anchors]
        right.append([reading.anchor, reading.second] == [*wanted, "", ""][:2])
    return round(sum(right) / len(right), 4)
