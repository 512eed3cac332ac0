"""Flags of the command line, their units, and the checks that open nothing.

A flag that stands for an option is one row of a table: its name, the option's field, its help.

    add_flags(parser, SOURCE_FLAGS)
    options = SourceOptions(**given(SOURCE_FLAGS, parser.parse_args()))

What a flag leaves out has the option's default, which is stated by its dataclass.
"""

import argparse
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from streammem.errors import BackboneError, ConfigError, install_command
from streammem.models.registry import DEFAULT, WHOLE, find_generator, generators_help, load
from streammem.output.render import FORMATS, plain
from streammem.output.terminal import note
from streammem.types import TimeSpan
from streammem.video import SourceOptions
from streammem.video.address import without_addresses
from streammem.video.registry import sources_help
from streammem.video.source import DECODERS, DEFAULT_FPS

if TYPE_CHECKING:
    from streammem.audio.track import SpeechOptions
    from streammem.engine.session_config import SessionConfig
    from streammem.engine.watch_options import WatchOptions
    from streammem.memory.retrieval import Window
    from streammem.models.protocols import StreamModel
    from streammem.models.vlm.server import Spend
    from streammem.output.results import Rotation
    from streammem.server.limits import Limits

EVENTS = ("text", "jsonl")  # formats of what has no place in subtitles
RunCommand = Callable[[argparse.Namespace], int]

BYTES = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for base, unit in ((1000, "b"), (1024, "ib"))
    for power, prefix in enumerate("kmgt", start=1)
}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
MEASURE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", re.ASCII)
CLOCK = re.compile(r"(?:(\d+):([0-5]\d)|(\d+)):([0-5]\d(?:\.\d+)?)", re.ASCII)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
# Segments that were just closed may still wait for their captions, so a memory that is being
# written must not be pruned down to them.
LEAST_BUDGET_BYTES, LEAST_KEEP_S = 1_000_000, 3600.0
TOKEN = "STREAMMEM_TOKEN"
SPEND_HELP = (
    "tokens, and requests after a comma, that servers are asked an hour at most; those to a "
    "transcription server count, too"
)
# Measured: docs/research/cameras.md, "How often an alert is right".
ALERTS_ARE = (
    "A hint, not an alarm. With streammem-tiny, of alerts such as 'a dog' 3 of 10 were false, and "
    "of 2 that came 1 was told, mostly once the scene had its caption; of whole sentences 5 of 10 "
    "were false, and of 3 that came 1 was told"
)
SET_HELP = (
    "as in passages=6; of a VideoLLaMB cuts=top3 or threshold reads a file as a whole, so that "
    "captions come after its end, and cuts=streaming while it goes on"
)


# -- units --


def seconds(text: str) -> float:
    """Read seconds, ``m:ss`` or ``h:mm:ss``, with decimals; the range is not checked.

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


def add_between(parser: argparse.ArgumentParser, about: str, *, required: bool = False) -> None:
    """Declare --between, which `between_of` reads."""
    times = "in seconds or h:mm:ss, or by the wall clock as in 2026-05-03T16:40 16:45"
    parser.add_argument(
        "--between", nargs=2, metavar=("A", "B"), required=required, help=f"{about}; {times}"
    )


def between_of(arguments: argparse.Namespace) -> "Window | None":
    """Return the part of a memory that --between means: of the stream's or of the wall clock.

    A wall-clock time that names no offset is one of --timezone, or else of this computer. The
    second one may be a time of day alone, the first after the first one.

    Raises:
        ConfigError: the times mean nothing, or are not in order.
    """
    if arguments.between is None:
        return None
    from streammem.memory.retrieval import Window

    first, second = arguments.between
    wall = bool(_DAY.match(first))
    try:
        if not wall and _DAY.match(second):
            raise ConfigError(f"--between {first} {second}: give the first time its date, too")
        if wall:
            begin = _wall_time(first, vars(arguments).get("timezone"))
            of_day = _TIME_OF_DAY.fullmatch(second)
            if of_day:
                hour, minute, rest = of_day.groups()
                until = begin.replace(hour=int(hour), minute=int(minute), second=int(rest or 0))
                until += timedelta(days=until <= begin)
            else:
                until = _wall_time(second, vars(arguments).get("timezone"))
            start, end = begin.timestamp(), until.timestamp()
        else:
            start, end = seconds(first), seconds(second)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--between: {error}") from error
    if not ((wall or start >= 0) and start < end and math.isfinite(end)):
        raise ConfigError(f"--between {first} {second}: give two times >= 0, the earlier first")
    span = TimeSpan(start, end)
    return Window(wall=span) if wall else Window(stream=span)


def zone_of(timezone: str | None) -> ZoneInfo | None:
    """Return the time zone that --timezone names; None for this computer's.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return None if timezone is None else ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        text = f"--timezone {timezone!r}: not known; give a name such as Europe/Berlin"
        raise ConfigError(text) from error


def _wall_time(text: str, timezone: str | None) -> datetime:
    moment(text)  # which refuses what is no time
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=zone_of(timezone)) if at.tzinfo is None else at


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


# -- flags that stand for options --


@dataclass(frozen=True)
class Flag:
    """A flag that stands for one option.

    Attributes:
        name: as typed.
        option: the field that it sets.
        help: one line.
        read: keywords of ``add_argument`` that say how its value is read.
    """

    name: str
    option: str
    help: str | None = None
    read: dict[str, Any] = field(default_factory=dict)


_TIME: dict[str, Any] = {"type": duration, "metavar": "TIME"}
_PLACE: dict[str, Any] = {"type": seconds, "metavar": "TIME"}
_SIZE: dict[str, Any] = {"type": byte_size, "metavar": "SIZE"}
_WHOLE: dict[str, Any] = {"type": int, "metavar": "N"}
_TEXTS: dict[str, Any] = {"action": "append", "default": [], "metavar": "TEXT"}

SOURCE_FLAGS = (  # of SourceOptions
    Flag(
        "--fps",
        "fps",
        f"frames a second to look at (default {DEFAULT_FPS:g}; scenes: all)",
        {"type": float},
    ),
    Flag("--start", "start", "where to enter: seconds or h:mm:ss", _PLACE),
    Flag("--end", "end", "where to leave: seconds or h:mm:ss", _PLACE),
    Flag("--sparse", "sparse", "keyframes only: about ten times cheaper", {"action": "store_true"}),
    Flag(
        "--reader",
        "reader",
        "what decodes video files; auto is pyav, decord needs streammem[decord]",
        {"choices": ("auto", *DECODERS), "default": "auto"},
    ),
)
SPEECH_FLAGS = (  # of SpeechOptions
    Flag(
        "--speech",
        "speech",
        "what is said: auto (default) reads subtitles beside or in a video file, where there are "
        "some, and recognises nothing; on recognises speech where there are none; off does "
        "neither; MODEL recognises: whisper-base, faster-whisper:NAME, a folder (these need "
        "streammem[speech]), or a server, openai:URL#NAME; FILE is a subtitle file of the video, "
        "or the URL of one: .srt, .vtt, .ass",
        {"default": "auto", "metavar": "auto|on|off|MODEL|FILE"},
    ),
    Flag(
        "--speech-language",
        "language",
        "of subtitles, as in en, or the first that is there of en,de; of speech (default: found)",
        {"metavar": "LANG"},
    ),
    Flag(
        "--sounds",
        "sounds",
        "name sounds (applause, a dog barks): folder of ImageBind's imagebind_huge.pth and of its "
        "bpe_simple_vocab_16e6.txt.gz",
        {"metavar": "FOLDER"},
    ),
)
LIVE_FLAGS = (  # of WatchOptions
    Flag(
        "--drop",
        "drop",
        "the frame that goes when perception is behind; never: the source waits",
        {"choices": ("oldest", "newest", "never")},
    ),
    Flag(
        "--refresh",
        "refresh_s",
        "a scene that goes on and changes is described again, as in 1m (default 30s)",
        _TIME,
    ),
)
WATCH_FLAGS = (  # of WatchOptions
    Flag(
        "--alert",
        "alerts",
        f"told once each time that this appears; may be repeated. {ALERTS_ARE}",
        _TEXTS,
    ),
    Flag(
        "--confirm-alerts",
        "confirm_alerts",
        "ask the model of each alert whether it sees it, before it is told (default: it is told)",
        {"action": "store_true", "default": None},
    ),
    Flag(
        "--until",
        "until",
        'end, with exit code 0, once the model finds this to hold, as in "the parcel is gone"',
        {"metavar": "TEXT"},
    ),
    Flag("--stats", "stats_s", "counters so often, as in 60s, on stderr", _TIME),
)
ANSWER_FLAGS = (  # of SessionConfig
    Flag(
        "--context",
        "context",
        "what answers rest on",
        {"choices": ("memory", "now", "uniform", "captions", "goldfish", "goldfish-again")},
    ),
    Flag(
        "--steps",
        "steps",
        "times that the model is asked for one answer; above 1 it may look things up, if it can "
        "call tools (default 1)",
        _WHOLE,
    ),
    Flag(
        "--verify",
        "verify",
        "what was not seen is checked by the model, which looks at the nearest scenes",
        {"action": "store_true", "default": None},
    ),
    Flag("--prompt", "instruction", "the instruction for captions, instead of the trained one"),
    Flag(
        "--candidates",
        "candidates",
        "captions drawn of a scene, of which the one that fits best is said (1: the likeliest)",
        _WHOLE,
    ),
    Flag(
        "--min-confidence",
        "min_confidence",
        "less is said of a scene below it: first words or none (default 0.25; 0: all is said)",
        {"type": float, "metavar": "P"},
    ),
)
TIMEZONE = Flag(
    "--timezone",
    "timezone",
    "that wall-clock words are read in, as in Europe/Berlin; this computer's by default",
    {"metavar": "NAME"},
)
PLANNING = Flag(
    "--planning",
    "planning",
    "adapter that knows what people do next in kitchens, for plans without --steps: kitchen "
    "(CC BY-NC 4.0: not for commercial use), or a file (default: the memory's own past alone)",
    {"metavar": "NAME"},
)
DECODING_FLAGS = (  # of GenerationConfig, for captions and answers
    Flag("--max-new-tokens", "max_new_tokens", None, {"type": int}),
    Flag("--temperature", "temperature", "0 is greedy (default)", {"type": float}),
    Flag("--top-k", "top_k", "sample of so many likeliest tokens (default 0: all)", _WHOLE),
    Flag("--top-p", "top_p", None, {"type": float}),
    Flag(
        "--repetition-penalty",
        "repetition_penalty",
        "of words that a reply has already (default 1: none)",
        {"type": float},
    ),
    Flag("--num-beams", "num_beams", None, {"type": int}),
    Flag("--seed", "seed", None, {"type": int}),
)
LIMIT_FLAGS = (  # of the server's Limits
    Flag("--max-sessions", "sessions", "open at a time (default 16)", _WHOLE),
    Flag("--max-upload", "upload_bytes", "of one video (default 2GiB)", _SIZE),
    Flag("--quota", "quota_bytes", "of all uploads (default 8GiB)", _SIZE),
    Flag(
        "--max-rate",
        "requests_per_s",
        "requests a second a client (default 50)",
        {"type": float, "metavar": "N"},
    ),
    Flag("--idle", "idle_s", "closes what had no request for so long (default 1h)", _TIME),
)


def add_flags(parser: argparse._ActionsContainer, flags: Sequence[Flag]) -> None:
    """Add flags to a parser or a group of one."""
    for flag in flags:
        parser.add_argument(flag.name, help=flag.help, **flag.read)


def given(flags: Sequence[Flag], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that flags were given for, by field.

    A flag that the command lacks, or whose value is empty or ``auto``, leaves the default.
    """
    values = {flag.option: vars(arguments).get(_dest(flag)) for flag in flags}
    typed = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return {name: v for name, v in typed.items() if v not in (None, "", (), "auto")}


def _dest(flag: Flag) -> str:
    return flag.name.removeprefix("--").replace("-", "_")


def source_options(arguments: argparse.Namespace) -> SourceOptions:
    """Return how the source is opened.

    Raises:
        ConfigError: a value outside its range.
    """
    return SourceOptions(**given(SOURCE_FLAGS, arguments), reconnect=arguments.reconnects)


def watch_options(arguments: argparse.Namespace) -> "WatchOptions":
    """Return how the source is watched.

    Raises:
        ConfigError: a value outside its range.
    """
    from streammem.engine.watch_options import WatchOptions

    options = WatchOptions(
        **given((*LIVE_FLAGS, *WATCH_FLAGS), arguments), speech=speech_options(arguments)
    )
    pictures = vars(arguments).get("pictures")
    return replace(options, alerting=replace(options.alerting, pictures=pictures))


def rotation_of(arguments: argparse.Namespace) -> "Rotation":
    """Return when the output file of ``watch`` is rotated.

    Raises:
        ConfigError: a value outside its range, a flag that needs another, no such folder.
    """
    from streammem.output.results import Rotation

    rotation = Rotation(arguments.rotate_size, arguments.rotate_every, arguments.rotate_keep)
    if rotation != Rotation() and not arguments.output:
        raise ConfigError("--rotate-size, -every and -keep are for a file; give -o FILE too")
    if rotation.keep is not None and rotation == Rotation(keep=rotation.keep):
        raise ConfigError("--rotate-keep: say when files rotate, with --rotate-size or -every")
    for path in (arguments.metrics, arguments.pictures):
        if path and not path.parent.is_dir():
            raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    return rotation


def speech_options(arguments: argparse.Namespace, *, several: bool = False) -> "SpeechOptions":
    """Return where words come from.

    Args:
        arguments: of the command.
        several: whether it may watch several videos, so that no subtitle file is of all of them.

    Raises:
        ConfigError: a value that means nothing.
    """
    from streammem.audio.track import SpeechOptions

    flags = {flag.option: vars(arguments).get(_dest(flag)) for flag in SPEECH_FLAGS}
    given_flags = {name: value for name, value in flags.items() if value is not None}
    options = SpeechOptions(**given_flags, spend=_budget(arguments))
    if several and options.subtitles is not None:
        raise ConfigError("--speech: a subtitle file is of one video; here it may be several")
    return options


def configured(config: "SessionConfig", arguments: argparse.Namespace) -> "SessionConfig":
    """Lay --config, then --set, then the flags over the options.

    Raises:
        ConfigError: an unknown option, or a value outside its range.
    """
    from streammem.config import override, parse_assignments, read_toml

    if arguments.config:
        config = override(config, read_toml(arguments.config), f"{arguments.config}: ")
    config = override(config, parse_assignments(arguments.set), "--set ")
    flags = given((*ANSWER_FLAGS, TIMEZONE, PLANNING), arguments)
    if decoding := given(DECODING_FLAGS, arguments):
        flags |= {"caption": decoding, "answer": decoding}
    return override(config, flags, "--")


def _budget(arguments: argparse.Namespace) -> "Spend | None":
    """Return the budget of all that servers are asked; the same one each time."""
    from streammem.models.vlm.server import Spend

    spend = vars(arguments).get("spend")
    if isinstance(spend, str):
        arguments.spend = spend = Spend.read(spend)
    return spend


def load_model(arguments: argparse.Namespace) -> "StreamModel":
    """Load the model that --model, --caption-with and --answer-with name.

    Raises:
        StreammemError: one of them means nothing, or cannot be opened.
    """
    from streammem.audio.track import is_served

    spend = _budget(arguments)
    names = (arguments.model, arguments.caption_with, arguments.answer_with)
    kinds = [found[0] for name in names if name and (found := find_generator(name))]
    if is_served(vars(arguments).get("speech")) and not any(kind.served for kind in kinds):
        spend = None  # it is the transcription server's alone
    return load(
        arguments.model,
        device=arguments.device,
        caption_with=arguments.caption_with,
        answer_with=arguments.answer_with,
        spend=spend,
        keys=arguments.keys,
    )


def server_limits(arguments: argparse.Namespace) -> "Limits":
    """Return a server's limits.

    Raises:
        ConfigError: a value outside its range.
    """
    from streammem.server.limits import Limits

    return Limits(**given(LIMIT_FLAGS, arguments))


# -- parsers --


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, and whose flags are written out.

    Attributes:
        formats: that --format may name; where it is not given, -o's ending may.
    """

    def __init__(self, **options: Any) -> None:  # argparse itself makes the parsers of commands
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**options, allow_abbrev=False)
        self.formats: tuple[str, ...] = ()
        self._typed: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override]  # which argparse overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        self._typed = sys.argv[1:] if args is None else args
        found, rest = super().parse_known_args(args, namespace)
        if rest:  # here, where the command's options are known
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if self.formats and found.format is None:
            ending = found.output.suffix[1:].lower() if found.output else ""
            found.format = ending if ending in self.formats else "text"
        return found, rest

    def error(self, message: str) -> NoReturn:
        # argparse looks for what is missing first, and does not name what was typed instead.
        if message.startswith(("the following arguments are required", "unrecognized arguments")):
            message += "".join(self._misspelled())
        text = " ".join(plain(without_addresses(message)).split())
        self.exit(2, f"streammem: {text}; see {self.prog} --help\n")

    def _misspelled(self) -> Iterator[str]:
        """Name the nearest option of each that was typed and is none."""
        known = self._option_string_actions
        for word in self._typed:
            if word == "--":  # what follows is no option
                return
            option = word.partition("=")[0]
            if option.startswith("--") and option not in known:
                nearest = get_close_matches(option, known, n=1)
                meant = f"; did you mean {nearest[0]}?" if nearest else ""
                yield f" ({option} is no option{meant})"


def add_command(commands: Any, name: str, run: RunCommand, about: str, *examples: str) -> Parser:
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


def add_source_options(
    parser: Parser,
    *,
    asks: bool = False,
    reconnects: bool = False,
    optional: bool = False,
    answers: bool = True,
    formats: Sequence[str] = tuple(FORMATS),
) -> None:
    """Add the source and the flags of every command that reads one.

    Args:
        parser: of the command.
        asks: it may be given a memory instead.
        reconnects: a live source that is lost is opened again.
        optional: the source may be left out.
        answers: a language model writes what it gives.
        formats: in which that can be written.
    """
    parser.set_defaults(asks=asks, reconnects=reconnects, graceful=True)
    add = parser.add_argument
    about = f"{sources_help()}; or a memory" if asks else sources_help()
    add("source", nargs="?" if optional else None, help=about)
    _add_model(parser)
    add_flags(parser, SOURCE_FLAGS)
    recorded = "when the recording began, as in 2026-05-03T14:00, for questions such as "
    add("--recorded", type=moment, metavar="TIME", help=f'{recorded}"at 3 pm"; live ones know it')
    add_flags(parser, SPEECH_FLAGS)
    group = parser.add_argument_group("memory that lasts")
    about = "keep what is seen there, and go on from it"
    group.add_argument("--memory", type=Path, metavar="DIR", help=about)
    add_limits(group)
    add_output_options(parser, formats)
    if answers:
        _add_model_options(parser)


def add_live_options(parser: Parser) -> None:
    """Add the flags of commands that watch live sources."""
    add_flags(parser.add_argument_group("live sources"), LIVE_FLAGS)


def add_watch_options(parser: Parser) -> None:
    """Add the flags of ``watch``: alerts, counters, files."""
    group = parser.add_argument_group("alerts, counters, files")
    add_flags(group, WATCH_FLAGS)
    add = group.add_argument
    kept = "keep the frames of alerts there, 1000 at most"
    add("--pictures", type=Path, metavar="DIR", help=kept)
    add("--metrics", type=Path, metavar="FILE", help="the same, in Prometheus' text form, there")
    add("--rotate-size", **_SIZE, help="begin a new -o file, as in 100MB")
    add("--rotate-every", **_TIME, help="begin a new -o file, as in 1d")
    add("--rotate-keep", **_WHOLE, help="old -o files that are kept (default all)")


def add_mqtt_options(parser: argparse.ArgumentParser) -> None:
    """Add --mqtt and --camera."""
    add = parser.add_argument_group("MQTT and Home Assistant").add_argument
    about = "tell events to a broker: mqtt://[user:password@]host[:port][/prefix], or mqtts://"
    add("--mqtt", metavar="URL", help=about)
    add("--camera", metavar="NAME", help="what it is called there (default: after the source)")


def add_server_options(parser: Parser) -> None:
    """Add the flags of commands that listen on a port."""
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="watched from the start; see caption --help")
    add("--host", default="127.0.0.1", help=f"address to listen on; others need {TOKEN} to be set")
    add("--port", type=int, default=8080, help="default 8080; 0 is a free one")
    add("--prefix", default="", metavar="PATH", help="of this server behind a proxy: /cameras")
    add("--memories", type=Path, metavar="DIR", help="folder whose memories may be asked, by name")
    add_archive(add)
    kept = (
        "keep what cameras of the command line show in RAM alone (default: on disk in --memories; "
        "of `ui` without it, in ~/.local/share/streammem/memories; at most 2 GiB a camera)"
    )
    add("--no-memory", action="store_true", help=kept)
    add("--uploads", type=Path, metavar="DIR", help="folder for uploads (default: a temporary one)")
    about = "host (with *), address or network that clients may name in a source; may be repeated"
    add("--allow-source", action="append", default=[], metavar="HOST", help=about)
    about = "folder below which clients may name files, as file:///path; may be repeated"
    add("--allow-files", action="append", default=[], type=Path, metavar="DIR", help=about)
    about = f"told once each time that this appears in a SOURCE; may be repeated. {ALERTS_ARE}"
    add("--alert", action="append", default=[], metavar="TEXT", help=about)
    confirm = next(flag for flag in WATCH_FLAGS if flag.name == "--confirm-alerts")
    add_flags(parser, (confirm,))
    add_flags(parser.add_argument_group("limits"), LIMIT_FLAGS)
    add_flags(parser, SPEECH_FLAGS)
    add_session_options(parser)


def add_archive(add: Callable[..., Any]) -> None:
    """Add --archive."""
    about = "likewise, but they are only read: of `index` or `watch --sources`, also meanwhile"
    add("--archive", type=Path, metavar="DIR", help=about)


def add_session_options(parser: Parser) -> None:
    """Add the flags of commands that open sessions on sources which others name."""
    _add_model(parser)
    _add_model_options(parser)


def add_output_options(parser: Parser, formats: Sequence[str]) -> None:
    """Add --format, of these, and -o."""
    parser.formats = tuple(formats)
    add = parser.add_argument
    add("--format", choices=parser.formats, help="default: what FILE ends with, or text")
    add("-o", "--output", type=Path, metavar="FILE", help="write there instead of stdout")


def add_limits(parser: argparse._ActionsContainer) -> None:
    """Add how large and how old a memory may become."""
    add = parser.add_argument
    size = "bytes on disk, as in 500MB: keyframes thin first, then tokens, captions go last"
    add("--budget", **_SIZE, help=size)
    add("--keep", **_TIME, help="what is older goes, as in 7d, 12h, 90m")


def _add_model(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--model",
        default=DEFAULT,
        help=f"{WHOLE}, or what captions and answers: {generators_help()}",
    )
    add("--caption-with", metavar="NAME", help="what captions instead, written likewise")
    add("--answer-with", metavar="NAME", help="what answers instead")
    keys = "what makes the keys for search: own (default), or hf:NAME of a CLIP or SigLIP"
    add("--keys", metavar="NAME", help=keys)
    add("--spend", metavar="N[,N]", help=SPEND_HELP)
    add("--config", type=Path, metavar="FILE", help="TOML file of options (see configs/)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=SET_HELP)
    add(
        "--device",
        default="cpu",
        help="where frames are encoded and language models run: cpu, cuda, ...",
    )


def _add_model_options(parser: Parser) -> None:
    group = parser.add_argument_group("language model")
    add_flags(group, (*ANSWER_FLAGS, *DECODING_FLAGS))


# -- checks --


def require(extra: str, *packages: str) -> None:
    """Refuse to start without the packages of an extra.

    Raises:
        BackboneError: one is missing; says how to install it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            name = {"paho.mqtt.client": "paho-mqtt"}.get(package, package)
            raise BackboneError(
                f"{name} is not installed; run: {install_command(extra)}"
            ) from error


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


def check_no_subtitles(path: Path | None, *sources: str) -> None:
    """Refuse to write captions over a file that is taken for the subtitles of a source.

    Raises:
        ConfigError: it is there, and is.
    """
    from streammem.audio.subtitles import is_beside

    if path and any(is_beside(path, Path(source)) for source in sources):
        raise ConfigError(
            f"{path}: is there, and is read as the video's subtitles; give another file, as "
            f"{_captions_name(path)}, or remove it"
        )


def note_if_read_as_subtitles(written: Path | None, *sources: str) -> None:
    """Say that captions lie where those of a source, if it is a file, will be read as its words."""
    from streammem.audio.subtitles import is_beside

    if written and any(is_beside(written, Path(source)) for source in sources):
        note(
            f"{written}: is named like the video, so these captions are read as its subtitles "
            f"from now on; rename it, as to {_captions_name(written)}, or give --speech off"
        )


def _captions_name(path: Path) -> str:
    return f"{path.stem}.captions{path.suffix}"
