"""Questions about clips of video: do answers rest on what a clip shows, alone and beside others?

The questions were written from the manifest's sentences before any reply was read; answers that
count as right stand behind each, and a reply is right by its first words. Each is asked with its
clip, with another, with none, and with its clip between two others. A model whose answers have an
adapter of their own is asked without it too, in the same run.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import machine
from benchmarks.said import frames_of
from benchmarks.see import error, is_right
from benchmarks.swapped import AT_ONCE, EVERY_S, SCENE_S
from streammem import load
from streammem.engine.session import Session
from streammem.models.backbones.language import GenerationConfig
from streammem.models.protocols import EvidenceItem
from streammem.types import Frame

WORDS = GenerationConfig(max_new_tokens=24)
OTHER, BEFORE, AFTER = 7, 11, 23  # from a clip to the one in its place, and to those beside it


class ClipQuestion(NamedTuple):
    """A question about a clip.

    Attributes:
        clip: its place in the manifest.
        answers: that count as right, between bars.
    """

    clip: int
    question: str
    answers: str

    @property
    def kind(self) -> str:
        """What it asks: whether a thing is there, which is so or not; or anything else."""
        return {"yes": "there", "no": "not there"}.get(self.answers, "open")


QUESTIONS = (
    ClipQuestion(0, "What color are the cups?", "red"),
    ClipQuestion(0, "What is on the table?", "cup|cups"),
    ClipQuestion(0, "How many cups are there?", "3|three"),
    ClipQuestion(1, "What is the person pouring?", "coffee|water|tea|liquid"),
    ClipQuestion(1, "What color is the mug?", "blue"),
    ClipQuestion(2, "What are the children doing?", "jump|jumping|playing"),
    ClipQuestion(2, "What are they jumping on?", "bed"),
    ClipQuestion(2, "What room is this?", "bedroom"),
    ClipQuestion(2, "How many children are there?", "2|two"),
    ClipQuestion(3, "What is on the table?", "bottle|bottles|water"),
    ClipQuestion(4, "What is driving on the road?", "car|cars|vehicle|vehicles"),
    ClipQuestion(5, "What are the people doing?", "walking|walk|standing"),
    ClipQuestion(6, "What is the technician working on?", "telescope|mirror|mirrors|machine"),
    ClipQuestion(7, "What color are the balls?", "silver|metal|grey|gray"),
    ClipQuestion(8, "What is the man doing?", "snowboarding|snowboard|skiing|ski"),
    ClipQuestion(8, "What color is the jacket?", "yellow"),
    ClipQuestion(8, "What is on the ground?", "snow"),
    ClipQuestion(9, "What animal is this?", "rabbit|bunny"),
    ClipQuestion(9, "What is the rabbit eating?", "watermelon|fruit|melon"),
    ClipQuestion(10, "How many people are there?", "2|two"),
    ClipQuestion(11, "What is the woman putting on?", "makeup|mascara"),
    ClipQuestion(11, "Is there a woman?", "yes"),
    ClipQuestion(12, "What sport are they playing?", "basketball"),
    ClipQuestion(12, "Who is playing?", "children|kids|boys|girls|people|boy"),
    ClipQuestion(13, "What sport is this?", "baseball"),
    ClipQuestion(13, "What is the person holding?", "bat"),
    ClipQuestion(14, "What is the girl doing?", "mixing|cooking|baking|mix|making"),
    ClipQuestion(15, "What is the woman doing?", "yoga|stretching|exercise|exercising"),
    ClipQuestion(15, "Who is doing yoga?", "woman|girl|lady"),
    ClipQuestion(16, "What are the hands kneading?", "dough|bread"),
    ClipQuestion(17, "What is shown?", "earth|planet|globe|world"),
    ClipQuestion(
        18, "What vehicle is parked on the street?", "bicycle|bike|bicycles|bikes|taxi|car"
    ),
    ClipQuestion(19, "What animal is this?", "rabbit|bunny"),
    ClipQuestion(20, "What animal is this?", "swan|bird|duck"),
    ClipQuestion(20, "What is the bird swimming in?", "water|pond|lake|river"),
    ClipQuestion(20, "What color is the bird?", "black"),
    ClipQuestion(21, "What is the person riding?", "bike|bicycle|bmx"),
    ClipQuestion(22, "What color is his shirt?", "red"),
    ClipQuestion(22, "What is the man doing?", "dancing|breakdancing|dance"),
    ClipQuestion(23, "What animal is this?", "camel"),
    ClipQuestion(24, "What is driving on the road?", "car|mini"),
    ClipQuestion(25, "What vehicle is on the street?", "car"),
    ClipQuestion(25, "What color is the car?", "silver|grey|gray|white"),
    ClipQuestion(26, "What animal is this?", "cow"),
    ClipQuestion(26, "What color is the animal?", "brown|white"),
    ClipQuestion(27, "What is the woman doing?", "dancing|dance|twirling"),
    ClipQuestion(27, "What color is the dress?", "blue"),
    ClipQuestion(28, "What animal is this?", "dog"),
    ClipQuestion(28, "What is the dog doing?", "walking|walk|standing|running"),
    ClipQuestion(29, "What vehicle is this?", "car"),
    ClipQuestion(30, "What color is the car?", "red"),
    ClipQuestion(30, "What vehicle is this?", "car"),
    ClipQuestion(31, "What animal is this?", "goat|sheep"),
    ClipQuestion(31, "What is the animal standing on?", "rock|rocks|hill|mountain"),
    ClipQuestion(32, "What animal is the person riding?", "horse"),
    ClipQuestion(32, "What is the horse doing?", "jumping|jump"),
    ClipQuestion(33, "What is the man doing?", "surfing|surf|kite"),
    ClipQuestion(33, "What is he surfing on?", "water|wave|ocean|sea|waves"),
    ClipQuestion(34, "What animal is this?", "dog"),
    ClipQuestion(34, "What is the dog doing?", "running|run|walking"),
    ClipQuestion(35, "What is the person riding?", "bike|motorcycle|motorbike"),
    ClipQuestion(36, "What is on the ground?", "grass"),
    ClipQuestion(37, "What is the man doing?", "jumping|jump|parkour|running|climbing"),
    ClipQuestion(38, "What is the man riding?", "scooter|motorcycle|bike|moped|motorbike"),
    ClipQuestion(38, "What is the man wearing?", "suit|jacket"),
    ClipQuestion(39, "How many men are there?", "2|two"),
    ClipQuestion(39, "What are the men riding?", "cart|car|soapbox"),
    ClipQuestion(8, "Is there snow?", "yes"),
    ClipQuestion(12, "Is there a ball?", "yes"),
    ClipQuestion(20, "Is there a bird?", "yes"),
    ClipQuestion(24, "Is there a car?", "yes"),
    ClipQuestion(27, "Is there a woman?", "yes"),
    ClipQuestion(28, "Is there a dog?", "yes"),
    ClipQuestion(32, "Is there a horse?", "yes"),
    ClipQuestion(38, "Is there a man?", "yes"),
    ClipQuestion(4, "Are there cars?", "yes"),
    ClipQuestion(13, "Is there a bat?", "yes"),
    ClipQuestion(26, "Is there a cow?", "yes"),
    ClipQuestion(35, "Is there a motorcycle?", "yes"),
    ClipQuestion(8, "Is there a dog?", "no"),
    ClipQuestion(9, "Is there a car?", "no"),
    ClipQuestion(12, "Is there a horse?", "no"),
    ClipQuestion(20, "Is there a bicycle?", "no"),
    ClipQuestion(24, "Is there a horse?", "no"),
    ClipQuestion(27, "Is there a bicycle?", "no"),
    ClipQuestion(28, "Is there a man?", "no"),
    ClipQuestion(31, "Is there a boat?", "no"),
    ClipQuestion(32, "Is there a cat?", "no"),
    ClipQuestion(36, "Is there a bus?", "no"),
    ClipQuestion(38, "Is there a horse?", "no"),
    ClipQuestion(0, "Is there a dog?", "no"),
)


def look(model: Any, pictures: Sequence[np.ndarray]) -> EvidenceItem:
    """Watch a clip; return its longest scene as `ask` shows it."""
    session, segments = Session(model), []
    for i, picture in enumerate(pictures):
        segments += session.push(Frame(picture, i / 2, 0.5, i))
    segments += session.flush()
    longest = max(segments, key=lambda segment: segment.end - segment.start)
    caption = session.caption(longest)
    return EvidenceItem(0, SCENE_S, session.tokens(longest.id).float(), caption.text)


def passages(clips: Sequence[EvidenceItem], clip: int) -> dict[str, list[EvidenceItem]]:
    """Return what is shown of each way to ask about a clip."""

    def shown(*places: int) -> list[EvidenceItem]:
        return [
            clips[at % len(clips)]._replace(start=EVERY_S * n, end=EVERY_S * n + SCENE_S)
            for n, at in enumerate(places)
        ]

    before, after = clip + BEFORE, clip + AFTER
    return {
        "own": shown(clip),
        "another": shown(clip + OTHER),
        "blind": [],
        "own of three": shown(before, clip, after),
        "three others": shown(before, clip + OTHER, after),
    }


def measure(
    generator: Any, clips: Sequence[EvidenceItem]
) -> dict[str, tuple[list[str], np.ndarray]]:
    """Ask every question in every way: the replies, and whether each is right."""
    found = {}
    for way in passages(clips, 0):
        prompts = [
            generator.answer_prompt(passages(clips, each.clip)[way], each.question)
            for each in QUESTIONS
        ]
        replies = list[str]()
        for at in range(0, len(prompts), AT_ONCE):
            replies += generator.language.generate(prompts[at : at + AT_ONCE], WORDS)
        right = [
            any(is_right(reply, answer) for answer in each.answers.split("|"))
            for reply, each in zip(replies, QUESTIONS, strict=True)
        ]
        found[way] = replies, np.array(right, float)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks clip_questions", description=__doc__
    )
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--replies", type=Path, help="write every reply, as JSON lines")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with clips")
    folder = Path(os.environ["STREAMMEM_DATA"]) / "clips"
    model: Any = load(options.model)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    clips = [look(model, frames_of(folder / row["file"], row["seconds"])) for row in rows]
    generators = {"answers": model.answer_generator}
    if model.answer_generator is not model:
        generators["no adapter"] = replace(model, open_answers=None)
    kinds = [each.kind for each in QUESTIONS]
    figures: dict[str, Any] = {}
    asked = {name: measure(generator, clips) for name, generator in generators.items()}
    for name, ways in asked.items():
        for way, (_, right) in ways.items():
            told: dict[str, Any] = {"share": round(right.mean(), 4)}
            told["error"] = round(error(right), 4)
            for kind in sorted(set(kinds)):
                hits = [hit for hit, its in zip(right, kinds, strict=True) if its == kind]
                told[kind] = f"{sum(hits):.0f} of {len(hits)}"
            figures[f"{name}, {way}"] = told
            print(f"{name:10} {way:14}", *(f"{k} {v}" for k, v in told.items()), flush=True)
    for way, (_, right) in asked["answers"].items() if len(asked) > 1 else ():
        gain = right - asked["no adapter"][way][1]
        figures[f"gain, {way}"] = {"share": round(gain.mean(), 4), "error": round(error(gain), 4)}
        print(f"gain       {way:14} {gain.mean():+.3f} ± {error(gain):.3f}")
    if options.replies:
        with options.replies.open("w") as lines:
            for i, each in enumerate(QUESTIONS):
                replies = {
                    f"{n}, {w}": r[i] for n, ways in asked.items() for w, (r, _) in ways.items()
                }
                print(json.dumps(each._asdict() | replies), file=lines)
    print(json.dumps({"benchmark": "clip_questions", **figures, "machine": machine()}))
    return 0
