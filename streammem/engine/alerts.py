"""Alerts: a description is waited for, and told once each time that it appears.

It looks at keys that perception has made anyway; it encodes nothing and says nothing itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from streammem.engine.watch_options import ALERTING, AlertConfig
from streammem.errors import ConfigError
from streammem.memory.entry import unit_rows
from streammem.memory.retrieval import Query, Scale, scale_of
from streammem.models.protocols import TextEncoder
from streammem.types import Alert, Frame
from streammem.video.pixels import fitted_pixels

PICTURE_SIDE, JPEG_QUALITY = 640, 85


@dataclass(eq=False)
class _Watched:
    query: str
    key: np.ndarray
    scale: Scale  # of its cosines
    there: float  # the cosine from which on it is there
    gone: float  # the cosine below which it is away
    cosines: list[float] = field(default_factory=list)  # of frames in a row that show it
    last_seen: float | None = None  # seconds; None while it is away
    denied_in: int | None = None  # the scene in which the model denied it


class Alerts:
    """Compares every perceived frame with what is waited for.

    Args:
        encoder: whose key space pictures and sentences share.
        queries: descriptions, such as ``a dog on the sofa``, or several of the same thing, as in
            ``a dog on the sofa | a dog lies on a couch``: what they have in common is waited for.
        config: options.

    Raises:
        ConfigError: an empty description.
    """

    def __init__(
        self, encoder: TextEncoder, queries: Sequence[str], config: AlertConfig = ALERTING
    ) -> None:
        self._encoder, self._config = encoder, config
        self._watched: list[_Watched] = []
        self._keys = np.empty((0, 0))
        self._pictures: list[Path] = []
        if config.pictures and queries:
            config.pictures.mkdir(parents=True, exist_ok=True)
            self._pictures = sorted(config.pictures.glob("alert-*.jpg"))
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
                path = self._keep(frame)
                found.append(Alert(watched.query, frame.time, score, segment, path))
        return tuple(found)

    def deny(self, alert: Alert) -> None:
        """Take back an alert that is not to be reported; it may appear again in another scene."""
        for watched in self._watched:
            if watched.query == alert.query:
                watched.last_seen, watched.cosines, watched.denied_in = None, [], alert.segment
        if alert.keyframe is not None:
            path = Path(alert.keyframe)
            self._pictures = [kept for kept in self._pictures if kept != path]
            path.unlink(missing_ok=True)

    def _appeared(
        self, watched: _Watched, time: float, cosine: float, segment: int
    ) -> float | None:
        """Follow one description; return the score with which it appears now, if it does."""
        config = self._config
        there = cosine >= watched.there
        if watched.last_seen is not None:
            if cosine >= watched.gone:
                watched.last_seen = time
            elif time - watched.last_seen >= config.away_s:
                watched.last_seen = None
        watched.cosines = [*watched.cosines, cosine][-config.confirm :] if there else []
        if watched.last_seen is not None or len(watched.cosines) < config.confirm:
            return None
        if watched.denied_in == segment:
            return None
        watched.last_seen = time
        return float(watched.scale.probability(np.array(max(watched.cosines))))

    def _keep(self, frame: Frame) -> str | None:
        folder = self._config.pictures
        if folder is None:
            return None
        number = int(self._pictures[-1].stem.removeprefix("alert-")) + 1 if self._pictures else 1
        path = folder / f"alert-{number:08d}.jpg"
        picture = Image.fromarray(fitted_pixels(frame.pixels, PICTURE_SIDE))
        picture.save(path, quality=JPEG_QUALITY)
        self._pictures.append(path)
        while len(self._pictures) > self._config.max_pictures:
            self._pictures.pop(0).unlink(missing_ok=True)
        return str(path)


def phrases_of(query: str) -> list[str]:
    """Return the phrasings of a description.

    Raises:
        ConfigError: one is empty.
    """
    phrases = [phrase.strip() for phrase in query.split("|")]
    if not all(phrases):
        raise ConfigError("an alert is empty; describe what to wait for")
    return phrases


def _watched(encoder: TextEncoder, query: str, config: AlertConfig) -> _Watched:
    phrases = phrases_of(query)
    key = unit_rows(encoder.sentence_keys(phrases).mean(0, keepdims=True))[0]
    background = encoder.background.numpy() @ key
    scale = scale_of(Query(key, background=background, null=encoder.null, num_keys=config.frames))
    there, usual = scale.score_at(config.min_score), float(background.mean())
    return _Watched(query, key, scale, there, usual + config.leave * (there - usual))
