"""What `make demo-live` runs: the demo's clips as a network camera, watched as a user would.

``alerts`` measures instead how often an alert is right: photos of known captions go by, and each
alert is the caption of one of them, or of one that does not come.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.demo import compose, fetch
from benchmarks.machine import machine
from benchmarks.rtsp_server import RtspCamera, encode
from streammem.backbones.weights import home
from streammem.errors import BackboneError

FPS = 10
ALERT = "a man in a car"
SHOWN_FRAMES = 8  # of each photo, at 2 frames a second


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks camera", description=__doc__)
    parser.add_argument("what", choices=("demo", "alerts"), nargs="?", default="demo")
    parser.add_argument("--seconds", type=float, default=90.0, help="how long the demo runs")
    parser.add_argument("--photos", type=int, default=60, help="that go by, half with an alert")
    arguments = parser.parse_args(argv)
    return demo(arguments.seconds) if arguments.what == "demo" else alerts(arguments.photos)


def demo(seconds: float) -> int:
    video = home() / "demo.mp4"
    if not video.exists():
        try:
            compose(fetch(home() / "demo-clips"), video)
        except BackboneError as error:
            sys.exit(str(error))
    with RtspCamera(encode(pictures(video), fps=FPS, gop=FPS)) as camera:
        command = ["watch", camera.url, "--alert", ALERT, "--stats", "20s"]
        print(
            f"a camera at {camera.url} shows {video}\n$ streammem {shlex.join(command)}", flush=True
        )
        watching = subprocess.Popen([sys.executable, "-m", "streammem", *command])
        try:
            watching.wait(seconds)
        except subprocess.TimeoutExpired:
            watching.send_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            print("stopping")  # it has got the signal too
        return watching.wait()


def pictures(video: Path) -> list[np.ndarray]:
    """Decode a video at ``FPS``, small enough to encode in no time."""
    from streammem.video import open_source

    with open_source(video, fps=FPS, max_side=480) as source:
        return [np.ascontiguousarray(f.pixels[: f.pixels.shape[0] & ~1]) for f in source]


def alerts(num_photos: int) -> int:
    from streammem.alerts import AlertConfig, Alerts
    from streammem.checkpoint import load
    from streammem.types import Frame
    from streammem.video.pictures import read_picture

    folder = Path(os.environ["STREAMMEM_DATA"]) / "coco_mini"
    known = captioned(folder)
    rng = np.random.default_rng(0)
    photos = [known[i] for i in rng.permutation(len(known))[: num_photos // 2 * 3]]
    shown, absent = photos[:num_photos], photos[num_photos:]
    model = load()
    keys = [model.perceive(read_picture(path)).key for path, _ in shown]
    truth = {text: k for k, (_, text) in enumerate(shown[: num_photos // 2])}
    queries = [*truth, *(text for _, text in absent)]
    print(
        f"{num_photos} photos of {SHOWN_FRAMES} frames; {len(truth)} alerts about one of them, "
        f"{len(absent)} about none\nrate   precision  recall  false alerts a query"
    )
    table = []
    blank = np.zeros((8, 8, 3), np.uint8)
    for rate in (0.003, 0.01, 0.03, 0.1, 0.3):
        watched = Alerts(model, queries, AlertConfig(rate=rate))
        right, wrong = set(), 0
        for number, key in enumerate(np.repeat(np.stack(keys), SHOWN_FRAMES, axis=0)):
            for alert in watched.take(Frame(blank, number / 2, 0.5, number), key, 0):
                if truth.get(alert.query) == number // SHOWN_FRAMES:
                    right.add(alert.query)
                else:
                    wrong += 1
        row = {
            "rate": rate, "precision": len(right) / max(1, len(right) + wrong),
            "recall": len(right) / len(truth), "false_per_query": wrong / len(queries),
        }  # fmt: skip
        table.append(row)
        print(
            f"{rate:<7}{row['precision']:>8.2f}{row['recall']:>9.2f}{row['false_per_query']:>10.2f}"
        )
    print(json.dumps({"benchmark": "camera alerts", "table": table, "machine": machine("av")}))
    return 0


def captioned(folder: Path) -> list[tuple[Path, str]]:
    """Photos, each with its first caption."""
    rows = []
    for line in (folder / "captions.jsonl").open():
        row = json.loads(line)
        rows.append((folder / "images" / row["image"], row["captions"][0]))
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
