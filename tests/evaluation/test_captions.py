import json

import numpy as np
import pytest

from streammem.errors import ConfigError, DatasetError
from streammem.evaluation import captions as suite
from streammem.evaluation import datasets
from streammem.evaluation.captions import evaluate_captions
from streammem.evaluation.datasets import EvaluationOptions, read_photos
from streammem.evaluation.metrics import CiderD, score_captions, tokenise

from .conftest import SENTENCES, write_rows


class Oracle:
    """Recognises each photo by its grey and returns its first caption."""

    def __init__(self):
        self.calls = []

    def caption_pictures(self, pictures, *, features):
        self.calls.append((len(pictures), features))
        seen = [SENTENCES[picture[0, 0, 0] // 40][0] for picture in pictures]
        if features == "blank":
            return ["A dog."] * len(seen)
        return seen if features == "own" else seen[1:] + seen[:1]


def test_a_model_that_sees_stands_above_every_control(photo_folder):
    def nearest(pictures):
        return ["Someone cuts onions."] * len(pictures)

    options = EvaluationOptions(controls=True, nearest=nearest)
    report = evaluate_captions(photo_folder, Oracle(), options)
    assert (report.photos, report.own.distinct) == (4, 4)
    assert report.own.scores.bleu1 == 1
    assert list(report.controls) == ["blank", "other", "nearest", "human"]
    assert report.controls["blank"].distinct == 1
    for name in ("blank", "other", "nearest"):
        control = report.controls[name]
        assert control.scores.bleu1 < 0.7
        assert control.scores.cider < report.own.scores.cider / 2


def test_a_human_is_scored_as_a_model_with_the_first_caption_against_the_others(photo_folder):
    human = evaluate_captions(photo_folder, Oracle(), EvaluationOptions(controls=True)).controls[
        "human"
    ]
    val = SENTENCES[:4]
    cider = CiderD([[tokenise(text) for text in captions] for captions in val])
    expected, _ = score_captions([c[0] for c in val], [c[1:] for c in val], cider)
    assert human.scores == expected
    assert 0 < human.scores.bleu1 < 1  # it does not meet itself


def test_without_a_second_caption_there_is_no_human_control(photo_folder):
    rows = [{"image": f"{n}.png", "split": "val", "captions": SENTENCES[n][:1]} for n in range(2)]
    write_rows(photo_folder, rows)
    report = evaluate_captions(photo_folder, Oracle(), EvaluationOptions(controls=True))
    assert list(report.controls) == ["blank", "other"]


def test_another_photos_features_never_come_from_the_photo_itself(photo_folder, monkeypatch):
    oracle = Oracle()
    monkeypatch.setattr(suite, "batches", lambda photos: datasets.batches(photos, size=3))
    evaluate_captions(photo_folder, oracle, EvaluationOptions(controls=True))
    assert all(number >= 2 for number, _ in oracle.calls)


def test_the_json_has_the_names_of_the_contract(photo_folder):
    report = evaluate_captions(photo_folder, Oracle(), EvaluationOptions(controls=True)).to_json()
    line = json.dumps(report, allow_nan=False)
    assert "\n" not in line
    metrics = ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"]
    figures = [*metrics, "distinct", "standard_errors"]
    assert list(report) == ["suite", "split", "photos", *figures, "controls"]
    assert list(report["controls"]) == ["blank", "other", "human"]
    assert list(report["controls"]["blank"]) == figures
    assert list(report["standard_errors"]) == metrics
    own = evaluate_captions(photo_folder, Oracle(), EvaluationOptions()).own.scores
    assert report["cider"] == pytest.approx(own.cider, abs=1e-6)


def test_predictions_have_a_line_a_photo_and_only_of_what_the_model_saw(photo_folder, tmp_path):
    path = tmp_path / "said.jsonl"
    evaluate_captions(photo_folder, Oracle(), EvaluationOptions(predictions=path, controls=True))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"image": f"{n}.png", "caption": SENTENCES[n][0]} for n in range(4)
    ]


def test_predictions_of_finished_batches_survive_a_kill(photo_folder, tmp_path, monkeypatch):
    path = tmp_path / "said.jsonl"
    monkeypatch.setattr(suite, "batches", lambda photos: datasets.batches(photos, size=2))
    lines_on_disk = []

    class Watching(Oracle):
        def caption_pictures(self, pictures, *, features):
            lines_on_disk.append(len(path.read_text().splitlines()))
            return super().caption_pictures(pictures, features=features)

    evaluate_captions(photo_folder, Watching(), EvaluationOptions(predictions=path))
    assert lines_on_disk == [0, 2]


def test_a_limit_takes_photos_but_keeps_the_splits_document_frequencies(photo_folder):
    # Without controls, "nearest" is none either.
    one = evaluate_captions(
        photo_folder, Oracle(), EvaluationOptions(limit=1, nearest=lambda seen: seen)
    )
    assert one.photos == 1
    assert one.controls == {}
    assert one.own.scores.cider > 0  # over one photo alone every document frequency is 1


def test_controls_need_two_photos(photo_folder):
    with pytest.raises(DatasetError, match="at least 2"):
        evaluate_captions(photo_folder, Oracle(), EvaluationOptions(limit=1, controls=True))


def test_a_captioner_that_loses_a_picture_is_caught(photo_folder):
    class Forgetful(Oracle):
        def caption_pictures(self, pictures, *, features):
            return super().caption_pictures(pictures, features=features)[1:]

    with pytest.raises(RuntimeError, match="3 captions came for 4 pictures"):
        evaluate_captions(photo_folder, Forgetful(), EvaluationOptions())


def test_predictions_that_cannot_be_written_are_refused_before_any_work(photo_folder, tmp_path):
    oracle = Oracle()
    with pytest.raises(ConfigError, match="cannot write predictions"):
        evaluate_captions(
            photo_folder, oracle, EvaluationOptions(predictions=tmp_path / "no" / "a.jsonl")
        )
    assert oracle.calls == []


def test_pictures_reach_the_model_as_they_are(photo_folder):
    pictures_seen = []

    class Looking(Oracle):
        def caption_pictures(self, pictures, *, features):
            pictures_seen.extend(pictures)
            return super().caption_pictures(pictures, features=features)

    evaluate_captions(photo_folder, Looking(), EvaluationOptions())
    assert len(pictures_seen) == len(read_photos(photo_folder, "val"))
    assert all(picture.shape == (4, 6, 3) for picture in pictures_seen)
    assert all(picture.dtype == np.uint8 for picture in pictures_seen)
