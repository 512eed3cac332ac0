"""Questions about pictures, made from their captions; no pixels here.

    questions_from_captions(["A brown dog runs."], rng)  # [QuestionRecord("Is there a dog?", ...]
    TrialMaker(captions).draw(rng)  # one question with true, with swapped and with no evidence

Only facts that captions state are asked, and only absences of things that captions hardly leave
out.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from streammem.errors import DatasetError

T = TypeVar("T")
COLORS = (
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "brown",
    "orange",
    "pink",
    "purple",
    "gray",
    "grey",
)
COLORED = frozenset(
    "shirt shirts dress jacket coat hat cap helmet pants shorts shoes jeans skirt sweater vest "  # noqa: SIM905
    "suit swimsuit bikini trunks uniform uniforms outfit hair dog dogs cat horse car truck bus "
    "ball bike bicycle motorcycle kayak boat raft umbrella grass wall door chair couch sofa carpet "
    "table towel blanket toy balloon bird collar leash slide bench raincoat apron tie scarf gloves "
    "sand".split()
)
COUNTED = {
    "0": "none", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six",
    "7": "seven", "8": "eight", "9": "nine", "10": "ten",
}  # fmt: skip
NUMBERS = ("two", "three", "four", "five")
# Things that a caption hardly leaves out.
THINGS = {
    "dog": "dog dogs puppy",
    "man": "man men guy guys",
    "woman": "woman women lady",
    "boy": "boy boys",
    "girl": "girl girls",
    "child": "child children kid kids boy girl baby toddler",
    "horse": "horse horses",
    "bicycle": "bike bicycle bikes bicycles bicyclist cyclist biker",
    "motorcycle": "motorcycle motorbike motorcyclist",
    "car": "car cars truck van vehicle",
    "ball": "ball football soccer basketball baseball tennis",
    "beach": "beach sand shore",
    "snow": "snow snowy ski skier snowboarder",
    "boat": "boat boats kayak canoe raft",
    "pool": "pool",
    "bed": "bed bedroom",
    "table": "table tables desk",
    "chair": "chair chairs",
    "kitchen": "kitchen stove oven",
    "skateboard": "skateboard skateboarder skateboarding skateboards",
    "swing": "swing swings",
    "mountain": "mountain mountains cliff rock rocks",
    "computer": "computer laptop",
    "umbrella": "umbrella umbrellas",
    "bus": "bus buses",
    "guitar": "guitar guitars",
    "crowd": "crowd people audience",
    "cat": "cat cats kitten",
    "bird": "bird birds",
    "surfer": "surfer surfers surfing surfboard",
    "tree": "tree trees forest woods",
    "hat": "hat hats cap helmet",
    "water": "water ocean lake river pool sea waves wave stream",
}
WHOLE_WORDS = {thing: frozenset(words.split()) for thing, words in THINGS.items()}


NOT_SEEN = "Not seen."
YES, NO = "Yes.", "No."
OTHERS = (0.4, 0.2, 0.2, 0.2)  # probabilities of none to three other pictures beside
NO_PICTURE_SHARE = 0.25  # of the questions without evidence, which show no picture at all
# The things among ``THINGS`` that captions do leave out.
OFTEN_LEFT_OUT = frozenset({"tree", "table", "chair", "hat", "crowd", "mountain"})
TRIES = 200  # random pictures tried to find one that lacks a thing
WORN = frozenset(
    "shirt shirts dress jacket coat hat cap helmet pants shorts shoes jeans skirt sweater vest "  # noqa: SIM905
    "suit swimsuit bikini trunks uniform uniforms outfit hair raincoat apron tie scarf "
    "gloves".split()
)
# A caption of a person has one of these words.
PEOPLE = frozenset().union(
    *(WHOLE_WORDS[group] for group in ("man", "woman", "boy", "girl", "child", "crowd")),
    "person persons player players rider riders team climber climbers skier skiers surfer surfers "  # noqa: SIM905
    "cyclist cyclists biker bikers runner runners worker workers swimmer swimmers skater skaters "
    "hiker hikers dancer dancers someone family couple friends friend group performer performers "
    "bicyclist skateboarder snowboarder motorcyclist ladies teenager teenagers adult "
    "adults".split(),
)


class QuestionRecord(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def questions_from_captions(
    captions: Sequence[str], rng: np.random.Generator, limit: int = 4
) -> list[QuestionRecord]:
    """Make questions that the captions answer.

    Args:
        captions: of one picture.
        rng: chooses among the possible questions.
        limit: questions at most.
    """
    text = " ".join(captions).lower()
    words = set(re.findall(r"[a-z]+", text))
    questions = [_presence(words, rng, present=True), _presence(words, rng, present=False)]
    for color, thing in colors_in(text):
        questions.append(QuestionRecord(color_question(thing), f"{color.capitalize()}."))
    for number, thing in numbers_in(text):
        questions.append(QuestionRecord(number_question(thing), f"{number.capitalize()}."))
    unique = list({record.question: record for record in questions if record}.values())
    order = rng.permutation(len(unique))[:limit]
    return [unique[i] for i in order]


def colors_in(text: str) -> list[tuple[str, str]]:
    """List (colour, thing) as lower-case text states them, without things of two colours."""
    return [
        (color, thing)
        for color, thing in re.findall(rf"\b({'|'.join(COLORS)}) (\w+)\b", text)
        if thing in COLORED
        and not re.search(rf"\b{color} {thing} (and|\w+) {thing}|{color} and", text)
    ]


def numbers_in(text: str) -> list[tuple[str, str]]:
    """List (number, things) as lower-case text states them."""
    return re.findall(rf"\b({'|'.join(NUMBERS)}) (\w+s|men|women|children|people)\b", text)


def color_question(thing: str) -> str:
    verb = "are" if thing.endswith("s") and not thing.endswith("ss") else "is"
    return f"What color {verb} the {thing}?"


def number_question(things: str) -> str:
    return f"How many {things} are there?"


def presence_question(thing: str) -> str:
    article = "" if thing in ("snow", "water") else "an " if thing[0] in "aeiou" else "a "
    return f"Is there {article}{thing}?"


def questions_from_answers(
    pairs: Sequence[Sequence[str]], rng: np.random.Generator, limit: int = 4
) -> list[QuestionRecord]:
    """Clean people's questions and answers (DAQUAR's form); small counts become words."""
    questions = []
    for question, answer in pairs:
        asked = re.sub(r"\s+in (the|this) image\d+", "", question).strip(" ?")
        parts = [part.strip().replace("_", " ") for part in answer.split(",")]
        if "image" not in asked and len(parts) <= 3:
            parts = [COUNTED.get(part, part.rstrip(" .")) for part in parts]
            listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
            questions.append(
                QuestionRecord(
                    f"{asked[:1].upper()}{asked[1:]}?", f"{listed[:1].upper()}{listed[1:]}."
                )
            )
    order = rng.permutation(len(questions))[:limit]
    return [questions[i] for i in order]


def _presence(words: set[str], rng: np.random.Generator, *, present: bool) -> QuestionRecord | None:
    fitting = [t for t, names in WHOLE_WORDS.items() if bool(names & words) == present]
    if not fitting:
        return None
    thing = fitting[rng.integers(len(fitting))]
    return QuestionRecord(presence_question(thing), "Yes." if present else "No.")


class TrialVariant(NamedTuple):
    """The evidence and the answer of one variant of a question.

    Attributes:
        pictures: indices of those shown, in order; may be empty.
        answer: according to these pictures.
    """

    pictures: tuple[int, ...]
    answer: str


class Trial(NamedTuple):
    """A question with its evidence, with evidence of another answer, and with none.

    The other pictures shown beside the evidence are the same in the first two variants.
    """

    question: str
    kind: str
    true: TrialVariant
    swapped: TrialVariant
    missing: TrialVariant

    @property
    def variants(self) -> dict[str, TrialVariant]:
        return {"true": self.true, "swapped": self.swapped, "missing": self.missing}


class TrialMaker:
    """Makes questions in three variants about a set of pictures.

    Args:
        captions: of each picture; a picture without captions is never shown.

    Raises:
        DatasetError: no question has pictures with different answers.
    """

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        texts = [" ".join(sentences).lower() for sentences in captions]
        self._words = [frozenset(re.findall(r"[a-z]+", text)) for text in texts]
        self._captioned = [i for i, words in enumerate(self._words) if words]
        # kind: question: answer: pictures
        self._known: dict[str, dict[str, dict[str, list[int]]]] = {}
        self._lacking: dict[str, frozenset[str]] = {}  # by question: words of the thing it is about
        for kind in ("color", "number", "presence"):
            found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
            for picture in self._captioned:
                for question, answer in self._answers(kind, picture, texts[picture]):
                    found[question][answer].append(picture)
            askable = {q: dict(answers) for q, answers in found.items() if len(answers) > 1}
            if askable:
                self._known[kind] = askable
        if not self._known:
            raise DatasetError("questions three ways: no two captions answer one differently")

    def draw(self, rng: np.random.Generator) -> Trial:
        """Draw a trial: kinds are equally likely, and so are the stated facts of a kind."""
        kind = _one(sorted(self._known), rng)
        questions = self._known[kind]
        if kind == "presence":  # every picture answers it for each thing
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

        def variant(answer: str) -> TrialVariant:
            # A picture that shows an absence may already be among the others.
            free = [picture for picture in answers[answer] if picture not in others]
            picture = _one(free or answers[answer], rng)
            return TrialVariant((*others[:place], picture, *others[place:]), answer)

        missing = others or self._others(question, 1, rng)
        if kind == "presence" or rng.random() < NO_PICTURE_SHARE:
            missing = ()
        return Trial(
            question, kind, variant(first), variant(second), TrialVariant(missing, NOT_SEEN)
        )

    def _others(self, question: str, count: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw pictures that do not show what is asked about; fewer where few lack it."""
        found: list[int] = []
        for _ in range(TRIES):
            if len(found) == count:
                break
            picture = _one(self._captioned, rng)
            if picture not in found and not self._lacking[question] & self._words[picture]:
                found.append(picture)
        return tuple(found)

    def _answers(self, kind: str, picture: int, text: str) -> Iterator[tuple[str, str]]:
        """Yield (question, answer) of a picture's captions; note the words of each thing asked."""
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
    """Return words of which the captions of any picture with the thing have at least one.

    Empty for things that captions may leave out: grass, walls, tablecloths.
    """
    if thing in WORN or thing in PEOPLE:
        return PEOPLE | {thing}
    groups: Collection[frozenset[str]] = [names for names in WHOLE_WORDS.values() if thing in names]
    return frozenset().union(*groups)
