"""Workers' processes as actors of a Ray cluster: Ray places them, and starts them on its nodes.

    with RayActors.connect("10.0.0.5:6379", needs_gpu=True) as actors:
        for event in Pool(open_worker, actors.default_workers, actors).run(jobs): ...

Nodes must have streammem installed, and see the same files under the same paths as the driver.
Jobs, and which of them is done again, stay with `Pool`.
"""

import logging
import math
import os
import secrets
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Self

from streammem.errors import BackboneError, ConfigError, install_command
from streammem.fleet.pool import (
    DiedError,
    OpenWorker,
    WorkerProcess,
    messages,
)

CPUS, MEMORY_BYTES = 2, 10**9  # of an actor: perception and language; a replica of the tiny model
AHEAD = 64  # messages of a worker that the driver has not taken, before the worker waits


class RayActors:
    """Starts actors on a cluster; see ``pool.Processes``.

    Attributes:
        default_workers: actors that fit on the cluster at once.
        cpus: cores of each actor, or a share of one.
    """

    def __init__(
        self, ray: Any, *, needs_gpu: bool, num_workers: int | None, memory_bytes: int | None
    ) -> None:
        self._ray = ray
        total = ray.cluster_resources()
        cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
        memory = total.get("memory", math.inf)
        if cpus < 1 or (needs_gpu and gpus < 1):
            missing = "no GPU: leave out --device" if cpus >= 1 else "no CPU for actors"
            raise ConfigError(f"--ray: the cluster has {missing}")
        fitting = [cpus // CPUS, memory // (memory_bytes or MEMORY_BYTES)]
        if needs_gpu:
            fitting.append(gpus)
        self.default_workers = max(1, int(min(fitting)))
        wanted = num_workers or self.default_workers
        if memory_bytes and wanted * memory_bytes > memory:
            raise ConfigError(
                f"--workers {wanted}: the cluster has {memory / 1e9:.1f} GB for actors of "
                f"{memory_bytes / 1e9:g} GB"
            )
        # More actors than fit with two cores each, or with a GPU each, share them, instead of
        # waiting for ever.
        self.cpus = min(float(CPUS), cpus / wanted)
        # Threaded, so that a request to stop is read while a job runs.
        self._actor = ray.remote(
            num_cpus=self.cpus,
            num_gpus=1 / math.ceil(wanted / gpus) if needs_gpu else 0,
            memory=int(memory_bytes or min(MEMORY_BYTES, memory / wanted)),
            max_concurrency=4,
        )(_Actor)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        needs_gpu: bool = False,
        num_workers: int | None = None,
        memory_bytes: int | None = None,
    ) -> Self:
        """Connect to a cluster.

        Args:
            address: of its head, HOST:PORT; ``auto`` for the one of this machine, ``local`` for
                one that is started here and ends with this process.
            needs_gpu: whether each actor gets one; more actors than there are GPUs share them.
            num_workers: actors that are wanted; None for as many as fit.
            memory_bytes: that each actor gets; None for a replica of the tiny model, or less.

        Raises:
            BackboneError: Ray is not installed.
            ConfigError: there is no such cluster, or it has no room for an actor.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to its makers
        if address == "local":  # else Ray writes one to the user's home, and leaves it there
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            import ray
        except ImportError as error:
            raise BackboneError(f"ray is not installed; run: {install_command('ray')}") from error

        # Its own logs are on the cluster's dashboard; ours name what failed.
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            options["include_dashboard"] = False
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"--ray {address}: no cluster there ({reason})") from error
        try:
            return cls(ray, needs_gpu=needs_gpu, num_workers=num_workers, memory_bytes=memory_bytes)
        except BaseException:
            ray.shutdown()
            raise

    def start(self, open_worker: OpenWorker) -> "_RayProcess":
        """Start an actor; it waits until the cluster has room for it."""
        return _RayProcess(self._ray, self._actor.remote(open_worker))

    def ready(
        self, processes: Sequence[WorkerProcess], timeout_s: float
    ) -> Sequence[WorkerProcess]:
        """See ``Processes``."""
        by_stream = {p.stream: p for p in processes if isinstance(p, _RayProcess)}
        if not by_stream:
            return []
        found, _ = self._ray.wait(list(by_stream), num_returns=1, timeout=timeout_s)
        if found:  # and what else is there already
            found, _ = self._ray.wait(list(by_stream), num_returns=len(by_stream), timeout=0)
        return [by_stream[stream] for stream in found]

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _RayProcess:
    """A handle of an actor; see ``pool.WorkerProcess``."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.stream: Any = None

    def begin(self, job: Any) -> None:
        self.stream = self._actor.do.options(
            num_returns="streaming", _generator_backpressure_num_objects=AHEAD
        ).remote(job)

    def receive(self) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = self._ray.get(next(self.stream))
            return message
        except self._ray.exceptions.RayActorError as error:
            lines = [line.strip() for line in str(error).splitlines() if "exit detail" in line]
            detail = lines[0].partition("exit detail:")[2].partition(". Some")[0] if lines else ""
            raise DiedError(detail.strip() or "its actor died") from None
        except (StopIteration, self._ray.exceptions.RayError) as error:
            raise DiedError(" ".join(str(error).split())[:300] or "its stream ended") from None

    def ask_to_stop(self) -> None:
        self._actor.stop.remote()

    def end(self) -> None:
        self._ray.kill(self._actor)


class _Actor:
    """What runs on the cluster: one worker, which does a job at a time."""

    def __init__(self, open_worker: OpenWorker) -> None:
        self._open_worker, self._stopping = cache(open_worker), False

    def stop(self) -> None:
        self._stopping = True

    def do(self, job: Any) -> Iterator[tuple[str, Any]]:
        yield from messages(self._open_worker, job, lambda: self._stopping)
