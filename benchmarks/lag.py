"""How late captions come: cameras in real time, over RTSP, as a user would watch them.

Each camera shows photos that the model was not trained on, panned, for 4 to 12 seconds each, at ten
H.264 pictures a second; the server runs in a process of its own. One model watches them all, as
`streammem serve` does. For each caption two times are taken up to its first word: from the end of
what it describes, which the law bounds by ``max_lag`` frames + 1 s (eight cameras: 3 s more), and
from the moment at which the scene had ended for certain, which holds no waiting for frames.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import machine
from benchmarks.rtsp_server import RtspCamera, Unit, encode

FPS, GOP = 10, 10
SIZE = (480, 360)  # of a picture; photos are a tenth larger, and pan
SCENE_S = (4, 13)
FILM_S = 120.0
ONE_S, MANY_S = 1.0, 4.0  # that one camera's, or many's, captions may take beyond max_lag
COUNTS = ("captured", "frames", "dropped_full", "segments", "captions", "captions_skipped")


@dataclass
class Watched:
    """What one camera gave.

    Attributes:
        segments: monotonic seconds at which each scene's end was known, by number.
        late_s: of each caption's first word, behind the end of its stretch.
        spoken_s: likewise, behind the moment at which the end of its scene was known.
    """

    segments: dict[int, float] = field(default_factory=dict)
    late_s: list[float] = field(default_factory=list)
    spoken_s: list[float] = field(default_factory=list)
    stats: object = None


def lag(num_cameras: int, minutes: float) -> int:
    """Watch, and print how late captions came."""
    from streammem.captioning.shared import share_model
    from streammem.models.checkpoint import load_checkpoint

    with _serving(film(seed=0), num_cameras) as urls:
        model = load_checkpoint()
        shared, scheduler = (model, None) if num_cameras == 1 else share_model(model)
        before, began = os.getloadavg(), time.monotonic()
        cpu = time.process_time()
        with ThreadPoolExecutor(num_cameras) as pool:
            until = began + 60 * minutes
            watched = list(pool.map(lambda url: _watch(shared, scheduler, url, until), urls))
        cpu = time.process_time() - cpu
        took_s = time.monotonic() - began
        if scheduler:
            scheduler.close()
    speech_s = ONE_S if num_cameras == 1 else MANY_S
    found = figures(watched, model.perceiver.scenes.max_lag + speech_s, speech_s) | {
        "seconds": round(took_s), "cores": round(cpu / took_s, 2),
        "load": [round(mean, 1) for mean in (before[0], os.getloadavg()[0])],
    }  # fmt: skip
    report(found)
    print(json.dumps({"benchmark": "camera lag", **found, "machine": machine("av")}))
    return 0


def film(seed: int, seconds: float = FILM_S) -> list[Unit]:
    """Encode photos that go by, each panned so that no two frames are alike."""
    return encode(pictures(seed, seconds), fps=FPS, gop=GOP)


def pictures(seed: int, seconds: float) -> list[np.ndarray]:
    """Return pictures [H, W, 3] of photos that go by."""
    folder = Path(os.environ["STREAMMEM_DATA"]) / "flickr8k"
    rows = [json.loads(line) for line in (folder / "captions.jsonl").open()]
    names = [row["image"] for row in rows if row["split"] == "val"]
    rng = np.random.default_rng(seed)
    width, height = SIZE
    shown: list[np.ndarray] = []
    for number in rng.permutation(len(names)):
        if len(shown) >= seconds * FPS:
            break
        photo = Image.open(folder / "images" / names[number]).convert("RGB")
        large = np.asarray(photo.resize((width * 11 // 10, height * 11 // 10)))
        count = int(rng.integers(*SCENE_S)) * FPS
        for k in range(count):
            x, y = (round(k / count * room) for room in (width // 10, height // 10))
            shown.append(np.ascontiguousarray(large[y : y + height, x : x + width]))
    return shown


@contextmanager
def _serving(units: Sequence[Unit], count: int) -> Iterator[list[str]]:
    """Serve a film ``count`` times, each from another place on, in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(units, count, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def _serve(units: Sequence[Unit], count: int, pipe) -> None:
    with ExitStack() as stack:
        urls = []
        for k in range(count):
            first = len(units) * k // count // GOP * GOP
            turned = [*units[first:], *units[:first]]
            shown = [Unit(n / FPS, unit.nals) for n, unit in enumerate(turned)]
            urls.append(stack.enter_context(RtspCamera(shown)).url)
        pipe.send(urls)
        pipe.recv()


def _watch(model, scheduler, url: str, until: float) -> Watched:
    from streammem.engine.session import Session
    from streammem.engine.watch import watch
    from streammem.engine.watch_options import WatchCallbacks, WatchOptions
    from streammem.types import Segment, Stats
    from streammem.video import SourceOptions, open_with

    watched, begun, lock = Watched(), set(), threading.Lock()

    def on_text(segment: Segment, piece: str) -> None:
        now, stretch = time.monotonic(), (segment.id, segment.start)
        with lock:
            if stretch in begun:
                return
            begun.add(stretch)
        watched.late_s.append(time.time() - source.wall_zero - segment.end)
        if segment.id in watched.segments:
            watched.spoken_s.append(now - watched.segments[segment.id])

    options = WatchOptions(stats_s=1e9)
    callbacks = WatchCallbacks(stop=lambda: time.monotonic() > until, on_text=on_text)
    source, session = open_with(url, SourceOptions(fps=1.0)), Session(model)
    push = session.push

    def pushed(frame):
        closed = push(frame)
        watched.segments.update({segment.id: time.monotonic() for segment in closed})
        return closed

    session.push = pushed
    for event in watch(session, source, options, callbacks=callbacks, scheduler=scheduler):
        if isinstance(event, Stats):
            watched.stats = event
    return watched


def figures(watched: Sequence[Watched], bound_s: float, speech_s: float) -> dict[str, object]:
    found = {"cameras": len(watched), "bound_s": bound_s, "speech_bound_s": speech_s}
    found |= {name: sum(getattr(each.stats, name) for each in watched) for name in COUNTS}
    found["candidates"] = max(each.stats.candidates for each in watched)
    found["fewest_candidates"] = min(each.stats.fewest_candidates for each in watched)
    for name, bound in (("late", bound_s), ("spoken", speech_s)):
        seconds = np.array([s for each in watched for s in getattr(each, f"{name}_s")])
        if not seconds.size:
            sys.exit("no scene was captioned in that time; give it more --minutes")
        found[f"{name}_s"] = np.percentile(seconds, (50, 95, 100)).round(2).tolist()
        found[f"{name}_within"] = round(float((seconds <= bound).mean()), 3)
    return found | {"behind_s": max(each.stats.lag_s for each in watched)}


def report(found: dict) -> None:
    print(
        f"{found['cameras']} cameras at 1 frame a second for {found['seconds']} s: "
        f"{found['captured']} frames captured, {found['dropped_full']} dropped behind; "
        f"{found['segments']} scenes, {found['captions']} captions, "
        f"{found['captions_skipped']} skipped; each the best of {found['fewest_candidates']} to "
        f"{found['candidates']}\n"
        "first word, seconds             median    95%    max  within"
    )
    for text, name, bound in (
        ("after what it describes", "late", found["bound_s"]),
        ("after the end was certain", "spoken", found["speech_bound_s"]),
    ):
        median, high, most = found[f"{name}_s"]
        share = found[f"{name}_within"]
        print(f"{text:<30}{median:>8.2f}{high:>7.2f}{most:>7.2f}  {share:.1%} in {bound:g} s")
    print(f"{found['cores']} cores used; load {found['load'][0]} before, {found['load'][1]} after")
