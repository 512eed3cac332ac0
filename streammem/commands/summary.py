"""`summary`: what a source or a memory shows, as a list of chapters.

Chapters are found by the likeness of neighbouring scenes; nothing is retold.
"""

import argparse
import math
from typing import Any

from streammem.commands.opening import exit_code, open_session, perceive
from streammem.commands.options import add_command, add_source_options, check_formats, seconds
from streammem.errors import ConfigError
from streammem.output.terminal import output


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "summary",
        summary,
        "list chapters, each with captions of its most central scenes",
        "streammem summary holiday.mp4",
        "streammem summary trips --between 1:00:00 2:00:00 --chapters 6",
    )
    add_source_options(parser, asks=True)
    about = "only what overlaps A to B, in seconds or h:mm:ss"
    parser.add_argument("--between", nargs=2, type=seconds, metavar=("A", "B"), help=about)
    about = "chapters at most (default: square root of the number of scenes, 24 at most)"
    parser.add_argument("--chapters", type=int, metavar="N", help=about)


def summary(arguments: argparse.Namespace) -> int:
    """Print chapters in time order."""
    check_formats(arguments, "text", "jsonl")
    if arguments.chapters is not None and arguments.chapters < 1:
        raise ConfigError(f"--chapters {arguments.chapters}: give at least 1")
    between = None
    if arguments.between:
        start, end = between = (arguments.between[0], arguments.between[1])
        if not (0 <= start < end and math.isfinite(end)):
            raise ConfigError(
                f"--between {start:g} {end:g}: give two times >= 0, the earlier first"
            )
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        for chapter in session.chapters(arguments.chapters, between):
            results.write(chapter)
    return exit_code(arguments, broken)
