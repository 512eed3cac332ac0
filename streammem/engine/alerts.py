"""Alerts: a description is waited for, and reported once each time that it appears.

    for alert in alerts.take(frame, key, segment): ...           # by the picture, at once
    for alert in alerts.read(caption, keys, key, picture): ...   # by picture and words, later

It compares keys and words that are made anyway; it encodes nothing itself.
"""

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from streammem.engine.watch_options import ALERTING, AlertConfig
from streammem.errors import ConfigError
from streammem.memory.entry import Entry, unit_rows
from streammem.memory.retrieval import Query, Scale, content_words, rate, scale_of
from streammem.models.protocols import TextEncoder
from streammem.types import Alert, Caption, Frame
from streammem.video.pixels import fitted_pixels

PICTURE_SIDE, JPEG_QUALITY = 640, 85
PICTURE_NAME = re.compile(r"alert-\d{8,}\.jpg")  # other files in the folder are not its own
SCENES = 64  # that are remembered; more captions are never awaited at once


def _scenes() -> deque[int]:
    return deque(maxlen=SCENES)


@dataclass(eq=False)
class _Watched:
    query: str
    queries: tuple[Query, ...]  # one a phrasing; they differ in their words alone
    key: np.ndarray
    scale: Scale  # of its cosines
    there: float  # the cosine from which on it is there
    gone: float  # the cosine below which it is away
    cosines: list[float] = field(default_factory=list)  # of frames in a row that show it
    last_seen: float | None = None  # seconds; None while it is away
    shown_in: deque[int] = field(default_factory=_scenes)  # the newest scenes that it was in
    denied_in: deque[int] = field(default_factory=_scenes)  # those in which the model denied it


class Alerts:
    """Compares every perceived frame with what is waited for.

    Args:
        encoder: whose key space pictures and sentences share.
        queries: descriptions, such as ``a dog on the sofa``, or several of the same thing, as in
            ``a dog on the sofa | a dog lies on a couch``: what they have in common is waited for.
        config: options.

    Attributes:
        notices: why pictures could not be kept or removed; any caller may take them out.

    Raises:
        ConfigError: an empty description.
    """

    def __init__(
        self, encoder: TextEncoder, queries: Sequence[str], config: AlertConfig = ALERTING
    ) -> None:
        self._encoder, self._config = encoder, config
        self._watched: list[_Watched] = []
        self._keys = np.empty((0, 0))
        self.notices: list[str] = []
        self._failure = ""  # with a picture, as it was reported
        self._pictures: list[Path] = []  # oldest first
        if config.pictures and queries:
            config.pictures.mkdir(parents=True, exist_ok=True)
            own = (path for path in config.pictures.iterdir() if PICTURE_NAME.fullmatch(path.name))
            self._pictures = sorted(own, key=_number)
        self.change(queries)

    @property
    def queries(self) -> tuple[str, ...]:
        """What is waited for."""
        return tuple(watched.query for watched in self._watched)

    def change(self, queries: Sequence[str]) -> None:
        """Wait for other descriptions from now on; one that stays is not reported anew.

        Raises:
            ConfigError: an empty description.
        """
        if self.queries == tuple(queries):
            return
        known = {watched.query: watched for watched in self._watched}
        self._watched = [
            known.get(query) or _watched(self._encoder, query, self._config) for query in queries
        ]
        self._keys = np.array([watched.key for watched in self._watched])  # [Q, D_key]

    def take(self, frame: Frame, key: np.ndarray, segment: int) -> tuple[Alert, ...]:
        """Look at the next frame.

        Args:
            frame: as it was perceived.
            key: [D_key] its unit key.
            segment: id of the open scene.

        Returns:
            What has just appeared; mostly nothing.
        """
        if not self._watched:
            return ()
        found = []
        for watched, cosine in zip(self._watched, (self._keys @ key).tolist(), strict=True):
            score = self._appeared(watched, frame.time, cosine, segment)
            if score is not None:
                path = self._keep(frame.pixels)
                found.append(Alert(watched.query, frame.time, score, segment, path))
        return tuple(found)

    def read(
        self,
        caption: Caption,
        keys: np.ndarray,
        key: np.ndarray,
        picture: Callable[[], np.ndarray | None] = lambda: None,
    ) -> tuple[Alert, ...]:
        """Judge a scene once more when its caption is there, by picture and words together.

        Args:
            caption: of the scene; frames of later ones may have been taken.
            keys: [V, D_key] unit visual keys of the scene.
            key: [D_key] unit key of the caption's text.
            picture: returns one of the scene [H, W, 3] uint8 RGB to be kept; None without one.

        Returns:
            What the caption shows and no frame has, timed by the scene's start. Nothing that was
            there in a scene beside this one: it goes on, or its frames were counted there because
            the boundary had not settled.
        """
        segment = caption.segment
        if not self._watched or not caption.text:
            return ()
        row = Entry(
            segment=segment, start=caption.start, end=caption.end, frames=1, visual_keys=keys,
            caption_keys=key[None], note_keys=keys[:0], tokens=np.empty((0, 0), np.float16),
            caption=caption.text,
        )  # fmt: skip
        found = []
        for watched in self._watched:
            hit = max((rate([row], query)[0] for query in watched.queries), key=lambda h: h.score)
            # The picture alone was judged frame by frame. Judged once more as a scene it raised 5
            # more alerts of 400 measured, none of them right.
            is_shown = hit.matched == "caption" and hit.score >= self._config.min_score
            if not is_shown or segment in watched.denied_in:
                continue
            was_there = not {segment - 1, segment, segment + 1}.isdisjoint(watched.shown_in)
            _add(watched.shown_in, segment)
            if not was_there:
                shown = picture() if self._config.pictures else None
                path = None if shown is None else self._keep(shown)
                alert = Alert(watched.query, caption.start, hit.score, segment, path)
                found.append(replace(alert, matched="caption"))
        return tuple(found)

    def deny(self, alert: Alert) -> None:
        """Take back an alert that is not to be reported; it may appear again in another scene."""
        for watched in self._watched:
            if watched.query == alert.query:
                watched.denied_in.append(alert.segment)
                while alert.segment in watched.shown_in:
                    watched.shown_in.remove(alert.segment)
                if alert.matched == "picture":
                    watched.last_seen, watched.cosines = None, []
        if alert.keyframe is not None:
            path = Path(alert.keyframe)
            self._pictures = [kept for kept in self._pictures if kept != path]
            self._attempt(partial(path.unlink, missing_ok=True))

    def _appeared(
        self, watched: _Watched, time: float, cosine: float, segment: int
    ) -> float | None:
        """Follow one description; return the score with which it appears now, if it does."""
        config = self._config
        there = cosine >= watched.there
        if watched.last_seen is not None:
            if cosine >= watched.gone:
                watched.last_seen = time
                _add(watched.shown_in, segment)
            elif time - watched.last_seen >= config.away_s:
                watched.last_seen = None
        watched.cosines = [*watched.cosines, cosine][-config.confirm :] if there else []
        if watched.last_seen is not None or len(watched.cosines) < config.confirm:
            return None
        if segment in watched.denied_in:
            return None
        watched.last_seen = time
        _add(watched.shown_in, segment)
        return float(watched.scale.probability(np.array(max(watched.cosines))))

    def _keep(self, pixels: np.ndarray) -> str | None:
        folder = self._config.pictures
        if folder is None:
            return None
        number = _number(self._pictures[-1]) + 1 if self._pictures else 1
        path = folder / f"alert-{number:08d}.jpg"
        picture = Image.fromarray(fitted_pixels(pixels, PICTURE_SIDE))
        is_kept = self._attempt(lambda: picture.save(path, quality=JPEG_QUALITY))
        if is_kept:
            self._pictures.append(path)
        while len(self._pictures) > self._config.max_pictures:
            self._attempt(partial(self._pictures.pop(0).unlink, missing_ok=True))
        return str(path) if is_kept else None

    def _attempt(self, change: Callable[[], None]) -> bool:
        """Change a file of the folder; where it cannot be, report why and return False.

        A full disk costs pictures, not the watching.
        """
        try:
            change()
        except OSError as error:
            failure, self._failure = self._failure, (error.strerror or str(error)).lower()
            if self._failure != failure:
                self.notices.append(f"pictures of alerts: {self._config.pictures}: {self._failure}")
            return False
        self._failure = ""
        return True


def phrases_of(query: str) -> list[str]:
    """Return the phrasings of a description.

    Raises:
        ConfigError: one is empty.
    """
    phrases = [phrase.strip() for phrase in query.split("|")]
    if not all(phrases):
        raise ConfigError("an alert is empty; describe what to wait for")
    return phrases


def _number(path: Path) -> int:
    """Return the number in a picture's own name."""
    return int(path.stem.removeprefix("alert-"))


def _add(scenes: deque[int], segment: int) -> None:
    if segment not in scenes:
        scenes.append(segment)


def _watched(encoder: TextEncoder, query: str, config: AlertConfig) -> _Watched:
    phrases = phrases_of(query)
    key = unit_rows(encoder.sentence_keys(phrases).mean(0, keepdims=True))[0]
    background = encoder.background.numpy() @ key
    alone = Query(key, background=background, null=encoder.null, num_keys=config.frames)
    queries = tuple(alone._replace(words=content_words(phrase)) for phrase in phrases)
    scale = scale_of(alone)
    there, usual = scale.score_at(config.min_score), float(background.mean())
    gone = usual + config.leave * (there - usual)
    return _Watched(query, queries, key, scale, there, gone)
