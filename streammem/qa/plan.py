"""Plans: which steps of a goal were done, which is in progress, and which comes next.

    steps = ["fill the kettle", "boil water", "pour the water"]
    follower = PlanFollower(model.text_encoder, "make coffee", steps)
    for row in rows:                                   # as segments close, oldest first
        plan = follower.push(row)
    plan.steps[0].state, plan.next[0].name

Each scene is aligned to a step, or to none of them, by a filter over what was seen so far:

    none ─► step 1 ─► step 2 ─► step 3      likely: stay, go on to the next
              │  ▲                          less: an interruption, and back to where it was
              ▼  │                          least: skip steps, return to an earlier one
            other

It is causal: what a scene was aligned to stays, and only a later scene adds to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from streammem.errors import ConfigError
from streammem.memory.entry import Entry
from streammem.memory.retrieval import Query, content_words, rate
from streammem.models.protocols import TextEncoder
from streammem.types import NextStep, Plan, PlanStep, TimeSpan

MAX_STEPS = 100
MAX_NEXT = 3
ALIKE = 100  # scenes that a step is to hold against, as for an alert


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """How scenes are aligned to steps. Probabilities are of what the next scene shows.

    Attributes:
        stay: in (0, 1), that it shows the same step, or nothing of the plan once more.
        interrupt: in (0, 1), that it shows something else after a step.
        resume: in (0, 1), that it goes on with the step before the interruption.
        skip: in (0, 1), weight of each step that is left out against none.
        back: in (0, 1), weight of an earlier step against the next one.
        prior: log-odds added to each step's: what a scene of someone at work is likely to show.
        sure: in (0, 1), probability from which on a scene is aligned to a step.
        confirm: scenes of later steps after which a step counts as left out, and after which an
            earlier one counts as out of order.
        alert_sure: as ``sure``, of scenes that an alert may rest on.
    """

    stay: float = 0.35
    interrupt: float = 0.15
    resume: float = 0.2
    skip: float = 0.3
    back: float = 0.05
    prior: float = 3.0
    sure: float = 0.35
    confirm: int = 3
    alert_sure: float = 0.8


PLANNING = PlanConfig()  # chosen on composed videos: docs/research/assistant.md, *Plans*
_MOST_ODDS = 6.0  # log-odds; one scene never decides against everything else


@dataclass(eq=False)
class PlanTracker:
    """Aligns scenes to the steps of a goal, one at a time.

    Args:
        goal: in the user's words.
        names: of the steps, in their order.
        config: options.

    Raises:
        ConfigError: no step, an empty one, the same twice, or more than ``MAX_STEPS``.
    """

    goal: str
    names: Sequence[str]
    config: PlanConfig = PLANNING
    _rows: list[tuple[int, float, float, int | None]] = field(default_factory=list)
    _steps_sure: list[int] = field(default_factory=list)  # of scenes that alerts may rest on
    _alerted: dict[str, None] = field(default_factory=dict)  # in order

    def __post_init__(self) -> None:
        self.names = tuple(name.strip() for name in self.names)
        if not 0 < len(self.names) <= MAX_STEPS or not all(self.names):
            raise ConfigError(f"a plan has 1 to {MAX_STEPS} steps, one a line, none empty")
        if len({name.casefold() for name in self.names}) < len(self.names):
            raise ConfigError("two steps of the plan are the same; word them differently")
        count = len(self.names)
        # States: on step j, then away after step i - 1, of which 0 is before the first.
        self._move = _moves(count, self.config)
        self._belief = np.zeros(2 * count + 1)
        self._belief[count] = 1.0

    def push(self, segment: int, start: float, end: float, scores: np.ndarray) -> Plan:
        """Take in the next scene.

        Args:
            segment: its id, not below the last one's. The same id again is the same scene, which
                has gone on: only its end changes.
            start: seconds.
            end: seconds.
            scores: [S] in [0, 1], how likely it shows each step; of a row, its ``Hit.score``.

        Returns:
            The plan as it stands then; its ``alerts`` are told once.
        """
        count = len(self.names)
        if self._rows and self._rows[-1][0] == segment:
            self._rows[-1] = (segment, self._rows[-1][1], end, self._rows[-1][3])
            return self._plan(end, ())
        odds = np.clip(np.asarray(scores, np.float64), 1e-6, 1 - 1e-6)
        shown = np.log(odds / (1 - odds)) + self.config.prior
        belief = self._belief @ self._move
        belief[:count] *= np.exp(np.clip(shown, -_MOST_ODDS, _MOST_ODDS))
        self._belief = belief / belief.sum()
        best = int(self._belief[:count].argmax())
        is_sure = self._belief[best] >= self.config.sure
        self._rows.append((segment, start, end, best if is_sure else None))
        if self._belief[best] >= self.config.alert_sure:
            self._steps_sure.append(best)
        return self._plan(end, self._alerts())

    @property
    def plan(self) -> Plan:
        """The plan as it stands, with every alert so far."""
        end = self._rows[-1][2] if self._rows else 0.0
        return self._plan(end, tuple(self._alerted))

    def _alerts(self) -> tuple[str, ...]:
        """Return what is left out, or came too late, and was not told before."""
        seen = {step for *_, step in self._rows if step is not None}
        sure, wrong = self._steps_sure, []
        for number, name in enumerate(self.names):
            first = sure.index(number) if number in sure else len(sure)
            is_late = sum(step > number for step in sure[:first]) >= self.config.confirm
            if is_late and number not in seen:
                wrong.append(f"left out: {name}")
            elif is_late and number in sure and self._is_late(number):
                wrong.append(f"out of order: {name}")
        told = tuple(text for text in wrong if text not in self._alerted)
        self._alerted |= dict.fromkeys(told)
        return told

    def _is_late(self, number: int) -> bool:
        """Return whether a step that was seen was first seen after a later one."""
        order = [step for *_, step in self._rows if step is not None]
        return any(step > number for step in order[: order.index(number)])

    def _plan(self, time: float, alerts: tuple[str, ...]) -> Plan:
        # 1. The spans of each step: neighbouring scenes of one step are one.
        spans: list[list[TimeSpan]] = [[] for _ in self.names]
        segments: list[list[int]] = [[] for _ in self.names]
        before = None
        for segment, start, end, step in self._rows:
            if step is not None:
                if step == before:
                    start = spans[step].pop().start
                spans[step].append(TimeSpan(start, end))
                segments[step].append(segment)
            before = step
        # 2. The step in progress is the last one that was seen; earlier ones are done.
        order = [step for *_, step in self._rows if step is not None]
        current = order[-1] if order else None
        furthest = max(order, default=-1)
        first_at = [found[0].start if found else None for found in spans]
        steps = []
        for number, name in enumerate(self.names):
            state = "open" if number > furthest else "missing"
            if spans[number]:
                state = "doing" if number == current else "done"
            begun = first_at[number]
            late = begun is not None and any(
                at is not None and at < begun for at in first_at[number + 1 :]
            )
            steps.append(
                PlanStep(name, state, tuple(spans[number]), tuple(segments[number]), late)  # type: ignore[arg-type]
            )
        # 3. What comes next: where the filter expects to go, other than on with this step.
        count = len(self.names)
        ahead = (self._belief @ self._move)[:count].copy()
        if current is not None:
            ahead[current] = 0.0
        total = float(ahead.sum())
        likely: list[int] = np.argsort(-ahead, kind="stable")[:MAX_NEXT].tolist()
        following = tuple(
            NextStep(self.names[number], float(ahead[number]) / total)
            for number in likely
            if ahead[number] > 0
        )
        done = sum(bool(found) for found in spans)
        certainty = max(float(self._belief[:count].max()), float(self._belief[count:].sum()))
        return Plan(self.goal, time, done / count, tuple(steps), following, alerts, certainty)


class PlanFollower:
    """Follows a plan over rows of a memory.

    Args:
        encoder: whose key space pictures and sentences share.
        goal: in the user's words.
        names: of the steps, in their order.
        config: options.

    Raises:
        ConfigError: as for ``PlanTracker``.
    """

    def __init__(
        self, encoder: TextEncoder, goal: str, names: Sequence[str], config: PlanConfig = PLANNING
    ) -> None:
        self._tracker = PlanTracker(goal, names, config)
        self._queries = queries_of(encoder, self._tracker.names)

    @property
    def plan(self) -> Plan:
        """The plan as it stands, with every alert so far."""
        return self._tracker.plan

    def push(self, row: Entry) -> Plan:
        """Take in the next row, or the last one again, which has gone on."""
        scores = np.array([rate([row], query)[0].score for query in self._queries])
        return self._tracker.push(row.segment, row.start, row.end, scores)


def queries_of(encoder: TextEncoder, names: Sequence[str]) -> list[Query]:
    """Return what a scene is compared with: a query a step; see ``retrieval.rate``."""
    return [
        Query(
            key,
            background=encoder.background.numpy() @ key,
            null=encoder.null,
            words=content_words(name),
            num_keys=ALIKE,
            heard=False,
        )
        for name, key in zip(names, encoder.sentence_keys(list(names)), strict=True)
    ]


def read_steps(text: str) -> list[str]:
    """Read steps from text, one a line; numbers, dashes and empty lines do not count."""
    lines = (line.strip() for line in text.splitlines())
    steps = (line.lstrip("-*•0123456789.) ").strip() for line in lines if not line.startswith("#"))
    return [step for step in steps if step]


def _moves(count: int, config: PlanConfig) -> np.ndarray:
    """Return [2 S + 1, 2 S + 1]: the probability of each state after each, rows of sum 1."""
    away = count  # the first state away from the plan: before any step
    moves = np.zeros((2 * count + 1, 2 * count + 1))

    def jumps(last: int) -> np.ndarray:
        weights = np.array(
            [
                config.skip ** (step - last - 1) if step > last else config.back
                for step in range(count)
            ]
        )
        if last >= 0:
            weights[last] = 0.0
        return weights

    for last in range(-1, count):
        weights = jumps(last)
        share = weights / weights.sum() if weights.any() else weights
        state = away + last + 1
        if last >= 0:
            moves[last, last] = config.stay
            moves[last, state] = config.interrupt
            moves[last, :count] += (1 - config.stay - config.interrupt) * share
            moves[state, last] = config.resume
        moves[state, state] = config.stay
        moves[state, :count] += (1 - moves[state].sum()) * share
    return np.asarray(moves / moves.sum(axis=1, keepdims=True))
