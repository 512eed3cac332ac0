import json

import numpy as np
import pytest
import torch

from streammem.errors import DatasetError
from streammem.evaluation import memory as suite
from streammem.evaluation.datasets import EvaluationOptions
from streammem.evaluation.memory import evaluate_memory
from streammem.evaluation.streams import words_of
from streammem.memory.retrieval import DEFAULT_NULL

from .conftest import scene_captions, write_rows

DIM = 512
CAPTIONS = scene_captions()
WORDS = {
    word: i for i, word in enumerate(sorted({w for c in CAPTIONS for t in c for w in words_of(t)}))
}
BLIND = 0.12  # with five of forty scenes at random


def bag(text):
    """What both kinds of keys agree on: colour, animal and place; the rest weighs little."""
    row = np.full(DIM, 1e-3, np.float32)
    for word in words_of(text):
        row[WORDS.get(word, DIM - 1)] = 0.1 if word in ("hay", "eat", "chew", "fed") else 1
    return row / np.linalg.norm(row)


class Oracle:
    """Its keys are of the human captions; its own captions differ."""

    null = DEFAULT_NULL

    def __init__(self, sees=lambda number: CAPTIONS[number][0]):
        self.sees = sees
        rows = np.random.default_rng(0).normal(size=(50, DIM)).astype(np.float32)
        self.background = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        self.sentences = self

    def picture_keys(self, pictures):
        return np.stack([bag(self.sees(int(picture[0, 0, 0]))) for picture in pictures])

    def sentence_keys(self, sentences):
        return np.stack([bag(text) for text in sentences])

    def encode(self, sentences):
        return torch.from_numpy(self.sentence_keys(sentences))

    def caption_pictures(self, pictures):
        return ["Something is somewhere."] * len(pictures)


def test_a_model_that_sees_finds_what_is_there_and_stands_above_every_control(farm_folder):
    report = evaluate_memory(farm_folder, Oracle(), EvaluationOptions(controls=True)).to_json()
    assert list(report["sizes"]) == ["10", "100"]
    figures = report["sizes"]["100"]
    assert figures["recall@1"] == figures["human"]["recall@1"] == 1
    controls = {name: value["recall@5"] for name, value in figures["controls"].items()}
    assert controls.pop("without text keys") == 1
    assert set(controls) == {
        "blind", "last 4", "uniform 32", "captions, BM25", "captions, sentences",
        "another stream's memory",
    }  # fmt: skip
    assert max(controls.values()) < 0.7
    assert controls["another stream's memory"] == pytest.approx(controls["blind"], abs=BLIND)


def test_a_model_that_does_not_see_is_as_good_as_blind(farm_folder):
    blinded = Oracle(sees=lambda number: CAPTIONS[(number * 7 + 3) % 40][0])
    figures = evaluate_memory(farm_folder, blinded, EvaluationOptions(controls=True)).sizes["100"]
    assert figures["recall@5"] == pytest.approx(figures["controls"]["blind"]["recall@5"], abs=0.2)
    assert figures["human"]["recall@1"] == 1


def test_every_question_is_written_with_its_outcome(farm_folder, tmp_path):
    path = tmp_path / "asked.jsonl"
    report = evaluate_memory(farm_folder, Oracle(), EvaluationOptions(predictions=path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for size, figures in report.sizes.items():
        ours = [row for row in rows if row["scenes"] == int(size)]
        present = [row for row in ours if row["kind"] == "present"]
        assert len(ours) == sum(figures["questions"].values())
        found = np.mean([bool(set(row["gold"]) & set(row["found"])) for row in present])
        assert figures["recall@5"] == pytest.approx(found, abs=1e-4)
        yes = np.mean([row["seen"] for row in present])
        assert figures["yes"]["present"] == pytest.approx(yes, abs=1e-4)


def test_age_does_not_decide_what_is_found(farm_folder, monkeypatch):
    monkeypatch.setattr(suite, "FORGETTING_AT", 100)
    forgetting = evaluate_memory(farm_folder, Oracle(), EvaluationOptions()).forgetting
    for end in ("oldest", "newest"):
        if forgetting[f"{end}_questions"]:
            assert forgetting[f"{end}_recall@5"] == forgetting[f"{end}_reversed_recall@5"] == 1


def test_photos_of_other_splits_crowd_only_streams_that_are_too_long_and_end_the_caption_controls(
    farm_folder,
):
    table = farm_folder / "captions.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    write_rows(
        farm_folder, [{**row, "split": "val" if n < 28 else "train"} for n, row in enumerate(rows)]
    )
    report = evaluate_memory(farm_folder, Oracle(), EvaluationOptions(controls=True))
    assert report.photos == 28
    short, long = (set(report.sizes[size]["controls"]) for size in ("10", "100"))
    assert short - long == {"captions, BM25", "captions, sentences"} and long < short


def test_too_few_photos_are_an_error(photo_folder):
    with pytest.raises(DatasetError, match="at least 20"):
        evaluate_memory(photo_folder, Oracle(), EvaluationOptions())
