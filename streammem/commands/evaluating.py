"""`eval`: how well a model does, with controls; films with questions; two runs compared."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from streammem.commands.opening import quiet_libraries
from streammem.commands.options import add_command, check_output
from streammem.errors import ConfigError
from streammem.output.terminal import note, write_line

# Answers that break these are no answers: the figures do not count.
VOID = ("past only", "knows no future")
PROGRESS_S = 60.0  # between lines of progress, where stderr is no terminal


def add_to(commands: Any) -> None:
    """Declare the command."""
    from streammem.evaluation.questions import SUITES

    parser = add_command(
        commands,
        "eval",
        evaluate,
        "measure a model on a data folder, see docs/guide/evaluation.md",
        "streammem eval make clips films --photos flickr8k --films 2 --minutes 10",
        "streammem eval films films --controls -o runs/tiny",
        "streammem eval nextqa nextqa --videos NExTVideo --limit 300 -o runs/nextqa",
        "streammem eval egoschema egoschema --context blind --limit 300",
        "streammem eval diff runs/tiny runs/other",
        "streammem eval captions flickr8k --split val --controls",
        "streammem eval retrieval flickr8k --limit 300 --json figures.json",
        "streammem eval answers flickr8k --answer-with teacher --controls",
    )
    add = parser.add_argument
    suites = ", ".join(SUITES)
    about = f"captions, retrieval, memory or answers, of photos; {suites}, of videos; "
    add("suite", help=about + "make makes films with questions; diff compares two runs")
    folder = "data folder: images/ and captions.jsonl; a suite's own files; of make, clips with "
    add("folder", type=Path, help=folder + "manifest.jsonl; of diff, a run")
    add("out", type=Path, nargs="?", help="make: folder of the films; diff: the other run")
    add("--photos", type=Path, metavar="DIR", help="make: whose photos come between the clips")
    add("--films", type=int, default=1, help="make: films of each half of the clips")
    add("--minutes", type=float, default=5.0, help="make: length of a film")
    few = "make: frames a second of a film (25); 5 make films of hours in a fraction of the time"
    add("--fps", type=int, metavar="N", help=few)
    add("--seed", type=int, default=0, help="of made films, of samples and shuffled options")
    contexts = "what videos are asked by: memory, or a control (blind, now, uniform, captions)"
    add("--context", help=contexts)
    beside = "also score every control; of --context blind, options in another order"
    add("--controls", action="store_true", help=beside)
    add("--scorer", default="likelihood", help="videos: likelihood of the options, or letter")
    add("--videos", type=Path, metavar="DIR", help="videos: where they lie; else in the folder")
    kept = "videos: keep answers and report there; an interrupted run goes on"
    add("-o", "--output", type=Path, metavar="DIR", help=kept)
    add("--skip-bad-rows", action="store_true", help="videos: leave out rows that are malformed")
    judge = "videos: who judges open answers besides; a model behind an endpoint of OpenAI's form"
    add("--judge", metavar="URL#MODEL", help=judge)
    add("--split", default="val")
    add("--model", default="streammem-tiny")
    add("--device", default="cpu")
    add("--limit", type=int, help="so many pictures, the first; so many questions, drawn")
    add("--predictions", type=Path, metavar="FILE", help="photos: a JSON line a prediction")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--num-beams", type=int)
    drawn = "captions drawn of a picture, of which the one that fits best counts (1: the likeliest)"
    add("--candidates", type=int, metavar="N", help=drawn)
    again = "videos and answers: the generator that answers; answers: teacher knows the photos"
    add("--answer-with", metavar="NAME", help=again)


def evaluate(arguments: argparse.Namespace) -> int:
    """Print the figures of a suite; the last line is one JSON object."""
    from streammem.evaluation.questions import SUITES as OF_VIDEOS
    from streammem.evaluation.suites import SUITES as OF_PHOTOS

    suite, two = arguments.suite, ("make", "diff")
    if (arguments.out is None) == (suite in two):
        raise ConfigError("eval make and eval diff take two folders; a suite takes one")
    for path in (arguments.predictions, arguments.json):
        check_output(path)
    if suite == "make":
        return _make_films(arguments)
    if suite == "diff":
        return _diff(arguments)
    if suite in OF_VIDEOS:
        return _of_videos(arguments)
    if suite not in OF_PHOTOS:
        raise ConfigError(f"{suite}: no such suite; known: {', '.join((*OF_PHOTOS, *OF_VIDEOS))}")
    if arguments.answer_with is not None and suite != "answers":
        raise ConfigError("--answer-with is for the suite answers, and for suites of videos")
    if arguments.context or arguments.videos or arguments.output or arguments.judge:
        raise ConfigError("--context, --videos, --output and --judge are for suites of videos")
    return _of_photos(arguments)


def _of_videos(arguments: argparse.Namespace) -> int:
    """Watch the videos of a suite and ask its questions; 1 if the answers cannot count."""
    from streammem.evaluation.asking import CONTEXTS, RunConfig, SessionWatcher, ask_suite
    from streammem.evaluation.judge import Judge
    from streammem.evaluation.questions import SUITES, Videos, read_suite
    from streammem.evaluation.report import draw, markdown, summarise

    # 1. Everything that can be refused, before a model is loaded.
    suite, context = SUITES[arguments.suite], arguments.context or "memory"
    if context in ("shuffled", "other"):
        raise ConfigError(f"--context {context}: is a control beside memory; give --controls")
    beside = ["shuffled"] if context == "blind" else [c for c in CONTEXTS if c != context]
    more = beside if arguments.controls else []
    config = RunConfig(
        (context, *more), arguments.scorer, arguments.limit, arguments.seed, suite.captions,
        wording=suite.wording,
    )  # fmt: skip
    if arguments.predictions:
        raise ConfigError("--predictions: suites of videos keep theirs in --output DIR")
    judge = Judge.open(arguments.judge) if arguments.judge else None
    found = read_suite(suite.name, arguments.folder, skip=arguments.skip_bad_rows)
    for notice in found.notices[:3]:
        note(notice)
    if len(found.notices) > 3:
        note(f"and {len(found.notices) - 3} more notices, see the report")
    if judge and not any(question.check == "text" for question in found.questions):
        raise ConfigError(f"--judge: {suite.name} has no open answers that a judge could compare")
    videos = Videos(suite, arguments.folder, arguments.videos)
    # 2. The run. The model is opened with its first question: without videos there is none.
    opened: list[Any] = []

    def watcher() -> SessionWatcher:
        if not opened:
            opened.append(_opened(arguments))
        return SessionWatcher(opened[0], config)

    name = arguments.model
    name += f" + {arguments.answer_with}" if arguments.answer_with else ""
    run = ask_suite(
        found, videos, watcher, config,
        model=name, out=arguments.output, on_progress=_progress(), judge=judge,
    )  # fmt: skip
    # 3. The report.
    report = summarise(found, run)
    text, line = markdown(report), json.dumps(report, ensure_ascii=False)
    if arguments.output:
        (arguments.output / "report.md").write_text(text, "utf-8")
        (arguments.output / "report.json").write_text(line + "\n", "utf-8")
        draw(report, arguments.output / "report.png")
    if arguments.json:
        arguments.json.write_text(line + "\n", "utf-8")
    for row in text.splitlines():
        write_line(row)
    write_line(line)
    void = [c["name"] for c in report["checks"] if c["name"] in VOID and not c["holds"]]
    if void:
        note(f"{', '.join(void)}: answers rest on what was not shown yet; nothing of this counts")
    return 1 if void else 0


def _progress() -> Callable[[int, int], None] | None:
    """Return what notes how far a run is, a line a minute; None where a bar shows it."""
    if sys.stderr.isatty():
        return None
    noted = time.monotonic()

    def progress(done: int, count: int) -> None:
        nonlocal noted
        if time.monotonic() - noted >= PROGRESS_S:
            noted = time.monotonic()
            note(f"{done} of {count} questions are done")

    return progress


def _opened(arguments: argparse.Namespace) -> Any:
    from streammem.models.registry import load
    from streammem.models.threads import limit_threads

    quiet_libraries()
    limit_threads(busy=1)
    return load(arguments.model, device=arguments.device, answer_with=arguments.answer_with)


def _of_photos(arguments: argparse.Namespace) -> int:
    from streammem.captioning.captioner import Captioner
    from streammem.engine.session_config import SessionConfig
    from streammem.evaluation.datasets import EvaluationOptions
    from streammem.evaluation.pictures import PictureModel
    from streammem.evaluation.rereading import evaluate_rereading
    from streammem.evaluation.suites import run_suite
    from streammem.models.checkpoint import load_checkpoint
    from streammem.models.registry import open_generator
    from streammem.models.threads import limit_threads

    options = EvaluationOptions(
        split=arguments.split,
        limit=arguments.limit,
        controls=arguments.controls,
        predictions=arguments.predictions,
    )
    quiet_libraries()
    limit_threads(busy=1)
    model = load_checkpoint(arguments.model, device=arguments.device)
    if arguments.num_beams is not None:
        decoding = replace(model.generator.decoding, num_beams=arguments.num_beams)
        model = replace(model, decoding=decoding)  # type: ignore[type-var]
    if arguments.candidates is not None:
        config = SessionConfig(candidates=arguments.candidates).captioning
        count = Captioner(model, config).candidates
        choice = model.reranker and model.reranker._replace(candidates=count)
        model = replace(model, reranker=choice)  # type: ignore[type-var]
    if arguments.answer_with is None:
        figures = run_suite(
            arguments.suite, arguments.folder, PictureModel(cast(Any, model)), options
        )
    else:
        generator = None
        if arguments.answer_with != "teacher":
            generator = open_generator(
                arguments.answer_with, device=arguments.device, base=partial(_same, model)
            )
        report = evaluate_rereading(arguments.folder, model, generator, options)
        for row in str(report).splitlines():
            write_line(row)
        figures = report.to_json()
    line = json.dumps(figures)
    if arguments.json:
        arguments.json.write_text(line + "\n")
    write_line(line)
    return 0


def _same(model: Any) -> Any:
    return model


def _make_films(arguments: argparse.Namespace) -> int:
    """Make films with questions, and print their files."""
    from streammem.evaluation.film_files import FPS, MAX_PHOTOS, MakeOptions, make_films

    options = MakeOptions(
        arguments.photos,
        arguments.films,
        arguments.minutes,
        arguments.limit or MAX_PHOTOS,
        arguments.seed,
        FPS if arguments.fps is None else arguments.fps,
    )
    for film in make_films(arguments.folder, arguments.out, options):
        write_line(str(film))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    """Print how two runs differ on the questions that both answered."""
    from streammem.evaluation.report import diff_markdown, difference

    found = difference(arguments.folder, arguments.out, context=arguments.context)
    for row in diff_markdown(found).splitlines():
        write_line(row)
    line = json.dumps(found, ensure_ascii=False)
    if arguments.json:
        arguments.json.write_text(line + "\n", "utf-8")
    write_line(line)
    return 0
