"""`caption`, `scenes`, `watch` and `chat`: a source is watched, and what comes of it is shown."""

import argparse
import os
import select
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands import cameras
from streammem.commands.opening import every_frame, exit_code, open_session, watch_source
from streammem.commands.options import (
    EVENTS,
    add_command,
    add_live_options,
    add_mqtt_options,
    add_source_options,
    add_watch_options,
    note_if_read_as_subtitles,
    rotation_of,
    watch_options,
)
from streammem.commands.publishing import broker_of, camera_name, publisher_to
from streammem.errors import ConfigError, ServedModelError
from streammem.output.render import plain, prometheus, wall_start
from streammem.output.results import EventOutput, Results, Rotation, output, replace_file
from streammem.output.terminal import LiveText, Sheet, note, signals
from streammem.types import Answer, Caption, Event, Note, Notice, Segment, Stats, Until
from streammem.video.address import public_name

if TYPE_CHECKING:
    from streammem.engine.session import Session

METRICS_EVERY_S = 15.0


def add_to(commands: Any) -> None:
    """Declare the commands."""
    parser = add_command(
        commands,
        "caption",
        run_caption,
        "captions, scene by scene",
        "streammem caption holiday.mp4                          unsure ones say less, or nothing",
        "streammem caption holiday.mp4 --min-confidence 0       all words, as they are generated",
        "streammem caption holiday.mp4 --format srt -o holiday.captions.srt",
        "streammem caption holiday.mp4 --start 1:30 --end 2:00 --format jsonl",
        "streammem caption holiday.mp4 --memory trips --budget 500MB",
    )
    add_source_options(parser)
    sheet = "also draw keyframes, similarity and depth"
    parser.add_argument("--sheet", type=Path, metavar="PNG", help=sheet)
    parser = add_command(
        commands,
        "scenes",
        run_scenes,
        "where scenes begin and end",
        "streammem scenes holiday.mp4 --format jsonl            every frame is looked at",
        "streammem scenes holiday.mp4 --fps 2                   four times faster, times to 0.5 s",
    )
    add_source_options(parser, formats=EVENTS)
    parser = add_command(
        commands,
        "watch",
        run_watch,
        "a camera for days: captions, alerts, a memory within its budget",
        "streammem watch rtsp://user:password@camera/1 --memory hall --budget 2GB --keep 30d",
        'streammem watch webcam:0 --alert "a dog on the sofa" --pictures seen',
        "streammem watch screen: -o day.jsonl --format jsonl --rotate-every 1d --rotate-keep 7",
        "ffmpeg -i rtmp://... -c copy -f mpegts - | streammem watch -",
        'streammem watch rtsp://camera/1 --alert "a dog" --mqtt mqtt://user:password@broker',
        'streammem watch rtsp://camera/1 --until "the parcel is gone" --answer-with ollama:NAME',
        "streammem watch --sources cameras.toml --memory house   many cameras, a memory each",
    )
    add_source_options(parser, reconnects=True, optional=True)
    add_live_options(parser)
    add_watch_options(parser)
    add_mqtt_options(parser)
    cameras.add_options(parser)
    parser = add_command(
        commands,
        "chat",
        run_chat,
        "captions and questions on one screen",
        "streammem chat webcam:0                                type a question, press Enter",
        "streammem chat rtsp://camera/1 --memory hall",
    )
    add_source_options(parser, reconnects=True, formats=("text",))
    add_live_options(parser)


def run_caption(arguments: argparse.Namespace) -> int:
    """Print captions as they are made."""
    with open_session(arguments) as session:
        return _caption(session, arguments)


def _caption(session: "Session", arguments: argparse.Namespace) -> int:
    from streammem.engine.watch_options import WatchCallbacks

    sheet = Sheet(session) if arguments.sheet else None
    live = LiveText(sys.stderr if arguments.output else sys.stdout)
    with output(arguments.format, arguments.output) as results, closing(live):
        # Text on stdout appears word by word; other forms are written a whole event at a time.
        streams = bool(arguments.output) or arguments.format == "text"
        callbacks = WatchCallbacks(
            arguments.interrupted, on_text=live.write_piece if streams else None
        )
        broken = False
        events = watch_source(session, arguments, callbacks=callbacks, progress=not streams)
        for event, _ in events:
            if isinstance(event, Notice):
                note(str(event))
                broken |= event.is_failure
            if sheet:
                sheet.take(event)
            if isinstance(event, Caption) and streams:
                live.end(event)
            if isinstance(event, Note) and not arguments.output and streams:
                live.line(event)
            if isinstance(event, Segment) or (not arguments.output and streams):
                continue
            results.write(event)
    if sheet:
        sheet.draw(arguments.sheet, Path(public_name(arguments.source)).name)
    note_if_read_as_subtitles(arguments.output, arguments.source)
    return exit_code(arguments, broken)


def run_scenes(arguments: argparse.Namespace) -> int:
    """Print segments as they settle."""
    broken = False
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        for event in _scenes(session, arguments):
            if isinstance(event, Notice):
                note(str(event))
                broken |= event.is_failure
            results.write(event)
    return exit_code(arguments, broken)


def _scenes(session: "Session", arguments: argparse.Namespace) -> Iterator[Event]:
    # A memory is written by the session, which looks at --fps; so does one that cuts at the end.
    own = session.whole or arguments.memory is not None
    if arguments.fps is None and not arguments.sparse and not own:
        yield from every_frame(session, arguments)
        return
    options = replace(watch_options(arguments), captions=False)
    for event, _ in watch_source(session, arguments, options, progress=True):
        if not isinstance(event, Note):
            yield event


def run_watch(arguments: argparse.Namespace) -> int:
    """Watch until the source ends or a signal comes."""
    if arguments.sources:
        return cameras.run_cameras(arguments)
    cameras.check_one(arguments)
    from streammem.engine.watch_options import WatchCallbacks

    rotation, broker = rotation_of(arguments), broker_of(arguments)
    with signals() as signalled, open_session(arguments) as session:
        options = watch_options(arguments)
        if options.stats_s is None and (arguments.metrics or broker):
            options = replace(options, stats_s=METRICS_EVERY_S)
        callbacks = WatchCallbacks(lambda: arguments.interrupted() or signalled.terminated)
        name, broken = arguments.camera or camera_name(arguments.source, arguments.memory), False
        holds = options.until is None
        with (
            publisher_to(broker, name, options.alerts) as mqtt,
            closing(_Output(arguments, rotation)) as out,
        ):
            for event, wall_zero in watch_source(session, arguments, options, callbacks):
                broken |= isinstance(event, Notice) and event.is_failure
                holds |= isinstance(event, Until)
                if signalled.reopen:
                    signalled.reopen = False
                    out.reopen()
                out.show(event, wall_zero, session.source)
                if mqtt:
                    mqtt.send(event, wall_start(event, wall_zero))
    if options.until is not None and holds:
        return 0
    if not holds and not arguments.interrupted() and not signalled.terminated:
        note(f"the source has ended, and this did not hold: {options.until}")
        return 1
    return exit_code(arguments, broken)


def run_chat(arguments: argparse.Namespace) -> int:
    """Show captions, and answer what is typed."""
    from streammem.engine.watch_options import WatchCallbacks

    if arguments.output:
        raise ConfigError("chat is for a terminal: leave out -o; watch writes files")
    if arguments.source == "-":
        raise ConfigError("chat reads questions from standard input; give another source")
    with signals() as signalled, open_session(arguments) as session:
        questions, results = Lines(0), Results("text", None)

        def stop() -> bool:
            return arguments.interrupted() or signalled.terminated or questions.left

        callbacks = WatchCallbacks(stop, question=questions.take, on_answer=results.write_piece)
        note("type a question and press Enter; Ctrl-C or Ctrl-D to leave")
        broken = False
        for event, _ in watch_source(session, arguments, callbacks=callbacks):
            broken |= isinstance(event, Notice) and event.is_failure
            if isinstance(event, Answer):
                results.put(_evidence(event))
            elif isinstance(event, Caption | Note):
                results.write(event)
        if not stop():
            while question := questions.wait():  # the source has ended, the memory has not
                try:
                    results.put(_evidence(session.ask(question, results.write_piece)))
                except ServedModelError as error:
                    note(f"streammem: {error}")
    return exit_code(arguments, broken)


class Lines:
    """Lines that are typed, taken without waiting for them.

    Args:
        descriptor: of the file that they come from.

    Attributes:
        left: whether the input has ended at a terminal.
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


class _Output:
    """Where the events of `watch` go: results to a file or stdout, the rest to stderr."""

    def __init__(self, arguments: argparse.Namespace, rotation: Rotation) -> None:
        self._arguments = arguments
        self._results = EventOutput(arguments.format, arguments.output, rotation)
        self.reopen, self.close = self._results.reopen, self._results.close

    def show(self, event: Event, wall_zero: float | None, source: str) -> None:
        """Show an event; ``wall_zero`` is the Unix time at 0 of its clock, if it is known."""
        if isinstance(event, Segment):
            return
        if isinstance(event, Stats) and self._arguments.metrics:
            replace_file(self._arguments.metrics, prometheus({source: event}))
        if isinstance(event, Notice) or (isinstance(event, Stats) and self._arguments.stats):
            note(str(event))
        if isinstance(event, Stats) and self._arguments.stats is None:
            return
        self._results.write(event, wall_start(event, wall_zero))


def _evidence(answer: Answer) -> str:
    lines = [" ".join(plain(str(item)).split()) for item in answer.evidence]
    lines = [*answer.remarks, *lines]
    if not answer.seen:
        lines.append("not seen with confidence; these are the nearest moments")
    return "\n" + "".join(f"  {line}\n" for line in lines)
