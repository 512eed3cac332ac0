import json

import numpy as np
import pytest

from streammem.errors import BackboneError
from streammem.evaluation.datasets import EvaluationOptions
from streammem.evaluation.retrieval import evaluate_retrieval, ranks_of, recall_at_k

from .conftest import SENTENCES

NUM_PHOTOS = 4


class Oracle:
    """One axis a photo; a sentence's key is its photo's, except those of `wrong`."""

    def __init__(self, wrong=()):
        self.wrong = wrong

    def picture_keys(self, pictures):
        return np.eye(5)[[picture[0, 0, 0] // 40 for picture in pictures]]

    def sentence_keys(self, sentences):
        owners = [[text in group for group in SENTENCES].index(True) for text in sentences]
        shifts = [1 if text in self.wrong else 0 for text in sentences]
        return 3 * np.eye(5)[(np.array(owners) + shifts) % NUM_PHOTOS]


def test_an_oracle_finds_every_photo(photo_folder):
    report = evaluate_retrieval(photo_folder, Oracle(), EvaluationOptions()).to_json()
    assert (report["recall@1"], report["median_rank"]) == (1.0, 1.0)
    assert (report["photos"], report["sentences"]) == (4, 8)
    assert report["controls"] == {}


def test_a_wrong_sentence_costs_its_share(photo_folder):
    report = evaluate_retrieval(photo_folder, Oracle(wrong=["A dog runs."]), EvaluationOptions())
    assert report.recalls == (7 / 8, 1.0, 1.0)


def test_ranks_equal_sorting():
    rng = np.random.default_rng(0)
    sentences, pictures = rng.normal(size=(300, 8)), rng.normal(size=(40, 8))
    owners = rng.integers(0, 40, 300)
    ranks = ranks_of(sentences, pictures, owners)
    lengths = np.linalg.norm(pictures, axis=1)
    for sentence, owner, rank in zip(sentences, owners, ranks, strict=True):
        order = np.argsort(-(pictures @ sentence) / lengths)
        assert order[rank - 1] == owner


def test_ties_and_nan_count_against_the_model():
    owners = np.arange(4)
    same = np.ones((4, 3))
    assert ranks_of(same, same, owners).tolist() == [4, 4, 4, 4]
    nearly = np.array([[1.0, 0.0], [1.0, 1e-5]])  # cosine 1 - 5e-11: rounding, not knowledge
    assert ranks_of(nearly, nearly, np.arange(2)).tolist() == [2, 2]
    broken = np.full((4, 3), np.nan)
    assert ranks_of(broken, broken, owners).tolist() == [4, 4, 4, 4]
    assert ranks_of(np.zeros((4, 3)), same, owners).tolist() == [4, 4, 4, 4]


def test_recall_counts_the_rank_itself():
    assert recall_at_k(np.array([1, 5, 6, 10]), 5) == 0.5


def test_standard_errors_take_photos_as_the_draws(photo_folder):
    both = evaluate_retrieval(photo_folder, Oracle(wrong=SENTENCES[0]), EvaluationOptions())
    # Photo means 0, 1, 1, 1: standard deviation sqrt(3)/4 over sqrt(4) photos.
    assert both.standard_errors[0] == pytest.approx(np.sqrt(3) / 4 / 2)


def test_the_control_is_chance(photo_folder):
    report = evaluate_retrieval(photo_folder, Oracle(), EvaluationOptions(controls=True)).to_json()
    chance = {"recall@1": 0.25, "recall@5": 1.0, "recall@10": 1.0, "median_rank": 2.5}
    assert report["controls"]["chance"] == chance
    json.dumps(report, allow_nan=False)


def test_predictions_have_a_line_a_sentence(photo_folder, tmp_path):
    path = tmp_path / "ranks.jsonl"
    evaluate_retrieval(photo_folder, Oracle(), EvaluationOptions(predictions=path, limit=1))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"sentence": text, "image": "0.png", "rank": 1} for text in SENTENCES[0]
    ]


def test_keys_of_the_wrong_shape_are_an_error_of_the_backbone(photo_folder):
    class Narrow(Oracle):
        def sentence_keys(self, sentences):
            return super().sentence_keys(sentences)[:, :3]

    class Forgetful(Oracle):
        def picture_keys(self, pictures):
            return super().picture_keys(pictures)[1:]

    with pytest.raises(BackboneError, match="3 numbers, picture keys 5"):
        evaluate_retrieval(photo_folder, Narrow(), EvaluationOptions())
    with pytest.raises(BackboneError, match="keys of 4 inputs"):
        evaluate_retrieval(photo_folder, Forgetful(), EvaluationOptions())
