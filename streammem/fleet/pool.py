"""Workers that do jobs, each in a process of its own; one that dies takes no other down.

    for event in Pool(open_worker, num_workers=4).run(jobs):
        ...                                     # Reported, Restarted, Done, Failed, as they come

``open_worker()`` runs once in each process and returns the worker: a generator function of a job
and of ``is_stopping``, which yields what it reports and returns its result. It must be importable,
as jobs, reports and results are pickled. Results do not depend on which process did a job.

The processes are local ones (`LocalProcesses`), or actors of a Ray cluster (`fleet/ray_actors.py`).
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from streammem.errors import StreammemError

TRIES = 2  # of a job whose process dies under it
POLL_S = 0.2
STOP_S = 5.0  # that a process may take to end
# Signals of a terminal or a service are for the process that was started by hand; it asks workers
# to stop.
NOT_OURS = (signal.SIGINT, signal.SIGTERM)
# What fails soon after its start, a process or a camera, is begun again after waits that double.
BACK_OFF_S, LIVED_S = (1.0, 60.0), 60.0


def wait_after(num_failures: int) -> float:
    """Return the seconds to wait after so many failures in a row, >= 1."""
    return min(BACK_OFF_S[0] * 2.0 ** min(num_failures - 1, 32), BACK_OFF_S[1])


IsStopping = Callable[[], bool]
Worker = Callable[[Any, IsStopping], Generator[Any, None, Any]]
OpenWorker = Callable[[], Worker]


@dataclass(frozen=True, slots=True)
class Reported:
    """What a worker yielded while it did a job."""

    job: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Restarted:
    """A job whose process died, which another one does again; why, and after how long a wait."""

    job: Any
    reason: str
    wait_s: float


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


PoolEvent = Reported | Restarted | Done | Failed


class DiedError(Exception):
    """A worker's process has died; the message says of what."""


class WorkerProcess(Protocol):
    """One process with a worker, as the pool sees it."""

    def begin(self, job: Any) -> None:
        """Give it a job; the one before must be over."""
        ...

    def receive(self) -> tuple[str, Any]:
        """Return the next message of its job; see ``messages``.

        Raises:
            DiedError: the process has died.
        """
        ...

    def ask_to_stop(self) -> None:
        """Let ``is_stopping`` return True in the worker."""
        ...

    def end(self) -> None:
        """End the process, whatever it does."""
        ...


class Processes(Protocol):
    """Where workers' processes are started."""

    def start(self, open_worker: OpenWorker) -> WorkerProcess:
        """Start one."""
        ...

    def ready(
        self, processes: Sequence[WorkerProcess], timeout_s: float
    ) -> Sequence[WorkerProcess]:
        """Return those of which something can be received, or that have died."""
        ...


class Pool:
    """Runs jobs in workers' processes.

    Args:
        open_worker: called once in each process. A ``StreammemError`` or ``OSError`` that a worker
            raises fails its job alone.
        num_workers: processes, >= 1.
        processes: where they run; None for this machine.
        tries: of a job whose process dies under it, >= 1; None for any number.
    """

    def __init__(
        self,
        open_worker: OpenWorker,
        num_workers: int,
        processes: Processes | None = None,
        tries: int | None = TRIES,
    ) -> None:
        self._open_worker, self._num_workers, self._max_tries = open_worker, num_workers, tries
        self._where = processes or LocalProcesses()
        self._running: dict[WorkerProcess, tuple[Any, float]] = {}  # job, monotonic start
        self._open: set[WorkerProcess] = set()  # of these, those whose worker is open

    def run(
        self,
        jobs: Sequence[Any],
        stop: Callable[[], bool] = lambda: False,
        patience_s: float = 0.0,
    ) -> Generator[PoolEvent, None, None]:
        """Do all jobs; yield what comes of them in the order in which it comes.

        A worker whose reports are not taken waits in its next ``yield``.

        Args:
            jobs: in the order in which they are begun.
            stop: asked all the while; once it holds nothing more is begun, and a process that is
                still opening its worker is ended.
            patience_s: that jobs which run then may take to end; those that do not are given up.
        """
        left = deque(jobs)
        deaths, again = dict[int, int](), list[tuple[float, Any]]()
        deadline: float | None = None
        try:
            while self._running or ((left or again) and deadline is None):
                now = time.monotonic()
                if deadline is None and stop():
                    deadline = now + patience_s
                    self._ask_to_stop()
                if deadline is not None and now >= deadline:
                    break
                if deadline is None:
                    due = [entry for entry in again if entry[0] <= now]
                    again = [entry for entry in again if entry[0] > now]
                    left.extendleft(job for _, job in due)
                    while left and len(self._running) < self._num_workers:
                        self._start(left.popleft())
                if not self._running:
                    time.sleep(POLL_S)  # all that is left waits for its next try
                for process in self._where.ready(list(self._running), POLL_S):
                    job, began = self._running[process]
                    try:
                        kind, value = process.receive()
                    except DiedError as death:
                        self._end(process)
                        tries = deaths[id(job)] = deaths.get(id(job), 0) + 1
                        if self._max_tries is not None and tries >= self._max_tries:
                            yield Failed(job, f"its process died {_times(tries)} ({death})")
                            continue
                        if time.monotonic() - began >= LIVED_S:
                            tries = deaths[id(job)] = 1
                        # A job that may fail for good is not worth a wait.
                        wait_s = wait_after(tries) if self._max_tries is None else 0.0
                        again.append((time.monotonic() + wait_s, job))
                        yield Restarted(job, str(death), wait_s)
                        continue
                    if kind == "open":
                        self._open.add(process)
                        continue
                    if kind == "report":
                        yield Reported(job, value)
                        continue
                    if left and deadline is None:
                        self._running[process] = left.popleft(), time.monotonic()
                        process.begin(self._running[process][0])
                    else:
                        self._end(process)
                    yield Done(job, value) if kind == "done" else Failed(job, value)
        finally:
            for process in list(self._running):
                self._end(process)

    def _start(self, job: Any) -> None:
        process = self._where.start(self._open_worker)
        self._running[process] = job, time.monotonic()
        process.begin(job)

    def _ask_to_stop(self) -> None:
        for process in list(self._running):
            if process in self._open:
                process.ask_to_stop()
            else:  # a model may take minutes to load, and nothing is lost
                self._end(process)

    def _end(self, process: WorkerProcess) -> None:
        del self._running[process]
        self._open.discard(process)
        process.end()


def messages(
    open_worker: OpenWorker, job: Any, is_stopping: IsStopping
) -> Iterator[tuple[str, Any]]:
    """Do a job in the worker's process, and yield what ``WorkerProcess.receive`` is to return.

    Args:
        open_worker: called before each job; it returns the same worker every time.
        job: to be done.
        is_stopping: given to the worker.

    Yields:
        ``open`` once the worker is there; ``report`` and what it yielded; at the end ``done`` and
        its result, or ``failed`` and the reason.
    """
    try:
        worker = open_worker()
        yield "open", None
        steps = worker(job, is_stopping)
        while True:
            try:
                report = next(steps)
            except StopIteration as end:
                yield "done", end.value
                return
            yield "report", report
    except (StreammemError, OSError) as error:
        yield "failed", " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001, a fault of ours fails one job, not the others
        yield "failed", f"{type(error).__name__}: {error}"


# -- processes of this machine --


class LocalProcesses:
    """Starts processes on this machine.

    Args:
        gpus: names of its GPUs, as CUDA_VISIBLE_DEVICES has them; a process sees the one that
            fewest use. With none it sees what this process does.
    """

    def __init__(self, gpus: Sequence[str] = ()) -> None:
        # A fork would take along locks that threads of this process hold.
        self._context = multiprocessing.get_context("spawn")
        self._users = dict.fromkeys(gpus, 0)

    def start(self, open_worker: OpenWorker) -> "_LocalProcess":
        """Start one; it ends when this process does."""
        ours, theirs = self._context.Pipe()
        gpu = min(self._users, key=self._users.__getitem__, default=None)
        process = self._context.Process(
            target=_work, args=(open_worker, theirs, gpu), name="streammem-worker", daemon=True
        )
        # What a terminal sends while it starts must not end it; from `_work` on it ignores these.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_OURS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that its end is seen here when it dies
        if gpu is None:
            return _LocalProcess(process, ours, lambda: None)
        self._users[gpu] += 1
        return _LocalProcess(process, ours, lambda: self._users.update({gpu: self._users[gpu] - 1}))

    def ready(
        self, processes: Sequence[WorkerProcess], timeout_s: float
    ) -> Sequence[WorkerProcess]:
        """See ``Processes``."""
        by_pipe = {p.pipe: p for p in processes if isinstance(p, _LocalProcess)}
        return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout_s)]  # type: ignore[index]


class _LocalProcess:
    def __init__(self, process: Any, pipe: Connection, on_end: Callable[[], None]) -> None:
        self._process, self.pipe, self._on_end = process, pipe, on_end

    def begin(self, job: Any) -> None:
        with suppress(OSError):  # one that has died is noticed when it is received from
            self.pipe.send(job)

    def receive(self) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = self.pipe.recv()
            return message
        except (EOFError, OSError):
            self._process.join(STOP_S)
            code = self._process.exitcode or 0
            named = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise DiedError(named) from None

    def ask_to_stop(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)

    def end(self) -> None:
        process = self._process
        self.pipe.close()
        process.join(0.1)
        if process.exitcode is None:
            process.kill()
        process.join()
        self._on_end()


def _work(open_worker: OpenWorker, pipe: Connection, gpu: str | None) -> None:
    """Do what comes through a pipe until it is closed."""
    if gpu is not None:  # read when CUDA is first used
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    for number in NOT_OURS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_OURS)
    opened = cache(open_worker)
    with suppress(EOFError, BrokenPipeError, ConnectionError):
        while (job := pipe.recv()) is not None:
            # While a job runs there is nothing to read but a request to stop, or the pipe's end.
            for message in messages(opened, job, pipe.poll):
                pipe.send(message)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
