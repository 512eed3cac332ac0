"""Alerts counted against the truth: a model that confirms them costs recall and buys precision."""

import numpy as np
import pytest

from streammem.engine.watch_options import AlertConfig
from streammem.evaluation.alerts import evaluate_alerts
from streammem.memory.retrieval import DEFAULT_NULL

FRAMES, SCENES, QUERIES = 4, 120, 60


class Encoder:
    """Every query has a direction of its own; scenes lie near theirs, and near others' too."""

    null = DEFAULT_NULL

    def __init__(self):
        import torch

        rng = np.random.default_rng(0)
        rows = rng.standard_normal((512 + QUERIES, 32)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self.background = torch.from_numpy(rows[:512])
        self.directions = rows[512:]

    def sentence_keys(self, sentences):
        return np.stack([self.directions[int(sentence)] for sentence in sentences])


@pytest.fixture(scope="module")
def stream():
    encoder, rng = Encoder(), np.random.default_rng(1)
    keys = rng.standard_normal((SCENES, 32)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    keys[:QUERIES:2] += 1.2 * encoder.directions[::2]  # every other query comes
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    queries = [str(i) for i in range(QUERIES)]
    truth = {str(i): i for i in range(0, QUERIES, 2)}

    def row(**options):
        return evaluate_alerts(
            encoder, keys.repeat(FRAMES, 0), queries, truth, AlertConfig(min_score=0.5, away_s=1.0),
            scene_frames=FRAMES, **options,
        )  # fmt: skip

    return row


def test_a_model_that_is_always_right_leaves_no_false_alert_and_loses_none(stream):
    plain, sure = stream(), stream(accuracy=1.0)
    assert 0 < plain.precision < 0.9 and plain.recall > 0.3 and plain.asked == plain.denied == 0
    assert sure.precision == 1.0 and sure.false_per_query == 0 and sure.recall >= plain.recall
    assert sure.denied > 0


def test_better_confirmation_is_more_precise(stream):
    rows = [stream(accuracy=accuracy) for accuracy in (0.5, 0.8, 0.95, 1.0)]
    precision = [row.precision for row in rows]
    assert precision == sorted(precision) and precision[1] > stream().precision
    assert all(row.recall <= rows[-1].recall for row in rows)


def test_equal_seeds_give_equal_rows(stream):
    assert stream(accuracy=0.8, seed=3) == stream(accuracy=0.8, seed=3)
    assert stream(accuracy=0.8, seed=3) != stream(accuracy=0.8, seed=4)


def test_a_model_that_is_always_wrong_tells_what_is_wrong_alone(stream):
    row = stream(accuracy=0.0)
    assert (row.precision, row.recall) == (0.0, 0.0) and row.false_per_query > 0
