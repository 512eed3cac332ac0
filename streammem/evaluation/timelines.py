"""Composed streams with a clock, and questions by operator about them.

    for timeline in timelines_of([photo.captions for photo in photos]):
        timeline.questions[0].text  # 'Was a dog running on grass to be seen at any time?'

Scenes of seconds, the questions about them (when, how often, the first, what came before), and the
memories that are compared. Words and numbers only; ``answers.py`` asks and scores. No phrasing is
one that the question head was trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streammem.evaluation.memory import LAST, UNIFORM
from streammem.evaluation.streams import ComposedStream, StreamQuestion, compose

PHOTOS_A_STREAM = 200  # of a stream
SCENES_A_PHOTO = 1.2  # some photos are shown two or three times
ROUNDS = 5  # streams of each group of photos, which differ in order and repeats
SCENE_S = (5.0, 15.0)
MOST_QUESTIONS = 20  # an operator and stream
OLD_S = 600.0  # evidence is old if it ends at least so long before the stream's end

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
_TOO_MUCH = re.compile(r"[,;:.!?\"]|\b(?:while|as|because|who|which|that)\b")
_CLAUSE = re.compile(r"\b(?:he|she|they|it|who|which|that) (?:is|are)\b")
# Verbs that a sentence has besides its participle: "a boy wearing a hat sits on a box".
_FINITE = re.compile(
    r" (?:is|are|was|were|has|have|had|sits|stands|holds|looks|walks|runs|plays|jumps|rides|wears|"
    r"smiles|talks|eats|watches|carries|swims|climbs|leaps|swings|poses|throws|catches|kicks|hits|"
    r"takes|makes|goes|gets|does|shows|tries|waits|leans|lies|uses|works|points|gives|performs) "
)


@dataclass(frozen=True, slots=True)
class TimedQuestion:
    """A question whose answer is computed over the timeline.

    Attributes:
        text: of the question.
        operator: a key of ``PHRASINGS``.
        gold: scenes of the right answer, rising: of ``first`` and ``last`` that one, of
            ``before`` and ``after`` the scene asked about and its neighbour, of ``between`` the
            two asked about, else every scene that shows it. Empty: none does, or ``now``.
        common: whether it is about an everyday thing, see ``films.THINGS``.
        time: seconds at which it is asked; None: at the end.
        later: whether what has not been seen by then is shown afterwards.
        thing: that it asks about, where it is known.
    """

    text: str
    operator: str
    gold: tuple[int, ...]
    common: bool = False
    time: float | None = None
    later: bool = False
    thing: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """A stream with its clock.

    Attributes:
        photos: the photo of each scene.
        edges: [N + 1] seconds; a scene is [edges[i], edges[i + 1]).
        questions: about it.
    """

    photos: tuple[int, ...]
    edges: np.ndarray
    questions: tuple[TimedQuestion, ...]

    def is_old(self, question: TimedQuestion) -> bool:
        """Return whether it asks when something was that ended ``OLD_S`` before the end."""
        if question.operator != "when":
            return False
        return bool(self.edges[question.gold[-1] + 1] <= self.edges[-1] - OLD_S)


def timelines_of(captions: Sequence[Sequence[str]]) -> list[Timeline]:
    """Compose streams of at most ``PHOTOS_A_STREAM`` photos each, at least two in a round."""
    groups = max(2, len(captions) // PHOTOS_A_STREAM)
    made = []
    for number, chosen in enumerate(np.array_split(np.arange(len(captions)), groups) * ROUNDS):
        texts = [captions[i] for i in chosen]
        scenes = round(SCENES_A_PHOTO * len(texts))
        wanted = 2 * sum(map(len, texts))  # half of them about what is present: all that there are
        stream = compose(texts, scenes, wanted, asked=len(texts), seed=number)
        lengths = np.random.default_rng([1, number]).uniform(*SCENE_S, scenes)
        made.append(
            Timeline(
                tuple(int(chosen[photo]) for photo in stream.scenes),
                np.concatenate([[0.0], np.cumsum(lengths)]),
                ask_by_operator(stream, MOST_QUESTIONS, seed=number),
            )
        )
    return made


def memories_of(
    timelines: Sequence[Timeline], number: int
) -> dict[str, tuple[Sequence[int], Sequence[int]]]:
    """Return the memories to compare, by name: photo of each scene, and the scenes remembered."""
    photos = timelines[number].photos
    count = len(photos)
    other = np.resize(timelines[(number + 1) % len(timelines)].photos, count).tolist()
    spaced = np.unique(np.linspace(0, count - 1, min(UNIFORM, count)).round().astype(int))
    return {
        "memory": (photos, range(count)),
        f"last {LAST}": (photos, range(count)[-LAST:]),
        f"uniform {UNIFORM}": (photos, spaced.tolist()),
        "another stream's memory": (other, range(count)),
    }


def thing_of(description: str) -> str | None:
    """Turn a caption into a noun phrase to ask about: "a dog is running" into "a dog running".

    None unless the caption is plainly about one thing doing something.
    """
    if _TOO_MUCH.search(description):
        return None
    if found := _IS_DOING.match(description):
        whole = f"{found[1]} {found[2]}"
        return None if _CLAUSE.search(description) or _FINITE.search(f" {whole} ") else whole
    finite = _FINITE.search(f" {description} ")
    return description if _DOING.match(description) and not finite else None


def ask_by_operator(stream: ComposedStream, most: int, *, seed: int) -> tuple[TimedQuestion, ...]:
    """Ask about a stream by every operator.

    Args:
        stream: adjacent scenes of one photo are left out of questions: they could be counted as
            one event or as two.
        most: questions an operator, but of ``when`` as many as captions give; ``exists`` is asked
            equally often about what is absent.
        seed: of the choice.
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
            made.append(_question(operator, (thing,), _gold(operator, question.gold)))
    absent = _things(stream, "absent")[:most]
    return (*made, *(_question("exists", (thing,), ()) for thing, _ in absent))


def _things(stream: ComposedStream, kind: str) -> list[tuple[str, StreamQuestion]]:
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


def _between(fitting: Sequence[tuple[str, StreamQuestion]], most: int) -> list[TimedQuestion]:
    """Pair things with a scene between them, the earlier first; none is "x and y": ambiguous."""
    single = [pair for pair in fitting if " and " not in pair[0]]
    made = []
    for one, other in zip(single[::2], single[1::2], strict=False):
        (left, a), (right, b) = sorted((one, other), key=lambda pair: pair[1].gold)
        if b.gold[0] - a.gold[0] > 1:
            made.append(_question("between", (left, right), (*a.gold, *b.gold)))
    return made[:most]


def _question(operator: str, things: tuple[str, ...], gold: tuple[int, ...]) -> TimedQuestion:
    # A thing has the same question in every stream, so that each question is read once.
    phrasing = PHRASINGS[operator][sum(map(len, things)) % len(PHRASINGS[operator])]
    return TimedQuestion(phrasing.format(*things), operator, gold)
