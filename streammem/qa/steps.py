"""Looking again: a generator that calls tools may look into the memory before it answers.

    replied = answer_in_steps(generator, items, question, lookups, decoding, StepLimits(steps=4))
    replied.text, replied.steps

The generator is asked at most ``steps`` times: each time it may call one function of
``lookups.py``, the last time it must answer. What it sees is bounded in pictures, too.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from streammem.errors import ConfigError
from streammem.models.backbones.language import GenerationConfig, Prompt
from streammem.models.protocols import (
    EvidenceItem,
    Generator,
    Tool,
    ToolCall,
    ToolGenerator,
    ToolTurn,
    readable,
)
from streammem.qa.lookups import TOOLS, Looked, Lookups
from streammem.types import Step, clock

log = logging.getLogger(__name__)
MAX_STEPS = 32
MAX_NOTED = 2000  # characters of a step's arguments and of its text that an answer keeps
GONE = "(no room is left to show this picture again)"
AGAIN = "error: this was looked up already, with the same result; answer, or look up something else"


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How long a generator may look.

    Attributes:
        steps: times that it is asked, in [1, MAX_STEPS]; 1 calls nothing.
        seconds: > 0, after which it is asked for its answer; a reply that is under way is awaited.

    Raises:
        ConfigError: a value outside its range.
    """

    steps: int = 1
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"steps {self.steps}: give a number in [1, {MAX_STEPS}]")
        if not self.seconds > 0:
            raise ConfigError(f"steps_s {self.seconds}: give seconds above 0")


class Replied(NamedTuple):
    """An answer and how it was found.

    Attributes:
        text: the generator's words; empty where it wrote none even when nothing was left to call.
        steps: its calls, in order.
    """

    text: str
    steps: tuple[Step, ...]


def answer_in_steps(
    generator: Generator,
    items: Sequence[EvidenceItem],
    question: str,
    lookups: Lookups,
    decoding: GenerationConfig,
    limits: StepLimits,
    *,
    tools: Sequence[Tool] = TOOLS,
    on_wait: Callable[[], object] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Replied:
    """Let a generator answer, and look things up before it does.

    Args:
        generator: whose ``reads.tools`` is true.
        items: evidence to begin with, in time order, nothing of it left out yet.
        question: what is asked.
        lookups: what it may call.
        decoding: of the answer.
        limits: of the search.
        tools: descriptions of what it may call.
        on_wait: called while a reply is waited for.
        monotonic: a clock in seconds.
    """
    caller = cast(ToolGenerator, generator)
    turns: list[ToolTurn] = []
    steps: list[Step] = []
    asked: set[str] = set()
    until = monotonic() + limits.seconds
    for left in reversed(range(limits.steps)):
        # 1. The newest pictures go first: of the older ones what there is room for.
        shown, room = _fitted(turns, generator.reads.pictures)
        prompt: Prompt = generator.answer_prompt(
            readable(items, generator.reads._replace(pictures=room)), question
        )
        # 2. Ask; without tools where it must answer now.
        last = left == 0 or monotonic() >= until
        replies = caller.converse(prompt, shown, () if last else tools, decoding)
        while (reply := next(replies)) is None:
            if on_wait:
                on_wait()
        if isinstance(reply, str):
            return Replied(reply.strip(), tuple(steps))
        if last:
            break
        # 3. Do what it asks for, once.
        looked = Looked(AGAIN, failed=True)
        if (same := repr((reply.name, _noted(reply)))) not in asked:
            asked.add(same)
            looked = lookups.call(reply.name, reply.arguments)
        pictures = looked.pictures[-max(0, generator.reads.pictures) :]
        if not generator.reads.pictures:
            pictures = ()
        turns.append(ToolTurn(reply, _result(looked._replace(pictures=pictures))))
        steps.append(
            Step(
                str(reply.name)[:40], _noted(reply), looked.text[:MAX_NOTED],
                looked.segments, len(pictures), looked.failed,
            )
        )  # fmt: skip
        log.info("step %d: %s", len(steps), steps[-1])
    return Replied("", tuple(steps))


def _result(looked: Looked) -> list[str | np.ndarray]:
    """Return a result as text and pictures, a text with its time before each picture."""
    parts: list[str | np.ndarray] = [looked.text]
    for picture in looked.pictures:
        parts += [f"[{clock(picture.time)}]", picture.pixels]
    return parts


def _fitted(turns: Sequence[ToolTurn], pictures: int) -> tuple[list[ToolTurn], int]:
    """Keep the newest pictures of results; return the turns, and how many more there is room for.

    Evidence keeps what the results leave: what the generator asked to see goes before what it was
    shown unasked.
    """
    room, fitted = pictures, list[ToolTurn]()
    for turn in reversed(turns):
        parts: list[str | np.ndarray] = []
        for part in reversed(turn.result):
            if not isinstance(part, str):
                if room <= 0:
                    part = GONE
                else:
                    room -= 1
            parts.insert(0, part)
        fitted.insert(0, turn._replace(result=parts))
    return fitted, room


def _noted(call: ToolCall) -> dict[str, object]:
    """Return a call's arguments as plain values of bounded length."""
    if not isinstance(call.arguments, Mapping):
        return {"text": str(call.arguments)[:MAX_NOTED]}
    noted: dict[str, object] = {}
    for name, value in list(call.arguments.items())[:8]:
        plain = isinstance(value, bool | int | float) and abs(value) < 2**53
        noted[str(name)[:40]] = value if plain else str(value)[:MAX_NOTED]
    return noted
