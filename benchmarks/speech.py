"""Questions of what was said, and whether words and pictures mislead each other.

``python -m benchmarks speech`` makes an hour of talk, 1,000 sentences, of which 100 are facts: ten
things, each with ten deeds, so that neither alone tells which sentence is meant. Each fact is asked
for in four wordings: with its words, with another word for the thing, with another phrase for the
deed, and with neither of its words. Right is the answer whose first quote is the fact's sentence;
``time`` also wants the time of its first cue within 1 s. The controls: the sentence that shares
most words with the question, and the same questions to a memory that heard nothing.

``--confusion`` shows photos, a scene each, while one sentence names a thing: do questions of what
was seen rest on what was said, and the other way round? The controls are the same photos without a
word, and the same words over photos that do not show the thing.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
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
    "What time is it, anyway?", "I thought about it all day.", "Do not forget your coat.",
    "My sister will call you tomorrow.", "It rained the whole weekend.", "You look tired today.",
    "There is nothing we can do about it.", "Everybody knows that by now.", "I am so hungry.",
    "Let me show you something.", "The picture is not what I expected.", "Is anybody at home?",
    "I will meet you in the street.", "He wants to open a store one day.", "We need more people.",
    "The fire is warm tonight.", "Nobody was scared, I promise.", "When they were young they sang.",
    "It is too expensive for us.", "The owner did not answer.", "Next week I am away.",
)  # fmt: skip
# What nothing of all this is about.
NEVER = tuple(
    f"the {thing} that {deed}"
    for thing in ("violin", "doctor", "train", "teacher", "soup", "bicycle", "lottery", "wedding",
                  "computer", "mountain")
    for deed in ("arrived from Norway", "won the first prize", "needs more salt",
                 "was elected president", "sings every morning", "will marry in June",
                 "has a new keyboard", "is covered with snow", "failed the exam",
                 "broke its leg")
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


def session_with(model: Any, notes: Sequence[Any], *, apart: bool = False) -> Any:
    """A session that heard these notes over one picture, or over another one in each scene."""
    from streammem.engine.session import Session

    session, pictures = Session(model), model.text_encoder.background.numpy()
    for number in range(round(SENTENCES * STEP_S / SCENE_S)):
        start, place = number * SCENE_S, 7 * number % len(pictures) if apart else 0
        own = [note for note in notes if start <= note.start < start + SCENE_S]
        add_scene(session, number, SCENE_S, pictures[place : place + 1], own)
    return session


KEYS: dict[str, np.ndarray] = {}  # of sentences


def add_scene(
    session: Any, number: int, length_s: float, keys: np.ndarray, notes: Sequence[Any]
) -> None:
    from streammem.memory.entry import Entry, fitting_notes, visual_keys

    heard = keys[:0]
    if notes:
        new = [note.text for note in notes if note.text not in KEYS]
        if new:
            KEYS.update(zip(new, session.model.text_encoder.sentence_keys(new), strict=True))
        heard = visual_keys(np.stack([KEYS[note.text] for note in notes]))
    entry = Entry(
        number, number * length_s, (number + 1) * length_s, 1, keys, keys[:0], heard,
        np.zeros((0, 0), np.float16), notes=fitting_notes(notes), source="talk.mp4",
    )  # fmt: skip
    session.memory.append(entry, session.recurrent)


def asked_of_talk(model: Any) -> dict[str, Any]:
    from streammem.memory.retrieval import content_words

    notes, facts = talk()
    session, deaf = session_with(model, notes), session_with(model, ())
    table: dict[str, Any] = {}
    began = time.process_time()
    session.ask("What did they say about the port being shut?")
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
    wrong = sum(session.ask(f"What did they say about {x}?").seen for x in NEVER)
    return {
        "questions": len(facts), "first_question_cpu_s": round(first_s, 2), "said": table,
        "found": found_in_talk(model, notes, facts),
        "never_asked": len(NEVER), "never_said": wrong,
    }  # fmt: skip


def found_in_talk(model: Any, notes: Sequence[Any], facts: Sequence[Any]) -> dict[str, Any]:
    """Find the facts by ``find``, among scenes of pictures that have nothing to do with them."""
    session, table = session_with(model, notes, apart=True), {}
    for form in ("the {} {}", "they said the {} {}"):
        first = four = 0
        for thing, deed, at in facts:
            text = form.format(THINGS[thing][0], DEEDS[deed][0])
            found = [moment.segment for moment in session.find(text, 4)]
            first += found[0] == int(at // SCENE_S)
            four += int(at // SCENE_S) in found
        table[form] = {"first": first, "four": four}
    return table


# Things that photos show: the word of captions, and as it is asked for.
SHOWN = (
    ("dog", "a dog"), ("horse", "a horse"), ("bike", "a bike"), ("snow", "snow"), ("car", "a car"),
    ("beach", "a beach"), ("skateboard", "a skateboard"), ("boat", "a boat"), ("baby", "a baby"),
    ("guitar", "a guitar"), ("motorcycle", "a motorcycle"), ("basketball", "a basketball"),
)  # fmt: skip
LINES = (
    "I dreamed of {} last night.", "My uncle wants to buy {}.", "She always talks about {}.",
)  # fmt: skip
SCENES, PHOTO_S, TRIALS = 20, 6.0, 3


def confusion(model: Any, data: Path) -> dict[str, Any]:
    from streammem.engine.session import Session
    from streammem.evaluation.datasets import read_photo, read_photos
    from streammem.memory.retrieval import content_words
    from streammem.types import Note

    photos = read_photos(data / "flickr8k", "val")  # which training has not seen
    words = [[content_words(text) for text in photo.captions] for photo in photos]
    rng, keys = random.Random(3), dict[int, np.ndarray]()

    def key(place: int) -> np.ndarray:
        if place not in keys:
            keys[place] = model.perceiver.perceive(read_photo(photos[place].path)).key[None]
        return keys[place]

    def stream(shown: Sequence[int], line: str | None, said_at: int) -> Any:
        session = Session(model)
        for number, place in enumerate(shown):
            idle, at = rng.choice(IDLE), number * PHOTO_S
            notes = [Note(at + 1, at + 2, idle)] if line is not None else []
            if number == said_at and line:
                notes.append(Note(at + 3, at + 5, line))
            add_scene(session, number, PHOTO_S, key(place), notes)
        return session

    counts: dict[str, dict[str, int]] = {}

    def count(name: str, outcome: str) -> None:
        counts.setdefault(name, {}).setdefault(outcome, 0)
        counts[name][outcome] += 1

    for word, name in SHOWN:
        stem = next(iter(content_words(word)))
        with_it = [i for i, own in enumerate(words) if sum(stem in each for each in own) >= 4]
        without = [i for i, own in enumerate(words) if not any(stem in each for each in own)]
        print(f"{name}: {len(with_it)} photos", file=sys.stderr)
        for trial in range(min(TRIALS, len(with_it))):
            shown = rng.sample(without, SCENES)
            seen_at, said_at = rng.sample(range(SCENES), 2)
            absent, shown = list(shown), list(shown)
            shown[seen_at] = with_it[trial * 7 % len(with_it)]
            line = LINES[trial % len(LINES)].format(name)
            for talk, spoken in (("said elsewhere", line), ("in silence", None)):
                session = stream(shown, spoken, said_at)
                answer = session.ask(f"When is {name} seen?")
                at = answer.evidence[0].segment if answer.evidence and answer.seen else None
                kind = "misled" if at == said_at else "other scene"
                kind = {None: "not seen", seen_at: "right"}.get(at, kind)
                count(f"When is X seen? X seen, {talk}", kind)
                found = [moment.segment for moment in session.find(name, 4)]
                kind = "the words first" if found[0] == said_at else "other scene first"
                kind = "the picture first" if found[0] == seen_at else kind
                count(f"find X: X seen, {talk}", kind)
                kind = "the picture" if seen_at in found else "not the picture"
                count(f"find X, 4 moments: X seen, {talk}", kind)
                if spoken:
                    found = [moment.segment for moment in session.find(f"they mention {name}", 4)]
                    kind = "the words first" if found[0] == said_at else "other scene first"
                    count("find they mention X: X seen, said elsewhere", kind)
                session = stream(absent, spoken, said_at)
                answer = session.ask(f"Is {name} seen?")
                where = answer.evidence[0].segment if answer.evidence else None
                kind = "misled" if where == said_at else "other scene"
                count(f"Is X seen? X never seen, {talk}", kind if answer.seen else "right")
                if spoken:
                    found = [moment.segment for moment in session.find(name, 4)]
                    kind = "the words first" if found[0] == said_at else "other scene first"
                    count("find X: X never seen, said", kind)
            for what, pictures in (("seen elsewhere", shown), ("never seen", absent)):
                session = stream(pictures, line, said_at)
                answer = session.ask(f"When did they mention {name}?")
                at = answer.evidence[0].segment if answer.evidence and answer.seen else None
                kind = "misled" if at == seen_at and pictures is shown else "other scene"
                kind = {None: "not said", said_at: "right"}.get(at, kind)
                count(f"When did they mention X? X said, {what}", kind)
                silent = stream(pictures, "", said_at)  # idle talk alone
                answer = silent.ask(f"Did they mention {name}?")
                count(f"Did they mention X? X never said, {what}",
                      "misled" if answer.seen else "right")  # fmt: skip
                answer = silent.ask(f"What did they say about {name}?")
                count(f"What did they say about X? X never said, {what}",
                      "misled" if answer.seen else "right")  # fmt: skip
    return counts


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks speech", description=__doc__)
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--confusion", action="store_true", help="needs STREAMMEM_DATA")
    options = parser.parse_args(arguments)
    if options.confusion and "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with flickr8k")
    from streammem.models.checkpoint import load_checkpoint

    model = load_checkpoint(options.model)
    results: dict[str, Any] = {"benchmark": "speech"}
    if options.confusion:
        results["confusion"] = confusion(model, Path(os.environ["STREAMMEM_DATA"]))
        for name, row in results["confusion"].items():
            print(f"{name:60} {row}")
    else:
        results |= asked_of_talk(model)
        for name, row in results["said"].items():
            print(f"{name:28} {row}")
        for name, row in results["found"].items():
            print(f"find {name:23} {row}")
        print(f"never said: {results['never_said']} of {results['never_asked']} answered")
    print(json.dumps(results | {"machine": machine()}))
    return 0
