"""Films of joined real clips: are questions about them answered right, and what is absent refused?

Half of the clips of ``$STREAMMEM_DATA/clips`` make one film, the other half another. Films and
their memories (watched and captioned once) stay in ``--cache``; questions are asked anew.
``--controls`` adds the contexts in which the model answers in its own words, of a few questions
because it is slow, and the memory of the other film (blind).
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clips as video
from streammem.evaluation import films
from streammem.evaluation.answers import Outcome, is_right
from streammem.evaluation.timelines import TimedQuestion

SECONDS = 300.0
HALVES = {"fit": 0, "report": 1}


def clips_of(folder: Path, half: str) -> list[films.Clip]:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows = [
        row for row in rows if not row["multi_shot"] and row["seconds"] >= films.SCENE_S[0] - 0.5
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    chosen = [rows[i] for i in sorted(order[HALVES[half] :: 2])]
    return [films.Clip(row["file"], row["caption"], row["seconds"] - 0.05) for row in chosen]


def pictures(folder: Path, clips: list[films.Clip], film: films.Film) -> Iterator[np.ndarray]:
    for scene in film.scenes:
        yield from video.letterboxed(folder / clips[scene.clip].name, scene.start, scene.end)


def watched(
    folder: Path, cache: Path, half: str, film: films.Film, clips: list[films.Clip]
) -> Path:
    """Make a film and its memory, unless they are there; return the memory."""
    from streammem.cli import main

    path, memory = cache / f"{half}.mp4", cache / f"{half}.memory"
    cache.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        video.write(path, pictures(folder, clips, film))
    if not memory.exists():
        main(["caption", str(path), "--memory", str(memory), "-o", str(cache / f"{half}.txt")])
    return memory


class NoDescriber:
    """Captions nothing: what could be captioned was, when the film was watched."""

    def describe(self, entries: object) -> None:
        pass


def answered(model: Any, memory: Path, film: films.Film, asked: Sequence[TimedQuestion],
             context: str = "memory") -> list[Outcome]:  # fmt: skip
    """Ask a memory, each question alone."""
    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig

    outcomes = []
    with Session(model, SessionConfig(context=context), memory=memory, read_only=True) as session:
        session.answerer.describer = NoDescriber()
        for question in asked:
            session.answerer.turns.clear()
            answer = session.ask(question.text)
            evidence = sorted(answer.evidence, key=lambda item: -item.score)
            cited = films.scenes_cited(film.edges, [(item.start, item.end) for item in evidence])
            right = is_right(question, answer, set(cited), film.edges)
            read = model.text_encoder.read_question(question.text).operator == question.operator
            outcomes.append(
                Outcome(question, read, right, answer.seen, tuple(cited), False, answer.text)
            )
    return outcomes


def show(name: str, outcomes: list[Outcome]) -> None:
    print(f"\n{name}")
    for operator, figures in films.table(outcomes).items():
        print(f"  {operator:10}", *(f"{key} {value:<6g}" for key, value in figures.items()))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks films", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="streammem-tiny")
    parser.add_argument("--controls", action="store_true", help="other contexts, another memory")
    options = parser.parse_args(arguments)
    if "STREAMMEM_DATA" not in os.environ:
        parser.error("set STREAMMEM_DATA to the folder with clips")
    folder = Path(os.environ["STREAMMEM_DATA"]) / "clips"

    from streammem import load

    model, made = load(options.model), {}
    for half, seed in HALVES.items():
        clips = clips_of(folder, half)
        film = films.plan(clips, SECONDS, seed=seed)
        asked = films.ask_about(film, [clip.sentence for clip in clips], seed=seed)
        made[half] = film, asked, watched(folder, options.cache, half, film, clips)
    for half, (film, asked, memory) in made.items():
        show(f"{half}: {len(film.scenes)} scenes", answered(model, memory, film, asked))
        other = made["fit" if half == "report" else "report"][2]
        if options.controls:
            show(f"{half}, blind (the other film's memory)", answered(model, other, film, asked))
            some = [question for question in asked if question.operator == "exists"]
            few = [q for q in some if q.gold][:12] + [q for q in some if not q.gold][:6]
            for context in ("captions", "uniform", "now"):
                outcomes = answered(model, memory, film, few, context)
                show(f"{half}, exists alone, --context {context}", outcomes)
    return 0
