"""`ask` and `find`: questions to a source or to a memory."""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.opening import exit_code, open_session, perceive
from streammem.commands.options import add_command, add_source_options, check_formats
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
        ask,
        "answer a question, with evidence times",
        'streammem ask holiday.mp4 "When does the dog swim?"',
        'streammem ask trips "When does the dog swim?"          of a memory, without its video',
        'streammem ask trips "How often does the dog swim in the first ten minutes?"',
        'streammem ask door "Who came yesterday at 3 pm?" --timezone Europe/Berlin',
        'streammem ask trips "Who swims?" --context captions    from captions alone',
    )
    add_source_options(parser, asks=True)
    parser.add_argument("question", help="the question, in quotes")
    about = "that wall-clock words are read in, as in Europe/Berlin; this computer's by default"
    parser.add_argument("--timezone", metavar="NAME", help=about)
    parser = add_command(
        commands,
        "find",
        find,
        "find the moments that fit a description",
        'streammem find holiday.mp4 "a red car" --count 3',
        'streammem find trips "a man in a red hat" --format jsonl',
        'streammem find trips "a red car" --count 12 --sheet cars.png',
    )
    add_source_options(parser, asks=True)
    parser.add_argument("query", help='for example "a man in a red hat"')
    parser.add_argument("--count", type=int, default=5, help="moments at most (default 5)")
    sheet = "also draw their keyframes, in time order"
    parser.add_argument("--sheet", type=Path, metavar="PNG", help=sheet)


def ask(arguments: argparse.Namespace) -> int:
    """Print an answer and what it rests on."""
    if not arguments.question.strip():
        raise ConfigError("the question is empty")
    check_formats(arguments, "text", "jsonl")
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        streams = arguments.format == "text"
        answer = session.ask(arguments.question, results.write_piece if streams else None)
        if streams:
            lines = [" ".join(plain(str(item)).split()) for item in answer.evidence[:MAX_SHOWN]]
            if (more := len(answer.evidence) - MAX_SHOWN) > 0:
                lines.append(f"and {more} more; --format jsonl lists them all")
            if not answer.seen:
                lines.append("not seen with confidence; these are the nearest moments")
            results.put("\n" + "".join(f"  {line}\n" for line in lines))
        else:
            results.write(answer)
    return exit_code(arguments, broken)


def find(arguments: argparse.Namespace) -> int:
    """Print the best moments, best first."""
    check_formats(arguments, "text", "jsonl")
    if arguments.count < 1:
        raise ConfigError(f"--count {arguments.count}: give at least 1")
    if not arguments.query.strip():
        raise ConfigError("the description is empty")
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        moments = session.find(arguments.query, arguments.count)
        for moment in moments:
            results.write(moment)
        if arguments.sheet:
            _draw(session, moments, arguments)
    return exit_code(arguments, broken)


def _draw(session: "Session", moments: tuple[Moment, ...], arguments: argparse.Namespace) -> None:
    """Draw moments as a contact sheet."""
    from streammem.output.contact_sheet import contact_sheet

    keyframes = []
    for item in moments:
        with suppress(KeyError):  # a memory within a budget drops keyframes
            scene = Segment(item.segment, item.start, item.end, None, None)
            said = f"{item.rank}. score {item.score:.2f} {item.caption or ''}".strip()
            keyframes.append((scene, session.keyframe(item.segment), said))
    if not keyframes:
        note(f"{arguments.sheet}: not drawn, there is nothing to show")
        return
    contact_sheet(arguments.sheet, keyframes, title=plain(arguments.query))
    note(f"wrote {arguments.sheet}")
