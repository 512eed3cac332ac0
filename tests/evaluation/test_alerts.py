"""Alerts counted against the truth: with captions, and with a model that confirms them."""

import numpy as np
import pytest

from streammem.engine.watch_options import AlertConfig
from streammem.evaluation.alerts import CaptionedScene, evaluate_alerts
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
    truth = {str(i): (i,) for i in range(0, QUERIES, 2)}

    def row(pictures=keys, **options):
        return evaluate_alerts(
            encoder, pictures.repeat(FRAMES, 0), queries, truth,
            AlertConfig(min_score=0.5, away_s=1.0), scene_frames=FRAMES, **options,
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


def test_captions_that_name_what_comes_find_more_and_false_ones_are_counted(stream):
    blank = np.eye(32, dtype=np.float32)[0]
    blind = {"pictures": np.tile(blank, (SCENES, 1))}  # they show nothing that is waited for
    names = [str(i) if i % 2 == 0 else "nothing" for i in range(SCENES)]  # what truly comes
    right = stream(**blind, captions=[CaptionedScene(name, blank[None], blank) for name in names])
    assert (stream(**blind).recall, right.recall, right.precision) == (0.0, 1.0, 1.0)
    assert right.by_caption == right.by_caption_right == QUERIES / 2
    wrong = stream(**blind, captions=[CaptionedScene("59", blank[None], blank)] * SCENES)
    assert (wrong.by_caption, wrong.by_caption_right) == (1, 0)  # it goes on through all scenes
    assert (wrong.recall, wrong.precision) == (0.0, 0.0)


def test_what_is_shown_in_scenes_in_a_row_comes_once():
    encoder, caption = Encoder(), np.eye(32, dtype=np.float32)[0]
    scenes = [
        CaptionedScene("7" if k in (1, 2, 5) else "", caption[None], caption) for k in range(8)
    ]
    row = evaluate_alerts(
        encoder, np.repeat(-encoder.directions[7:8], 8 * FRAMES, 0), ["7"], {"7": {1, 2, 5, 7}},
        AlertConfig(), scene_frames=FRAMES, captions=scenes,
    )  # fmt: skip
    assert (row.recall, row.precision, row.by_caption_right) == (2 / 3, 1.0, 2)
