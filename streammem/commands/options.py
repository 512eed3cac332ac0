"""What can be said on the command line: flags, their units, and the checks that open nothing.

What is done then is `commands/`'s business.
"""

import argparse
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from streammem.errors import ConfigError
from streammem.output.render import FORMATS, plain

if TYPE_CHECKING:
    from streammem.engine.session_config import SessionConfig
    from streammem.engine.watch import WatchOptions
    from streammem.types import Segment

Run = Callable[[argparse.Namespace], int]

BYTES = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for base, unit in ((1000, "b"), (1024, "ib"))
    for power, prefix in enumerate("kmgt", start=1)
}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
MEASURE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", re.ASCII)
CLOCK = re.compile(r"(?:(\d+):([0-5]\d)|(\d+)):([0-5]\d(?:\.\d+)?)", re.ASCII)
# Segments that were just closed may still wait for their captions, so a memory that is being
# written must not be pruned down to them.
LEAST_BUDGET_BYTES, LEAST_KEEP_S = 1_000_000, 3600.0


class Parser(argparse.ArgumentParser):
    """argparse in our manner: a wrong argument is one line, and flags are written out."""

    def __init__(self, **options: Any) -> None:  # argparse itself makes the parsers of commands
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        text = " ".join(plain(message).split())
        self.exit(2, f"streammem: {text}; see {self.prog} --help\n")


def add_command(commands: Any, name: str, run: Run, about: str, *examples: str) -> Parser:
    """Add a command to what ``add_subparsers`` returned.

    Args:
        commands: there.
        name: of the command.
        run: does it and returns its exit code.
        about: one line for ``--help``.
        examples: lines as one would type them, with remarks.
    """
    shown = "\n  ".join(("examples:", *examples)) if examples else None
    added: Parser = commands.add_parser(name, help=about, description=about, epilog=shown)
    # Most commands hold nothing that an interrupt must close: Ctrl-C ends them at once.
    added.set_defaults(run=run, graceful=False)
    add = added.add_argument
    # No default: a command above may have been given the flag already.
    add(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="say more on stderr"
    )
    return added


def add_source_options(parser: Parser, *, asks: bool = False) -> None:
    """Add what every command takes that looks at a source; ``asks``: or at a memory."""
    parser.set_defaults(asks=asks, graceful=True)
    add = parser.add_argument
    kinds = "video file, picture, folder of pictures, URL (http, https, rtsp), webcam:N, screen:, "
    kinds += "growing:FOLDER, a FIFO, or - for standard input"
    add("source", help=f"{kinds}; or a memory" if asks else kinds)
    _add_model(parser)
    add("--fps", type=float, help="frames a second to look at (default 2; scenes: all)")
    add("--start", type=seconds, metavar="TIME", help="where to enter: seconds or h:mm:ss")
    add("--end", type=seconds, metavar="TIME", help="where to leave: seconds or h:mm:ss")
    recorded = "when the first frame was taken, as in 2026-05-03T14:00, for questions such as "
    add("--recorded", type=moment, metavar="TIME", help=f'{recorded}"at 3 pm"; live ones know it')
    add("--sparse", action="store_true", help="keyframes only: about ten times cheaper")
    add(
        "--reader",
        choices=("auto", "pyav", "decord"),
        default="auto",
        help="what decodes video files; auto is pyav, decord needs streammem[decord]",
    )
    add(
        "--speech",
        default="auto",
        metavar="auto|on|off|MODEL",
        help="what is said: auto, where it can be known. This version reads no subtitles and has "
        "no recogniser, so auto and off do the same, and on or a MODEL is refused",
    )
    _add_memory_options(parser)
    add_output_options(parser)
    _add_model_options(parser)


def add_session_options(parser: Parser) -> None:
    """Add what a command takes that opens sessions on sources which others name."""
    _add_model(parser)
    _add_model_options(parser)


def _add_model(parser: Parser) -> None:
    add = parser.add_argument
    add("--model", default="streammem-tiny", help="preset or checkpoint folder")
    add("--config", type=Path, metavar="FILE", help="TOML file of options (see configs/)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as in passages=6")
    add("--device", default="cpu", help="where the language model runs: cpu, cuda, cuda:1, mps")


def add_output_options(parser: Parser, *forms: str) -> None:
    """Add --format, of these forms or of all, and -o."""
    parser.add_argument("--format", choices=forms or tuple(FORMATS), default="text")
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help="write there instead of stdout")


def add_limits(parser: argparse._ActionsContainer) -> None:
    """Add how large and how old a memory may become."""
    add = parser.add_argument
    size = "bytes on disk, as in 500MB: keyframes thin first, then tokens, captions go last"
    add("--budget", type=byte_size, metavar="SIZE", help=size)
    add("--keep", type=duration, metavar="TIME", help="what is older goes, as in 7d, 12h, 90m")


def _add_memory_options(parser: Parser) -> None:
    group = parser.add_argument_group("memory that lasts")
    about = "keep what is seen there, and go on from it"
    group.add_argument("--memory", type=Path, metavar="DIR", help=about)
    add_limits(group)


def _add_model_options(parser: Parser) -> None:
    add = parser.add_argument_group("language model").add_argument
    add("--context", choices=("memory", "now", "uniform", "captions"), help="what answers rest on")
    add("--prompt", help="the instruction for captions, instead of the trained one")
    unsure = "less is said of a scene below it: first words or none (default 0.3; 0: all is said)"
    drawn = "captions drawn of a scene, of which the one that fits best is said (1: the likeliest)"
    add("--candidates", type=int, metavar="N", help=drawn)
    add("--min-confidence", type=float, metavar="P", help=unsure)
    add("--max-new-tokens", type=int)
    add("--temperature", type=float, help="0 is greedy (default)")
    add("--top-p", type=float)
    add("--num-beams", type=int)
    add("--seed", type=int)


# -- units --


def seconds(text: str) -> float:
    """Read seconds, ``m:ss`` or ``h:mm:ss``, with decimals; the range is not looked at.

    Raises:
        argparse.ArgumentTypeError: none of these.
    """
    found = CLOCK.fullmatch(text)
    if found:
        hours, minutes, all_minutes, rest = found.groups()
        return int(hours or 0) * 3600 + int(minutes or all_minutes) * 60 + float(rest)
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds or h:mm:ss") from None


def moment(text: str) -> float:
    """Read a date and time in ISO 8601, this computer's unless it names its offset; Unix seconds.

    Raises:
        argparse.ArgumentTypeError: not a time.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        message = f"{text!r}: give a time such as 2026-05-03T14:00 or 2026-05-03T14:00+02:00"
        raise argparse.ArgumentTypeError(message) from None


def byte_size(text: str) -> int:
    """Read a size such as ``500MB`` or ``2GiB``; a bare number is bytes.

    Raises:
        argparse.ArgumentTypeError: not a number of bytes.
    """
    return round(_measured(text, BYTES, "a size such as 500MB or 2GiB"))


def duration(text: str) -> float:
    """Read a duration such as ``7d``, in seconds.

    Raises:
        argparse.ArgumentTypeError: no number with a unit of time.
    """
    return _measured(text, SECONDS, f"a number and one of {', '.join(SECONDS)}, as in 7d")


def _measured(text: str, units: Mapping[str, int], wanted: str) -> float:
    found = MEASURE.fullmatch(text)
    scale = units.get(found[2].lower()) if found else None
    if not found or scale is None:
        raise argparse.ArgumentTypeError(f"{text!r}: give {wanted}")
    return float(found[1]) * scale


# -- checks and meanings --


def configured(config: "SessionConfig", arguments: argparse.Namespace) -> "SessionConfig":
    """Lay --config, then --set, then the flags over the options.

    Raises:
        ConfigError: an unknown option, or a value that cannot be meant.
    """
    from streammem.config import override, parse_assignments, read_toml

    if arguments.config:
        config = override(config, read_toml(arguments.config), f"{arguments.config}: ")
    config = override(config, parse_assignments(arguments.set), "--set ")
    return override(config, _flags(arguments), "--")


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
    for name in ("candidates", "min_confidence"):
        if getattr(arguments, name) is not None:
            flags[name] = getattr(arguments, name)
    if arguments.prompt:
        flags["instruction"] = arguments.prompt
    if getattr(arguments, "timezone", None):
        flags["timezone"] = arguments.timezone
    return flags


def watch_options(
    arguments: argparse.Namespace,
    *,
    speak: bool = True,
    on_text: "Callable[[Segment, str], None] | None" = None,
) -> "WatchOptions":
    """Return how the source is to be watched."""
    from streammem.engine.watch import DEFAULT_FPS, WatchOptions

    return WatchOptions(
        fps=DEFAULT_FPS if arguments.fps is None else arguments.fps,
        start=arguments.start or 0.0,
        end=arguments.end,
        sparse=arguments.sparse,
        reader="pyav" if arguments.reader == "auto" else arguments.reader,
        speak=speak,
        stop=arguments.interrupted,
        on_text=on_text,
    )


def check_formats(arguments: argparse.Namespace, *forms: str) -> None:
    """Refuse a format that has no place for a command's results.

    Raises:
        ConfigError: --format is none of these.
    """
    if arguments.format not in forms:
        raise ConfigError(f"--format {arguments.format}: give one of {', '.join(forms)} here")


def check_speech(choice: str) -> None:
    """Refuse what this version cannot hear.

    Raises:
        ConfigError: --speech asks for a recogniser.
    """
    if choice not in ("auto", "off"):
        raise ConfigError(
            f"--speech {choice}: this version has no speech recogniser; leave it out, or give off"
        )


def check_limits(arguments: argparse.Namespace) -> None:
    """Refuse limits that no memory could keep while it is written.

    Raises:
        ConfigError: --budget or --keep without --memory, or too small.
    """
    if (arguments.budget, arguments.keep) == (None, None):
        return
    if not arguments.memory:
        raise ConfigError("--budget and --keep are for a memory that lasts; give --memory DIR too")
    if arguments.budget is not None and arguments.budget < LEAST_BUDGET_BYTES:
        raise ConfigError("--budget: a memory that is being written needs 1MB at least")
    if arguments.keep is not None and arguments.keep < LEAST_KEEP_S:
        raise ConfigError("--keep: a memory that is being written needs 1h at least")


def check_output(path: Path | None, *sources: str | Path) -> None:
    """Refuse a file that could not be written, or that would be written over.

    Raises:
        ConfigError: no such folder, a folder itself, not writable, or one of the sources.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{path}: cannot be written; check its permissions, or give another file")
    for source in sources:
        if path.exists() and os.path.exists(source) and path.samefile(source):
            raise ConfigError(f"{path}: is the source itself; give another file")
