"""What `make demo-live` runs: the demo's clips as a network camera, watched as a user would.

``alerts`` measures instead how often an alert is right, by pictures alone and with the model's
captions: photos that the model was not trained on go by. An alert is a person's caption of one of
them, or of one that does not come; or several captions of it, as if a user worded the same thing in
several ways; or a thing, such as "a dog", which the photos show whose captions name it.
``lag`` (`lag.py`) measures how
late captions come, in real time.
"""

import argparse
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from benchmarks.demo import compose, fetch
from benchmarks.lag import lag
from benchmarks.machine import machine
from benchmarks.rtsp_server import RtspCamera, encode
from streammem.errors import BackboneError
from streammem.models.backbones.weights import home

if TYPE_CHECKING:
    from streammem.evaluation.alerts import CaptionedScene
    from streammem.models.protocols import StreamModel, TextEncoder

FPS = 10
ALERT = "a man in a car"
SHOWN_FRAMES = 8  # of each photo, at 2 frames a second
CONFIRMED_BY = (0.8, 0.9, 0.95)  # accuracy of a stub in the place of a model that confirms alerts

# Words of people's captions by which a photo shows a thing; of the last ten no photo may.
THINGS = {
    "a dog": "dog", "a man": "man guy", "a woman": "woman lady", "a girl": "girl", "a boy": "boy",
    "a child": "child boy girl toddler kid baby", "a ball": "ball", "grass": "grass",
    "water": "water pool ocean lake river sea", "snow": "snow", "a beach": "beach",
    "a bicycle": "bicycle bike cyclist biker", "a motorcycle": "motorcycle motorbike motorcyclist",
    "a horse": "horse", "a boat": "boat canoe kayak raft", "a swimming pool": "pool",
    "a skateboard": "skateboard skateboarder skateboarding", "a swing": "swing", "a car": "car",
    "an umbrella": "umbrella", "a guitar": "guitar", "a bird": "bird seagull duck",
    "a surfer": "surfer surfing", "a basketball player": "basketball", "a crowd": "crowd audience",
    "a football player": "football", "a climber": "climber climbing", "a bench": "bench",
    "a mountain": "mountain mountaintop hill", "a bridge": "bridge",
    "a cat": "cat", "an elephant": "elephant", "a train": "train", "a bus": "bus",
    "a piano": "piano", "a sofa": "sofa couch", "a pizza": "pizza", "a laptop": "laptop",
    "a parrot": "parrot", "a tent": "tent",
}  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks camera", description=__doc__)
    parser.add_argument("what", choices=("demo", "alerts", "lag"), nargs="?", default="demo")
    parser.add_argument("--seconds", type=float, default=90.0, help="how long the demo runs")
    parser.add_argument("--photos", type=int, default=160, help="that go by, half with an alert")
    parser.add_argument("--cameras", type=int, default=1, help="whose lag is measured")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long it is measured")
    arguments = parser.parse_args(argv)
    if arguments.what == "lag":
        return lag(arguments.cameras, arguments.minutes)
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
    """Show photos that the model was not trained on, and count how often alerts are right."""
    from streammem.engine.watch_options import AlertConfig
    from streammem.evaluation.alerts import evaluate_alerts
    from streammem.models.checkpoint import load_checkpoint

    folder = Path(os.environ["STREAMMEM_DATA"]) / "flickr8k"
    known = captioned(folder, "val")
    rng = np.random.default_rng(0)
    photos = [known[i] for i in rng.permutation(len(known))[: num_photos // 2 * 3]]
    shown, absent = photos[:num_photos], photos[num_photos:]
    model = load_checkpoint()
    found = [watched(model, list(panned(path))) for path, _ in shown]
    keys = np.concatenate([of_frames for of_frames, _ in found])
    scenes = [scene for _, scene in found]
    asked = [captions for _, captions in [*shown[: num_photos // 2], *absent]]
    kinds: dict[str, dict[str, frozenset[int]]] = {}
    for phrases in (1, 2, 3):
        queries = [" | ".join(captions[:phrases]) for captions in asked]
        here = [frozenset({k}) if k < num_photos // 2 else frozenset() for k in range(len(asked))]
        kinds[f"{phrases} ways"] = dict(zip(queries, here, strict=True))
    kinds["a thing"] = {
        thing: frozenset(k for k, (_, captions) in enumerate(shown) if names_any(captions, words))
        for thing, words in THINGS.items()
    }
    print(
        f"{num_photos} photos of {SHOWN_FRAMES} frames; {num_photos // 2} alerts about one of "
        f"them, {len(absent)} about none; {len(THINGS)} about a thing\n"
        "said in  score  captions  confirmed by  precision  recall  false alerts a query"
    )
    table, encoder = [], cast("TextEncoder", Remembering(model.text_encoder))
    for (kind, truth), least, reads, accuracy in itertools.product(
        kinds.items(), (0.65, 0.6, 0.55, 0.5), (False, True), (None, *CONFIRMED_BY)
    ):
        row = evaluate_alerts(
            encoder, keys, list(truth), truth, AlertConfig(min_score=least),
            scene_frames=SHOWN_FRAMES, captions=scenes if reads else (), accuracy=accuracy,
        )  # fmt: skip
        options = {"kind": kind, "min_score": least, "captions": reads, "accuracy": accuracy}
        table.append(options | asdict(row))
        by = "nothing" if accuracy is None else f"{accuracy:.0%} right"
        print(
            f"{kind:<9}{least:<7}{'read' if reads else 'none':<10}{by:<12}{row.precision:>9.2f}"
            f"{row.recall:>9.2f}{row.false_per_query:>10.2f}"
        )
    print(json.dumps({"benchmark": "camera alerts", "table": table, "machine": machine("av")}))
    return 0


class Remembering:
    """What alerts need of a text encoder; each sentence is read once."""

    def __init__(self, encoder: "TextEncoder") -> None:
        self.background, self.null = encoder.background, encoder.null
        self._encoder, self._known = encoder, dict[str, np.ndarray]()

    def sentence_keys(self, sentences: Sequence[str]) -> np.ndarray:
        for text in sentences:
            if text not in self._known:
                self._known[text] = self._encoder.sentence_keys([text])[0]
        return np.stack([self._known[text] for text in sentences])


def watched(
    model: "StreamModel", pictures: list[np.ndarray]
) -> tuple[np.ndarray, "CaptionedScene"]:
    """Let a session of its own see a photo; return the frames' keys, and its caption."""
    from streammem.engine.session import Session
    from streammem.evaluation.alerts import CaptionedScene
    from streammem.types import Frame

    keys = []
    with Session(model) as session:
        for number, pixels in enumerate(pictures):
            session.push(Frame(pixels, number / 2, 0.5, number))
            assert session.newest is not None
            keys.append(session.newest.key)
        (segment,) = session.flush()
        request = session.request(segment)
        (scored,) = session.captioner.caption([request])
    return np.array(keys), CaptionedScene(scored.text, request.keys, scored.key)


def names_any(captions: list[str], words: str) -> bool:
    """Return whether a caption names one of some words."""
    from streammem.memory.retrieval import content_words

    return any(content_words(words) & content_words(caption) for caption in captions)


def panned(path: Path) -> Iterator[np.ndarray]:
    """Give a photo's frames: parts of it, as a camera that turns slowly sees them."""
    from streammem.evaluation.datasets import read_photo

    pixels = read_photo(path)
    height, width = (side * 10 // 11 for side in pixels.shape[:2])
    for k in range(SHOWN_FRAMES):
        y, x = (side // 11 * k // (SHOWN_FRAMES - 1) for side in pixels.shape[:2])
        yield np.ascontiguousarray(pixels[y : y + height, x : x + width])


def captioned(folder: Path, split: str) -> list[tuple[Path, list[str]]]:
    """Photos of a split, each with its captions."""
    rows = [json.loads(line) for line in (folder / "captions.jsonl").open()]
    return [
        (folder / "images" / row["image"], row["captions"]) for row in rows if row["split"] == split
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
