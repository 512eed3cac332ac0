"""`index`: a memory for each of many video files, made by several processes."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streammem.commands.cameras import add_ray, check_workers, workers_of
from streammem.commands.opening import load_in_worker, open_session
from streammem.commands.options import (
    SOURCE_FLAGS,
    SPEECH_FLAGS,
    add_command,
    add_flags,
    add_session_options,
    configured,
    source_options,
    speech_options,
    watch_options,
)
from streammem.errors import ConfigError, SourceError, StreammemError
from streammem.output.render import plain
from streammem.output.terminal import note, write_line
from streammem.types import Notice, Segment, clock

if TYPE_CHECKING:
    from streammem.fleet.index import Archive, File, FileState
    from streammem.fleet.pool import IsStopping, Worker

PROGRESS_EVERY_S = 0.2
# What decides a memory besides the file; where and by how many it is made does not.
DECIDING = (
    *("model", "caption_with", "keys", "set", "fps", "start", "end", "sparse", "reader"),
    *("speech", "speech_language", "sounds", "no_captions", "prompt", "candidates"),
    "min_confidence",
    *("max_new_tokens", "temperature", "top_k", "top_p", "num_beams", "seed"),
)
# Likewise, where it is given: it came later, and archives that were made without it stay known.
DECIDING_IF_GIVEN = ("repetition_penalty",)


def add_to(commands: Any) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "index",
        run_index,
        "make a memory of each of many video files; find and ask look into all with --all",
        "streammem index films/ --memory archive                a second run reads what is new",
        "streammem index films/ talk.mp4 --memory archive --workers 8 --no-captions",
    )
    parser.set_defaults(graceful=True, asks=False, reconnects=False, recorded=None)
    parser.set_defaults(budget=None, keep=None, output=None)
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="video files, and folders that hold some")
    about = "folder of the memories, one a file"
    add("--memory", type=Path, metavar="DIR", required=True, help=about)
    about = "processes (default: one for each GPU, or for each two cores)"
    add("--workers", type=int, metavar="N", help=about)
    add_ray(add)
    add("--no-captions", action="store_true", help="scenes and keys for search alone: faster")
    add("--format", choices=("text", "jsonl"), default="text", help="of the lines, one a file")
    add_flags(parser, SOURCE_FLAGS)
    add_flags(parser, SPEECH_FLAGS)
    add_session_options(parser)


def run_index(arguments: argparse.Namespace) -> int:
    """Make what is missing; return 1 where a file failed or broke off."""
    from streammem.fleet.index import Archive, find_files

    _check(arguments)
    paths, options = find_files(arguments.paths), made_with(arguments)
    with Archive.open(arguments.memory) as archive:
        jobs = list(archive.missing(_identified(archive, paths, options)))
        _check_replaced(archive, jobs)
        num_made = _make(archive, jobs, arguments) if jobs else 0
        files = [archive.files[path] for path in map(str, paths) if path in archive.files]
    failed = [file for file in files if file.state != "whole"]
    known = len(paths) - len(jobs)
    note(f"{len(paths)} files: {known} known before, {num_made} made, {len(failed)} not whole")
    for file in failed:
        note(f"{plain(file.path)}: {file.state}: {plain(file.reason)}")
    if arguments.interrupted():
        return 130
    return int(bool(failed))


def _check_replaced(archive: "Archive", jobs: "list[File]") -> None:
    """Refuse to lose memories of files that have not changed, which were made with other options.

    Raises:
        ConfigError: there are some.
    """
    before = [archive.files.get(file.path) for file in jobs]
    others = [
        file
        for file, known in zip(jobs, before, strict=True)
        if known and known.memory and known.content == file.content != ""
        if known.made_with != file.made_with
    ]
    if others:
        raise ConfigError(
            f"{archive.folder}: {len(others)} of these files are there, made with other options "
            f"({plain(others[0].path)}); give the same ones, or another --memory"
        )


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that no file could be read with, before a process starts."""
    from streammem.engine.session_config import SessionConfig

    check_workers(arguments)
    configured(SessionConfig(), arguments)
    source_options(arguments)
    speech_options(arguments, several=True)


def made_with(arguments: argparse.Namespace) -> str:
    """Return a digest of the options that decide what is remembered of a file."""
    values = vars(arguments)
    options: dict[str, object] = {name: values[name] for name in DECIDING}
    options |= {name: values[name] for name in DECIDING_IF_GIVEN if values[name] is not None}
    if arguments.config:
        options["config"] = Path(arguments.config).read_text(encoding="utf-8")
    return blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=8).hexdigest()


def _identified(archive: "Archive", paths: list[Path], options: str) -> "list[File]":
    """Read each file that is new or was changed; one that cannot be read has failed."""
    from tqdm import tqdm

    from streammem.fleet.index import File

    files = []
    hidden = not sys.stderr.isatty()
    for path in tqdm(paths, desc="which are new?", unit="file", disable=hidden, leave=False):
        try:
            files.append(archive.identify(path, options))
        except OSError as error:
            archive.fail(File(str(path), "", options), f"cannot be read ({error.strerror})")
    return files


@dataclass(frozen=True)
class ModelOpener:
    """Opens the model in a worker's process.

    Attributes:
        options: of the command line, without what cannot be pickled.
        cores_each: cores that a worker has.
    """

    options: dict[str, Any]
    cores_each: float

    def __call__(self) -> "Worker":
        arguments = argparse.Namespace(**self.options)
        arguments.interrupted = lambda: False
        model = load_in_worker(arguments, self.cores_each)

        def work(
            job: "tuple[File, Path]", is_stopping: "IsStopping"
        ) -> "Generator[float, None, tuple[File, int]]":
            from streammem.engine.watch import watch
            from streammem.video import open_with

            file, place = job
            reported = 0.0
            shutil.rmtree(place, ignore_errors=True)  # of a process that died under it
            arguments.source, arguments.memory = file.path, place
            options = watch_options(arguments)
            num_segments, reason, until = 0, "", 0.0
            try:
                source = open_with(file.path, source_options(arguments))
            except SourceError as error:
                reason = str(error).removeprefix(f"{file.path}: ")
                return replace(file, state="unreadable", reason=reason), 0
            with open_session(arguments, model) as session:
                length = source.duration or 0.0
                options = replace(options, captions=not arguments.no_captions)
                for event in watch(session, source, options):
                    if isinstance(event, Notice) and event.is_failure:
                        reason = reason or str(event)
                    elif isinstance(event, Segment):
                        num_segments, until = num_segments + 1, event.end
                        if length and time.monotonic() >= reported + PROGRESS_EVERY_S:
                            reported = time.monotonic()
                            yield min(1.0, until / length)
            if not num_segments:
                reason = reason or "no frame between --start and --end"
                return replace(file, state="unreadable", reason=reason), 0
            state: FileState = "broken" if reason else "whole"
            return replace(file, state=state, reason=reason, seconds=until), num_segments

        return work


def _make(archive: "Archive", jobs: "list[File]", arguments: argparse.Namespace) -> int:
    """Make the memories of files; return how many were made."""
    from tqdm import tqdm

    from streammem.fleet import pool as pools
    from streammem.fleet.pool import Done, Failed, Reported, Restarted

    options = {n: v for n, v in vars(arguments).items() if n not in ("run", "interrupted")}
    by_job = {file.path: file for file in jobs}
    shares: dict[str, float] = {}
    num_made, seconds, began = 0, 0.0, time.monotonic()
    hidden = not sys.stderr.isatty()
    results = sys.stdout  # where nothing but results goes: of a cluster's remarks, see `workers_of`
    with (
        workers_of(arguments, max(1, len(jobs))) as (processes, num_workers, cores_each),
        tqdm(total=len(jobs), unit="file", disable=hidden, leave=False) as bar,
    ):
        pool = pools.Pool(ModelOpener(options, cores_each), num_workers, processes)
        for event in pool.run([(f, archive.unfinished(f)) for f in jobs], arguments.interrupted):
            path = event.job[0].path
            shares[path] = event.value if isinstance(event, Reported) else 1.0
            shares[path] = 0.0 if isinstance(event, Restarted) else shares[path]
            bar.update(round(sum(shares.values()) - bar.n, 2))
            if isinstance(event, Restarted):
                note(f"{plain(path)}: its process died ({event.reason}); it is begun again")
            if isinstance(event, Reported | Restarted):
                continue
            file, num_segments = by_job[path], 0
            try:
                if isinstance(event, Failed):
                    raise SourceError(event.reason)
                assert isinstance(event, Done)
                file, num_segments = event.result
                if file.state == "unreadable":
                    archive.fail(file, file.reason, file.state)
                else:
                    archive.keep(file)
                    num_made, seconds = num_made + 1, seconds + file.seconds
            except StreammemError as error:
                archive.fail(file, str(error))
            file = archive.files[path]
            with tqdm.external_write_mode():
                write_line(_line(file, num_segments, arguments), results)
    spent = time.monotonic() - began
    if seconds:
        note(
            f"{clock(seconds)} of video in {clock(spent)}, {min(num_workers, len(jobs))} processes"
        )
    return num_made


def _line(file: "File", num_segments: int, arguments: argparse.Namespace) -> str:
    place = str(arguments.memory / file.memory) if file.memory else None
    if arguments.format == "jsonl":
        found = {"path": file.path, "state": file.state, "memory": place, "seconds": file.seconds}
        more = {"segments": num_segments, "reason": file.reason or None}
        return json.dumps(found | more, ensure_ascii=False)
    if file.state in ("failed", "unreadable"):
        return plain(f"{file.path}: {file.state}: {file.reason}")
    broke = f" ({file.reason})" if file.reason else ""
    scenes = "1 scene" if num_segments == 1 else f"{num_segments} scenes"
    return plain(f"{file.path}: {scenes}, {clock(file.seconds)}, {place}{broke}")
