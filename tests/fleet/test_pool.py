"""Processes that share a list of jobs: each job is done once, and a death takes none with it."""

import functools
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from streammem.errors import SourceError
from streammem.fleet.pool import Done, Failed, Pool, Progress

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def end():
    """A test of processes must end."""
    timer = threading.Timer(PATIENCE_S, os.abort)
    timer.start()
    yield
    timer.cancel()


def open_squares(folder):
    """Runs in a worker."""

    def square(job, report):
        report(0.5)
        if job == "raise":
            raise SourceError("no  such\nfile")
        if job == "fault":
            raise ZeroDivisionError("ours")
        if job == "die" or (job == "die once" and not (Path(folder) / "died").exists()):
            (Path(folder) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "wait":
            (Path(folder) / "waits").touch()
            time.sleep(PATIENCE_S)
        return job if isinstance(job, str) else job**2

    return square


def ends(events):
    return [event for event in events if not isinstance(event, Progress)]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_each_job_is_done_once_whatever_becomes_of_the_others(tmp_path, num_workers):
    jobs = [1, "die once", "raise", 2, "die", "fault", 3, 4]
    pool = Pool(functools.partial(open_squares, tmp_path), num_workers)
    found = {event.job: event for event in ends(pool.run(jobs))}
    assert list(map(found.__getitem__, [1, 2, 3, 4, "die once"])) == [
        *(Done(n, n * n) for n in range(1, 5)),
        Done("die once", "die once"),
    ]
    assert found["raise"] == Failed("raise", "no such file")
    assert found["die"] == Failed("die", "its process died twice (SIGKILL)")
    assert found["fault"] == Failed("fault", "ZeroDivisionError: ours")
    assert len(found) == len(jobs)
    assert pool.processes == []


def test_what_runs_is_given_up_when_it_is_stopped(tmp_path):
    pool = Pool(functools.partial(open_squares, tmp_path), 2)
    found = ends(pool.run([5, "wait", 6, 7], stop=(tmp_path / "waits").exists))
    assert {event.job for event in found} <= {5, 6, 7}
    assert pool.processes == []


def test_a_consumer_that_leaves_ends_the_processes(tmp_path):
    pool = Pool(functools.partial(open_squares, tmp_path), 1)
    events = pool.run([1, "wait"])
    next(events)
    (process,) = pool.processes
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_nothing_to_do_starts_nothing(tmp_path):
    assert list(Pool(functools.partial(open_squares, tmp_path), 2).run([])) == []
