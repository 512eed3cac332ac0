"""`memory`: a look into a memory that lasts, and its care. No model is needed for it."""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.options import (
    Parser,
    Run,
    add_command,
    add_limits,
    add_output_options,
    check_output,
    seconds,
)
from streammem.errors import ConfigError, StoreError
from streammem.output.render import plain, to_line
from streammem.output.terminal import note, output, write_line
from streammem.types import Event, TimeSpan, clock
from streammem.video.address import public_name

if TYPE_CHECKING:
    from streammem.memory.database import Mode
    from streammem.memory.entry import Entry
    from streammem.memory.store import Store

MAX_LISTED = 20  # ids in one line


def add_to(commands: Any) -> None:
    """Declare the commands."""
    about = "look into a memory, and take care of it"
    parser = add_command(
        commands,
        "memory",
        info,
        about,
        "streammem memory info trips",
        "streammem memory verify trips                          every checksum; exit 1 on a fault",
        "streammem memory export trips --format srt -o trips.srt",
        "streammem memory prune trips --budget 500MB --keep 7d --dry-run",
        "streammem memory forget trips --between 1:02:00 1:05:30",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Run, about: str, *examples: str) -> Parser:
        added = add_command(actions, name, run, about, *examples)
        added.add_argument("memory", type=Path, metavar="MEMORY", help="its folder")
        return added

    shown = action("info", info, "what is in it", "streammem memory info trips --format jsonl")
    shown.add_argument("--format", choices=("text", "jsonl"), default="text")
    checked = action(
        "verify", verify, "read everything against its checksums", "streammem memory verify trips"
    )
    checked.add_argument("--format", choices=("text", "jsonl"), default="text")
    exported = action(
        "export",
        export,
        "every event that it keeps: segments, captions, speech",
        "streammem memory export trips --format jsonl > trips.jsonl",
        "streammem memory export trips --format srt --source holiday.mp4 -o holiday.srt",
    )
    exported.add_argument("--source", help="only what was seen there")
    add_output_options(exported)
    action(
        "compact",
        compact,
        "give unused space back to the file system",
        "streammem memory compact trips",
    )
    _add_removals(action)


def _add_removals(action: Any) -> None:
    pruned = action(
        "prune",
        prune,
        "make it smaller: the oldest goes, or keyframes, tokens and captions in this order",
        "streammem memory prune trips --budget 500MB --dry-run  tell what would go",
        "streammem memory prune trips --keep 7d",
    )
    add_limits(pruned)
    forgotten = action(
        "forget",
        forget,
        "remove a stretch of time, for good",
        "streammem memory forget trips --between 90 120",
        "streammem memory forget trips --between 1:02:00 1:05:30 --source holiday.mp4",
    )
    about = "from A to B, in seconds or h:mm:ss; what reaches into it goes as a whole"
    forgotten.add_argument(
        "--between", nargs=2, type=seconds, metavar=("A", "B"), required=True, help=about
    )
    forgotten.add_argument("--source", help="only what was seen there, not in every source")
    for parser in (pruned, forgotten):
        parser.add_argument("--dry-run", action="store_true", help="remove nothing, only tell")


def info(arguments: argparse.Namespace) -> int:
    """Print what a memory holds."""
    from streammem.memory import upkeep

    with _opened(arguments, "r") as store:
        found = asdict(upkeep.info(store))
    if arguments.format == "jsonl":
        write_line(json.dumps({"type": "memory", "path": str(arguments.memory), **found}))
        return 0
    for name, value in found.items():
        if name in ("start", "end") and value is not None:
            value = clock(value)
        if name == "sources":
            value = ", ".join(value)
        write_line(f"{name:16} {plain(str('-' if value is None else value))}")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Print every fault.

    Raises:
        StoreError: there are faults.
    """
    from streammem.memory import upkeep

    with _opened(arguments, "r") as store:
        faults = upkeep.verify(store)
    for fault in faults:
        if arguments.format == "jsonl":
            line = {"type": "fault", "segment": fault.segment, "message": fault.what}
            write_line(json.dumps(line))
        else:
            where = "" if fault.segment is None else f"segment {fault.segment}: "
            write_line(plain(where + fault.what))
    if faults:
        raise StoreError(
            f"{arguments.memory}: {_counted(len(faults), 'fault')}; restore it from a backup, or "
            "index the source again into a new memory"
        )
    note(f"{arguments.memory}: sound")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Print every event."""
    check_output(arguments.output, arguments.memory / "memory.json")
    with (
        _opened(arguments, "r") as store,
        output(arguments.format, arguments.output) as results,
    ):
        sources = _sources(store, arguments.source)
        if len(sources) > 1 and arguments.format != "jsonl":
            note(f"{len(sources)} sources, each with its own time; --source NAME takes one of them")
        for entry, event in _events(store, arguments.source):
            if arguments.format == "jsonl":
                results.put(to_line(event, _origin(entry)) + "\n")
            else:
                results.write(event)
    return 0


def compact(arguments: argparse.Namespace) -> int:
    """Give unused space back."""
    from streammem.memory import upkeep
    from streammem.memory.folder import DATABASE

    with _opened(arguments, "rw") as store:
        before = (store.path / DATABASE).stat().st_size
        upkeep.compact(store)
        after = (store.path / DATABASE).stat().st_size
    note(f"{arguments.memory}: {before / 1e6:.2f} MB before, {after / 1e6:.2f} MB now")
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """Keep a memory within a size and an age."""
    from streammem.memory import upkeep

    if (arguments.budget, arguments.keep) == (None, None):
        raise ConfigError("say how much may stay: --budget 500MB, --keep 7d, or both")
    with _opened(arguments, "rw") as store:
        act = upkeep.would_prune if arguments.dry_run else upkeep.prune
        pruned = act(store, budget_bytes=arguments.budget, keep_s=arguments.keep)
    verb = "would remove" if arguments.dry_run else "removed"
    note(f"{arguments.memory}: {verb} {pruned}")
    if arguments.budget is not None and pruned.bytes > arguments.budget:
        note(f"{arguments.memory}: the budget is less than an empty memory takes")
    return 0


def forget(arguments: argparse.Namespace) -> int:
    """Remove what was seen in a stretch of time."""
    from streammem.memory import upkeep

    start, end = arguments.between
    if not (0 <= start < end and math.isfinite(end)):
        raise ConfigError(f"--between {start:g} {end:g}: give two times >= 0, the earlier first")
    with _opened(arguments, "r" if arguments.dry_run else "rw") as store:
        _sources(store, arguments.source)
        act = upkeep.overlapping if arguments.dry_run else upkeep.forget
        gone = act(store, TimeSpan(start, end), source=arguments.source)
    verb = "would forget" if arguments.dry_run else "forgot"
    ids = ", ".join([*map(str, gone[:MAX_LISTED]), *(["..."] if len(gone) > MAX_LISTED else [])])
    note(f"{arguments.memory}: {verb} {_counted(len(gone), 'segment')}{ids and f' ({ids})'}")
    return 0


def _opened(arguments: argparse.Namespace, mode: "Mode") -> "Store":
    from streammem.memory.store import Store

    return Store.open(arguments.memory, None, mode)


def _sources(store: "Store", wanted: str | None) -> tuple[str, ...]:
    """Return the memory's sources, or the one that is wanted."""
    from streammem.memory import upkeep

    sources = upkeep.info(store).sources
    if wanted is None:
        return sources
    if wanted not in sources:
        raise StoreError(
            f"{store.path}: saw no {public_name(wanted)}; its sources: {', '.join(sources)}"
        )
    return (wanted,)


def _events(store: "Store", source: str | None) -> "Iterator[tuple[Entry, Event]]":
    from streammem.memory import upkeep

    for entry in upkeep.entries(store, source=source):
        for event in upkeep.events_of(entry):
            yield entry, event


def _origin(entry: "Entry") -> dict[str, object]:
    """Return where an entry was seen, and when, as keys of its JSON lines."""
    origin: dict[str, object] = {"source": entry.source}
    if entry.wall_start is not None:
        at = datetime.fromtimestamp(entry.wall_start, UTC).astimezone()
        origin["wall_start"] = at.isoformat(timespec="milliseconds")
    return origin


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
