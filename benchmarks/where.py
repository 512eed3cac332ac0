"""Where a thing was seen last, over composed hours: ``python -m benchmarks where``.

- An hour is about 200 scenes of 8 to 40 s, each a photo under a window that moves twice, or a short
  clip, with a frame every 2 s of a made clock. They are pushed through a session: SceneTilling cuts
  them, and every scene gets its caption.
- Of each thing that is put somewhere one to three scenes come at places drawn at random; no other
  scene shows it. As many things are in no scene. In hours of *everyday things* a scene shows what
  its sentences name; in the hour of *kitchen things* it is a kitchen frame of persons that training
  has not seen, and shows what people labelled, among photos that name none of it.
- Each thing is asked for once, at the end: "Where did I put the ...?" Right is a last sighting that
  lies in the last scene that shows it.
- Controls are asked the same: the last four scenes alone, captions as text (the newest that names
  the thing), and the memory of another hour, which tells how often a time is right by chance; it
  may show the thing itself, so its claims tell nothing.

``--log`` keeps every answer. The last line has the figures as JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.films import Described, share
from benchmarks.machine import machine
from benchmarks.see import names_of, person_of
from streammem import load
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.evaluation.datasets import read_photo, read_photos
from streammem.evaluation.film_files import letterboxed, read_clips
from streammem.evaluation.films import THINGS, UNSAID, scenes_cited, shows
from streammem.memory.entry import Entry
from streammem.memory.memory import Memory
from streammem.qa.answerer import AnswerConfig, Answerer
from streammem.qa.question import Present
from streammem.training.records import HELD_OUT_PERSONS
from streammem.types import Frame, TimeSpan

HOUR_S = 3600.0
SCENE_S = (8.0, 40.0)  # log-uniform between them
FRAME_S = 2.0
VIEWS = 3  # of a scene
CLIP_S = 5.0  # of a clip, at most
EVERYDAY, KITCHEN = 16, 12  # things that are there; as many are not
LAST = 4  # scenes of the control
OLD_S = 600.0
QUESTIONS = ("Where did I put the {}?", "Where is the {}?", "Where did I last see the {}?")


@dataclass(frozen=True, eq=False)
class Shown:
    """What a scene may show: what tells of it, and its pictures [H, W, 3] uint8."""

    sentences: tuple[str, ...]
    views: Callable[[np.random.Generator], list[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Hour:
    """A composed hour: its scenes with their edges [N + 1] in seconds, and what is asked.

    Attributes:
        asked: things, each with the scenes that show it, rising; none of what is not there.
    """

    kind: str
    scenes: tuple[Shown, ...]
    edges: np.ndarray
    asked: dict[str, tuple[int, ...]]


# -- what is composed --


def windows(path: Path, rng: np.random.Generator) -> list[np.ndarray]:
    """Views of a photo: windows of most of it."""
    photo = read_photo(path)
    height, width = photo.shape[:2]
    found = []
    for _ in range(VIEWS):
        share_of = rng.uniform(0.8, 1.0)
        rows, columns = int(height * share_of), int(width * share_of)
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        found.append(np.ascontiguousarray(photo[top : top + rows, left : left + columns]))
    return found


def frames(path: Path, seconds: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Views of a clip: frames of it, in order."""
    first = float(rng.uniform(0, seconds / 2))
    pictures = list(letterboxed(path, first, min(seconds, first + CLIP_S)))
    return [pictures[i] for i in np.linspace(0, len(pictures) - 1, VIEWS).astype(int)]


def compose(
    kind: str, needles: dict[str, list[Shown]], others: Sequence[Shown], absent: Sequence[str],
    rng: np.random.Generator,
) -> Hour:  # fmt: skip
    """Put needles at places drawn at random among scenes that show none of them."""
    lengths = list[float]()
    while sum(lengths) < HOUR_S:
        lengths.append(float(np.exp(rng.uniform(*np.log(SCENE_S)))))
    order = [others[i % len(others)] for i in range(len(lengths))]
    needed = [shown for scenes in needles.values() for shown in scenes]
    places = rng.choice(len(order), len(dict.fromkeys(needed)), replace=False)
    for place, shown in zip(places, dict.fromkeys(needed), strict=True):
        order[place] = shown
    asked: dict[str, tuple[int, ...]] = dict.fromkeys(absent, ())
    for thing, scenes in needles.items():
        asked[thing] = tuple(i for i, shown in enumerate(order) if shown in scenes)
    return Hour(kind, tuple(order), np.cumsum([0.0, *lengths]), asked)


def everyday_hours(data: Path, count: int, limit: int | None) -> Iterator[Hour]:
    """Compose hours of photos and clips; no photo is in two of them."""
    photos = [
        Shown(photo.captions, partial(windows, photo.path))
        for photo in read_photos(data / "flickr8k", "val")[:limit]
    ]
    clips = [
        Shown(clip.sentences, partial(frames, data / "clips" / clip.name, clip.seconds))
        for clip in read_clips(data / "clips")
    ]
    for number in range(count):
        rng = np.random.default_rng([1, number])
        pool = [*photos[number::count], *clips]
        pool = [pool[i] for i in rng.permutation(len(pool))]
        every = [thing for thing in THINGS if thing not in UNSAID]
        showing = {thing: [s for s in pool if shows(s.sentences, thing)] for thing in every}
        some = [thing for thing in every if showing[thing]]
        chosen = [some[i] for i in rng.permutation(len(some))[:EVERYDAY]]
        few = {thing: showing[thing][: int(rng.integers(1, 4))] for thing in chosen}
        # A needle of one thing may show another one, too.
        needed = dict.fromkeys(shown for scenes in few.values() for shown in scenes)
        needles = {t: [s for s in needed if shows(s.sentences, t)] for t in chosen}
        others = [s for s in pool if not any(shows(s.sentences, thing) for thing in chosen)]
        seen = (*needed, *others)
        gone = [t for t in every if not any(shows(s.sentences, t) for s in seen)]
        absent = [gone[i] for i in rng.permutation(len(gone))[:EVERYDAY]]
        yield compose("everyday", needles, others, absent, rng)


def kitchen_hour(data: Path, limit: int | None) -> Hour:
    """Compose an hour of photos with kitchen frames between them."""
    rng = np.random.default_rng(2)
    rows = map(json.loads, (data / "kitchen_frames/labels.jsonl").read_text().splitlines())
    held = [row for row in rows if person_of(row) in HELD_OUT_PERSONS]
    by_name: dict[str, list[Path]] = {}
    for row in held:
        if len(names := names_of(row)) == 1:
            path = data / "kitchen_frames/images" / row["image"]
            by_name.setdefault(f"a {names.pop()}", []).append(path)
    every = [sorted(by_name)[i] for i in rng.permutation(len(by_name))]
    chosen, absent = every[:KITCHEN], every[KITCHEN : 2 * KITCHEN]
    needles = {}
    for name in chosen:
        paths = [by_name[name][i] for i in rng.permutation(len(by_name[name]))]
        needles[name] = [Shown((), partial(windows, p)) for p in paths[: int(rng.integers(1, 4))]]
    others = [
        Shown(photo.captions, partial(windows, photo.path))
        for photo in read_photos(data / "flickr8k", "val")[:limit]
        if not any(shows(photo.captions, name) for name in (*chosen, *absent))
    ]
    others = [others[i] for i in rng.permutation(len(others))]
    return compose("kitchen", needles, others, absent, rng)


def pushed(model: Any, hour: Hour, seed: int, candidates: int | None) -> Session:
    """Push an hour through a session, and caption its scenes."""
    session = Session(model, SessionConfig(candidates=candidates))
    rng, index = np.random.default_rng([3, seed]), 0
    began = time.monotonic()
    for number, shown in enumerate(hour.scenes):
        start, end = hour.edges[number : number + 2]
        views, times = shown.views(rng), np.arange(start, end, FRAME_S)
        for i, at in enumerate(times):
            picture = views[i * len(views) // len(times)]
            frame = Frame(picture, float(at), float(min(FRAME_S, end - at)), index)
            index += 1
            for segment in session.push(frame):
                session.caption(segment)
        if number % 50 == 49:
            spent = time.monotonic() - began
            print(f"  {number + 1} of {len(hour.scenes)} scenes, {spent:.0f} s", flush=True)
    for segment in session.flush():
        session.caption(segment)
    return session


# -- who answers: each returns whether the thing was seen, and the span of its last sighting --

Sighting = tuple[bool, TimeSpan | None]


def by_memory(model: Any, memory: Memory, question: str, thing: str) -> Sighting:
    """The last sighting, as sessions answer."""
    present = Present((), 0, torch.zeros(0))
    answer = Answerer(model, memory, AnswerConfig(), Described()).ask(question, present)
    if not (answer.seen and answer.evidence):
        return answer.seen, None
    first = answer.evidence[0]  # what followed comes behind it
    return True, TimeSpan(first.start, first.end)


def by_captions(rows: Sequence[Entry], question: str, thing: str) -> Sighting:
    """The newest scene whose caption names the thing."""
    for row in reversed(rows):
        if row.caption and shows([row.caption], thing):
            return True, TimeSpan(row.start, row.end)
    return False, None


def last_scenes(memory: Memory) -> Memory:
    """A memory of the newest scenes alone."""
    few = Memory(memory.config)
    for row in memory.entries()[-LAST:]:
        few.append(row, torch.zeros(0))
    return few


# -- figures --


def figures(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return shares with their standard errors, and how many they are of."""
    there = [line for line in lines if line["there"]]
    absent = [line for line in lines if not line["there"]]
    old = [line for line in there if line["age"] >= OLD_S]
    new = [line for line in there if line["age"] < OLD_S]

    def of(name: str, some: Sequence[dict[str, Any]]) -> list[float] | None:
        found = share([line[name] for line in some], [line["thing"] for line in some])
        return found and [round(found[0], 3), round(found[1], 3), len(some)]

    return {
        "right": of("right", there),
        "right, old": of("right", old),
        "right, below 10 min": of("right", new),
        "an earlier scene of it": of("earlier", there),
        "another scene": of("other", there),
        "refused though there": of("refused", there),
        "claimed though absent": of("seen", absent),
    }


def main(arguments: list[str]) -> int:
    """Compose, watch, ask and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks where", description=__doc__)
    parser.add_argument("--hours", type=int, default=2, help="of everyday things")
    parser.add_argument("--photos", type=int, help="of flickr8k's validation (default: all 1,000)")
    parser.add_argument("--candidates", type=int, help="captions drawn of a scene (default: 8)")
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--log", type=Path, help="a JSON line an answer")
    options = parser.parse_args(arguments)
    data, model = Path(os.environ["STREAMMEM_DATA"]), load(options.model)
    hours = [
        *everyday_hours(data, options.hours, options.photos),
        kitchen_hour(data, options.photos),
    ]
    sessions = []
    for number, hour in enumerate(hours):
        print(f"{hour.kind}: {len(hour.scenes)} scenes", flush=True)
        sessions.append(pushed(model, hour, number, options.candidates))
    lines = []
    for number, hour in enumerate(hours):
        own, other = sessions[number].memory, sessions[(number + 1) % len(sessions)].memory
        answering: dict[str, Callable[[str, str], Sighting]] = {
            "memory": partial(by_memory, model, own),
            f"last {LAST}": partial(by_memory, model, last_scenes(own)),
            "captions": partial(by_captions, own.entries()),
            "another hour": partial(by_memory, model, other),
        }
        for place, (thing, gold) in enumerate(sorted(hour.asked.items())):
            name = thing.removeprefix("a ").removeprefix("an ")
            question = QUESTIONS[place % len(QUESTIONS)].format(name)
            for by, ask in answering.items():
                seen, span = ask(question, thing)
                cited = set(scenes_cited(hour.edges, [span] if span else []))
                right = bool(gold) and gold[-1] in cited
                lines.append({
                    "hour": number, "kind": hour.kind, "by": by, "thing": thing,
                    "question": question, "there": bool(gold), "seen": seen,
                    "age": float(hour.edges[-1] - hour.edges[gold[-1] + 1]) if gold else None,
                    "right": right, "earlier": not right and bool(cited & set(gold)),
                    "other": seen and not cited & set(gold), "refused": not seen,
                    "gold": gold, "cited": sorted(cited),
                })  # fmt: skip
    if options.log:
        options.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report: dict[str, Any] = {
        "scenes": [len(hour.scenes) for hour in hours],
        "rows": [len(session.memory) for session in sessions],
    }
    for kind in ("everyday", "kitchen"):
        for by in dict.fromkeys(str(line["by"]) for line in lines):
            some = [line for line in lines if line["by"] == by and line["kind"] == kind]
            report[f"{kind}, {by}"] = figures(some)
    for title, values in report.items():
        print(f"{title}: {json.dumps(values)}")
    print(json.dumps({"benchmark": "where", **report, "machine": machine()}))
    return 0
