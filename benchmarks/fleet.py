"""Many files, cameras and memories on one machine, with what goes wrong among them.

``files``: 20 films, of which one is cut off, are indexed by one process, then by two workers, with
``--ray local`` also by those of a local Ray cluster; then again, when one is killed by its id and
the disk of one memory is full, and once more with that disk mended. ``streams``: four cameras are
watched by one process, then by two workers, of which one is killed; a fifth camera is down, the
disk of a sixth one's memory is full. What the workers leave must be what the one process left, to
the bit for files; each failure must be named. ``small``: overhead per file of films of a second.
``killed``: the driver is killed and run again. ``asked``: a question to 200 memories of 1,000
scenes at once, against one memory that holds all rows.

``--cheap`` (always with ``small`` and ``killed``) takes the tests' model with random weights, whose
perception and captions cost next to nothing, so that what is left is the fleet's own cost.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.cheap import command
from benchmarks.disk import small_disk
from benchmarks.machine import machine
from benchmarks.memory import alike, pictures_of
from benchmarks.rtsp_server import RtspCamera, encode
from streammem.evaluation.datasets import read_photo, read_photos
from streammem.fleet.index import LIST, UNFINISHED, Archive, File
from streammem.memory.database import INSERT, to_row
from streammem.memory.entry import KEY_KINDS, MAX_KEYS, Entry, Now
from streammem.memory.index import FaissIndex
from streammem.memory.retrieval import Hits, Query, retrieve
from streammem.memory.store import Store
from streammem.models.tiny.model import VideoModel
from streammem.types import Moment

PARTS = ("files", "streams", "small", "killed", "asked")
FILMS, SCENES, SCENE_S = 20, 3, 2  # films, and of each the scenes and their seconds
FPS, SIZE = 8, (96, 64)
CUT, FULL = "07.mp4", "13.mp4"
CAMERAS, CAMERA_FPS, CAMERA_SCENE_S, CAMERA_SCENES = "abcd", 10, 4, 30
WATCHED_S = 40.0
PATIENCE_S = 1_200.0
SMALL, KILLED, KILLED_AFTER = 1_000, 100, 30
MEMORIES, ROWS, QUERIES, BEST = 200, 1_000, 10, 5
SHOWN = 40  # photos that scenes are made of
ROOM = 0.6  # of what a film's memory takes, on a disk that is too small for it
CAMERA_DISK = 300 << 10  # bytes, of a camera's memory whose disk fills up

Keep = Callable[..., None]  # takes figures by their names


# -- what is run, watched and kept --


def index(films: Path, archive: Path, *more: object, cheap: bool) -> list[str]:
    words = ("index", films, "--memory", archive, "--format", "jsonl", *more)
    return command(*words, cheap=cheap)


def record(path: Path, pictures: Sequence[np.ndarray], frames_each: int) -> Path:
    """Write a film in which each picture is panned for so many frames."""
    width, height = SIZE
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            for k in range(frames_each):
                shown = np.ascontiguousarray(picture[k : k + 2 * height : 2, k : k + 2 * width : 2])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, "rgb24")))
        container.mux(stream.encode())
    return path


def kept(memory: Path) -> list[tuple[Any, ...]]:
    """Return all that a memory holds of each scene, but when it was written."""
    with Store.open(memory, mode="r") as store:
        return [
            (
                row.start, row.end, row.frames, row.caption, row.sureness, row.notes,
                row.visual_keys.tobytes(), row.caption_keys.tobytes(), row.tokens.tobytes(),
                row.keyframe,
            )
            for row in store.export()
        ]  # fmt: skip


def made(archive: Path) -> dict[str, File]:
    """Return what came of each film, by its name."""
    with Archive.open(archive) as opened:
        return {Path(file.path).name: file for file in opened.files.values()}


def all_kept(archive: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: kept(archive / file.memory)
        for name, file in sorted(made(archive).items())
        if file.memory
    }


def writer_of(memory: Path) -> int | None:
    """Return the id of the process that writes a memory."""
    try:
        return int((memory / "writer.lock").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None


def wait_until(what: str, found: Callable[[], Any], running: Any = None) -> Any:
    """Return what is found once it is true; leave where ``running`` has ended before."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := found()):
        if time.monotonic() > deadline or (running and running.poll() is not None):
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.002)
    return value


# -- files --


def files(scratch: Path, ray: Sequence[str], cheap: bool, keep: Keep) -> None:
    """Index films by one process, and by two workers with and without faults, and compare."""
    films, serial = scratch / "films", scratch / "serial"
    films.mkdir()
    photos = pictures_of(FILMS * SCENES)
    for n in range(FILMS):
        shown = photos[n * SCENES : (n + 1) * SCENES]
        record(films / f"{n:02}.mp4", shown, SCENE_S * FPS)
    (films / CUT).write_bytes((films / CUT).read_bytes()[:4000])
    # 1. One process.
    serial_s = _index_s(index(films, serial, "--workers", 1, cheap=cheap))
    expected = all_kept(serial)
    seconds = sum(file.seconds for file in made(serial).values())
    rate = lambda took_s: round(seconds / took_s, 2)  # noqa: E731
    keep(films=FILMS, video_s=round(seconds), serial_s=serial_s, serial_rate=rate(serial_s))
    # 2. Two workers: processes, then actors.
    for name, more in {"processes": (), **({"ray": ray} if ray else {})}.items():
        whole, faulty = scratch / f"{name}-whole", scratch / f"{name}-faulty"
        took_s = _index_s(index(films, whole, "--workers", 2, *more, cheap=cheap))
        equal = all_kept(whole) == expected
        keep(**{name: {"s": took_s, "rate": rate(took_s), "equal": equal}})
        words = index(films, faulty, "--workers", 2, *more, cheap=cheap)
        keep(**{f"{name}_with_faults": _with_faults(words, serial, faulty)})


def _index_s(words: Sequence[str]) -> float:
    """Run a command; return its seconds by the clock."""
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode not in (0, 1):  # 1: a film is cut off
        sys.exit(done.stderr)
    return round(time.monotonic() - began, 1)


def _with_faults(words: Sequence[str], serial: Path, fleet: Path) -> dict[str, Any]:
    """Kill a worker while the disk of one memory is too small; then mend the disk, and run again.

    Args:
        words: index the films into ``fleet``, by two workers.
        serial: archive of the same films, of one process.
        fleet: archive to be made.
    """
    expected, names = all_kept(serial), made(serial)
    place = fleet / f"{UNFINISHED}{names[FULL].memory}"
    size = sum(p.stat().st_size for p in (serial / names[FULL].memory).rglob("*") if p.is_file())
    at_work = lambda: [  # noqa: E731
        pid
        for memory in fleet.glob(f"{UNFINISHED}*")
        if memory != place and (pid := writer_of(memory))
    ]
    with small_disk(place, int(ROOM * size)):
        began = time.monotonic()
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            os.kill(wait_until("a worker", at_work, running)[0], signal.SIGKILL)
            _, err = running.communicate(timeout=PATIENCE_S)
        took_s = time.monotonic() - began
    got, states = all_kept(fleet), made(fleet)
    found = {
        "s": round(took_s, 1), "exit": running.returncode,
        "died": [line for line in err.decode().splitlines() if "begun again" in line],
        "failed": {n: f"{f.state}: {f.reason}" for n, f in states.items() if f.state != "whole"},
        "equal": sum(got.get(name) == rows for name, rows in expected.items() if name != FULL),
        "of": len(expected) - 1,
    }  # fmt: skip
    again = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    found["second_run"] = next(n for n in again.stderr.splitlines() if " known before" in n)
    return found | {"all_equal_then": all_kept(fleet) == expected}


# -- cameras --


def streams(scratch: Path, ray: Sequence[str], cheap: bool, keep: Keep) -> None:
    """Watch cameras by one process and by two workers with faults, and compare."""
    photos = pictures_of(len(CAMERAS) * CAMERA_SCENES)
    with ExitStack() as stack:
        urls = {}
        for n, name in enumerate([*CAMERAS, "full"]):
            own = photos[n % 4 * CAMERA_SCENES : (n % 4 + 1) * CAMERA_SCENES]
            count = CAMERA_SCENE_S * CAMERA_FPS
            shown = [
                np.ascontiguousarray(p[k % 40 :][:128, k : k + 192])
                for p in own
                for k in range(count)
            ]
            units = encode(shown, fps=CAMERA_FPS, gop=CAMERA_FPS)
            urls[name] = stack.enter_context(RtspCamera(units)).url
        # 1. One process.
        healthy = {name: urls[name] for name in CAMERAS}
        _watch(scratch / "serial", healthy, cheap, "--workers", 1)
        expected = {name: kept(scratch / "serial" / name) for name in CAMERAS}
        keep(serial_scenes={name: len(rows) for name, rows in expected.items()})
        # 2. Two workers; one is killed, one camera is down, the disk of one memory is full.
        tables = healthy | {"down": "rtsp://127.0.0.1:9/x", "full": urls["full"]}
        stack.enter_context(small_disk(scratch / "fleet" / "full", CAMERA_DISK))
        killed: list[int] = []
        err = _watch(scratch / "fleet", tables, cheap, "--workers", 2, *ray, kill=killed)
    keep(
        died=[line for line in err if line.startswith("the process of")],
        summary=err[next(n for n, line in enumerate(err) if " cameras: " in line) :],
        as_serial={n: _compared(expected[n], kept(scratch / "fleet" / n)) for n in CAMERAS},
    )


def _watch(
    house: Path, urls: dict[str, str], cheap: bool, *more: object, kill: list[int] | None = None
) -> list[str]:
    """Watch cameras for a while, and return the lines of stderr; kill the worker of the first."""
    table = house.with_suffix(".toml")
    rows = [f'[cameras.{name}]\nsource = "{url}"' for name, url in urls.items()]
    table.write_text('fps = 2\nspeech = "off"\n' + "\n".join(rows) + "\n")
    words = ("watch", "--sources", table, "--memory", house, "--format", "jsonl", *more)
    with (
        house.with_suffix(".err").open("w+") as err,
        subprocess.Popen(
            command(*words, cheap=cheap), stdout=subprocess.DEVNULL, stderr=err
        ) as running,
    ):
        pid = wait_until("the first camera", lambda: writer_of(house / CAMERAS[0]), running)
        time.sleep(WATCHED_S / 2)
        if kill is not None:
            kill.append(pid)
            os.kill(pid, signal.SIGKILL)
            wait_until("another worker", lambda: writer_of(house / CAMERAS[0]) not in (pid, None))
        time.sleep(WATCHED_S / 2)
        running.send_signal(signal.SIGTERM)
        running.wait(PATIENCE_S)
        err.seek(0)
        return err.read().splitlines()


def _compared(expected: Sequence[tuple[Any, ...]], rows: Sequence[tuple[Any, ...]]) -> str:
    """Tell how many scenes of each connection are what one process kept, each from its first on."""

    def shown(each: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        begin = each[0][0]
        return [(round(row[0] - begin, 2), round(row[1] - begin, 2), *row[2:]) for row in each]

    cuts = [n for n in range(1, len(rows)) if rows[n][0] - rows[n - 1][1] > 1.0]
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    told = []
    for part in parts:
        whole = shown(part)[:-1] if part is parts[-1] else shown(part)  # the last one was cut short
        same = sum(a == b for a, b in zip(whole, shown(expected), strict=False))
        told.append(f"{same} of {min(len(whole), len(expected) - 1)}")
    return ", then ".join(told)


# -- many small films, and the driver killed --


def small(scratch: Path, ray: Sequence[str], count: int, keep: Keep) -> None:
    """Index films of a second with a model that costs nothing; once more, with nothing to do."""
    few, films = scratch / "few", scratch / "films"
    _small_films(films, count)
    few.mkdir()
    for path in sorted(films.iterdir())[:2]:
        shutil.copy(path, few)
    runs = {
        "start": _run(index(few, scratch / "few-archive", "--workers", 2, *ray, cheap=True)),
        "first_run": _run(index(films, scratch / "archive", "--workers", 2, *ray, cheap=True)),
        "second_run": _run(index(films, scratch / "archive", "--workers", 2, *ray, cheap=True)),
    }
    cpu = {name: run["cpu_s"] for name, run in runs.items()}
    each = {
        "first_run_ms": 1_000 * (runs["first_run"]["s"] - runs["first_run"]["first_s"]) / count,
        "first_run_cpu_ms": 1_000 * (cpu["first_run"] - cpu["start"]) / (count - 2),
        "second_run_ms": 1_000 * runs["second_run"]["s"] / count,
        "second_run_cpu_ms": 1_000 * cpu["second_run"] / count,
    }
    keep(films=count, **runs, a_film={n: round(value, 1) for n, value in each.items()})


def _run(words: Sequence[str]) -> dict[str, Any]:
    """Run a command; return its seconds, those until its first line, and its CPU seconds."""
    began, before = time.monotonic(), os.times()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        first_s = time.monotonic() - began
        _, err = running.communicate(timeout=PATIENCE_S)
    after = os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])
    return {
        "s": round(time.monotonic() - began, 1), "first_s": round(first_s, 1),
        "cpu_s": round(cpu_s, 1), "noted": err.decode().splitlines()[-1],
    }  # fmt: skip


def killed(scratch: Path, ray: Sequence[str], count: int, keep: Keep) -> None:
    """Kill the driver with SIGKILL, see its workers end, and run it again."""
    films, whole, broken = scratch / "k-films", scratch / "k-whole", scratch / "k-broken"
    _small_films(films, count)
    subprocess.run(
        index(films, whole, "--workers", 2, cheap=True),
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE_S,
    )
    words = index(films, broken, "--workers", 2, *ray, cheap=True)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout
        for _ in range(min(KILLED_AFTER, count // 2)):
            running.stdout.readline()
        workers = _below(running.pid)
        running.kill()
    began = time.monotonic()
    wait_until("workers to end", lambda: not any(map(_is_running, workers)))
    ended_s = time.monotonic() - began
    before = len((broken / LIST).read_bytes().splitlines())
    left = len(list(broken.glob(f"{UNFINISHED}*")))
    again = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    keep(
        films=count, processes=len(workers), ended_after_s=round(ended_s, 2),
        made_before=before, unfinished=left, second_run=again.stderr.splitlines()[-1],
        equal=all_kept(broken) == all_kept(whole),
        left_over=len(list(broken.glob(f"{UNFINISHED}*"))),
    )  # fmt: skip


def _small_films(folder: Path, count: int) -> None:
    folder.mkdir()
    photos = pictures_of(count)
    for n, photo in enumerate(photos):
        record(folder / f"{n:04}.mp4", [photo], FPS)


def _is_running(pid: int) -> bool:
    """Tell whether a process runs; one that is only not waited for has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _below(pid: int) -> list[int]:
    """Return the ids of all processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_below(child)]
    return found


# -- many memories --


def asked(scratch: Path, num_memories: int, rows: int, keep: Keep) -> None:
    """Ask many memories, and one that holds all their rows."""
    from streammem.engine.session import Session
    from streammem.engine.session_config import SessionConfig
    from streammem.fleet.asking import ask_all, find_all, open_all
    from streammem.models.checkpoint import load_own
    from streammem.models.threads import limit_threads

    limit_threads(busy=1)
    model = load_own()
    shown, texts, queries = _photos_and_captions()
    keys = np.stack([model.perceive(photo).key for photo in shown])
    sentences = model.sentence_keys(texts)
    # 1. Memories on disk, each scene with two keys and a caption; photos of the queries among them.
    folder, entries = scratch / "memories", []
    began = time.monotonic()
    rng, number = np.random.default_rng(0), 0
    planted = {int(p): q for q, p in enumerate(rng.choice(num_memories * rows, QUERIES, False))}
    for m in range(num_memories):
        own = []
        drawn = alike(keys[QUERIES:], 2 * rows, rng)
        for s in range(rows):
            pair = drawn[2 * s : 2 * s + 2]
            if (query := planted.get(number)) is not None:
                pair = keys[query][None]
            text = int(rng.integers(len(texts)))
            own.append(_entry(s, pair, sentences[text][None], texts[text], f"{m:03}"))
            number += 1
        _write(folder / f"{m:03}", model, own)
        entries += own
    keep(memories=num_memories, rows=rows, made_s=round(time.monotonic() - began, 1))
    # 2. All of them at once.
    config, start_mb = SessionConfig(), _rss_mb()
    began, cpu_s = time.monotonic(), time.process_time()
    with open_all(folder, model, config) as memories:
        keep(
            open_s=round(time.monotonic() - began, 1),
            open_cpu_s=round(time.process_time() - cpu_s, 1),
            open_mb=round(_rss_mb() - start_mb),
        )
        fleet, find_ms = _timed(
            lambda q: [_place(m) for _, m in find_all(memories, q, BEST)], queries
        )
        again, again_ms = _timed(
            lambda q: [_place(m) for _, m in find_all(memories, q, BEST)], queries
        )
        keep(find_ms=find_ms, find_again_ms=again_ms)
        answers, ask_ms = _timed(
            lambda q: ask_all(memories, f"When is there {q}?"), [_thing(q) for q in queries]
        )
    assert again == fleet
    keep(ask_ms=ask_ms)
    # 3. One memory of all rows.
    flat_memory: Any = FlatMemory([replace(e, segment=n, last=n) for n, e in enumerate(entries)])
    with Session(model, config) as session:
        session.answerer.memory = flat_memory
        flat, flat_ms = _timed(lambda q: [_place(m) for m in session.find(q, BEST)], queries)
    # Rows of one clock: a row of the great memory has its own memory's name and time.
    same = [
        len({p[:2] for p in a} & {p[:2] for p in b}) / BEST
        for a, b in zip(fleet, flat, strict=True)
    ]
    scores = [
        abs(x[2] - y[2])
        for a, b in zip(fleet, flat, strict=True)
        for x, y in zip(a, b, strict=True)
    ]
    at = {query: (f"{p // rows:03}", 10.0 * (p % rows)) for p, query in planted.items()}
    keep(
        flat_ms=flat_ms, queries=len(queries), recall_at_5=float(np.mean(same)),
        largest_difference_of_scores=max(scores),
        photo_among_best={
            "fleet": sum(at[q] in [p[:2] for p in each] for q, each in enumerate(fleet)),
            "flat": sum(at[q] in [p[:2] for p in each] for q, each in enumerate(flat)),
        },
        answers=float(np.mean([len(each) for each in answers])),
    )  # fmt: skip


class FlatMemory:
    """All rows behind one flat index for each kind of key; what an answerer searches.

    Args:
        entries: rows, numbered from 0.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)
        self._indexes = {}
        for kind in KEY_KINDS:
            keys = [getattr(entry, kind) for entry in entries]
            ids = [n * MAX_KEYS + k for n, each in enumerate(keys) for k in range(len(each))]
            index = FaissIndex(entries[0].visual_keys.shape[1])
            index.add(np.array(ids, np.int64), np.concatenate(keys).astype(np.float32))
            self._indexes[kind] = index
        self.num_keys = len(self._indexes["visual_keys"])

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> tuple[Entry, ...]:
        return self._entries

    def get(self, segment: int) -> Entry:
        return self._entries[segment]

    def nearest(self, key: np.ndarray, k: int, among: Any = None) -> list[Entry]:
        found = {n for i in self._indexes.values() for n in i.search(key, k, group=MAX_KEYS)[0]}
        return [self._entries[n] for n in sorted(found)]

    def search(self, query: Query, window: Any, k: int | None, rankers: Sequence[str]) -> Hits:
        return retrieve(self, query, window, k, rankers)

    def now(self, wall: float) -> Now:
        return Now(wall)

    def taught(self) -> tuple[()]:
        return ()

    def keyframe_path(self, segment: int) -> None:
        return None


def _photos_and_captions() -> tuple[list[np.ndarray], list[str], list[str]]:
    """Return photos, the first of which the queries are about; captions of others; queries."""
    photos = read_photos(Path(os.environ["STREAMMEM_DATA"]) / "flickr8k", "val")
    shown = [read_photo(photo.path) for photo in photos[: QUERIES + SHOWN]]
    texts = [photo.captions[0] for photo in photos[QUERIES : QUERIES + SHOWN]]
    return shown, texts, [photo.captions[0] for photo in photos[:QUERIES]]


def _entry(segment: int, keys: np.ndarray, text_key: np.ndarray, text: str, source: str) -> Entry:
    none = np.zeros((0, keys.shape[1]), np.float32)
    start = 10.0 * segment
    return Entry(
        segment, start, start + 10.0, 20, keys, text_key, none, np.zeros((0, 0)), text,
        source=source, wall_start=1.7e9 + start,
    )  # fmt: skip


def _write(memory: Path, model: VideoModel, entries: Sequence[Entry]) -> None:
    """Write a memory in one transaction, instead of one a scene."""
    width, shape = entries[0].visual_keys.shape[1], model.segment_encoder.token_shape
    with (
        Store.create(memory, model.fingerprint, key_dim=width, token_shape=shape) as store,
        store.database.transaction(),
    ):
        for entry in entries:
            row = to_row(entry, keyframe=None, keyframe_bytes=0, written=time.time())
            store.database.query(INSERT, *row)


def _timed(ask: Callable[[str], Any], queries: Sequence[str]) -> tuple[list[Any], dict[str, float]]:
    """Return what each query gives, and milliseconds: by the clock, and of one core."""
    found, took, cpu = [], [], []
    for query in queries:
        began, cpu_s = time.monotonic(), time.process_time()
        found.append(ask(query))
        took.append(1_000 * (time.monotonic() - began))
        cpu.append(1_000 * (time.process_time() - cpu_s))
    figures = {"median": np.median(took), "most": max(took), "cpu_median": np.median(cpu)}
    return found, {name: round(float(value), 1) for name, value in figures.items()}


def _place(moment: Moment) -> tuple[str, float, float]:
    """Return the memory of a moment, its start, which names its row there, and its score."""
    return moment.source, moment.start, moment.score


def _thing(caption: str) -> str:
    """Return the first words of a caption, which name a thing."""
    return " ".join(caption.lower().rstrip(" .").split()[:3])


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _show(found: dict[str, Any], indent: str = "") -> None:
    for name, value in found.items():
        nested = value if isinstance(value, dict) else None
        print(f"{indent}{name:32} {'' if nested else value}", flush=True)
        _show(nested or {}, indent + "  ")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fleet", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--ray", metavar="ADDRESS", help="workers are actors of this cluster")
    parser.add_argument("--cheap", action="store_true", help="with the tests' model")
    parser.add_argument("--count", type=int, help="films of a second; or memories")
    options = parser.parse_args(arguments)
    ray = ("--ray", options.ray) if options.ray else ()
    found: dict[str, Any] = {}

    def keep(**figures: Any) -> None:
        """Show figures as they come: the whole takes minutes."""
        _show(figures)
        found.update(figures)

    keep(load_before=round(os.getloadavg()[0], 1))
    scratch = Path(tempfile.mkdtemp(prefix="fleet-"))
    try:
        if options.part == "files":
            files(scratch, ray, options.cheap, keep)
        elif options.part == "streams":
            streams(scratch, ray, options.cheap, keep)
        elif options.part == "small":
            small(scratch, ray, options.count or SMALL, keep)
        elif options.part == "killed":
            killed(scratch, ray, options.count or KILLED, keep)
        else:
            asked(scratch, options.count or MEMORIES, ROWS, keep)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    keep(load_after=round(os.getloadavg()[0], 1))
    print(json.dumps({"benchmark": f"fleet {options.part}", **found, "machine": machine("ray")}))
    return 0
