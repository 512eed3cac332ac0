"""Questions by operator about composed streams: when, how often, the first, what came before, ...

Words and arithmetic over scenes; the phrasings are none that the question head was trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streammem.evaluation.streams import Question, Stream

PHRASINGS: dict[str, tuple[str, ...]] = {
    "exists": ("Was {} to be seen at any time?", "Did the camera ever catch {}?",
               "Has there been {}?"),
    "when": ("When was there {}?", "When did the camera show {}?", "At which time was there {}?"),
    "first": ("When did the camera show {} for the first time?", "When was there first {}?",
              "When did {} come into view first?"),
    "last": ("When did the camera show {} for the last time?", "When was there last {}?",
             "When did {} come into view last?"),
    "before": ("What did the camera show before {}?", "What was on just before {}?",
               "What was to be seen before {}?"),
    "after": ("What did the camera show after {}?", "What was on just after {}?",
              "What was to be seen after {}?"),
    "how often": ("How often did the camera show {}?", "How many times was there {}?",
                  "How often was there {}?"),
    "how long": ("How long did the camera show {}?", "How long was there {}?",
                 "For how long was {} to be seen?"),
    "between": ("What did the camera show between {} and {}?",
                "What was to be seen between {} and {}?", "What was on between {} and {}?"),
    "now": ("Is there {} on the screen now?", "Does the camera show {} at the moment?",
            "Is {} to be seen right now?"),
}  # fmt: skip

_SOME = "(?:an?|the|one|two|three|four|five|some|several)"
_IS_DOING = re.compile(rf"^({_SOME} .*?) (?:is|are) (\w+ing\b.*)$")
_DOING = re.compile(rf"^{_SOME}(?: [a-z'-]+){{1,6}}? [a-z]{{2,}}ing\b")
_TOO_MUCH = re.compile(r"[,;:.!?\"]|\b(?:while|as|because)\b")


@dataclass(frozen=True, slots=True)
class TimedQuestion:
    """A question whose answer is computed over the timeline.

    Attributes:
        text: as a person would ask.
        operator: a key of ``PHRASINGS``.
        gold: scenes that the answer rests on, rising: of ``first`` and ``last`` that one, of
            ``before`` and ``after`` the scene asked about and its neighbour, of ``between`` the
            two asked about, else every scene that shows it. Empty: none does, or ``now``.
    """

    text: str
    operator: str
    gold: tuple[int, ...]


def thing_of(description: str) -> str | None:
    """Turn a caption into what one can ask for: "a dog is running" into "a dog running".

    None where it is not plainly one thing doing something.
    """
    if _TOO_MUCH.search(description):
        return None
    if found := _IS_DOING.match(description):
        return f"{found[1]} {found[2]}"
    finite = re.search(r" (?:is|are|has|have) ", description)
    return description if _DOING.match(description) and not finite else None


def ask_by_operator(stream: Stream, most: int, *, seed: int) -> tuple[TimedQuestion, ...]:
    """Ask about a stream by every operator.

    Args:
        stream: scenes of equal photos side by side are left out of questions: whether they are
            one event or two is a matter of taste.
        most: questions an operator; of ``when`` there are as many as captions give. ``exists`` is
            asked as often about what is absent.
        seed: of which are chosen.
    """
    rng = np.random.default_rng(seed)
    present = _things(stream, "present")
    made: list[TimedQuestion] = []
    for operator in PHRASINGS:
        order = [present[i] for i in rng.permutation(len(present))]
        fitting = [pair for pair in order if _fits(operator, pair[1].gold, len(stream.scenes))]
        if operator == "between":
            made += _between(fitting, most)
            continue
        for thing, question in fitting if operator == "when" else fitting[:most]:
            made.append(_asked(operator, (thing,), _gold(operator, question.gold)))
    absent = _things(stream, "absent")[:most]
    return (*made, *(_asked("exists", (thing,), ()) for thing, _ in absent))


def _things(stream: Stream, kind: str) -> list[tuple[str, Question]]:
    asked = [q for q in stream.questions if q.kind == kind and not (np.diff(q.gold) == 1).any()]
    return [(thing, question) for question in asked if (thing := thing_of(question.text))]


def _fits(operator: str, gold: tuple[int, ...], num_scenes: int) -> bool:
    if operator in ("first", "last"):
        return len(gold) > 1
    if operator == "before":
        return len(gold) == 1 and gold[0] > 0
    if operator == "after":
        return len(gold) == 1 and gold[0] < num_scenes - 1
    return operator != "between" or len(gold) == 1


def _gold(operator: str, gold: tuple[int, ...]) -> tuple[int, ...]:
    chosen = {
        "first": gold[:1], "last": gold[-1:], "now": (),
        "before": (gold[0] - 1, gold[0]), "after": (gold[0], gold[0] + 1),
    }  # fmt: skip
    return chosen.get(operator, gold)


def _between(fitting: Sequence[tuple[str, Question]], most: int) -> list[TimedQuestion]:
    """Pair things with something between them, the earlier first; "x and y" would be read wrong."""
    single = [pair for pair in fitting if " and " not in pair[0]]
    made = []
    for one, other in zip(single[::2], single[1::2], strict=False):
        (left, a), (right, b) = sorted((one, other), key=lambda pair: pair[1].gold)
        if b.gold[0] - a.gold[0] > 1:
            made.append(_asked("between", (left, right), (*a.gold, *b.gold)))
    return made[:most]


def _asked(operator: str, things: tuple[str, ...], gold: tuple[int, ...]) -> TimedQuestion:
    # A thing is asked for alike in every stream, so that the question need not be read again.
    phrasing = PHRASINGS[operator][sum(map(len, things)) % len(PHRASINGS[operator])]
    return TimedQuestion(phrasing.format(*things), operator, gold)
