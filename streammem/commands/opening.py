"""What the commands that read a source share: a session is opened, the source goes through it.

with open_session(arguments) as session:
for event, wall_zero in watch_source(session, arguments):
...
return exit_code(arguments, broken)
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from streammem.commands.options import (
    check_limits,
    check_no_subtitles,
    check_output,
    configured,
    load_model,
    source_options,
    watch_options,
)
from streammem.errors import ConfigError, SourceError, StoreError
from streammem.output.render import plain
from streammem.output.terminal import note
from streammem.types import Event, Notice, Segment, encodable
from streammem.video import kind_of, open_with
from streammem.video.address import public_name

if TYPE_CHECKING:
    from streammem.captioning.scheduler import LanguageScheduler
    from streammem.engine.session import Session
    from streammem.engine.watch_options import WatchCallbacks, WatchOptions
    from streammem.memory.entry import Entry
    from streammem.models.protocols import StreamModel

log = logging.getLogger(__name__)

# A memory is pruned whenever it has grown by a 16th of its budget, or by about 2 MB.
SPEECH = ("speech", "speech_language", "sounds")
BUDGET_SHARE, SEGMENT_BYTES, PRUNED_EVERY = 16, 32 << 10, 64


def open_session(arguments: argparse.Namespace, model: "StreamModel | None" = None) -> "Session":
    """Check every option, then load the model, unless it is given.

    Raises:
        StreammemError: an option is out of its range, or something cannot be opened.
    """
    remembered = check_options(arguments)

    from streammem.engine.session import Session
    from streammem.engine.session_config import defaults_of
    from streammem.engine.whole_video import open_by_cuts as open_by_cuts
    from streammem.models.threads import limit_threads
    from streammem.perception.scenes import for_keyframes

    if model is None:
        quiet_libraries()
        limit_threads(busy=2)
        model = load_model(arguments)
    # Once more on the model's own options: what is not stated stays as the model has it.
    own = defaults_of(model)
    if arguments.sparse:
        own = replace(own, scenes=for_keyframes(model.perceiver.scenes))
    config = configured(own, arguments)
    if remembered:
        session = Session(model, config, memory=arguments.source, read_only=True)
    else:
        finite = kind_of(arguments.source).finite
        session = open_by_cuts(model, config, arguments.memory, finite=finite)
    session.wall_zero = arguments.recorded
    session.answerer.file_of = file_of
    if remembered and not len(session.memory):
        session.close()
        raise StoreError(f"{arguments.source}: nothing is in this memory yet")
    return session


def file_of(entry: "Entry") -> Path | None:
    """Return the video file that a row was seen in, if it is still there."""
    path = Path(entry.source)
    return path if entry.source and path.is_file() and kind_of(path).name == "file" else None


def check_options(arguments: argparse.Namespace) -> bool:
    """Check every option; return whether the source is a memory that is asked.

    Raises:
        ConfigError: an option that cannot be meant.
    """
    from streammem.engine.session_config import SessionConfig
    from streammem.memory.folder import holds_memories, is_memory
    from streammem.memory.memory import check_path

    configured(SessionConfig(), arguments)
    source_options(arguments)
    watch_options(arguments)
    check_limits(arguments)
    if arguments.memory:
        check_path(arguments.memory)
    check_output(arguments.output, arguments.source)
    check_no_subtitles(arguments.output, arguments.source)
    if sheet := vars(arguments).get("sheet"):
        check_output(sheet, arguments.source)
        if sheet == arguments.output:
            raise ConfigError(f"{sheet}: cannot be both --sheet and --output; give two files")
    remembered = is_memory(arguments.source)
    if remembered:
        _check_asked(arguments)
    elif arguments.asks and holds_memories(arguments.source):
        raise ConfigError(
            f"{arguments.source}: holds memories, and is none; name one of them, or add --all, "
            "which find and ask have"
        )
    elif kind_of(arguments.source).name == "file":
        from streammem.video.container import check_file  # PyAV loads once there is a file

        check_file(arguments.source)
    return remembered


def _check_asked(arguments: argparse.Namespace) -> None:
    """Refuse what is not for a memory: it is asked as a whole, and not written."""
    if not arguments.asks:
        asking = "ask, find and summary look into it"
        raise ConfigError(f"{arguments.source}: is a memory, not a video; {asking}")
    for name in ("memory", "fps", "start", "end", "sparse", "reader", "recorded", *SPEECH):
        if vars(arguments)[name] not in (None, False, "auto"):
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for a video, and {arguments.source} is a memory"
            )


def watch_source(
    session: "Session",
    arguments: argparse.Namespace,
    options: "WatchOptions | None" = None,
    callbacks: "WatchCallbacks | None" = None,
    *,
    progress: bool = False,
    scheduler: "LanguageScheduler | None" = None,
) -> Iterator[tuple[Event, float | None]]:
    """Watch the source of a command line, within its memory's limits.

    Args:
        session: takes in the frames.
        arguments: with the flags of ``add_source_options``.
        options: None takes them from the flags.
        callbacks: ``stop`` must be there; None stops on an interrupt.
        progress: show a bar, where stderr is a terminal.
        scheduler: of a model that sessions share; see ``watch``.

    Yields:
        Each event with the Unix seconds at 0 of the memory's timeline, where they are known.

    Raises:
        SourceError: it cannot be opened or read.
    """
    from streammem.engine.reader import open_aside
    from streammem.engine.watch import watch
    from streammem.engine.watch_options import WatchCallbacks

    options = options or watch_options(arguments)
    callbacks = callbacks or WatchCallbacks(stop=arguments.interrupted)
    assert callbacks.stop
    opening = source_options(arguments)
    source = open_aside(lambda: open_with(arguments.source, opening), callbacks.stop)
    if source is None:
        return
    # What a recorder adds to a folder goes on, but what is there is read from its beginning.
    begins_anew = source.finite or kind_of(arguments.source).name == "growing"
    if begins_anew and session.memory.newest(encodable(source.name)):
        known = f"{session.memory.path}: has scenes of {plain(source.name)} already"
        note(f"{known}; those that are seen now stand beside them, and count besides")
    prune(session, arguments)
    num_segments = 0
    with _progress(source.name, source.duration, shown=progress) as at:
        for event in watch(session, source, options, callbacks=callbacks, scheduler=scheduler):
            if isinstance(event, Segment):
                at(event.end)
                num_segments += 1
                if num_segments % pruned_every(arguments.budget) == 0:
                    prune(session, arguments)
            yield event, session.wall_zero
    prune(session, arguments)


def every_frame(session: "Session", arguments: argparse.Namespace) -> Iterator[Event]:
    """Find scenes among all decoded frames, with progress."""
    from streammem.perception.scenes import SCENES_SIDE, find_scenes

    opening = replace(source_options(arguments), fps=None, max_side=SCENES_SIDE)
    source = open_with(arguments.source, opening)
    with _progress(source.name, source.duration) as at:
        yield from (Notice(text, is_failure=False) for text in source.notices)
        perceiver, scenes = session.model.perceiver, session.config.scenes
        yield from find_scenes(perceiver, source, arguments.interrupted, at, scenes)


def perceive(session: "Session", arguments: argparse.Namespace) -> bool:
    """Take in a whole source without captions, unless it is a memory; return if it broke off.

    Raises:
        SourceError: it has nothing to take in.
    """
    if session.read_only:
        return False
    broken = False
    options = replace(watch_options(arguments), captions=False)
    for event, _ in watch_source(session, arguments, options, progress=True):
        if isinstance(event, Notice):
            note(str(event))
            broken |= event.is_failure
    if not session.num_frames:
        if arguments.interrupted():
            raise KeyboardInterrupt
        name = public_name(arguments.source)
        raise SourceError(f"{name}: no frame between --start and --end")
    return broken


def prune(session: "Session", arguments: argparse.Namespace) -> None:
    """Keep a session's memory within --budget and --keep."""
    if (arguments.budget, arguments.keep) != (None, None):
        session.memory.prune(budget_bytes=arguments.budget, keep_s=arguments.keep)


def pruned_every(budget_bytes: int | None) -> int:
    """Return after how many segments a memory is pruned again."""
    if budget_bytes is None:
        return PRUNED_EVERY
    return min(PRUNED_EVERY, max(1, budget_bytes // (BUDGET_SHARE * SEGMENT_BYTES)))


def exit_code(arguments: argparse.Namespace, broken: bool) -> int:
    """Return 130 after an interrupt, 1 after a source that broke off, else 0.

    Where lost sources are opened again, what they report on the way is no failure; a source
    whose end is known from the start and that breaks off still is.
    """
    if arguments.interrupted():
        return 130
    return int(broken and (not arguments.reconnects or kind_of(arguments.source).finite))


def quiet_libraries() -> None:
    """Keep other libraries' remarks off the terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_in_worker(arguments: argparse.Namespace, cores_each: float) -> "StreamModel":
    """Open the model in a process that has ``cores_each`` of the machine's cores."""
    from streammem.models.threads import cores, limit_threads

    quiet_libraries()
    limit_threads(busy=max(2, round(2 * cores() / cores_each)))
    return load_model(arguments)


@contextmanager
def _progress(
    name: str, duration: float | None, *, shown: bool = True
) -> Iterator[Callable[[float], None]]:
    """Show a bar on stderr if that is a terminal; give the function that moves it."""
    from tqdm import tqdm

    total = duration and round(duration, 1)
    hidden = not (shown and sys.stderr.isatty())
    with tqdm(total=total, unit="s", desc=plain(name), disable=hidden, leave=False) as bar:
        yield lambda time: bar.update(round(time - bar.n, 1))
