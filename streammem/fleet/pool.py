"""Processes that work through a list of jobs; one that dies takes no other down.

    for event in Pool(open_worker, num_workers=4).run(jobs):
        ...                                     # Progress, Done, Failed, as they come

``open_worker()`` runs once in each process and returns what does a job. It must be importable, as
the jobs and what is returned are pickled. Results do not depend on which process did a job.
"""

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from streammem.errors import StreammemError

TRIES = 2  # of a job whose process dies under it
PROGRESS_EVERY_S = 0.2
STOP_S = 5.0  # that a process may take to end

Report = Callable[[float], None]
Worker = Callable[[Any, Report], Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: ``share`` in [0, 1]."""

    job: Any
    share: float


@dataclass(frozen=True, slots=True)
class Done:
    """A job and what its worker returned."""

    job: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that came to nothing, and why."""

    job: Any
    reason: str


class Pool:
    """Runs jobs in processes of their own.

    Args:
        open_worker: called once in each process; what it returns is called with a job and with
            what reports its progress. A ``StreammemError`` or ``OSError`` fails that job alone.
        num_workers: processes, >= 1.
    """

    def __init__(self, open_worker: Callable[[], Worker], num_workers: int) -> None:
        self._open_worker, self._num_workers = open_worker, num_workers
        # A fork would take along locks that threads of this process hold.
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[Connection, tuple[SpawnProcess, Any]] = {}

    def run(
        self, jobs: Sequence[Any], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Progress | Done | Failed]:
        """Do all jobs; yield what comes of them in the order in which it comes.

        Args:
            jobs: in the order in which they are begun.
            stop: asked all the while; once it holds, what runs is given up.
        """
        left, tries = deque(jobs), dict[int, int]()
        try:
            for _ in range(min(self._num_workers, len(left))):
                self._start(left.popleft())
            while self._running and not stop():
                for pipe in wait(list(self._running), timeout=PROGRESS_EVERY_S):
                    assert isinstance(pipe, Connection)
                    process, job = self._running[pipe]
                    try:
                        event = pipe.recv()
                    except (EOFError, OSError):  # it has died
                        self._end(pipe)
                        tries[id(job)] = tries.get(id(job), 0) + 1
                        if tries[id(job)] < TRIES:
                            left.appendleft(job)
                        else:
                            yield Failed(job, f"its process died twice ({_ending(process)})")
                        if left:
                            self._start(left.popleft())
                        continue
                    if isinstance(event, float):
                        yield Progress(job, event)
                        continue
                    yield Done(job, event[1]) if event[0] else Failed(job, event[1])
                    if left:
                        job = left.popleft()
                        self._running[pipe] = process, job
                        with suppress(OSError):  # one that has died is noticed above
                            pipe.send(job)
                    else:
                        self._end(pipe)
        finally:
            for pipe in list(self._running):
                self._end(pipe)

    @property
    def processes(self) -> list[int]:
        """Ids of the processes that run now."""
        return [process.pid for process, _ in self._running.values() if process.pid]

    def _start(self, job: Any) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(self._open_worker, theirs), name="streammem-worker", daemon=True
        )
        process.start()
        theirs.close()  # so that its end is seen here when it dies
        self._running[ours] = process, job
        with suppress(OSError):
            ours.send(job)

    def _end(self, pipe: Connection) -> None:
        process, _ = self._running.pop(pipe)
        pipe.close()
        process.join(0.1 if process.exitcode is None else STOP_S)
        if process.exitcode is None:
            process.terminate()
            process.join(STOP_S)
        if process.exitcode is None:
            process.kill()
            process.join()


def _work(open_worker: Callable[[], Worker], pipe: Connection) -> None:
    """Do what comes through a pipe until it is closed."""
    # Ctrl-C is for the process that was started by hand; it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reported = 0.0

    def report(share: float) -> None:
        nonlocal reported
        if time.monotonic() >= reported + PROGRESS_EVERY_S:
            reported = time.monotonic()
            pipe.send(float(share))

    worker: Worker | None = None
    with suppress(EOFError, BrokenPipeError, ConnectionError):
        while True:
            job = pipe.recv()
            try:
                worker = worker or open_worker()
                pipe.send((True, worker(job, report)))
            except (StreammemError, OSError) as error:
                pipe.send((False, " ".join(str(error).split())))
            except (EOFError, KeyboardInterrupt):
                raise
            except Exception as error:  # noqa: BLE001, a fault of ours fails one job, not the others
                pipe.send((False, f"{type(error).__name__}: {error}"))


def _ending(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
