"""`caption` and `scenes`: what is there to see, in order."""

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.opening import every_frame, exit_code, open_session, watch
from streammem.commands.options import add_command, add_source_options, watch_options
from streammem.output.terminal import LiveText, Sheet, output
from streammem.types import Caption, Segment, Warning

if TYPE_CHECKING:
    from streammem.engine.session import Session


def add_to(commands: Any) -> None:
    """Declare the commands."""
    parser = add_command(
        commands,
        "caption",
        caption,
        "captions, scene by scene",
        "streammem caption holiday.mp4                          unsure ones say less, or nothing",
        "streammem caption holiday.mp4 --min-confidence 0       all words, as they are generated",
        "streammem caption holiday.mp4 --format srt -o holiday.srt",
        "streammem caption holiday.mp4 --start 1:30 --end 2:00 --format jsonl",
        "streammem caption holiday.mp4 --memory trips --budget 500MB",
    )
    add_source_options(parser)
    sheet = "also draw keyframes, similarity and depth"
    parser.add_argument("--sheet", type=Path, metavar="PNG", help=sheet)
    parser = add_command(
        commands,
        "scenes",
        scenes,
        "where scenes begin and end",
        "streammem scenes holiday.mp4 --format jsonl            every frame is looked at",
        "streammem scenes holiday.mp4 --fps 2                   four times faster, times to 0.5 s",
    )
    add_source_options(parser)


def caption(arguments: argparse.Namespace) -> int:
    """Print captions as they are made."""
    with open_session(arguments) as session:
        return _caption(session, arguments)


def _caption(session: "Session", arguments: argparse.Namespace) -> int:
    sheet = Sheet(session) if arguments.sheet else None
    live = LiveText(sys.stderr if arguments.output else sys.stdout)
    with output(arguments.format, arguments.output) as results, closing(live):
        # Text on stdout appears word by word; other forms are written a whole event at a time.
        streams = bool(arguments.output) or arguments.format == "text"
        options = watch_options(arguments, on_text=live.write_piece if streams else None)
        broken = False
        for event in watch(session, arguments, options):
            broken |= isinstance(event, Warning)
            if sheet:
                sheet.take(event)
            if isinstance(event, Caption) and streams:
                live.end(event)
            if isinstance(event, Segment) or (not arguments.output and streams):
                continue
            results.write(event)
    if sheet:
        sheet.draw(arguments.sheet, Path(arguments.source).name)
    return exit_code(arguments, broken)


def scenes(arguments: argparse.Namespace) -> int:
    """Print segments as they settle."""
    broken = False
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        # A memory is written by the session, which looks at --fps.
        sampled = arguments.fps is not None or arguments.sparse or arguments.memory is not None
        found = watch if sampled else every_frame
        for event in found(session, arguments, watch_options(arguments, speak=False)):
            broken |= isinstance(event, Warning)
            results.write(event)
    return exit_code(arguments, broken)
