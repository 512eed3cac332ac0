"""Questions about a picture made from what people wrote of it; only facts that captions state."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
NUMBERS = ("two", "three", "four", "five")
# Things that a caption writer would hardly leave out when they are there.
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


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def turns_from_captions(
    captions: Sequence[str], rng: np.random.Generator, limit: int = 4
) -> list[Turn]:
    """Make questions that the captions answer.

    Args:
        captions: what people wrote of one picture.
        rng: chooses among what can be asked.
        limit: questions at most.
    """
    text = " ".join(captions).lower()
    words = set(re.findall(r"[a-z]+", text))
    turns = [_presence(words, rng, present=True), _presence(words, rng, present=False)]
    for color, thing in colors_in(text):
        turns.append(Turn(color_question(thing), f"{color.capitalize()}."))
    for number, thing in numbers_in(text):
        turns.append(Turn(number_question(thing), f"{number.capitalize()}."))
    unique = list({turn.question: turn for turn in turns if turn}.values())
    order = rng.permutation(len(unique))[:limit]
    return [unique[i] for i in order]


def colors_in(text: str) -> list[tuple[str, str]]:
    """List (colour, thing) as lower-case text states them; not of what has two colours."""
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


def turns_from_answers(
    pairs: Sequence[Sequence[str]], rng: np.random.Generator, limit: int = 4
) -> list[Turn]:
    """Clean people's own questions and answers about a room (DAQUAR's form)."""
    turns = []
    for question, answer in pairs:
        asked = re.sub(r"\s+in (the|this) image\d+", "", question).strip(" ?")
        said = [part.strip().replace("_", " ") for part in answer.split(",")]
        if "image" not in asked and len(said) <= 3:
            listed = " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
            turns.append(
                Turn(f"{asked[:1].upper()}{asked[1:]}?", f"{listed[:1].upper()}{listed[1:]}.")
            )
    order = rng.permutation(len(turns))[:limit]
    return [turns[i] for i in order]


def _presence(words: set[str], rng: np.random.Generator, *, present: bool) -> Turn | None:
    fitting = [t for t, names in WHOLE_WORDS.items() if bool(names & words) == present]
    if not fitting:
        return None
    thing = fitting[rng.integers(len(fitting))]
    return Turn(presence_question(thing), "Yes." if present else "No.")
