"""`ask`, `find` and `summary`: questions to a source or to a memory.

Chapters of a summary are found by the likeness of neighbouring scenes; nothing is retold.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.opening import exit_code, open_session, perceive, quiet_libraries
from streammem.commands.options import (
    EVENTS,
    TIMEZONE,
    add_between,
    add_command,
    add_flags,
    add_source_options,
    between_of,
    configured,
    load_model,
)
from streammem.errors import ConfigError
from streammem.output.render import FORMATS, plain, to_line
from streammem.output.results import output
from streammem.output.terminal import note
from streammem.types import Answer, Chapter, Moment, Segment

if TYPE_CHECKING:
    from streammem.engine.session import Session
    from streammem.fleet.asking import Memories
    from streammem.memory.retrieval import Window

ALL_HELP = "SOURCE is a folder of memories, and all of them are asked"
MAX_DAYS = 7  # that are named where a day has nothing
MAX_SHOWN = 12  # pieces of evidence under an answer, in text
CLOCKLESS = "no scene here knows its time of day; give --recorded when a file is watched"


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
        'streammem ask archive --all "When does a dog swim?"     of all memories in a folder',
    )
    add_source_options(parser, asks=True, formats=EVENTS)
    parser.add_argument("--all", action="store_true", help=ALL_HELP)
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
        'streammem find archive --all "a red car"               in all memories of a folder',
    )
    add_source_options(parser, asks=True, formats=EVENTS)
    parser.add_argument("--all", action="store_true", help=ALL_HELP)
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
        "streammem summary trips --day 2026-05-03               what was done, by the wall clock",
    )
    add_source_options(parser, asks=True, formats=EVENTS)
    add_between(parser, "only what overlaps A to B")
    add_flags(parser, (TIMEZONE,))
    day = "what was done on that day: activities by the wall clock; a pause of 10 min ends one"
    parser.add_argument("--day", type=date.fromisoformat, metavar="DATE", help=day)
    about = "chapters at most (default: square root of the number of scenes, 24 at most)"
    parser.add_argument("--chapters", type=int, metavar="N", help=about)


def run_ask(arguments: argparse.Namespace) -> int:
    """Print an answer and what it rests on."""
    if not arguments.question.strip():
        raise ConfigError("the question is empty")
    between = between_of(arguments)
    if arguments.all:
        return _ask_all(arguments, between)
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        streams = arguments.format == "text"
        answer = session.ask(
            arguments.question, results.write_piece if streams else None, between=between
        )
        if streams:
            results.put(_rests_on(answer))
        else:
            results.write(answer)
        if (answer.looked_at or "").startswith("wall clock") and not session.days():
            note(CLOCKLESS)
    return exit_code(arguments, broken)


def _note_nothing(session: "Session", window: "Window | None") -> None:
    """Note that nothing was seen, and why that may be."""
    note("nothing was seen" if window is None else "nothing was seen then")
    if window is not None and window.wall is not None and not session.days():
        note(CLOCKLESS)


def _rests_on(answer: Answer) -> str:
    """Return what stands below an answer: its remarks and its evidence."""
    lines = [" ".join(plain(str(item)).split()) for item in answer.evidence[:MAX_SHOWN]]
    if (more := len(answer.evidence) - MAX_SHOWN) > 0:
        lines.append(f"and {more} more; --format jsonl lists them all")
    lines = [*answer.remarks, *lines]
    if answer.evidence and not answer.seen:
        lines.append("not seen with confidence; these are the nearest moments")
    if answer.decided_by == "model":
        found = "shows" if answer.seen else "does not show"
        lines.append(f"the model looked at the nearest moments: it {found} there")
    return "\n" + "".join(f"  {line}\n" for line in lines)


def _ask_all(arguments: argparse.Namespace, between: "Window | None") -> int:
    """Print the answer of each memory of a folder in which something was seen that fits."""
    from streammem.fleet.asking import ask_all

    with _opened(arguments) as memories, output(arguments.format, arguments.output) as results:
        answers = ask_all(memories, arguments.question, between)
        for name, answer in answers:
            if arguments.format == "jsonl":
                results.put(to_line(answer, {"memory": name}) + "\n")
            else:
                text = " ".join(plain(answer.text).split())
                results.put(f"{plain(name)}: {text}{_rests_on(answer)}")
        num_others = len(memories.sessions) - len(answers)
        if arguments.format == "text" and num_others:
            more = "1 more memory was" if num_others == 1 else f"{num_others} more memories were"
            results.put(f"({more} asked)\n")
        return int(bool(memories.failed))


def _find_all(arguments: argparse.Namespace, between: "Window | None") -> int:
    """Print the best moments of all memories of a folder, best first."""
    from streammem.fleet.asking import find_all

    if arguments.sheet:
        raise ConfigError("--sheet: is drawn of one memory; leave out --all, or --sheet")
    with _opened(arguments) as memories, output(arguments.format, arguments.output) as results:
        for name, moment in find_all(memories, arguments.query, arguments.count, between):
            if arguments.format == "jsonl":
                results.put(to_line(moment, {"memory": name}) + "\n")
            else:
                results.put(f"{plain(name)} {FORMATS['text']().write(moment)}")
        return int(bool(memories.failed))


@contextmanager
def _opened(arguments: argparse.Namespace) -> "Iterator[Memories]":
    """Open all memories of a folder; note those that cannot be opened."""
    from streammem.engine.session_config import SessionConfig, defaults_of
    from streammem.fleet.asking import open_all
    from streammem.memory.folder import is_memory
    from streammem.models.threads import limit_threads

    if is_memory(arguments.source):
        raise ConfigError(f"{arguments.source}: is one memory; leave out --all")
    configured(SessionConfig(), arguments)
    quiet_libraries()
    limit_threads(busy=2)
    model = load_model(arguments)
    config = configured(defaults_of(model), arguments)
    with open_all(arguments.source, model, config) as memories:
        for name, reason in memories.failed.items():
            note(f"{plain(name)}: {plain(reason)}")
        yield memories


def run_find(arguments: argparse.Namespace) -> int:
    """Print the best moments, best first."""
    if arguments.count < 1:
        raise ConfigError(f"--count {arguments.count}: give at least 1")
    if not arguments.query.strip():
        raise ConfigError("the description is empty")
    between = between_of(arguments)
    if arguments.all:
        return _find_all(arguments, between)
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        moments = session.find(arguments.query, arguments.count, between)
        for moment in moments:
            results.write(moment)
        if not moments:
            _note_nothing(session, between)
        if arguments.sheet:
            _draw(session, moments, arguments)
    return exit_code(arguments, broken)


def run_summary(arguments: argparse.Namespace) -> int:
    """Print chapters in time order."""
    if arguments.chapters is not None and arguments.chapters < 1:
        raise ConfigError(f"--chapters {arguments.chapters}: give at least 1")
    between, day = between_of(arguments), arguments.day
    if day is not None and between is not None:
        raise ConfigError("--day and --between: are two spans; give one of them")
    with open_session(arguments) as session, output(arguments.format, arguments.output) as results:
        broken = perceive(session, arguments)
        if day is None:
            chapters = session.chapters(arguments.chapters, between)
            for chapter in chapters:
                results.write(chapter)
            if not chapters:
                _note_nothing(session, between)
            return exit_code(arguments, broken)
        activities = session.day(day, arguments.chapters)
        for activity in activities:
            if arguments.format == "text":
                results.put(plain(_activity(activity)) + "\n")
            else:
                results.write(activity)
        if not activities:
            days = ", ".join(map(str, session.days()[-MAX_DAYS:]))
            there_is = f"days that have scenes: {days}" if days else CLOCKLESS
            note(f"nothing was seen on {day}; {there_is}")
    return exit_code(arguments, broken)


def _activity(chapter: Chapter) -> str:
    """Return a chapter as an activity of a day: when by the wall clock, what, of which source."""
    begin = datetime.fromisoformat(chapter.wall_start or "")
    end = begin + timedelta(seconds=chapter.end - chapter.start)
    what = " / ".join(dict.fromkeys(c.text for c in chapter.captions if c.text)) or "(no caption)"
    scenes = "1 scene" if chapter.segments == 1 else f"{chapter.segments} scenes"
    return " ".join(f"{begin:%H:%M}-{end:%H:%M} {what} ({scenes}, {chapter.source})".split())


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
