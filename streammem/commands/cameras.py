"""`watch --sources`: many cameras, each with its own memory, in processes that share models."""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from streammem.commands.opening import check_options, load_in_worker, open_session, watch_source
from streammem.commands.options import (
    ANSWER_FLAGS,
    DECODING_FLAGS,
    EVENTS,
    LIVE_FLAGS,
    SOURCE_FLAGS,
    SPEECH_FLAGS,
    TIMEZONE,
    Parser,
    add_live_options,
    add_source_options,
    add_watch_options,
    byte_size,
    rotation_of,
    watch_options,
)
from streammem.commands.publishing import broker_of, publisher_to
from streammem.errors import ConfigError, SourceError, StreammemError
from streammem.output.render import plain, wall_start
from streammem.output.results import EventOutput, replace_file
from streammem.output.terminal import note, signals
from streammem.types import Event, Notice, Segment, Stats

if TYPE_CHECKING:
    from streammem.captioning.shared import SharedModel
    from streammem.fleet.cameras import Board, CameraState, News
    from streammem.fleet.pool import IsStopping, Processes, Worker

STATS_S = 10.0  # between counters of a camera, which also show whether it still gives frames
STOP_S = 60.0  # for cameras to close what is open; the language model finishes what it captions
FLAGS = (*SOURCE_FLAGS, *SPEECH_FLAGS, *LIVE_FLAGS, *ANSWER_FLAGS, *DECODING_FLAGS, TIMEZONE)
OWN = {flag.name.removeprefix("--") for flag in FLAGS} | {
    *("memory", "budget", "keep", "alert", "confirm-alerts", "pictures", "config", "set"),
}
ADDRESS = re.compile(r"(?:(?P<host>[^:]+|\[[^]]+\]):)?(?P<port>\d{1,5})")


def add_options(parser: Parser) -> None:
    """Add the flags of many cameras to ``watch``."""
    add = parser.add_argument_group("many cameras").add_argument
    about = "TOML file of cameras: [cameras.NAME], source, and any of these options for each"
    add("--sources", type=Path, metavar="FILE", help=about)
    about = "processes, each with the model (default: one for each GPU, or for each two cores)"
    add("--workers", type=int, metavar="N", help=about)
    add_ray(add)
    about = "counters for Prometheus at /metrics there, as in 9400 or 0.0.0.0:9400"
    add("--metrics-port", metavar="[HOST:]PORT", help=about)


def add_ray(add: Callable[..., Any]) -> None:
    """Add --ray and what belongs to it."""
    about = "workers are actors of this Ray cluster: HOST:PORT, auto, or local (extra ray)"
    add("--ray", metavar="ADDRESS", help=about)
    about = (
        "with --ray: memory that each worker gets, such as 12GB (default: 1GB, the tiny model's)"
    )
    add("--worker-memory", type=byte_size, metavar="SIZE", help=about)


def check_one(arguments: argparse.Namespace) -> None:
    """Refuse what is for many cameras where one source is watched.

    Raises:
        ConfigError: no source, or a flag of many.
    """
    if arguments.source is None:
        raise ConfigError("give a SOURCE, or --sources FILE for many cameras")
    for name in ("workers", "ray", "worker_memory", "metrics_port"):
        if vars(arguments)[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: is for --sources FILE")


def check_workers(arguments: argparse.Namespace) -> None:
    """Refuse a number of workers below 1, and what is for a cluster without one.

    Raises:
        ConfigError: it is.
    """
    if arguments.worker_memory is not None and arguments.ray is None:
        raise ConfigError("--worker-memory: is for --ray")
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: give at least 1")


def run_cameras(arguments: argparse.Namespace) -> int:
    """Watch until all sources have ended or a signal comes."""
    from streammem.fleet.cameras import Board
    from streammem.fleet.metrics import serve_metrics, written
    from streammem.fleet.pool import Pool

    # 1. Check everything, before a process starts.
    cameras = _cameras(arguments)
    broker, address = broker_of(arguments), _address(arguments.metrics_port)
    output = _Output(arguments)
    board = Board(cameras)
    with ExitStack() as stack:
        processes, num_workers, cores_each = stack.enter_context(
            workers_of(arguments, len(cameras))
        )
        signalled = stack.enter_context(signals())
        stack.enter_context(closing(output))
        if address:
            port = stack.enter_context(serve_metrics(*address, board.prometheus))
            note(f"counters at http://{written(address[0])}:{port}/metrics")
        publishers = {
            name: stack.enter_context(publisher_to(broker, name, tuple(options["alert"])))
            for name, options in cameras.items()
        }
        # 2. Cameras are dealt out among processes; one that dies takes its own along.
        names = list(cameras)
        groups = [{n: cameras[n] for n in names[i::num_workers]} for i in range(num_workers)]
        common = {n: v for n, v in vars(arguments).items() if n not in ("run", "interrupted")}
        pool = Pool(CamerasOpener(common, cores_each), num_workers, processes, tries=None)
        stop = lambda: arguments.interrupted() or signalled.terminated  # noqa: E731
        # 3. What they tell is shown as it comes.
        status = _StatusFile(arguments.memory)
        stack.callback(status.remove)
        with closing(pool.run(groups, stop, STOP_S)) as events:
            for news in _news(events, board, status):
                if signalled.reopen:
                    signalled.reopen = False
                    output.reopen()
                if news.event is None:
                    continue
                output.show(news, board)
                if publisher := publishers[news.camera]:
                    publisher.send(news.event, wall_start(news.event, news.wall_zero))
    if arguments.metrics:
        replace_file(arguments.metrics, board.prometheus())
    for line in board.summary():
        note(line)
    return 130 if arguments.interrupted() else int(not board.all_well)


@contextmanager
def workers_of(
    arguments: argparse.Namespace, most: int
) -> "Iterator[tuple[Processes, int, float]]":
    """Give where workers' processes run, how many there are, and the cores of each.

    Args:
        arguments: of the command line.
        most: workers that there is work for, >= 1.

    Raises:
        ConfigError: --workers below 1, no such device, or no such cluster.
        BackboneError: Ray is not installed.
    """
    from streammem.fleet.pool import LocalProcesses
    from streammem.models.checkpoint import check_device
    from streammem.models.threads import cores

    wanted, on_gpu = arguments.workers, arguments.device == "cuda"
    check_workers(arguments)
    if arguments.ray is None:
        gpus = _gpus() if on_gpu else ()
        if arguments.device != "cpu" and not gpus:  # with some, a look would take up one's memory
            check_device(arguments.device)
        num_workers = min(wanted or len(gpus) or max(1, cores() // 2), most)
        yield LocalProcesses(gpus), num_workers, cores() / num_workers
        return
    from streammem.fleet.ray_actors import RayActors

    if arguments.device.startswith("cuda:"):
        raise ConfigError(f"--device {arguments.device}: with --ray give cuda; Ray chooses which")
    with (
        redirect_stdout(sys.stderr),  # Ray prints remarks of its own; results have stdout already
        RayActors.connect(
            arguments.ray,
            needs_gpu=on_gpu,
            num_workers=min(wanted, most) if wanted else None,
            memory_bytes=arguments.worker_memory,
        ) as actors,
    ):
        yield actors, min(wanted or actors.default_workers, most), actors.cpus


def _gpus() -> tuple[str, ...]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = (name.strip() for name in visible.split(","))
        return tuple(name for name in named if name not in ("", "-1"))  # -1 hides all
    return tuple(map(str, range(torch.cuda.device_count())))


# -- which cameras there are --


def _cameras(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the options of each camera as ``watch`` would have them, checked."""
    from streammem.fleet.cameras import read_cameras

    if arguments.format not in EVENTS:
        raise ConfigError(f"--sources: is written as {' or '.join(EVENTS)}")
    if arguments.source is not None or arguments.until or arguments.camera:
        raise ConfigError("--sources: leave out SOURCE, --until and --camera")
    if arguments.memory is None:
        raise ConfigError("--sources: give --memory DIR, the folder of the cameras' memories")
    if arguments.output and arguments.format != "jsonl":
        raise ConfigError("--sources with -o FILE: give --format jsonl, which names the camera")
    found = {}
    for name, options in read_cameras(arguments.sources).items():
        found[name] = vars(_camera(name, options, arguments))
    places = [options["memory"] for options in found.values()]
    if len(set(places)) < len(places):
        raise ConfigError(f"{arguments.sources}: two cameras have one memory")
    for path in {arguments.memory, arguments.pictures} - {None}:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be made ({error.strerror})") from error
    return found


def _camera(
    name: str, options: dict[str, Any], arguments: argparse.Namespace
) -> argparse.Namespace:
    """Read one camera's table as a command line of ``watch``; the flags typed are its defaults."""
    where = f"{arguments.sources}: [cameras.{name}]"

    class TableParser(Parser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"{where}: {message}")

    parser = TableParser(prog="watch")
    add_source_options(parser, reconnects=True)
    add_live_options(parser)
    add_watch_options(parser)
    words = []
    typed = {n: v for n, v in vars(arguments).items() if n not in ("source", "run", "interrupted")}
    for key, value in options.items():
        flag = key.replace("_", "-")
        typed.pop(flag.replace("-", "_"), None)  # the table's own, not added to what was typed
        if key == "source":
            continue
        if flag not in OWN:
            raise ConfigError(f"{where}: {key} is no option of one camera")
        for each in value if isinstance(value, list) else [value]:
            if each is not False:
                words.append(f"--{flag}" if each is True else f"--{flag}={each}")
    typed |= {"memory": arguments.memory / name, "output": None, "metrics": None, "stats": None}
    if arguments.pictures:
        typed["pictures"] = arguments.pictures / name
    if options["source"].startswith("-"):
        raise ConfigError(f"{where}: source {options['source']!r} cannot be read by many")
    camera = parser.parse_args([*words, options["source"]], argparse.Namespace(**typed))
    camera.memory, camera.until = Path(camera.memory), None
    try:
        if check_options(camera):
            raise ConfigError("is a memory, not a source")
    except SourceError:
        pass  # a file that is not there fails its own camera, not the others
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return camera


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    found = ADDRESS.fullmatch(text)
    if not found or int(found["port"]) > 65_535:
        raise ConfigError(f"--metrics-port {text}: give a port, or HOST:PORT")
    return (found["host"] or "127.0.0.1").strip("[]"), int(found["port"])


# -- in a worker's process --


@dataclass(frozen=True)
class CamerasOpener:
    """Opens the model in a worker's process, which watches a group of cameras.

    Attributes:
        options: of the command line, without what cannot be pickled.
        cores_each: cores that a worker has.
    """

    options: dict[str, Any]
    cores_each: float

    def __call__(self) -> "Worker":
        from streammem.captioning.shared import share_model
        from streammem.fleet.cameras import watch_together

        common = argparse.Namespace(**self.options)
        model = load_in_worker(common, self.cores_each)  # its budget is now in `common`

        def work(
            cameras: dict[str, dict[str, Any]], is_stopping: "IsStopping"
        ) -> "Generator[News, None, None]":
            shared = share_model(model)
            try:
                watched = {
                    n: partial(_watch, options | {"spend": vars(common).get("spend")}, shared)
                    for n, options in cameras.items()
                }
                yield from watch_together(watched, is_stopping)
            finally:
                shared.scheduler.close()

        return work


def _watch(
    options: dict[str, Any], shared: "SharedModel", is_stopping: "IsStopping"
) -> Generator[tuple[Event, float | None], None, None]:
    """Watch one camera; see ``fleet.cameras.WatchCamera``."""
    from streammem.engine.watch_options import WatchCallbacks
    from streammem.fleet.cameras import EndedEarlyError
    from streammem.video import kind_of

    arguments, broken = argparse.Namespace(**options), ""
    arguments.interrupted = is_stopping
    finite = kind_of(arguments.source).finite
    watching = replace(watch_options(arguments), stats_s=STATS_S)
    try:
        with open_session(arguments, shared.model) as session:
            callbacks = WatchCallbacks(is_stopping)
            for event, wall_zero in watch_source(
                session, arguments, watching, callbacks, scheduler=shared.scheduler
            ):
                if finite and isinstance(event, Notice) and event.is_failure:
                    broken = broken or str(event)
                if not isinstance(event, Segment):
                    yield event, wall_zero
    except SourceError as error:
        if finite:  # waiting does not mend it
            raise EndedEarlyError(str(error)) from error
        raise
    if broken:
        raise EndedEarlyError(broken)


# -- what they tell --


def _news(events: Iterator[Any], board: "Board", file: "_StatusFile") -> "Iterator[News]":
    """Keep the board and its file, note changes of state, and yield what workers report."""
    from streammem.fleet.cameras import News
    from streammem.fleet.pool import Failed, Reported, Restarted

    for event in events:
        if isinstance(event, Reported):
            news = event.value
            if board.take(news):
                status = board.cameras[news.camera]
                because = f": {status.reason}" if status.state in ("down", "failed") else ""
                again = f"; again in {news.wait_s:.0f} s" if news.wait_s else ""
                note(plain(f"{news.camera}: {status.state}{because}{again}"))
            file.renew(board)
            yield news
        elif isinstance(event, Restarted):
            board.died(event.job, event.reason)
            named = ", ".join(event.job)
            again = f"; another is started in {event.wait_s:.0f} s"
            file.renew(board)
            note(plain(f"the process of {named} died ({event.reason}){again}"))
        elif isinstance(event, Failed):
            for name in event.job:
                board.take(News(name, state="failed", reason=event.reason))
            file.renew(board)


class _StatusFile:
    """A file that tells a server how the cameras are; watching goes on where it cannot be kept."""

    def __init__(self, folder: Path) -> None:
        from streammem.fleet.cameras import STATUS

        self._path, self._written = folder / STATUS, -math.inf
        self._states: dict[str, tuple[CameraState, str]] = {}

    def renew(self, board: "Board") -> None:
        """Write it where a state has changed, and before it counts as one of the past."""
        from streammem.fleet.cameras import STATUS_EVERY_S, status_text

        states = board.states()
        if states != self._states or time.monotonic() >= self._written + STATUS_EVERY_S:
            self._states, self._written = states, time.monotonic()
            with suppress(OSError, StreammemError):  # as on a full disk
                replace_file(self._path, status_text(states))

    def remove(self) -> None:
        """Remove it: nothing is watched any more."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class _Output:
    """Where the events of cameras go: results to a file or stdout, the rest to stderr."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        rotation = rotation_of(arguments)
        self._results = EventOutput(arguments.format, arguments.output, rotation)
        self.reopen, self.close = self._results.reopen, self._results.close

    def show(self, news: "News", board: "Board") -> None:
        """Show an event of a camera."""
        event = news.event
        assert event is not None
        if isinstance(event, Stats):
            if self._arguments.metrics:
                replace_file(self._arguments.metrics, board.prometheus())
            if not self._arguments.stats:
                return
        if isinstance(event, Notice | Stats):
            note(f"{news.camera}: {event}")
        more = {"camera": news.camera, **wall_start(event, news.wall_zero)}
        self._results.write(event, more, f"{news.camera} ")
