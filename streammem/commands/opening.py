"""What the commands that look at a source share: a session is opened, the source goes through it.

What comes out of it is shown by each command.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from streammem.commands.options import (
    check_limits,
    check_output,
    check_speech,
    configured,
    watch_options,
)
from streammem.errors import ConfigError, SourceError, StoreError
from streammem.output.render import plain
from streammem.output.terminal import note
from streammem.types import Event, Segment, Warning

if TYPE_CHECKING:
    from streammem.engine.session import Session
    from streammem.engine.watch import WatchOptions

log = logging.getLogger(__name__)

# A memory is pruned whenever it has grown by a 16th of its budget, or by about 2 MB.
BUDGET_SHARE, SEGMENT_BYTES, PRUNED_EVERY = 16, 32 << 10, 64


def open_session(arguments: argparse.Namespace) -> "Session":
    """Check every option, then load the model.

    Raises:
        StreammemError: what was asked for cannot be meant, or not be opened.
    """
    remembered = _checked(arguments)

    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig
    from streammem.models.checkpoint import load
    from streammem.models.threads import limit_threads
    from streammem.perception.scenes import for_keyframes

    quiet_libraries()
    limit_threads(busy=2)
    model = load(arguments.model, device=arguments.device)
    memory = arguments.source if remembered else arguments.memory
    # Once more on the model's own options: what is not stated stays as the model has it.
    scenes = for_keyframes(model.perceiver.scenes) if arguments.sparse else model.perceiver.scenes
    own = SessionConfig(scenes=scenes, caption=model.generator.decoding)
    session = Session(model, configured(own, arguments), memory=memory, read_only=remembered)
    session.wall_zero = arguments.recorded
    if remembered and not len(session.memory):
        session.close()
        raise StoreError(f"{arguments.source}: nothing is in this memory yet")
    return session


def _checked(arguments: argparse.Namespace) -> bool:
    """Check every option; return whether the source is a memory that is asked."""
    from streammem.engine.session_config import SessionConfig
    from streammem.memory.folder import is_memory
    from streammem.memory.memory import check_path
    from streammem.video.sampling import Sampling
    from streammem.video.source import kind_of

    configured(SessionConfig(), arguments)
    options = watch_options(arguments)
    Sampling(fps=options.fps, start=options.start, end=options.end)
    check_speech(arguments.speech)
    check_limits(arguments)
    if arguments.memory:
        check_path(arguments.memory)
    check_output(arguments.output, arguments.source)
    if sheet := getattr(arguments, "sheet", None):
        check_output(sheet, arguments.source)
        if sheet == arguments.output:
            raise ConfigError(f"{sheet}: cannot be both --sheet and --output; give two files")
    remembered = is_memory(arguments.source)
    if remembered:
        _check_asked(arguments)
    else:
        kind_of(arguments.source)
    return remembered


def _check_asked(arguments: argparse.Namespace) -> None:
    """Refuse what is not for a memory: it is asked as a whole, and not written."""
    if not arguments.asks:
        asking = "ask, find and summary look into it"
        raise ConfigError(f"{arguments.source}: is a memory, not a video; {asking}")
    for name in ("memory", "fps", "start", "end", "sparse", "reader", "recorded"):
        if getattr(arguments, name) not in (None, False, "auto"):
            raise ConfigError(f"--{name}: is for a video, and {arguments.source} is a memory")


def watch(
    session: "Session", arguments: argparse.Namespace, options: "WatchOptions"
) -> Iterator[Event]:
    """Watch, within the memory's limits, and show how far along the source we are."""
    from streammem.engine.reader import open_aside
    from streammem.engine.watch import open_for, watch

    source = open_aside(lambda: open_for(arguments.source, options), arguments.interrupted)
    if source is None:
        return
    prune(session, arguments)
    num_segments = 0
    with _progress(source.name, source.duration, silent=options.on_text is not None) as at:
        for event in watch(session, source, options):
            if isinstance(event, Segment):
                at(event.end)
                num_segments += 1
                if num_segments % pruned_every(arguments.budget) == 0:
                    prune(session, arguments)
            if isinstance(event, Warning):
                note(str(event))
            yield event
    prune(session, arguments)


def every_frame(
    session: "Session", arguments: argparse.Namespace, options: "WatchOptions"
) -> Iterator[Event]:
    """Find scenes by looking at every decoded frame, with progress."""
    from streammem.engine.watch import open_for
    from streammem.perception.scenes import MAX_SIDE, find_scenes

    source = open_for(arguments.source, replace(options, fps=None, max_side=MAX_SIDE))
    with _progress(source.name, source.duration) as at:
        perceiver, scenes = session.model.perceiver, session.config.scenes
        for event in find_scenes(perceiver, source, options.stop, at, scenes):
            if isinstance(event, Warning):
                note(str(event))
            yield event


def perceive(session: "Session", arguments: argparse.Namespace) -> bool:
    """Take in a whole source without captions, unless it is a memory; tell if it broke off.

    Raises:
        SourceError: it has nothing to take in.
    """
    if session.read_only:
        return False
    broken = False
    for event in watch(session, arguments, watch_options(arguments, speak=False)):
        broken |= isinstance(event, Warning)
    if not session.num_frames:
        if arguments.interrupted():
            raise KeyboardInterrupt
        raise SourceError(f"{arguments.source}: no frame between --start and --end")
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
    """Return 130 after an interrupt, 1 after a source that broke off, else 0."""
    return 130 if arguments.interrupted() else int(broken)


def quiet_libraries() -> None:
    """Keep other libraries' remarks off the terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@contextmanager
def _progress(
    name: str, duration: float | None, *, silent: bool = False
) -> Iterator[Callable[[float], None]]:
    """Show a bar where nothing else is on the terminal; give the function that moves it."""
    from tqdm import tqdm

    total = duration and round(duration, 1)
    hidden = silent or not sys.stderr.isatty()
    with tqdm(total=total, unit="s", desc=plain(name), disable=hidden, leave=False) as bar:
        yield lambda time: bar.update(round(time - bar.n, 1))
