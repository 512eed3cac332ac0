"""Questions asked three ways: of what shows the answer, of what shows another, of neither.

Made from what people wrote of pictures: only what captions state, and only absences of what they
would hardly leave out. No pixels here.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from streammem.errors import DatasetError
from streammem.training.questions import (
    WHOLE_WORDS,
    color_question,
    colors_in,
    number_question,
    numbers_in,
    presence_question,
)

T = TypeVar("T")
NOT_SEEN = "Not seen."
YES, NO = "Yes.", "No."
OTHERS = (0.4, 0.2, 0.2, 0.2)  # how often none to three other pictures are shown beside
NOTHING = 0.25  # of the questions without evidence: nothing at all is shown
# Of the things that questions are about, those that people do leave out.
OFTEN_LEFT_OUT = frozenset({"tree", "table", "chair", "hat", "crowd", "mountain"})
TRIES = 200  # random pictures looked at for one that lacks a thing
WORN = frozenset(
    "shirt shirts dress jacket coat hat cap helmet pants shorts shoes jeans skirt sweater vest "  # noqa: SIM905
    "suit swimsuit bikini trunks uniform uniforms outfit hair raincoat apron tie scarf "
    "gloves".split()
)
# Whoever wears or is any of these is told of by one of these words, or by one of those below.
PEOPLE = frozenset().union(
    *(WHOLE_WORDS[group] for group in ("man", "woman", "boy", "girl", "child", "crowd")),
    "person persons player players rider riders team climber climbers skier skiers surfer surfers "  # noqa: SIM905
    "cyclist cyclists biker bikers runner runners worker workers swimmer swimmers skater skaters "
    "hiker hikers dancer dancers someone family couple friends friend group performer performers "
    "bicyclist skateboarder snowboarder motorcyclist ladies teenager teenagers adult "
    "adults".split(),
)


class Way(NamedTuple):
    """One way of asking a question.

    Attributes:
        pictures: numbers of those shown, in order; may be none.
        answer: what these say to it.
    """

    pictures: tuple[int, ...]
    answer: str


class Trial(NamedTuple):
    """A question with its evidence, with evidence of another answer, and without any.

    The pictures shown beside the evidence are the same in the first two ways.
    """

    question: str
    kind: str
    true: Way
    swapped: Way
    missing: Way

    @property
    def ways(self) -> dict[str, Way]:
        return {"true": self.true, "swapped": self.swapped, "missing": self.missing}


class Quiz:
    """Everything that can be asked three ways about some pictures.

    Args:
        captions: what people wrote of each picture; one with none is shown in no trial.

    Raises:
        DatasetError: nothing can be asked three ways.
    """

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        texts = [" ".join(said).lower() for said in captions]
        self._words = [frozenset(re.findall(r"[a-z]+", text)) for text in texts]
        self._told = [i for i, words in enumerate(self._words) if words]
        # kind: question: answer: pictures
        self._known: dict[str, dict[str, dict[str, list[int]]]] = {}
        self._lacking: dict[str, frozenset[str]] = {}  # of a question: words of what it is about
        for kind in ("color", "number", "presence"):
            found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
            for picture in self._told:
                for question, answer in self._answers(kind, picture, texts[picture]):
                    found[question][answer].append(picture)
            askable = {q: dict(answers) for q, answers in found.items() if len(answers) > 1}
            if askable:
                self._known[kind] = askable
        if not self._known:
            raise DatasetError("questions three ways: no two captions answer one differently")

    def draw(self, rng: np.random.Generator) -> Trial:
        """Draw a trial: each kind as often, of a kind each fact that captions state."""
        kind = _one(sorted(self._known), rng)
        questions = self._known[kind]
        if kind == "presence":  # every picture says of each thing whether it is there
            question = _one(sorted(questions), rng)
            first = _one((YES, NO), rng)
        else:
            facts = [(q, answer) for q, known in questions.items() for answer in known]
            sizes = np.array([len(questions[q][answer]) for q, answer in facts])
            question, first = facts[int(rng.choice(len(facts), p=sizes / sizes.sum()))]
        answers = questions[question]
        second = _one([a for a in sorted(answers) if a != first for _ in answers[a]], rng)
        others = self._others(question, int(rng.choice(len(OTHERS), p=OTHERS)), rng)
        place = int(rng.integers(len(others) + 1))

        def way(answer: str) -> Way:
            # What shows that a thing is not there may stand beside already.
            free = [picture for picture in answers[answer] if picture not in others]
            picture = _one(free or answers[answer], rng)
            return Way((*others[:place], picture, *others[place:]), answer)

        missing = others or self._others(question, 1, rng)
        if kind == "presence" or rng.random() < NOTHING:
            missing = ()
        return Trial(question, kind, way(first), way(second), Way(missing, NOT_SEEN))

    def _others(self, question: str, count: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw pictures that do not show what is asked about; fewer where few lack it."""
        found: list[int] = []
        for _ in range(TRIES):
            if len(found) == count:
                break
            picture = _one(self._told, rng)
            if picture not in found and not self._lacking[question] & self._words[picture]:
                found.append(picture)
        return tuple(found)

    def _answers(self, kind: str, picture: int, text: str) -> Iterator[tuple[str, str]]:
        """List what a picture's captions answer, (question, answer); note what it is about."""
        words = self._words[picture]
        if kind == "presence":
            for thing, names in WHOLE_WORDS.items():
                if thing in OFTEN_LEFT_OUT:
                    continue
                question = presence_question(thing)
                self._lacking[question] = names | words_about(thing)
                if names & words:
                    yield question, YES
                elif not self._lacking[question] & words:  # "a person" may be a man
                    yield question, NO
            return
        ask = color_question if kind == "color" else number_question
        facts: dict[str, set[str]] = defaultdict(set)
        for value, thing in colors_in(text) if kind == "color" else numbers_in(text):
            facts[thing].add("gray" if value == "grey" else value)
        for thing, values in facts.items():
            clear = len(values) == 1 and f"{thing}s" not in words
            clear = clear and f"and {next(iter(values))} {thing}" not in text  # black and brown
            if clear and (about := words_about(thing)):
                self._lacking[ask(thing)] = about
                yield ask(thing), f"{values.pop().capitalize()}."


def _one(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


def words_about(thing: str) -> frozenset[str]:
    """Return the words one of which captions of any picture with the thing would have.

    Nothing where people may leave it out: grass, walls, tables' cloths.
    """
    if thing in WORN or thing in PEOPLE:
        return PEOPLE | {thing}
    groups: Collection[frozenset[str]] = [names for names in WHOLE_WORDS.values() if thing in names]
    return frozenset().union(*groups)
