"""Questions of what was said, and whether words and pictures mislead each other.

``python -m benchmarks speech`` makes an hour of talk, 1,000 sentences, of which 100 are facts: ten
things, each with ten deeds, so that neither alone tells which sentence is meant. Each fact is asked
for in four wordings: with its words, with another word for the thing, with another phrase for the
deed, and with neither of its words. Right is the answer whose first quote is the fact's sentence;
``time`` also wants the time of its first cue within 1 s. The controls: the sentence that shares
most words with the question, and the same questions to a memory that heard nothing.

Then photos are shown, a scene each, while sentences name what stands in other photos: are
questions of what was seen misled by what was said, and the other way round? The controls are the
same scenes in silence.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.machine import machine

# As it is said, and in other words.
THINGS = (
    ("harbour", "port"), ("car", "automobile"), ("house", "home"), ("boat", "vessel"),
    ("shop", "store"), ("garden", "yard"), ("road", "street"), ("letter", "mail"),
    ("forest", "woods"), ("painting", "picture"),
)  # fmt: skip
DEEDS = (
    ("was sold last year", "changing its owner"),
    ("is closed until spring", "being shut for the winter"),
    ("costs far too much", "being so expensive"),
    ("burned down in the night", "the fire"),
    ("will be repaired on Monday", "getting fixed next week"),
    ("belongs to my brother", "a relative who owns it"),
    ("frightens the horses", "animals being scared by it"),
    ("was painted green", "its new colour"),
    ("reminds me of my childhood", "memories of when they were young"),
    ("is full of water", "being flooded"),
)
IDLE = (
    "Well, that is how it goes.", "I do not know what you mean.", "Come on, let us go now.",
    "She told me the same thing yesterday.", "Could you pass me the salt?", "Not again, please.",
    "We should have left an hour ago.", "He never listens to anyone.", "That sounds good to me.",
    "What time is it, anyway?", "I have been thinking about it all day.", "Do not forget your coat.",
    "My sister will call you tomorrow.", "It rained the whole weekend.", "You look tired today.",
    "There is nothing we can do about it.", "Everybody knows that by now.", "I am so hungry.",
    "Let me show you something funny.", "The picture is not what I expected.", "Is anybody at home?",
    "I will meet you in the street.", "He wants to open a store one day.", "We need more people.",
    "The fire is warm tonight.", "Nobody was scared, I promise.", "When they were young they sang.",
    "It is too expensive for us.", "The owner did not answer.", "Next week I am away.",
)  # fmt: skip
WORDINGS = ("its own words", "another word for the thing", "another phrase", "both")
SENTENCES, STEP_S, SCENE_S = 1000, 3.6, 36.0


def talk(seed: int = 7) -> tuple[list[Any], list[tuple[int, int, float]]]:
    """Return the notes of an hour, and (thing, deed, second) of each fact."""
    from streammem.types import Note

    rng = random.Random(seed)
    facts = [(t, d) for t in range(len(THINGS)) for d in range(len(DEEDS))]
    rng.shuffle(facts)
    places = dict(zip(sorted(rng.sample(range(SENTENCES), len(facts))), facts, strict=True))
    notes, asked = [], []
    for number in range(SENTENCES):
        at, text = number * STEP_S, rng.choice(IDLE)
        if number in places:
            thing, deed = places[number]
            text = f"The {THINGS[thing][0]} {DEEDS[deed][0]}."
            asked.append((thing, deed, at))
        words = text.split()
        if rng.random() < 1 / 3:  # a sentence over two cues
            half = len(words) // 2
            notes += [Note(at, at + 1.4, " ".join(words[:half])),
                      Note(at + 1.5, at + 3.0, " ".join(words[half:]))]  # fmt: skip
        else:
            notes.append(Note(at, at + 3.0, text))
    return notes, asked


def question(thing: int, deed: int, wording: int) -> str:
    own, other = THINGS[thing]
    said, asked = DEEDS[deed]
    name = other if wording in (1, 3) else own
    if wording in (2, 3):
        return f"What did they say about the {name} and {asked}?"
    return f"What did they say about the {name} that {said}?"


def session_with(model: Any, notes: Sequence[Any]) -> Any:
    """A session that saw blank scenes and heard these notes."""
    from streammem.engine.session import Session
    from streammem.memory.entry import Entry, fitting_notes, visual_keys

    session, text = Session(model), model.text_encoder
    blank = text.background[:1].numpy()
    for number in range(round(SENTENCES * STEP_S / SCENE_S)):
        start = number * SCENE_S
        own = [note for note in notes if start <= note.start < start + SCENE_S]
        keys = visual_keys(text.sentence_keys([n.text for n in own])) if own else blank[:0]
        session.memory.append(
            Entry(number, start, start + SCENE_S, 1, blank, blank[:0], keys,
                  np.zeros((0, 0), np.float16), notes=fitting_notes(own), source="talk.mp4"), session.recurrent
        )  # fmt: skip
    return session


def asked_of_talk(model: Any) -> dict[str, Any]:
    from streammem.memory.words import content_words

    notes, facts = talk()
    session, deaf = session_with(model, notes), session_with(model, ())
    table: dict[str, Any] = {}
    began = time.process_time()
    session.ask("What did they say about nothing at all?")
    first_s = time.process_time() - began
    for wording, name in enumerate(WORDINGS):
        first = timed = keyword = silent = 0
        began = time.process_time()
        for thing, deed, at in facts:
            text = question(thing, deed, wording)
            answer = session.ask(text)
            wanted = f"The {THINGS[thing][0]} {DEEDS[deed][0]}."
            is_right = bool(answer.evidence) and answer.evidence[0].quote == wanted
            first += is_right and answer.seen
            timed += is_right and answer.seen and abs(answer.evidence[0].start - at) < 1
        each_s = (time.process_time() - began) / len(facts)
        for thing, deed, at in facts:
            text = question(thing, deed, wording)
            words = content_words(text)
            best = max(notes, key=lambda note: len(words & content_words(note.text)))
            keyword += at <= best.start < at + STEP_S
            silent += deaf.ask(text).seen
        table[name] = {"first": first, "time": timed, "keyword": keyword, "silent": silent,
                       "cpu_ms": round(1000 * each_s, 1)}  # fmt: skip
    return {"questions": len(facts), "first_question_cpu_s": round(first_s, 2), "said": table}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks speech", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    options = parser.parse_args(arguments)
    from streammem.models.checkpoint import load

    model = load(options.model)
    results: dict[str, Any] = {"benchmark": "speech", **asked_of_talk(model)}
    for name, row in results["said"].items():
        print(f"{name:28} {row}")
    print(json.dumps(results | {"machine": machine()}))
    return 0
