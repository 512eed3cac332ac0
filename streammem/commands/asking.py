"""`ask`, `find` and `summary`: questions to a source or to a memory.

Chapters of a summary are found by the likeness of neighbouring scenes; nothing is retold.
"""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.opening import exit_code, open_session, perceive
from streammem.commands.options import (
    TIMEZONE,
    add_between,
    add_command,
    add_flags,
    add_source_options,
    between_of,
    check_formats,
)
from streammem.errors import ConfigError
from streammem.output.render import plain
from streammem.output.terminal import note, output
from streammem.types import Moment, Segment

if TYPE_CHECKING:
    from streammem.engine.session import Session

MAX_SHOWN = 12  # pieces of evidence under an answer, in text


def add_to(commands: Any) -> None:
    """Declare the commands."""
    parser = add_command(
        commands,
        "ask",
        run_ask,
        "answer a question, with evidence times",
        'streammem ask holiday.mp4 "When does the dog swim?"',
        'streammem ask trips "When does the dog swim?"          of a memory, without its video',
        'streammem ask trips "How often does the dog swim in the first ten minutes?"',
        'streammem ask door "Who came yesterday at 3 pm?" --timezone Europe/Berlin',
        'streammem ask trips "Who swims?" --context captions    from captions alone',
        'streammem ask trips "Who swims?" --answer-with ollama:qwen3-vl:4b --steps 6 -v',
    )
    add_source_options(parser, asks=True)
    parser.add_argument("question", help="the question, in quotes")
    add_between(parser, "only from what overlaps A to B")
    add_flags(parser, (TIMEZONE,))
    parser = add_command(
        commands,
        "find",
        run_find,
        "find the moments that fit a description",
        'streammem find holiday.mp4 "a red car" --count 3',
        'streammem find trips "a man in a red hat" --format jsonl',
        'streammem find trips "a red car" --count 12 --sheet cars.png',
    )
    add_source_options(parser, asks=True)
    parser.add_argument("query", help='for example "a man in a red hat"')
    add_between(parser, "only what overlaps A to B")
    add_flags(parser, (TIMEZONE,))
    parser.add_argument("--count", type=int, default=5, help="moments at most (default 5)")
    sheet = "also draw their keyframes, in time order"
    parser.add_argument("--sheet", type=Path, metavar="PNG", help=sheet)
    parser = add_command(
        commands,
        "summary",
        run_summary,
        "list chapters, each with captions of its most central scenes",
        "streammem summary holiday.mp4",
        "streammem summary trips --between 1:00:00 2:00:00 --chapters 6",
        "streammem summary door --between 2026-05-03T16:00 18:00 --timezone Europe/Berlin",
    )
    add_source_options(parser, asks=True)
    add_between(parser, "only what overlaps A to B")
    add_flags(parser, (TIMEZONE,))
    about = "chapters at most (default: square root of the number of scenes, 24 at most)"
    parser.add_argument("--chapters", type=int, metavar="N", help=about)


def run_ask(arguments: argparse.Namespace) -> int:
    """Print an answer and what it rests on."""
    if not arguments.question.strip():
        raise ConfigError("the question is empty")
    between = between_of(arguments)
    check_formats(arguments, "text", "jsonl")
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        streams = arguments.format == "text"
        answer = session.ask(
            arguments.question, results.write_piece if streams else None, between=between
        )
        if streams:
            lines = [" ".join(plain(str(item)).split()) for item in answer.evidence[:MAX_SHOWN]]
            if (more := len(answer.evidence) - MAX_SHOWN) > 0:
                lines.append(f"and {more} more; --format jsonl lists them all")
            lines = [*answer.remarks, *lines]
            if answer.evidence and not answer.seen:
                lines.append("not seen with confidence; these are the nearest moments")
            if answer.decided_by == "model":
                found = "shows" if answer.seen else "does not show"
                lines.append(f"the model looked at the nearest moments: it {found} there")
            results.put("\n" + "".join(f"  {line}\n" for line in lines))
        else:
            results.write(answer)
    return exit_code(arguments, broken)


def run_find(arguments: argparse.Namespace) -> int:
    """Print the best moments, best first."""
    check_formats(arguments, "text", "jsonl")
    if arguments.count < 1:
        raise ConfigError(f"--count {arguments.count}: give at least 1")
    if not arguments.query.strip():
        raise ConfigError("the description is empty")
    between = between_of(arguments)
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        moments = session.find(arguments.query, arguments.count, between)
        for moment in moments:
            results.write(moment)
        if arguments.sheet:
            _draw(session, moments, arguments)
    return exit_code(arguments, broken)


def run_summary(arguments: argparse.Namespace) -> int:
    """Print chapters in time order."""
    check_formats(arguments, "text", "jsonl")
    if arguments.chapters is not None and arguments.chapters < 1:
        raise ConfigError(f"--chapters {arguments.chapters}: give at least 1")
    between = between_of(arguments)
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        for chapter in session.chapters(arguments.chapters, between):
            results.write(chapter)
    return exit_code(arguments, broken)


def _draw(session: "Session", moments: tuple[Moment, ...], arguments: argparse.Namespace) -> None:
    """Draw moments as a contact sheet."""
    from streammem.output.contact_sheet import contact_sheet

    keyframes = []
    for item in moments:
        with suppress(KeyError):  # a memory within a budget drops keyframes
            scene = Segment(item.segment, item.start, item.end, None, None)
            shown = f"{item.rank}. score {item.score:.2f} {item.caption or ''}".strip()
            keyframes.append((scene, session.keyframe(item.segment), shown))
    if not keyframes:
        note(f"{arguments.sheet}: not drawn, there is nothing to show")
        return
    contact_sheet(arguments.sheet, keyframes, title=plain(arguments.query))
    note(f"wrote {arguments.sheet}")
