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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from streammem.errors import ConfigError
from streammem.memory.entry import Entry
from streammem.memory.retrieval import Query, content_words, rate
from streammem.models.protocols import TextEncoder
from streammem.types import NextStep, Plan, PlanStep, TimeSpan

StepState = Literal["done", "doing", "missing", "open"]
MAX_STEPS = 100
MAX_GOAL = 500
MAX_NEXT = 3
MAX_SPANS = 100  # times and scenes of a step that are kept: the first, and the newest
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
        confirm: scenes of later steps after which a step counts as left out.
        confirm_late: scenes of later steps before the first of a step after which it counts as
            out of order.
        alert_sure: as ``sure``, of scenes that an alert may rest on.
        likelihood: log-odds for each nat a token by which a generator finds a step likelier,
            where it is asked.
    """

    stay: float = 0.35
    interrupt: float = 0.15
    resume: float = 0.2
    skip: float = 0.3
    back: float = 0.05
    prior: float = 3.0
    sure: float = 0.35
    confirm: int = 3
    confirm_late: int = 3
    alert_sure: float = 0.8
    likelihood: float = 0.25


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
        ConfigError: an empty goal, no step, an empty one, the same twice, or more than
            ``MAX_STEPS``.
    """

    goal: str
    names: Sequence[str]
    config: PlanConfig = PLANNING

    def __post_init__(self) -> None:
        self.goal = checked_goal(self.goal)
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
        # What was seen, by step. None of it grows with the stream.
        self._spans: list[list[TimeSpan]] = [[] for _ in self.names]
        self._segments: list[list[int]] = [[] for _ in self.names]
        self._late = [False] * count  # first seen after a later step
        self._sure: set[int] = set()  # steps of scenes that an alert may rest on
        self._later = [0] * count  # such scenes of later steps, before the first of this one
        self._last: tuple[int, int | None] | None = None  # the newest scene, and its step
        self._current: int | None = None  # the last step that was seen
        self._end = 0.0
        self._alerted: dict[str, None] = {}  # in order

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
        count, self._end = len(self.names), end
        if self._last and self._last[0] == segment:
            step = self._last[1]
            if step is not None:
                self._spans[step][-1] = self._spans[step][-1]._replace(end=end)
            return self._plan(())
        odds = np.clip(np.asarray(scores, np.float64), 1e-6, 1 - 1e-6)
        shown = np.log(odds / (1 - odds)) + self.config.prior
        belief = self._belief @ self._move
        belief[:count] *= np.exp(np.clip(shown, -_MOST_ODDS, _MOST_ODDS))
        self._belief = belief / belief.sum()
        best = int(self._belief[:count].argmax())
        step = best if self._belief[best] >= self.config.sure else None
        if step is not None:
            self._align(step, segment, TimeSpan(start, end))
        self._last = segment, step
        if self._belief[best] >= self.config.alert_sure:
            self._sure.add(best)
            for number in range(best):
                self._later[number] += number not in self._sure
        return self._plan(self._alerts())

    @property
    def plan(self) -> Plan:
        """The plan as it stands, with every alert so far."""
        return self._plan(tuple(self._alerted))

    def _align(self, step: int, segment: int, span: TimeSpan) -> None:
        spans, segments = self._spans[step], self._segments[step]
        if not spans:
            self._late[step] = any(self._spans[step + 1 :])
        if self._last and self._last[1] == step:  # neighbouring scenes of one step are one
            span = span._replace(start=spans.pop().start)
        spans.append(span)
        segments.append(segment)
        del spans[1 : -MAX_SPANS + 1], segments[1 : -MAX_SPANS + 1]
        self._current = step

    def _alerts(self) -> tuple[str, ...]:
        """Return what is left out, or came too late, and was not told before."""
        wrong = []
        for number, name in enumerate(self.names):
            later = self._later[number]
            if later >= self.config.confirm and not self._spans[number]:
                wrong.append(f"left out: {name}")
            elif later >= self.config.confirm_late and number in self._sure and self._late[number]:
                wrong.append(f"out of order: {name}")
        told = tuple(text for text in wrong if text not in self._alerted)
        self._alerted |= dict.fromkeys(told)
        return told

    def _plan(self, alerts: tuple[str, ...]) -> Plan:
        # 1. The step in progress is the last one that was seen; earlier ones are done.
        current, count = self._current, len(self.names)
        furthest = max((n for n, spans in enumerate(self._spans) if spans), default=-1)
        steps = []
        for number, name in enumerate(self.names):
            spans, segments = tuple(self._spans[number]), tuple(self._segments[number])
            state: StepState = "open" if number > furthest else "missing"
            if spans:
                state = "doing" if number == current else "done"
            steps.append(PlanStep(name, state, spans, segments, self._late[number]))
        # 2. What comes next: where the filter expects to go, of the steps that were not seen yet.
        ahead = (self._belief @ self._move)[:count].copy()
        ahead[[bool(spans) for spans in self._spans]] = 0.0
        total = float(ahead.sum())
        likely: list[int] = np.argsort(-ahead, kind="stable")[:MAX_NEXT].tolist()
        following = tuple(
            NextStep(self.names[number], float(ahead[number]) / total)
            for number in likely
            if ahead[number] > 0
        )
        done = sum(bool(spans) for spans in self._spans)
        certainty = max(float(self._belief[:count].max()), float(self._belief[count:].sum()))
        return Plan(self.goal, self._end, done / count, tuple(steps), following, alerts, certainty)


class PlanFollower:
    """Follows a plan over rows of a memory.

    Args:
        encoder: whose key space pictures and sentences share.
        goal: in the user's words.
        names: of the steps, in their order.
        config: options.
        likelihoods: of names and a row returns [S] nats a token, how much likelier each name is as
            a caption of the row than of nothing; None goes by keys and words alone.

    Raises:
        ConfigError: as for ``PlanTracker``.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        goal: str,
        names: Sequence[str],
        config: PlanConfig = PLANNING,
        *,
        likelihoods: Callable[[Sequence[str], Entry], np.ndarray] | None = None,
    ) -> None:
        self._tracker, self._likelihoods = PlanTracker(goal, names, config), likelihoods
        self._queries = queries_of(encoder, self._tracker.names)

    @property
    def plan(self) -> Plan:
        """The plan as it stands, with every alert so far."""
        return self._tracker.plan

    def push(self, row: Entry) -> Plan:
        """Take in the next row, or the last one again, which has gone on."""
        scores = np.array([rate([row], query)[0].score for query in self._queries])
        if self._likelihoods:
            nats = self._likelihoods(self._tracker.names, row)
            scores = joint_scores(scores, nats, self._tracker.config.likelihood)
        return self._tracker.push(row.segment, row.start, row.end, scores)

    def push_all(self, rows: Iterable[Entry]) -> Plan:
        """Take in rows, oldest first; return the plan as it stands then, with every alert."""
        for row in rows:
            self.push(row)
        return self.plan


def joint_scores(scores: np.ndarray, nats: np.ndarray, weight: float) -> np.ndarray:
    """Return [S] scores in (0, 1) with ``weight`` log-odds added for each of ``nats`` [S]."""
    odds = np.clip(scores, 1e-6, 1 - 1e-6)
    joint: np.ndarray = 1 / (1 + np.exp(-np.log(odds / (1 - odds)) - weight * nats))
    return joint


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


def checked_goal(goal: str) -> str:
    """Return a goal without the space around it.

    Raises:
        ConfigError: it is empty, or longer than ``MAX_GOAL`` characters.
    """
    if not 0 < len(goal := goal.strip()) <= MAX_GOAL:
        raise ConfigError(f'a goal has 1 to {MAX_GOAL} characters, as in "make coffee"')
    return goal


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
