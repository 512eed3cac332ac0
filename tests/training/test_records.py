import json
import re
from pathlib import Path

import pytest

from streammem.errors import DatasetError
from streammem.training.generated import make_pictures
from streammem.training.questions import QuestionRecord
from streammem.training.records import checksum_split, read_source


def folder_with(tmp_path, rows):
    (tmp_path / "images").mkdir()
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_a_folder_without_a_validation_split_is_split_by_name(tmp_path):
    rows = [{"image": f"{i}.jpg", "split": "train", "captions": ["a dog"]} for i in range(40)]
    records = read_source(folder_with(tmp_path, rows)).records
    assert {r.split for r in records} == {"train", "val"}
    assert all(record.split == checksum_split(record.name) for record in records)
    assert records[0].captions == ("A dog.",)
    assert not records[0].made


def test_a_folders_own_split_stands_and_other_splits_are_left_out(tmp_path):
    rows = [
        {"image": f"{split}.jpg", "split": split, "captions": ["x"]}
        for split in ("train", "val", "test")
    ]
    records = read_source(folder_with(tmp_path, rows)).records
    assert [(r.name, r.split) for r in records] == [("train.jpg", "train"), ("val.jpg", "val")]


def test_peoples_own_questions_come_with_their_picture(tmp_path):
    row = {
        "image": "a.jpg",
        "split": "train",
        "captions": [],
        "objects": ["chair"],
        "qa": [["what is on the desk in the image3 ?", "lamp, book"]],
    }
    record = read_source(folder_with(tmp_path, [row])).records[0]
    assert record.questions == (QuestionRecord("What is on the desk?", "Lamp and book."),)
    assert "A room with a chair." in record.captions
    assert record.made


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "../../etc/passwd", "split": "train", "captions": ["x"]}, "outside"),
        ({"image": 3, "split": "train", "captions": ["x"]}, "line 1: needs image"),
        ({"image": "a.jpg", "split": "train", "captions": 5}, "line 1: malformed captions"),
        ({"image": "a.jpg", "captions": "a dog"}, "line 1: malformed captions: needs a list"),
        ({"image": "a.jpg", "captions": [], "objects": "dog"}, "line 1: malformed objects: needs"),
        ({"image": "a.jpg", "split": "train"}, "line 1: malformed captions"),
        (["a.jpg"], "line 1: not an object"),
        ({"image": "a.jpg", "split": "train", "captions": []}, "no picture"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, row, message):
    with pytest.raises(DatasetError, match=message):
        read_source(folder_with(tmp_path, [row]))


@pytest.mark.parametrize("entry", [["cat"], ["cat", 86], ["cat", -0.1], ["cat", "0.9"], "cat"])
def test_what_no_detector_would_name_is_refused(tmp_path, entry):
    rows = [{"image": "a.jpg", "detected": [["cat", 1], ["dog", 0.0, [0, 0, 9, 9]], entry]}]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetError, match=r"labels\.jsonl, line 1: malformed detected: .*cat"):
        read_source(tmp_path)
    rows[0]["detected"].pop()
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [name for name, _ in read_source(tmp_path).records[0].things] == ["cat", "dog"]


def test_the_guides_rows_are_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs/guide/training.md").read_text()
    captions, labels = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "captions.jsonl").write_text(captions)
    park, desk = read_source(tmp_path).records
    assert (park.split, len(park.captions), park.made) == ("train", 2, False)
    assert (desk.split, len(desk.questions), desk.made) == ("val", 1, True)
    (tmp_path / "labels.jsonl").write_text(labels)
    zebra, stove = read_source(tmp_path).records
    assert [name for name, _ in zebra.things] == ["zebra", "zebra"] and len(zebra.questions) == 1
    assert [name for name, _ in stove.things] == ["pan", "pot"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere/captions\.jsonl"):
        read_source(tmp_path / "nowhere")


def test_conversations_give_each_picture_and_video_its_questions(tmp_path):
    def talk(*said):
        who = ("human", "gpt")
        return [{"from": who[i % 2], "value": text} for i, text in enumerate(said)]

    rows = [
        {"image": "a.jpg", "conversations": talk("<image>\nWhat is it?", "A cat.", "Why?", "So.")},
        {"image": "a.jpg", "conversations": talk("Where?", "Here.")},
        {"video": "b.mp4", "conversations": talk("<video>\nWhat happens?", "Much.")},
        {"conversations": talk("Who are you?", "Nobody.")},
    ]
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    source = read_source(tmp_path / "talk.json")
    record, video = source.records
    assert source.name == "talk"
    assert (video.video, video.path) == (True, tmp_path / "videos" / "b.mp4")
    assert video.questions == (QuestionRecord("What happens?", "Much."),)
    assert not record.video
    assert record.path == tmp_path / "images" / "a.jpg"
    assert record.captions == ()
    assert record.questions == (
        QuestionRecord("What is it?", "A cat."),
        QuestionRecord("Why?", "So."),
        QuestionRecord("Where?", "Here."),
    )


def test_generated_pictures_are_the_same_every_time(tmp_path):
    left = read_source(make_pictures(tmp_path / "left", 6, seed=1)).records
    right = read_source(make_pictures(tmp_path / "right", 6, seed=1)).records
    assert [r.captions for r in left] == [r.captions for r in right]
    assert left[3].path.read_bytes() == right[3].path.read_bytes()
    assert [r.split for r in left] == ["val", "train", "train", "train", "train", "val"]
