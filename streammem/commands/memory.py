"""`memory`: a look into a memory that lasts, and its care; new keys alone need a model."""

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.options import (
    TIMEZONE,
    Parser,
    RunCommand,
    add_between,
    add_command,
    add_flags,
    add_limits,
    add_output_options,
    between_of,
    check_no_subtitles,
    check_output,
    note_if_read_as_subtitles,
    seconds,
    zone_of,
)
from streammem.errors import ConfigError, StoreError
from streammem.models.registry import DEFAULT, load
from streammem.output.render import FORMATS, Text, plain, stamped, to_line, wall_start
from streammem.output.results import output
from streammem.output.terminal import note, write_line
from streammem.types import Event, Note, clock, wall_clock, with_wall_clock
from streammem.video.address import public_name, without_addresses

if TYPE_CHECKING:
    from streammem.memory.database import Mode
    from streammem.memory.entry import Entry
    from streammem.memory.store import Store

MAX_LISTED = 20  # ids in one line
TABLES = ("parquet", "lance")
DATABASES = "qdrant://HOST/COLLECTION, qdrant:FOLDER, or postgresql://[USER@]HOST/DATABASE"


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
        "streammem memory forget door --between 2026-05-03T16:40 16:45       shows what would go",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: RunCommand, about: str, *examples: str) -> Parser:
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
        "streammem memory export trips --format srt --source holiday.mp4 -o holiday.captions.srt",
        "streammem memory export trips --format parquet -o trips.parquet     vectors, keyframes",
        "streammem memory export archive --to postgresql://me@db/films       of all memories in it",
    )
    exported.add_argument("--source", help="only what was seen there")
    add_output_options(exported, (*FORMATS, *TABLES))
    to = "bring a vector database's copy of the rows and keys up to date; MEMORY may hold many"
    exported.add_argument("--to", metavar="ADDRESS", help=f"{to}: {DATABASES}")
    speech = "what is said: among the captions (default), only, no, or tracks: FILE.speech.srt"
    exported.add_argument(
        "--with-speech", choices=("merged", "tracks", "only", "no"), default="merged", help=speech
    )
    stamps = "subtitles begin with the wall clock, where it is known"
    exported.add_argument("--wall-clock", action="store_true", help=stamps)
    action(
        "compact",
        compact,
        "give unused space back to the file system",
        "streammem memory compact trips",
    )
    remade = action(
        "reindex",
        reindex,
        "make new keys for search, from its keyframes and captions; goes on after a stop",
        "streammem memory reindex trips --keys hf:google/siglip2-base-patch16-224",
        "streammem memory reindex trips --keys own                   the model's own again",
    )
    keys = "own, or hf:NAME of a CLIP or SigLIP, as for watch"
    remade.add_argument("--keys", required=True, metavar="NAME", help=keys)
    remade.add_argument("--model", default=DEFAULT, help="that the memory was made by")
    remade.add_argument("--device", default="cpu", help="where the new keys are made")
    _add_names(action)
    _add_removals(action)


def _add_names(action: Any) -> None:
    taught = action(
        "teach",
        teach,
        "give a thing a name: it is found by it, and named in evidence, from then on",
        'streammem memory teach trips "my cup" cup.jpg cup-from-above.jpg',
        'streammem memory teach trips "my cup" --at 0:12:03 --box 0.25,0.1,0.5,0.4',
        "streammem memory teach door Anna anna.jpg --person     people only where you say so",
    )
    taught.add_argument("name", help="as questions will name it")
    taught.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE", help="that show it")
    moment = "a moment that shows it, in seconds or h:mm:ss of the source's clock"
    taught.add_argument("--at", type=seconds, metavar="TIME", help=moment)
    part = "part of that moment's picture, in shares of it: x,y,w,h from its upper left corner"
    taught.add_argument("--box", type=box, metavar="X,Y,W,H", help=part)
    taught.add_argument("--source", help="that the moment is of, where there are several")
    about = "it is a person: told by looks, clothes and place, which strangers may share"
    taught.add_argument("--person", action="store_true", help=about)
    taught.add_argument("--model", default=DEFAULT, help="that the memory was made by")
    taught.add_argument("--keys", metavar="NAME", help="that it was reindexed with")
    taught.add_argument("--device", default="cpu", help="where keys are made")
    listed = action("names", names, "what was taught", "streammem memory names trips")
    listed.add_argument("--format", choices=("text", "jsonl"), default="text")
    gone = action(
        "forget-name",
        forget_name,
        "forget a name and its pictures, for good",
        'streammem memory forget-name trips "my cup"',
    )
    gone.add_argument("name", help="as it was taught")


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
        "show what was seen from A to B; with --yes remove it, for good",
        "streammem memory forget trips --between 90 120                       remove nothing",
        "streammem memory forget trips --between 90 120 --yes",
        "streammem memory forget door --between 2026-05-03T16:40 16:45 --yes",
        "streammem memory forget trips --between 1:02:00 1:05:30 --source holiday.mp4 --yes",
    )
    add_between(forgotten, "what reaches into A to B goes as a whole", required=True)
    add_flags(forgotten, (TIMEZONE,))
    forgotten.add_argument("--source", help="only what was seen there, not in every source")
    sure = forgotten.add_mutually_exclusive_group()
    sure.add_argument("--yes", action="store_true", help="remove it; without, only show it")
    dry = "remove nothing, only show it, as without --yes"
    sure.add_argument("--dry-run", action="store_true", help=dry)
    pruned.add_argument("--dry-run", action="store_true", help="remove nothing, only tell")


def info(arguments: argparse.Namespace) -> int:
    """Print what a memory holds."""
    from streammem.memory import upkeep

    with _opened(arguments, "r") as store:
        found = asdict(upkeep.info(store))
    for name in ("wall_start", "wall_end"):
        found[name] = None if found[name] is None else wall_clock(found[name])
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
    """Print every event; with ``tracks`` what is said goes to a second file."""
    path, speech = arguments.output, arguments.with_speech
    if arguments.to is not None:
        return _copy(arguments)
    check_output(path, arguments.memory / "memory.json")
    if arguments.format in TABLES:
        return _export_table(arguments)
    beside = None
    if speech == "tracks":
        if path is None:
            raise ConfigError("--with-speech tracks: writes two files; give -o FILE too")
        beside = path.with_name(f"{path.stem}.speech{path.suffix}")
        check_output(beside, arguments.memory / "memory.json")
    with ExitStack() as opened:
        store = opened.enter_context(_opened(arguments, "r"))
        sources = _sources(store, arguments.source)
        check_no_subtitles(path, *sources)
        captions = notes = opened.enter_context(output(arguments.format, path))
        if beside:
            notes = opened.enter_context(output(arguments.format, beside))
        if len(sources) > 1 and arguments.format != "jsonl":
            note(f"{len(sources)} sources, each with its own time; --source NAME takes one of them")
        for entry, event in _events(store, arguments.source):
            is_said = isinstance(event, Note)
            if (speech == "only" and not is_said) or (speech == "no" and is_said):
                continue
            results = notes if is_said else captions
            zero = None if entry.wall_start is None else entry.wall_start - entry.start
            at = wall_start(event, zero)
            if arguments.format == "jsonl":
                results.put(to_line(event, {"source": entry.source, **at}) + "\n")
            elif arguments.format == "text" and at:
                span, line = Text().write(event).split(" ", 1)
                results.put(f"{with_wall_clock(span, str(at['wall_start']))} {line}")
            else:
                results.write(stamped(event, at) if arguments.wall_clock else event)
    if speech != "only":
        note_if_read_as_subtitles(path, *sources)
    return 0


def _export_table(arguments: argparse.Namespace) -> int:
    """Write one row a segment, with its keys and its keyframe."""
    from streammem.output.tables import write_lance, write_parquet

    form = arguments.format
    if arguments.output is None:
        raise ConfigError(f"--format {form}: is no text; give -o FILE too")
    if arguments.with_speech != "merged" or arguments.wall_clock:
        raise ConfigError(f"--format {form}: holds speech and wall clock anyway; leave them out")
    with _opened(arguments, "r") as store:
        sources, header = _sources(store, arguments.source), store.header
        named = (entry for entry in store.export() if entry.source in sources)
        write = write_parquet if form == "parquet" else write_lance
        num_rows = write(
            arguments.output, named, memory=arguments.memory.resolve().name,
            fingerprint=header.fingerprint, key_dim=header.key_dim,
        )  # fmt: skip
    note(f"wrote {arguments.output}: {_counted(num_rows, 'row')}")
    return 0


def _copy(arguments: argparse.Namespace) -> int:
    """Bring a database's copy of a memory, or of all memories of a folder, up to date."""
    from tqdm import tqdm

    from streammem.fleet.asking import memories_in
    from streammem.memory.folder import is_memory
    from streammem.memory.sinks import Copied, copy, open_sink
    from streammem.memory.store import Store
    from streammem.memory.upkeep import info as found

    if arguments.output or arguments.source or arguments.format != "text" or arguments.wall_clock:
        raise ConfigError("--to: copies all rows into a database; leave out -o, --format, --source")
    folder: Path = arguments.memory
    inside = [] if is_memory(folder) else memories_in(folder)
    is_one, paths = not inside, inside or [folder]
    failed, total = dict[str, str](), Copied(0, 0, 0)
    for path in paths:
        name = path.resolve().name
        try:
            with Store.open(path, None, "r") as store:
                header, num_rows = store.header, found(store).segments
                bar = partial(
                    tqdm, desc=plain(name), total=num_rows, unit="row", leave=False, disable=None
                )
                with open_sink(arguments.to, header.key_dim, header.fingerprint) as sink:
                    done = copy(store, name, sink, bar)
        except StoreError as error:
            if is_one:
                raise
            failed[name] = without_addresses(str(error))
            note(f"{plain(name)}: {plain(failed[name])}")
            continue
        total = Copied(*(a + b for a, b in zip(astuple(total), astuple(done), strict=True)))
    rows = _counted(total.written, "row")
    counts = f"{rows} written, {total.unchanged} were there, {total.removed} removed"
    note(f"{_counted(len(paths) - len(failed), 'memory', 'memories')}: {counts}")
    return int(bool(failed))


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


def reindex(arguments: argparse.Namespace) -> int:
    """Make new keys; the old ones are in force until all are there."""
    from tqdm import tqdm

    from streammem.commands.opening import quiet_libraries
    from streammem.memory.reindex import reindex as make_keys

    quiet_libraries()
    with _opened(arguments, "rw") as store:
        model = load(arguments.model, device=arguments.device, keys=arguments.keys)
        done = make_keys(
            store,
            model.fingerprint,
            model.text_encoder.background.shape[1],
            lambda picture: model.perceiver.perceive(picture).key,
            model.text_encoder.sentence_keys,
            lambda rows: tqdm(rows, unit="rows", leave=False, disable=None),
        )
    resumed = f", {done.resumed} of them before" if done.resumed else ""
    note(f"{arguments.memory}: {_counted(done.rows, 'row')} with new keys{resumed}")
    if done.without_picture:
        counted = _counted(done.without_picture, "row")
        note(f"{arguments.memory}: {counted} without a keyframe, found by words alone now")
    return 0


def box(text: str) -> tuple[float, ...]:
    """Read ``x,y,w,h``; the range is not checked.

    Raises:
        argparse.ArgumentTypeError: not four numbers.
    """
    try:
        x, y, width, height = map(float, text.split(","))
    except ValueError:
        message = f"{text!r}: give x,y,w,h in shares of the picture, as in 0.25,0.1,0.5,0.4"
        raise argparse.ArgumentTypeError(message) from None
    return x, y, width, height


def teach(arguments: argparse.Namespace) -> int:
    """Give a thing a name."""
    from streammem.commands.opening import file_of, quiet_libraries
    from streammem.engine.session import Session
    from streammem.video.pictures import read_picture

    if arguments.box and arguments.at is None:
        raise ConfigError("--box: is a part of a moment's picture; give --at TIME, too")
    if not arguments.pictures and arguments.at is None:
        raise ConfigError("give pictures that show it, or --at TIME of a moment that does")
    pictures = [read_picture(path) for path in arguments.pictures]
    _opened(arguments, "r").close()  # which refuses what is no memory before a model is opened
    quiet_libraries()
    model = load(arguments.model, device=arguments.device, keys=arguments.keys)
    with Session(model, memory=arguments.memory) as session:
        session.answerer.file_of = file_of
        taught = session.teach(
            arguments.name, pictures, at=arguments.at, box=arguments.box,
            source=arguments.source, person=arguments.person,
        )  # fmt: skip
        seen = sum(
            taught.name in moment.names
            for moment in session.find(taught.name, max(1, len(session.memory)))
        )
    kept = _counted(len(taught.pictures), "picture")
    counted = _counted(seen, "scene")
    note(f"{arguments.memory}: {plain(taught.name)}: {kept}; seen in {counted}")
    return 0


def names(arguments: argparse.Namespace) -> int:
    """Print what was taught."""
    from streammem.memory.named import read_taught

    with _opened(arguments, "r") as store:
        found = read_taught(store.database)
    for taught in found:
        pictures = len(taught.pictures)
        if arguments.format == "jsonl":
            line = {"name": taught.name, "person": taught.is_person, "pictures": pictures}
            write_line(json.dumps({"type": "name", **line}))
        else:
            person = ", a person" * taught.is_person
            write_line(plain(f"{taught.name}: {_counted(pictures, 'picture')}{person}"))
    if not found:
        note(f"{arguments.memory}: nothing was taught")
    return 0


def forget_name(arguments: argparse.Namespace) -> int:
    """Forget a name and its pictures."""
    from streammem.memory.named import read_taught, remove_taught

    with _opened(arguments, "rw") as store:
        known = {each.name.casefold(): each.name for each in read_taught(store.database)}
        name = known.get(arguments.name.casefold())
        if name is None:
            taught = ", ".join(known.values()) or "nothing"
            raise StoreError(f"{arguments.memory}: was taught {taught}, and no {arguments.name}")
        remove_taught(store.database, name)
    note(f"{arguments.memory}: forgot {plain(name)}")
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
    """Show what was seen in a span of time; remove it if that is confirmed."""
    from streammem.memory import upkeep

    window, zone = between_of(arguments), zone_of(arguments.timezone)
    assert window
    span, wall = window.wall or window.stream, window.wall is not None
    assert span
    with _opened(arguments, "rw" if arguments.yes else "r") as store:
        _sources(store, arguments.source)
        gone = upkeep.overlapping(store, span, source=arguments.source, wall=wall)
        runs = upkeep.runs(store, gone)
        if arguments.yes:
            gone = upkeep.forget(store, span, source=arguments.source, wall=wall)
    for run in runs:
        at = None if run.wall_start is None else wall_clock(run.wall_start, zone)
        shown = with_wall_clock(f"{clock(run.start)}-{clock(run.end)}", at)
        write_line(plain(f"{shown} {_counted(run.segments, 'segment')} {run.source}".rstrip()))
    ids = ", ".join([*map(str, gone[:MAX_LISTED]), *(["..."] if len(gone) > MAX_LISTED else [])])
    verb = "forgot" if arguments.yes else "would forget"
    confirm = "; --yes removes what is listed, for good" if gone and not arguments.yes else ""
    counted = f"{_counted(len(gone), 'segment')}{ids and f' ({ids})'}"
    note(f"{arguments.memory}: {verb} {counted}{confirm}")
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


def _counted(count: int, noun: str, several: str = "") -> str:
    return f"{count} {noun if count == 1 else several or f'{noun}s'}"
