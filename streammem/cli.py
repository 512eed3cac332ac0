"""The command line. Results go to stdout, all else to stderr; exit codes are in ``--help``."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from streammem import __version__
from streammem.commands import (
    archiving,
    asking,
    evaluating,
    memory,
    models,
    planning,
    serving,
    watching,
)
from streammem.commands.options import Parser
from streammem.errors import ConfigError, StreammemError
from streammem.output.terminal import interrupts, note

EXAMPLES = """\
examples:
  streammem caption holiday.mp4                          captions as they are made
  streammem caption holiday.mp4 --format srt -o holiday.captions.srt
  streammem ask holiday.mp4 "When does the dog swim?"    an answer with evidence times
  streammem caption holiday.mp4 --memory trips           keep what was seen, for good
  streammem ask trips "When does the dog swim?"          ask it later, without the video
  streammem memory export trips --format jsonl           all that it kept
  streammem find holiday.mp4 "a red car"                 the best moments for a description
  streammem index films/ --memory archive                a memory a file; find archive --all "..."
  streammem watch rtsp://camera/1 --alert "a dog"        a camera, for days
  streammem chat webcam:0                                captions and questions on one screen
  streammem scenes holiday.mp4 --format jsonl            where scenes begin and end
  streammem eval captions flickr8k --split val --controls
  streammem models pull streammem-tiny                   fetch what the default model stands on

exit codes: 0 done; 1 an input or model that cannot be used, or a file that broke off (its results
are given); 2 wrong arguments; 130 interrupted (what was open is closed and written).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _open_streams()
    try:
        arguments = build_parser().parse_args(argv)
        logging.basicConfig(
            level=logging.INFO if vars(arguments).get("verbose") else logging.WARNING,
            format="%(message)s",
            stream=sys.stderr,
        )
        with interrupts() if arguments.graceful else nullcontext() as arguments.interrupted:
            code = arguments.run(arguments)
            sys.stdout.flush()  # here, where a reader that has left is known
            return code
    except ConfigError as error:
        return _fail(str(error), 2)
    except StreammemError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:  # the reader of our output has left; that is not our error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # what is written: a full disk, a folder that went away
        named = error.filename and error.strerror
        return _fail(f"{error.filename}: {error.strerror}" if named else str(error), 1)
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = Parser(
        prog="streammem",
        description="Watches video for hours and can talk about it.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"streammem {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (watching, asking, planning, memory, archiving, serving, models, evaluating):
        module.add_to(commands)
    return parser


def _open_streams() -> None:
    """Stand in for streams that the caller has closed, before a file gets their number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, for the process's lifetime


def _fail(message: str, code: int) -> int:
    note(f"streammem: {' '.join(message.split())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
