"""A server under load: clients that push pictures and ask, then idle ones that only listen.

The server runs as users run it, in a process of its own. Printed are latencies as its clients see
them, captions a batch, events lost, and the server's memory: before, every `--every` seconds of the
load, after it, with idle clients, and by how much the load's last quarter exceeds the one before.
`--rows` lets what sessions keep reach its bound in time. Each active client has a session of its
own, pushes two pictures a second, every 8th of a new scene, and asks after every 16th.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import numpy as np

from benchmarks.machine import machine

PORT = 18_080
SIZE = (360, 640, 3)
QUESTION = "What was there before the red one?"


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def picture(rng: np.random.Generator, scene: np.ndarray) -> bytes:
    noise = rng.integers(-12, 13, SIZE, dtype=np.int16)
    return np.clip(scene + noise, 0, 255).astype(np.uint8).tobytes()


class Client:
    """One active client, and what it measured."""

    def __init__(self, http: httpx.AsyncClient, number: int) -> None:
        self._http, self._rng = http, np.random.default_rng(number)
        self.push_s: list[float] = []
        self.answer_s: list[float] = []
        self.refused = self.events = self.captions = self.lost = 0

    async def run(self, until: float) -> None:
        path = (await self._http.post("/v1/sessions", json={"fps": 30})).json()["url"]
        following = asyncio.ensure_future(self._follow(path))
        number = 0
        while time.monotonic() < until:
            await self._push(path, number)
            number += 1
            if number % 16 == 0:
                began = time.monotonic()
                asked = {"question": QUESTION}
                reply = await self._http.post(f"{path}/questions", json=asked)
                reply.raise_for_status()
                self.answer_s.append(time.monotonic() - began)
            await asyncio.sleep(0.5)
        await self._http.post(f"{path}/end")
        await following
        await self._http.delete(path)

    async def _push(self, path: str, number: int) -> None:
        if number % 8 == 0:
            rows, columns = ((1, 1), (9, 1), (1, 4), (3, 4))[number // 8 % 4]
            cells = self._rng.integers(0, 256, (rows, columns, 3))
            tile = np.ones((SIZE[0] // rows, SIZE[1] // columns, 1), np.int64)
            self._scene = np.kron(cells, tile).astype(np.int16)
        body = picture(self._rng, self._scene)
        params = {"time": number * 0.5, "width": SIZE[1], "height": SIZE[0]}
        headers = {"content-type": "application/octet-stream"}
        began = time.monotonic()
        reply = await self._http.post(
            f"{path}/frames", params=params, content=body, headers=headers
        )
        self.push_s.append(time.monotonic() - began)
        self.refused += reply.status_code == 429

    async def _follow(self, path: str) -> None:
        async with self._http.stream("GET", f"{path}/events", timeout=None) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    self.events += 1
                    self.captions += event["type"] == "caption"
                    self.lost += event.get("lost", 0)


async def idle(http: httpx.AsyncClient, path: str, ready: asyncio.Semaphore) -> None:
    async with http.stream("GET", f"{path}/events", timeout=None) as reply:
        async for _ in reply.aiter_lines():
            ready.release()
            break
        await asyncio.Event().wait()


async def sample(pid: int, every_s: float) -> list[int]:
    """Megabytes that the server holds, now and again and again, until cancelled."""
    found: list[int] = []
    with suppress(asyncio.CancelledError):
        while True:
            found.append(round(rss_mb(pid)))
            await asyncio.sleep(every_s)
    return found


async def measure(pid: int, options: argparse.Namespace) -> dict[str, object]:
    clients, idle_clients, seconds = options.clients, options.idle, options.seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{PORT}", limits=limits, timeout=300
    ) as http:
        await warm(http)
        before = rss_mb(pid)
        active = [Client(http, number) for number in range(clients)]
        sampling = asyncio.ensure_future(sample(pid, options.every))
        load = os.getloadavg()[0]
        until = time.monotonic() + seconds
        await asyncio.gather(*(client.run(until) for client in active))
        after = rss_mb(pid)
        sampling.cancel()
        path = (await http.post("/v1/sessions", json={})).json()["url"]
        ready = asyncio.Semaphore(0)
        waiting = [asyncio.ensure_future(idle(http, path, ready)) for _ in range(idle_clients)]
        for _ in range(idle_clients):
            await ready.acquire()
        began = time.monotonic()
        await http.get("/healthz")
        health_s, with_idle = time.monotonic() - began, rss_mb(pid)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        counted = (await http.get("/metrics")).text
    seen = await sampling
    counts = dict(line.rsplit(" ", 1) for line in counted.splitlines() if line[:1] != "#")
    batches = float(counts["streammem_caption_batches_total"])
    spoken = float(counts["streammem_batched_captions_total"])
    return {
        "clients": clients,
        "seconds": seconds,
        "frames": sum(len(c.push_s) for c in active),
        "frames_refused": sum(c.refused for c in active),
        "push_ms": quantiles([s for c in active for s in c.push_s]),
        "answers": sum(len(c.answer_s) for c in active),
        "answer_ms": quantiles([s for c in active for s in c.answer_s]),
        "captions": sum(c.captions for c in active),
        "captions_a_batch": round(spoken / max(batches, 1), 2),
        "events": sum(c.events for c in active),
        "events_lost": sum(c.lost for c in active),
        "rss_mb": [round(before), round(after), round(with_idle)],
        "rss_mb_over_time": seen,
        "rss_mb_growth": growth(seen),
        "load_of_machine": [round(load, 1), round(os.getloadavg()[0], 1)],
        "idle_clients": idle_clients,
        "health_with_idle_ms": round(health_s * 1000, 1),
    }


async def warm(http: httpx.AsyncClient) -> None:
    """Load what is loaded when it is first needed."""
    client = Client(http, 99)
    await client.run(time.monotonic() + 9)


def growth(megabytes: Sequence[float]) -> float | None:
    """Median of the last quarter of the load less that of the quarter before."""
    quarter = len(megabytes) // 4
    if not quarter:
        return None
    last, before = megabytes[-quarter:], megabytes[-2 * quarter : -quarter]
    return round(float(np.median(last) - np.median(before)), 1)


def quantiles(seconds: Sequence[float]) -> list[float]:
    """Median, 95th percentile and maximum in milliseconds."""
    if not seconds:
        return []
    return [round(float(np.quantile(seconds, q)) * 1000, 1) for q in (0.5, 0.95, 1.0)]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks server", description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--idle", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--every", type=float, default=10, help="seconds between looks at memory")
    about = "rows that a session keeps: few, so that all that is bounded is full soon"
    parser.add_argument("--rows", type=int, default=4096, help=about)
    options = parser.parse_args(argv)
    command = [sys.executable, "-m", "streammem", "serve", "--port", str(PORT)]
    command += ["--max-rate", "1000"]  # all clients are one address here
    command += ["--set", f"max_segments={options.rows}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ, text=True) as server:
        assert server.stderr is not None
        started = server.stderr.readline()
        if not started.startswith("listening"):  # printed once it takes connections
            raise SystemExit(started)
        try:
            found = asyncio.run(measure(server.pid, options))
        finally:
            server.terminate()
    for name, value in found.items():
        print(f"{name:22} {value}")
    print(json.dumps({"benchmark": "server", **found, "machine": machine("fastapi", "uvicorn")}))
    return 0
