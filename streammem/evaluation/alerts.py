"""How often alerts are right, with and without a model that confirms them.

    row = evaluate_alerts(encoder, keys, queries, truth, config, scene_frames=8)
    sure = evaluate_alerts(encoder, keys, queries, truth, config, scene_frames=8, accuracy=0.9)

Keys of frames go by as in ``watch``. What confirms is a stub of stated accuracy: it is right about
an alert with that probability, whatever the alert is, so that its row tells what a model of this
accuracy would make of the same alerts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streammem.engine.alerts import Alerts
from streammem.engine.watch_options import AlertConfig
from streammem.models.protocols import TextEncoder
from streammem.types import Frame


@dataclass(frozen=True, slots=True)
class AlertsRow:
    """The outcome for one stream.

    Attributes:
        precision: share of the alerts told that are right; 1 where none is told.
        recall: share of the queries with a scene of their own that were told in it.
        false_per_query: wrong alerts told, by the number of queries.
        denied: alerts that the model denied.
        asked: alerts that it was asked about.
    """

    precision: float
    recall: float
    false_per_query: float
    denied: int
    asked: int


def evaluate_alerts(
    encoder: TextEncoder,
    keys: np.ndarray,
    queries: Sequence[str],
    truth: Mapping[str, int],
    config: AlertConfig,
    *,
    scene_frames: int,
    accuracy: float | None = None,
    seed: int = 0,
) -> AlertsRow:
    """Let frames go by and count which alerts are right.

    Args:
        encoder: see ``Alerts``.
        keys: [F, K] unit keys of the frames, two a second.
        queries: what is waited for.
        truth: of those that come, the scene that shows each; an alert in any other is wrong.
        config: of the alerts; it keeps no pictures.
        scene_frames: frames of each scene, >= 1.
        accuracy: in [0, 1], of what confirms; None tells every alert.
        seed: of its errors.
    """
    alerts, rng = Alerts(encoder, queries, config), np.random.default_rng(seed)
    blank = np.zeros((8, 8, 3), np.uint8)
    right, wrong, denied, asked = set[str](), 0, 0, 0
    for number, key in enumerate(keys):
        scene = number // scene_frames
        for alert in alerts.take(Frame(blank, number / 2, 0.5, number), key, scene):
            is_right = truth.get(alert.query) == scene
            if accuracy is not None:
                asked += 1
                if is_right != (rng.random() < accuracy):  # a wrong verdict turns it round
                    alerts.deny(alert)
                    denied += 1
                    continue
            if is_right:
                right.add(alert.query)
            else:
                wrong += 1
    told = len(right) + wrong
    return AlertsRow(
        precision=len(right) / told if told else 1.0,
        recall=len(right) / max(1, len(truth)),
        false_per_query=wrong / max(1, len(queries)),
        denied=denied,
        asked=asked,
    )
