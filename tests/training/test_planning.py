"""Training the planning adapter: logs as one, split by participant; it learns what follows."""

import csv
import math

import numpy as np
import pytest
import torch

from streammem.errors import DatasetError
from streammem.models.tiny.planning import Action, PlanningAdapter
from streammem.training.loop import Schedule, train_stage
from streammem.training.planning import LOGS, NOUNS, VERBS, PlanningStage, read_logs, read_words

COLUMNS = ("participant_id", "video_id", "start_timestamp", "verb", "noun")


def write(path, columns, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / VERBS, ("key", "instances"), [("take", "['take', 'get']"), ("cut", "['cut']")])
    write(tmp_path / NOUNS, ("key", "instances"), [("cup", "['cup']"), ("pan", "['pan']")])
    steps = [("take", "cup"), ("cut", "cup"), ("take", "pan"), ("cut", "pan")] * 5
    first, second = [], []
    for person in range(1, 7):
        for at, (verb, noun) in enumerate(steps):
            stamp = f"00:{at // 60:02}:{at % 60:02}.00"
            row = (f"P{person:02}", f"P{person:02}_01", stamp, verb, noun)
            (first if person < 3 else second).append(row)
    second.append(("P01", "P01_01", "00:00:00.00", "get", "pan"))  # the first file has this video
    second.append(("P03", "P03_01", "00:00:00.50", "dance", "pan"))  # no known word
    write(tmp_path / LOGS[0], COLUMNS, reversed(first))
    write(tmp_path / LOGS[1], COLUMNS, second)
    return tmp_path


def test_logs_are_joined_by_video_and_split_by_participant(folder):
    logs = read_logs(folder)
    people = {split: {log.participant for log in logs[split]} for split in logs}
    assert people == {"train": {"P01", "P02", "P04", "P06"}, "validation": {"P05"}, "test": {"P03"}}
    every = [log for split in logs.values() for log in split]
    assert len(every) == 6 and {len(log.actions) for log in every} == {20}
    assert all(np.array_equal(log.actions[:4], [[0, 0], [1, 0], [0, 1], [1, 1]]) for log in every)


def test_it_learns_what_follows(folder, tmp_path):
    logs = read_logs(folder)

    torch.manual_seed(0)
    adapter = PlanningAdapter(read_words(folder), dim=8, hidden=16, dropout=0.0)
    stage = PlanningStage(adapter, logs["train"], logs["validation"], batch=8)
    before = stage.evaluate()["val_loss"]
    schedule = Schedule(steps=40, lr=0.03, pace=lambda step: 1.0)
    after = train_stage(stage, schedule, tmp_path / "out")["val_loss"]
    assert after < 0.5 * before and before == pytest.approx(2 * math.log(2), rel=0.5)
    chances = adapter.next([Action(0, 0), Action(1, 0)])
    assert np.unravel_index(chances.argmax(), chances.shape) == (0, 1)  # then: take pan


@pytest.mark.parametrize("spoil", ["missing", "columns", "table"])
def test_logs_of_another_form_are_refused_by_name(folder, spoil):
    name = VERBS if spoil == "table" else LOGS[1]
    if spoil == "missing":
        (folder / name).unlink()
    else:
        write(folder / name, ("a", "b"), [("1", "2")])
    with pytest.raises(DatasetError, match=name):
        read_logs(folder)
