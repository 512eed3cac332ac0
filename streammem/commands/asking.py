"""`ask` and `find`: questions to a source or to a memory."""

import argparse
from typing import Any

from streammem.commands.opening import exit_code, open_session, perceive
from streammem.errors import ConfigError
from streammem.options import add_command, add_source_options, check_formats
from streammem.render import plain
from streammem.terminal import output


def add_to(commands: Any) -> None:
    """Declare the commands."""
    parser = add_command(
        commands,
        "ask",
        ask,
        "answer a question, with evidence times",
        'streammem ask holiday.mp4 "When does the dog swim?"',
        'streammem ask trips "When does the dog swim?"          of a memory, without its video',
        'streammem ask trips "Who swims?" --context captions    from captions alone',
    )
    add_source_options(parser, asks=True)
    parser.add_argument("question", help="the question, in quotes")
    parser = add_command(
        commands,
        "find",
        find,
        "find the moments that fit a description",
        'streammem find holiday.mp4 "a red car" --count 3',
        'streammem find trips "a man in a red hat" --format jsonl',
    )
    add_source_options(parser, asks=True)
    parser.add_argument("query", help='for example "a man in a red hat"')
    parser.add_argument("--count", type=int, default=5, help="moments at most (default 5)")


def ask(arguments: argparse.Namespace) -> int:
    """Print an answer and what it rests on."""
    if not arguments.question.strip():
        raise ConfigError("the question is empty")
    check_formats(arguments, "text", "jsonl")
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        streams = arguments.format == "text"
        answer = session.ask(arguments.question, results.say if streams else None)
        if streams:
            lines = [" ".join(plain(str(item)).split()) for item in answer.evidence]
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
        for moment in session.find(arguments.query, arguments.count):
            results.write(moment)
    return exit_code(arguments, broken)
