"""What comes next, from past actions alone: no steps are known.

    follower = PastFollower("make coffee", adapter)        # adapter None: from this past alone
    for row in rows:                                       # as scenes get their captions
        plan = follower.push(row)
    plan.next[0].name, plan.next[0].probability

An action is read off a scene's words: its caption, or what is said in it. Two models are mixed: the
past itself, an n-gram of what was done before over a cache of what was done lately; and, where one
is given, a planning adapter (``models/tiny/planning.py``), trained on what other people did. The
goal is shown and decides nothing.
"""

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from streammem.memory.entry import Entry
from streammem.memory.retrieval import STOP_WORDS
from streammem.models.tiny.planning import Action, PlanningAdapter
from streammem.qa.plan import checked_goal
from streammem.types import NextStep, Plan, PlanStep, TimeSpan

ORDER = 5  # of an n-gram, by default
MAX_PAST = 1000  # actions that count, the newest
MAX_SHOWN = 20  # of these, actions that a plan lists
MAX_NEXT = 5
_WORD = re.compile(r"[^\W\d_]+")
_NO_VERBS = frozenset(
    "anything bring building ceiling clothing during evening everything king lightning morning "  # noqa: SIM905
    "nothing ring something spring string swing thing wedding wing".split()
)


@dataclass(frozen=True, slots=True)
class PastConfig:
    """How past actions count; chosen on the validation participants of docs/research/assistant.md.

    Attributes:
        order: of the n-gram of the past, >= 1.
        scale: see ``Ngram``.
        decay: see ``cache``.
        own: in [0, 1], share of the past beside an adapter.
    """

    order: int = 2
    scale: float = 1.0
    decay: float = 0.8
    own: float = 0.25


PAST = PastConfig()


class Ngram:
    """An interpolated n-gram with Witten-Bell smoothing; it may learn while it predicts.

    Args:
        order: actions of a gram, the last one included.
        scale: of the mass that a context gives to shorter ones.

    Source: Witten and Bell 1991; Chen and Goodman 1998, section 2.5.
    """

    def __init__(self, order: int = ORDER, scale: float = 1.0) -> None:
        self.order, self.scale = order, scale
        self._after: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    def push(self, history: Sequence[int], action: int) -> None:
        """Learn that an action followed a history."""
        for length in range(min(self.order, len(history) + 1)):
            self._after[tuple(history[len(history) - length :])][action] += 1

    def probabilities(self, history: Sequence[int], base: np.ndarray) -> np.ndarray:
        """Return [A] of sum 1: how likely each action follows.

        Args:
            history: oldest first.
            base: [A] of sum 1, what holds before anything is known.
        """
        found = base.copy()
        for length in range(min(self.order, len(history) + 1)):
            after = self._after.get(tuple(history[len(history) - length :]))
            if not after:
                break
            rest = self.scale * len(after)
            total = after.total() + rest
            found *= rest / total
            found[list(after)] += np.fromiter(after.values(), float, len(after)) / total
        return found


def cache(history: Sequence[int], size: int, decay: float) -> np.ndarray:
    """Return [size] of sum 1: what was done lately counts most; all alike before anything was."""
    if not len(history):
        return np.full(size, 1 / size)
    ages = np.arange(len(history))[::-1]
    shares: np.ndarray = np.bincount(history, decay**ages / (decay**ages).sum(), size)
    return shares


class PastAction(NamedTuple):
    """What a scene shows as an action.

    Attributes:
        name: what it is called.
        action: by the adapter's numbers; None without one.
        span: of the scene.
        segment: its id.
    """

    name: str
    action: Action | None
    span: TimeSpan
    segment: int


class PastFollower:
    """Follows past actions over rows of a memory, and predicts which may come next.

    Args:
        goal: in the user's words; shown with the plan.
        adapter: None predicts from this past alone, so that nothing new is ever next.
        config: options.

    Raises:
        ConfigError: an empty goal.
    """

    def __init__(
        self, goal: str, adapter: PlanningAdapter | None = None, config: PastConfig = PAST
    ) -> None:
        self._goal, self._adapter, self._config = checked_goal(goal), adapter, config
        self._past: deque[PastAction] = deque(maxlen=MAX_PAST)
        self._end = 0.0

    def push(self, row: Entry) -> Plan:
        """Take in the next row, which has its caption, or the last one again, which has gone on."""
        return self.push_all([row])

    def push_all(self, rows: Iterable[Entry]) -> Plan:
        """Take in rows, oldest first; return the plan as it stands then."""
        for row in rows:
            self._take(row)
        return self.plan

    def _take(self, row: Entry) -> None:
        self._end = row.end
        if self._past and self._past[-1].segment == row.segment:
            self._past.pop()
        said = [note.text for note in row.notes if note.kind == "speech"]
        for text in (*said, *(row.caption or "").splitlines()):
            action = self._adapter.words.read(text) if self._adapter else None
            name = self._adapter.words.name(action) if self._adapter and action else ""
            name = name if self._adapter else read_phrase(text)
            if name:
                span = TimeSpan(row.start, row.end)
                self._past.append(PastAction(name, action, span, row.segment))
                break

    @property
    def plan(self) -> Plan:
        """The plan as it stands: the newest actions, and what may come next."""
        # 1. Neighbouring scenes of one action are one; each action stands where it was last done.
        done: list[PastAction] = []
        for each in self._past:
            if done and done[-1].name == each.name:
                span = TimeSpan(done[-1].span.start, each.span.end)
                done[-1] = each._replace(span=span)
            else:
                done.append(each)
        times: dict[str, list[PastAction]] = {}
        for each in done:
            times[each.name] = [*times.pop(each.name, []), each]
        steps = [
            PlanStep(
                name,
                "doing" if each[-1] is done[-1] else "done",
                tuple(item.span for item in each),
                tuple(item.segment for item in each),
            )
            for name, each in list(times.items())[-MAX_SHOWN:]
        ]
        # 2. What may come next.
        known: Literal["past", "past and adapter"] = "past"
        if self._adapter:
            known = "past and adapter"
        return Plan(self._goal, self._end, None, tuple(steps), self._next(done), next_from=known)

    def _next(self, done: Sequence[PastAction]) -> tuple[NextStep, ...]:
        if self._adapter is None:
            names = list(dict.fromkeys(each.name for each in done))
            if len(names) < 2:  # what was done just now is not next
                return ()
            numbers = [names.index(each.name) for each in done]
            chances = own_past(numbers, len(names), self._config)
        elif done:
            words, share = self._adapter.words, self._config.own
            num_nouns, actions = len(words.nouns), [each.action for each in done if each.action]
            numbers = [verb * num_nouns + noun for verb, noun in actions]
            others = self._adapter.next(actions).ravel()
            chances = share * own_past(numbers, len(others), self._config) + (1 - share) * others
        else:
            return ()
        # Neighbouring scenes of one action were joined: the next action is another one.
        chances[numbers[-1]] = 0.0
        chances /= chances.sum()
        likely = np.argsort(-chances, kind="stable")[:MAX_NEXT].tolist()
        named = names if self._adapter is None else None
        return tuple(
            NextStep(
                named[number] if named else words.name(Action(*divmod(number, num_nouns))),
                float(chances[number]),
            )
            for number in likely
            if chances[number] > 0
        )


def own_past(history: Sequence[int], size: int, config: PastConfig = PAST) -> np.ndarray:
    """Return [size] of sum 1: how likely each action follows, by what this history holds alone."""
    model = Ngram(config.order, config.scale)
    for at, action in enumerate(history):
        model.push(history[max(0, at - config.order) : at], action)
    return model.probabilities(history, cache(history, size, config.decay))


def read_phrase(text: str) -> str:
    """Read the first action of a caption by its form in -ing; empty where it has none.

    "A man is cutting the red onion on a board" is *cutting onion*.
    """
    words = _WORD.findall(text.lower())
    for at, word in enumerate(words):
        if not word.endswith("ing") or len(word) < 5 or word in _NO_VERBS:
            continue
        after = words[at + 1 :]
        while after and after[0] in STOP_WORDS:
            after = after[1:]
        length = next((n for n, each in enumerate(after) if each in STOP_WORDS), len(after))
        return " ".join([word, *after[:length][-1:]])
    return ""
