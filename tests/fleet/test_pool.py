"""Processes that share a list of jobs: each job is done once, and a death takes none with it."""

import functools
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from streammem.errors import ConfigError, SourceError
from streammem.fleet import pool as pools
from streammem.fleet.pool import Done, Failed, Pool, Reported, Restarted

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def end(request):
    """A test of processes must end; on a machine with twenty other programs that takes minutes."""
    timer = threading.Timer((10 if "ray" in request.node.name else 5) * PATIENCE_S, os.abort)
    timer.start()
    yield
    timer.cancel()


def open_squares(folder):
    """Runs in a worker."""

    def square(job, is_stopping):
        yield 0.5
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
        if job == "until stopped":
            (Path(folder) / "waits").touch()
            while not is_stopping():
                time.sleep(0.01)
            yield "closing"
        if job == "flood":
            for number in range(100_000):
                (Path(folder) / "flood").write_text(str(number))
                yield bytes(1000)
        if job == "die thrice":
            died = Path(folder) / "times"
            times = len(died.read_text()) if died.exists() else 0
            died.write_text("x" * (times + 1))
            if times < 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return job if isinstance(job, str) else job**2

    return square


def ends(events):
    return [event for event in events if isinstance(event, Done | Failed)]


@pytest.fixture(scope="module")
def actors():
    """Actors of a Ray cluster that is started here."""
    pytest.importorskip("ray", reason="ray is not installed: pip install streammem[ray]")
    from streammem.fleet.ray_actors import RayActors

    with RayActors.connect("local", num_workers=2) as actors:
        yield actors


@pytest.mark.parametrize(
    ("num_workers", "where"),
    [(1, None), (3, None), pytest.param(2, "actors", marks=pytest.mark.heavy, id="ray")],
)
def test_each_job_is_done_once_whatever_becomes_of_the_others(
    tmp_path, num_workers, where, request
):
    processes = request.getfixturevalue(where) if where else None
    jobs = [1, "die once", "raise", 2, "die", "fault", 3, 4]
    pool = Pool(functools.partial(open_squares, tmp_path), num_workers, processes)
    found = {event.job: event for event in ends(pool.run(jobs))}
    assert list(map(found.__getitem__, [1, 2, 3, 4, "die once"])) == [
        *(Done(n, n * n) for n in range(1, 5)),
        Done("die once", "die once"),
    ]
    assert found["raise"] == Failed("raise", "no such file")
    assert found["die"].reason.startswith("its process died twice (")
    assert where or found["die"].reason.endswith("(SIGKILL)")
    assert found["fault"] == Failed("fault", "ZeroDivisionError: ours")
    assert len(found) == len(jobs)
    assert multiprocessing.active_children() == []


def test_what_runs_is_given_up_when_it_is_stopped(tmp_path):
    pool = Pool(functools.partial(open_squares, tmp_path), 2)
    found = ends(pool.run([5, "wait", 6, 7], stop=(tmp_path / "waits").exists))
    assert {event.job for event in found} <= {5, 6, 7}
    assert multiprocessing.active_children() == []


def open_never(folder):
    """Opens as a large model does that is still loading."""
    (folder / "waits").touch()
    time.sleep(10 * PATIENCE_S)


def test_a_process_that_still_opens_its_worker_is_not_waited_for_when_it_is_stopped(tmp_path):
    pool = Pool(functools.partial(open_never, tmp_path), 1)
    stop = (tmp_path / "waits").exists
    assert list(pool.run([1], stop, patience_s=10 * PATIENCE_S)) == []
    assert multiprocessing.active_children() == []


def test_ctrl_c_of_a_terminal_does_not_end_a_process_that_starts(tmp_path):
    process = pools.LocalProcesses().start(functools.partial(open_squares, tmp_path))
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGINT)
    process.begin(3)
    assert [process.receive() for _ in range(3)] == [("open", None), ("report", 0.5), ("done", 9)]
    process.end()


def test_a_consumer_that_leaves_ends_the_processes(tmp_path):
    pool = Pool(functools.partial(open_squares, tmp_path), 1)
    events = pool.run([1, "wait"])
    next(events)
    (process,) = multiprocessing.active_children()
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize("where", [None, pytest.param("actors", marks=pytest.mark.heavy, id="ray")])
def test_a_job_that_is_asked_to_stop_may_end_in_its_own_way(tmp_path, where, request):
    processes = request.getfixturevalue(where) if where else None
    pool = Pool(functools.partial(open_squares, tmp_path), 1, processes)
    stop = (tmp_path / "waits").exists
    told = list(pool.run(["until stopped", 1], stop, patience_s=PATIENCE_S))
    assert told == [
        Reported("until stopped", 0.5),
        Reported("until stopped", "closing"),
        Done("until stopped", "until stopped"),
    ]


def test_a_job_without_a_limit_of_tries_is_begun_again_after_waits_that_double(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(pools, "BACK_OFF_S", (0.01, 0.03))
    pool = Pool(functools.partial(open_squares, tmp_path), 1, tries=None)
    told = list(pool.run(["die thrice"]))
    waits = [(e.reason, e.wait_s) for e in told if isinstance(e, Restarted)]
    assert waits == [("SIGKILL", 0.01), ("SIGKILL", 0.02), ("SIGKILL", 0.03)]
    assert told[-1] == Done("die thrice", "die thrice")


@pytest.mark.parametrize("where", [None, pytest.param("actors", marks=pytest.mark.heavy, id="ray")])
def test_a_worker_whose_reports_are_not_taken_waits(tmp_path, where, request):
    processes = request.getfixturevalue(where) if where else None
    events = Pool(functools.partial(open_squares, tmp_path), 1, processes).run(["flood"])
    for _ in range(3):
        next(events)
    written, before = tmp_path / "flood", ""
    while not before or written.read_text() != before:  # until it stands still; while it is
        # being written it may be empty
        before = written.read_text()
        time.sleep(0.2)
    assert int(before) < 1000
    events.close()


def open_gpu():
    """Its result is what its process sees of the machine's GPUs."""

    def gpu(job, is_stopping):
        yield from ()
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    return gpu


def test_processes_are_spread_over_gpus_and_one_that_is_replaced_leaves_its_own():
    where, running = pools.LocalProcesses(("2", "5")), []

    def start():
        running.append(where.start(open_gpu))
        running[-1].begin(1)
        assert running[-1].receive() == ("open", None)
        return running[-1].receive()[1]

    assert [start(), start(), start()] == ["2", "5", "2"]
    running.pop(0).end()
    running.pop(0).end()
    assert start() == "5"
    for process in running:
        process.end()


class Cluster:
    """Stands in for Ray where an actor's share of the cluster is asked for."""

    def __init__(self, cpus, gpus=0.0, gigabytes=64.0):
        self.resources = {"CPU": cpus, "GPU": gpus, "memory": gigabytes * 1e9}
        self.asked = {}

    def cluster_resources(self):
        return self.resources

    def remote(self, **asked):
        self.asked = asked
        return lambda actor: actor


@pytest.mark.parametrize(
    ("cluster", "options", "workers", "share"),
    [
        (Cluster(8), {}, 4, (2.0, 0, 1.0)),
        (Cluster(3), {"num_workers": 6}, None, (0.5, 0, 1.0)),
        (Cluster(64, gpus=4), {"needs_gpu": True}, 4, (2.0, 1.0, 1.0)),
        (Cluster(64, gpus=4), {"needs_gpu": True, "num_workers": 6}, None, (2.0, 0.5, 1.0)),
        (Cluster(64, gigabytes=30), {"memory_bytes": 12 * 10**9}, 2, (2.0, 0, 12.0)),
        (Cluster(64, gigabytes=2), {"num_workers": 4}, None, (2.0, 0, 0.5)),
    ],
)
def test_actors_are_placed_by_cores_gpus_and_memory(cluster, options, workers, share):
    from streammem.fleet.ray_actors import RayActors

    asked = {"needs_gpu": False, "num_workers": None, "memory_bytes": None} | options
    actors = RayActors(cluster, **asked)
    assert workers in (None, actors.default_workers)
    given = cluster.asked
    assert (given["num_cpus"], given["num_gpus"], given["memory"] / 1e9) == share


@pytest.mark.parametrize(
    ("cluster", "options", "message"),
    [
        (Cluster(0), {}, "no CPU"),
        (Cluster(8), {"needs_gpu": True}, "no GPU"),
        (Cluster(8, gigabytes=10), {"num_workers": 2, "memory_bytes": 8 * 10**9}, "10.0 GB for"),
    ],
)
def test_what_a_cluster_cannot_hold_is_refused(cluster, options, message):
    from streammem.fleet.ray_actors import RayActors

    asked = {"needs_gpu": False, "num_workers": None, "memory_bytes": None} | options
    with pytest.raises(ConfigError, match=message):
        RayActors(cluster, **asked)


def test_nothing_to_do_starts_nothing(tmp_path):
    assert list(Pool(functools.partial(open_squares, tmp_path), 2).run([])) == []
