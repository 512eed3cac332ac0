"""`watch` and `chat`: a live source, for as long as it lasts."""

import argparse
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.opening import exit_code, open_session, prune, pruned_every
from streammem.commands.options import (
    add_command,
    add_source_options,
    byte_size,
    duration,
    watch_options,
)
from streammem.commands.publishing import add_mqtt_options, broker_of, camera_name, told_to
from streammem.errors import ConfigError
from streammem.output.render import plain, prometheus, to_line, wall_start
from streammem.output.rotation import RotatedFile, Rotation
from streammem.output.terminal import Results, note
from streammem.types import Answer, Caption, Event, Segment, Stats, Warning

if TYPE_CHECKING:
    from streammem.engine.session import Session
    from streammem.engine.watch_options import WatchOptions

METRICS_EVERY_S = 15.0


def add_to(commands: Any) -> None:
    """Declare the commands."""
    parser = add_command(
        commands,
        "watch",
        watch,
        "a camera for days: captions, alerts, a memory within its budget",
        "streammem watch rtsp://user:password@camera/1 --memory hall --budget 2GB --keep 30d",
        'streammem watch webcam:0 --alert "a dog on the sofa" --pictures seen',
        "streammem watch screen: -o day.jsonl --format jsonl --rotate-every 1d --rotate-keep 7",
        "ffmpeg -i rtmp://... -c copy -f mpegts - | streammem watch -",
        'streammem watch rtsp://camera/1 --alert "a dog" --mqtt mqtt://user:password@broker',
    )
    add_source_options(parser)
    _add_live_options(parser)
    _add_watch_options(parser)
    add_mqtt_options(parser)
    parser = add_command(
        commands,
        "chat",
        chat,
        "captions and questions on one screen",
        "streammem chat webcam:0                                type a question, press Enter",
        "streammem chat rtsp://camera/1 --memory hall",
    )
    add_source_options(parser)
    _add_live_options(parser)


def _add_live_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("live sources").add_argument
    dropped = "the frame that goes when perception is behind; never: the source waits"
    add("--drop", choices=("oldest", "newest", "never"), help=dropped)
    again = "a scene that goes on and changes is described again, as in 1m (default 30s)"
    add("--refresh", type=duration, metavar="TIME", help=again)


def _add_watch_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("alerts, counters, files")
    add = group.add_argument
    waited = "told once each time that this appears; may be repeated"
    add("--alert", action="append", default=[], metavar="TEXT", help=waited)
    add(
        "--pictures", type=Path, metavar="DIR", help="keep the frames of alerts there, 1000 at most"
    )
    add("--stats", type=duration, metavar="TIME", help="counters so often, as in 60s, on stderr")
    add("--metrics", type=Path, metavar="FILE", help="the same, in Prometheus' text form, there")
    add("--rotate-size", type=byte_size, metavar="SIZE", help="begin a new -o file, as in 100MB")
    add("--rotate-every", type=duration, metavar="TIME", help="begin a new -o file, as in 1d")
    add("--rotate-keep", type=int, metavar="N", help="old -o files that are kept (default all)")


def watch(arguments: argparse.Namespace) -> int:
    """Watch until the source ends or a signal comes."""
    rotation, broker = _rotation(arguments), broker_of(arguments)
    with signals() as signalled, open_session(arguments) as session:
        every_s = METRICS_EVERY_S if arguments.metrics or broker else None
        options = replace(
            _live_options(arguments, lambda: signalled.terminated),
            stats_s=every_s if arguments.stats is None else arguments.stats,
            alerts=tuple(arguments.alert),
        )
        if arguments.pictures:
            options = replace(
                options, alerting=replace(options.alerting, pictures=arguments.pictures)
            )
        name, broken = arguments.camera or camera_name(arguments.source, arguments.memory), False
        with (
            told_to(broker, name, options.alerts) as mqtt,
            closing(_Output(arguments, rotation)) as out,
        ):
            for event, wall_zero in _events(session, arguments, options):
                broken |= isinstance(event, Warning)
                if signalled.reopen:
                    signalled.reopen = False
                    out.reopen()
                out.show(event, wall_zero, session.source)
                if mqtt:
                    mqtt.send(event, wall_start(event, wall_zero))
    # What a source that is awaited reports on its way is no failure; a file that breaks off is.
    return exit_code(arguments, broken and _is_file(arguments.source))


def chat(arguments: argparse.Namespace) -> int:
    """Show captions, and answer what is typed."""
    if arguments.format != "text" or arguments.output:
        raise ConfigError("chat is for a terminal: leave out --format and -o; watch writes files")
    if arguments.source == "-":
        raise ConfigError("chat reads questions from standard input; give another source")
    with signals() as signalled, open_session(arguments) as session:
        questions, results = Lines(0), Results("text", None)
        options = replace(
            _live_options(arguments, lambda: signalled.terminated or questions.left),
            question=questions.take,
            on_answer=results.write_piece,
        )
        note("type a question and press Enter; Ctrl-C or Ctrl-D to leave")
        broken = False
        for event, _ in _events(session, arguments, options):
            broken |= isinstance(event, Warning)
            if isinstance(event, Answer):
                results.put(_evidence(event))
            elif isinstance(event, Caption):
                results.write(event)
        if not (options.stop and options.stop()):
            while question := questions.wait():  # the source has ended, the memory has not
                results.put(_evidence(session.ask(question, results.write_piece)))
    return exit_code(arguments, broken and _is_file(arguments.source))


class Lines:
    """Lines that are typed, taken without waiting for them.

    Args:
        descriptor: of the file that they come from.

    Attributes:
        left: whether whoever typed has ended the input at a terminal.
    """

    def __init__(self, descriptor: int) -> None:
        if sys.platform == "win32":
            raise ConfigError("chat needs a POSIX terminal; use watch, and ask the memory")
        self._descriptor, self._typed = descriptor, b""
        self._ended = self.left = False

    def take(self) -> str | None:
        """Return the next whole line that is not empty; None where there is none yet."""
        while True:
            line, end, rest = self._typed.partition(b"\n")
            if end or (self._ended and line):
                self._typed = rest
                if text := line.decode(errors="replace").strip():
                    return text
            elif self._ended or not select.select([self._descriptor], [], [], 0)[0]:
                return None
            else:
                self._read()

    def wait(self) -> str | None:
        """Return the next line when it is there; None at the end."""
        while (text := self.take()) is None and not self._ended:
            self._read()
        return text

    def _read(self) -> None:
        more = os.read(self._descriptor, 4096)
        self._typed += more
        self._ended = not more
        self.left = self._ended and os.isatty(self._descriptor)


@dataclass
class Signalled:
    """What signals have asked for."""

    terminated: bool = False
    reopen: bool = False


@contextmanager
def signals() -> Iterator[Signalled]:
    """Turn SIGTERM into a request to stop, SIGHUP into one to open the output anew."""
    signalled = Signalled()

    def terminate(number: int, frame: object) -> None:
        signalled.terminated = True

    def reopen(number: int, frame: object) -> None:
        signalled.reopen = True

    handlers: dict[int, Callable[[int, object], None]] = {signal.SIGTERM: terminate}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = reopen
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Output:
    """Where the events of `watch` go: results to a file or stdout, the rest to stderr."""

    def __init__(self, arguments: argparse.Namespace, rotation: Rotation) -> None:
        self._arguments = arguments
        path: Path | None = arguments.output
        self._file = RotatedFile(arguments.format, path, rotation) if path else None
        self._stdout = None if path else Results(arguments.format, None)

    def show(self, event: Event, wall_zero: float | None, source: str) -> None:
        """Show an event; ``wall_zero`` is the Unix time at stream time 0, if it is known."""
        if isinstance(event, Segment):
            return
        if isinstance(event, Stats) and self._arguments.metrics:
            _replace(self._arguments.metrics, prometheus(event, source))
        if isinstance(event, Warning) or (isinstance(event, Stats) and self._arguments.stats):
            note(str(event))
        if isinstance(event, Stats) and self._arguments.stats is None:
            return
        more = wall_start(event, wall_zero)
        if self._file:
            self._file.write(event, more)
        elif self._stdout and self._arguments.format == "jsonl":
            self._stdout.put(to_line(event, more) + "\n")
        elif self._stdout:
            self._stdout.write(event)

    def reopen(self) -> None:
        if self._file:
            self._file.reopen()

    def close(self) -> None:
        if self._file:
            self._file.close()
        elif self._stdout:
            self._stdout.finish()


def _events(
    session: "Session", arguments: argparse.Namespace, options: "WatchOptions"
) -> Iterator[tuple[Event, float | None]]:
    """Watch within the memory's limits; each event comes with the Unix time at stream time 0."""
    from streammem.engine.watch import open_for, watch
    from streammem.engine.workers import open_aside

    assert options.stop  # see _live_options
    source = open_aside(lambda: open_for(arguments.source, options), options.stop)
    if source is None:
        return
    prune(session, arguments)
    num_segments = 0
    for event in watch(session, source, options):
        num_segments += isinstance(event, Segment)
        if isinstance(event, Segment) and num_segments % pruned_every(arguments.budget) == 0:
            prune(session, arguments)
        yield event, getattr(source, "wall_zero", None)
    prune(session, arguments)


def _live_options(arguments: argparse.Namespace, stop: Callable[[], bool]) -> "WatchOptions":
    options = watch_options(arguments)
    return replace(
        options,
        reconnect=True,
        drop=arguments.drop,
        refresh_s=arguments.refresh or options.refresh_s,
        stop=lambda: arguments.interrupted() or stop(),
    )


def _rotation(arguments: argparse.Namespace) -> Rotation:
    rotation = Rotation(arguments.rotate_size, arguments.rotate_every, arguments.rotate_keep)
    if rotation != Rotation() and not arguments.output:
        raise ConfigError("--rotate-size, -every and -keep are for a file; give -o FILE too")
    if rotation.keep is not None and rotation == Rotation(keep=rotation.keep):
        raise ConfigError("--rotate-keep: say when files rotate, with --rotate-size or -every")
    for path in (arguments.metrics, arguments.pictures):
        if path and not path.parent.is_dir():
            raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    return rotation


def _is_file(source: str) -> bool:
    from streammem.video.source import kind_of

    return kind_of(source) in ("file", "folder", "picture")


def _evidence(answer: Answer) -> str:
    lines = [" ".join(plain(str(item)).split()) for item in answer.evidence]
    if not answer.seen:
        lines.append("not seen with confidence; these are the nearest moments")
    return "\n" + "".join(f"  {line}\n" for line in lines)


def _replace(path: Path, text: str) -> None:
    """Write a file that a reader finds whole."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
