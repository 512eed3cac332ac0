"""How often alerts are right, with and without captions, and a model that confirms them.

    row = evaluate_alerts(encoder, keys, queries, truth, config, scene_frames=8)
    read = evaluate_alerts(encoder, keys, queries, truth, config, scene_frames=8, captions=scenes)
    sure = evaluate_alerts(encoder, keys, queries, truth, config, scene_frames=8, accuracy=0.9)

Keys of frames go by as in ``watch``, each scene's caption behind its last frame. What confirms is a
stub of stated accuracy: it is right about an alert with that probability, whatever the alert is, so
that its row tells what a model of this accuracy would make of the same alerts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streammem.engine.alerts import Alerts
from streammem.engine.watch_options import AlertConfig
from streammem.models.protocols import TextEncoder
from streammem.types import Caption, Frame


class CaptionedScene(NamedTuple):
    """What is known of a scene once its caption is there.

    Attributes:
        text: of the caption.
        keys: [V, K] unit visual keys of the scene.
        key: [K] unit key of the text.
    """

    text: str
    keys: np.ndarray
    key: np.ndarray


@dataclass(frozen=True, slots=True)
class AlertsRow:
    """The outcome for one stream.

    Attributes:
        precision: share of the alerts told that are right; 1 where none is told.
        recall: share of the appearances that were told: scenes in a row that show one query.
        false_per_query: wrong alerts told, by the number of queries.
        denied: alerts that the model denied.
        asked: alerts that it was asked about.
        by_caption: alerts told that a caption raised; by_caption_right: of these, the right ones.
    """

    precision: float
    recall: float
    false_per_query: float
    denied: int
    asked: int
    by_caption: int = 0
    by_caption_right: int = 0


def evaluate_alerts(
    encoder: TextEncoder,
    keys: np.ndarray,
    queries: Sequence[str],
    truth: Mapping[str, Collection[int]],
    config: AlertConfig,
    *,
    scene_frames: int,
    captions: Sequence[CaptionedScene] = (),
    accuracy: float | None = None,
    seed: int = 0,
) -> AlertsRow:
    """Let frames go by and count which alerts are right.

    Args:
        encoder: see ``Alerts``.
        keys: [F, K] unit keys of the frames, two a second.
        queries: what is waited for.
        truth: of those that come, the scenes that show each; an alert in any other is wrong.
        config: of the alerts; it keeps no pictures.
        scene_frames: frames of each scene, >= 1.
        captions: one a scene; none lets pictures alone raise alerts.
        accuracy: in [0, 1], of what confirms; None tells every alert.
        seed: of its errors.
    """
    alerts, rng = Alerts(encoder, queries, config), np.random.default_rng(seed)
    blank = np.zeros((8, 8, 3), np.uint8)
    right, wrong, denied, asked = set[tuple[str, int]](), 0, 0, 0
    by_caption = by_caption_right = 0
    for number, frame_key in enumerate(keys):
        scene = number // scene_frames
        found = alerts.take(Frame(blank, number / 2, 0.5, number), frame_key, scene)
        if captions and (number + 1) % scene_frames == 0:
            text, scene_keys, key = captions[scene]
            start, end = scene * scene_frames / 2, (number + 1) / 2
            found += alerts.read(Caption(scene, start, end, text), scene_keys, key)
        for alert in found:
            shown_in = truth.get(alert.query, ())
            is_right = scene in shown_in
            if accuracy is not None:
                asked += 1
                if is_right != (rng.random() < accuracy):  # a wrong verdict turns it round
                    alerts.deny(alert)
                    denied += 1
                    continue
            by_caption += alert.matched == "caption"
            by_caption_right += alert.matched == "caption" and is_right
            if is_right:
                right.add((alert.query, _appearance(scene, shown_in)))
            else:
                wrong += 1
    told = len(right) + wrong
    num_appearances = sum(
        len({_appearance(scene, scenes) for scene in scenes}) for scenes in truth.values()
    )
    return AlertsRow(
        precision=len(right) / told if told else 1.0,
        recall=len(right) / max(1, num_appearances),
        false_per_query=wrong / max(1, len(queries)),
        denied=denied,
        asked=asked,
        by_caption=by_caption,
        by_caption_right=by_caption_right,
    )


def _appearance(scene: int, scenes: Collection[int]) -> int:
    """Return the first of the scenes in a row, all among ``scenes``, that lead up to this one."""
    while scene - 1 in scenes:
        scene -= 1
    return scene
