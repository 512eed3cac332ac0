"""A fixed camera: are things that come and go found again, and what is seen where nothing happens?

The photo of a room drifts a little, its light changes slowly, the sensor is noisy; other photos,
feathered into it, stand somewhere for some seconds. An event counts as found if a person's caption
of its photo finds first a row that overlaps it and is not longer than ``ROW_S``; a row that begins
while nothing is there, and nothing was ``SLACK_S`` ago, is a false event.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.evaluation.datasets import Photo, read_photos
from streammem.models.tiny.model import VideoModel
from streammem.types import Frame

FPS = 1.0
WIDTH, HEIGHT = 640, 360
DRIFT = 16  # pixels to either side
NOISE = 4.0  # levels
NOISES = 8
SHARES = (0.08, 0.15, 0.3)  # of the picture that a photo covers
EVENT_S = (8, 20)
EVERY_S = 60
ROW_S = 60.0
SLACK_S = 3.0
ROOM = 7  # number of the photo that is the background, for seed 0


class Event(NamedTuple):
    """A photo that stands in the picture at [start, end) seconds."""

    photo: Photo
    share: float
    start: int
    end: int


def measure(model: VideoModel, minutes: int, seed: int) -> dict[str, Any]:
    """Return figures of a stream with an event a minute and of one without, by option.

    The options of ``fixed`` were chosen on seed 0; any other is another room and other photos.
    """
    if "STREAMMEM_DATA" not in os.environ:
        return {"skipped": "set STREAMMEM_DATA to a folder with flickr8k and rooms"}
    data = Path(os.environ["STREAMMEM_DATA"])
    rooms = read_photos(data / "rooms", "all")
    room = Image.open(rooms[(ROOM + seed) % len(rooms)].path).convert("RGB")
    photos = read_photos(data / "flickr8k", "val")
    happening = events(photos, minutes, np.random.default_rng(seed))
    figures: dict[str, Any] = {}
    for fixed in (False, True):
        found: dict[str, Any] = {}
        for name, these in (("", happening), (", nothing happens", ())):
            with Session(model, SessionConfig(fixed=fixed)) as session:
                _watched(session, room, these, minutes)
                found |= _found(session, these) if these else {}
                found[f"false events an hour{name}"] = _false(session, these)
        figures[f"fixed={str(fixed).lower()}"] = found
    return figures


def events(photos: Sequence[Photo], minutes: int, rng: np.random.Generator) -> list[Event]:
    """Let a photo come every minute, of each share in turn."""
    chosen = rng.choice(len(photos), minutes, replace=False)
    made = []
    for number, photo in enumerate(chosen):
        start = number * EVERY_S + int(rng.integers(5, EVERY_S - EVENT_S[1] - 5))
        end = start + int(rng.integers(*EVENT_S))
        made.append(Event(photos[photo], SHARES[number % len(SHARES)], start, end))
    return made


def frames(room: Image.Image, happening: Sequence[Event], minutes: int) -> Iterator[np.ndarray]:
    """Yield the camera's pictures, [HEIGHT, WIDTH, 3] uint8, at ``FPS``."""
    rng = np.random.default_rng(1)
    noises = [NOISE * rng.standard_normal((HEIGHT, WIDTH, 3), np.float32) for _ in range(NOISES)]
    wide = room.resize((WIDTH + 2 * DRIFT, HEIGHT + 2 * DRIFT))
    background = np.asarray(wide, np.float32)
    shown = {event: _pasted(event, rng) for event in happening}
    for second in range(minutes * 60):
        x = round(DRIFT * (1 + math.sin(second / 97)))
        y = round(DRIFT * (1 + math.sin(second / 71)))
        picture = background[y : y + HEIGHT, x : x + WIDTH] * (1 + 0.06 * math.sin(second / 163))
        for event, (pixels, alpha) in shown.items():
            if event.start <= second < event.end:
                picture = alpha * pixels + (1 - alpha) * picture
        noise = noises[rng.integers(NOISES)]
        yield (picture + noise).clip(0, 255).astype(np.uint8)


def _pasted(event: Event, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return an event's photo in its place and how much it covers there, [HEIGHT, WIDTH, 3 | 1]."""
    with Image.open(event.photo.path) as photo:
        ratio = photo.width / photo.height
        height = round(math.sqrt(event.share * WIDTH * HEIGHT / ratio))
        width = min(WIDTH, round(height * ratio))
        small = np.asarray(photo.convert("RGB").resize((width, height)), np.float32)
    top, left = int(rng.integers(HEIGHT - height + 1)), int(rng.integers(WIDTH - width + 1))
    place = np.s_[top : top + height, left : left + width]
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.float32)
    pixels[place] = small
    alpha[place] = np.minimum.outer(_ramp(height), _ramp(width))[..., None]
    return pixels, alpha


def _ramp(length: int) -> np.ndarray:
    """Rise from 0 to 1 over a tenth of a side, and fall again."""
    places = np.arange(length) + 0.5
    return np.minimum(1, np.minimum(places, length - places) / (0.1 * length)).astype(np.float32)


def _watched(session: Session, room: Image.Image, happening: Sequence[Event], minutes: int) -> None:
    for number, picture in enumerate(frames(room, happening, minutes)):
        session.push(Frame(picture, number / FPS, 1 / FPS, number))
    session.flush()


def _found(session: Session, happening: Sequence[Event]) -> dict[str, Any]:
    by_share: dict[float, list[bool]] = {share: [] for share in SHARES}
    for event in happening:
        moment = session.find(event.photo.captions[0], 1)[0]
        overlaps = moment.start < event.end and moment.end > event.start
        by_share[event.share].append(overlaps and moment.end - moment.start <= ROW_S)
    hits = [hit for each in by_share.values() for hit in each]
    return {
        "events": len(happening),
        "rows": len(session.memory),
        "event R@1": round(float(np.mean(hits)), 3),
        **{f"event R@1, {s:.0%}": round(float(np.mean(h)), 3) for s, h in by_share.items()},
    }


def _false(session: Session, happening: Sequence[Event]) -> float:
    """Return how many rows an hour begin while nothing is there."""
    rows = session.memory.entries()
    wrong = [
        row
        for row in rows[1:]
        if not any(e.start - SLACK_S <= row.start <= e.end + SLACK_S for e in happening)
    ]
    return round(len(wrong) / (rows[-1].end / 3600), 2)
