import json

import numpy as np
import pytest
from PIL import Image

from streammem.errors import ConfigError, DatasetError
from streammem.evaluation import datasets
from streammem.evaluation.datasets import EvaluationOptions, batches, read_photo, read_photos

from .conftest import write_rows

GOOD = {"image": "0.png", "split": "val", "captions": ["A dog runs."]}


def test_a_split_is_read_in_order(photo_folder):
    photos = read_photos(photo_folder, "val")
    assert [photo.name for photo in photos] == ["0.png", "1.png", "2.png", "3.png"]
    assert photos[0].captions == ("A dog runs.", "The brown dog runs fast.")
    assert len(read_photos(photo_folder, "all")) == 5


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{not json", "not JSON"),
        ('"text"', "must be an object"),
        ("[" * 100_000, "not JSON"),
        ({**GOOD, "image": 3}, "must be strings"),
        ({"image": "1.png", "captions": ["a"]}, "must be strings"),
        ({**GOOD, "captions": "a dog"}, "list of sentences"),
        ({**GOOD, "captions": ["a", " "]}, "list of sentences"),
        ({**GOOD, "captions": [None]}, "list of sentences"),
        ({**GOOD, "image": "../captions.jsonl"}, "out of images/"),
        ({**GOOD, "image": "/etc/hostname"}, "out of images/"),
        ({**GOOD, "image": ""}, "out of images/"),
        ({**GOOD, "image": "link.png"}, "out of images/"),
        ({**GOOD, "image": "a\0b.png"}, "null"),
        ({**GOOD, "image": "9.png"}, "missing"),
        (GOOD, "listed twice"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(photo_folder, row, complaint):
    (photo_folder / "images" / "link.png").symlink_to(photo_folder / "captions.jsonl")
    write_rows(photo_folder, [GOOD, "", row])
    with pytest.raises(DatasetError, match=complaint) as caught:
        read_photos(photo_folder, "val")
    assert str(caught.value).startswith(f"{photo_folder / 'captions.jsonl'}:3: ")
    assert "\n" not in str(caught.value)


def test_a_row_that_is_not_utf8_is_named_by_its_line(photo_folder):
    (photo_folder / "captions.jsonl").write_bytes(b'\n{"image": "caf\xe9.png"}\n')
    with pytest.raises(DatasetError, match=r"jsonl:2: not JSON"):
        read_photos(photo_folder, "val")


def test_sizes_are_bounded(photo_folder, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_ROW_BYTES", 200)
    write_rows(photo_folder, [GOOD, {**GOOD, "captions": ["a" * 300]}])
    with pytest.raises(DatasetError, match=r"jsonl:2: row longer"):
        read_photos(photo_folder, "val")
    monkeypatch.setattr(datasets, "MAX_ROWS", 1)
    write_rows(photo_folder, [GOOD, {**GOOD, "image": "1.png"}])
    with pytest.raises(DatasetError, match="more than 1 rows"):
        read_photos(photo_folder, "val")
    picture = photo_folder / "images" / "0.png"
    monkeypatch.setattr(datasets, "MAX_PICTURE_PIXELS", 23)
    with pytest.raises(DatasetError, match="more than 23 pixels"):
        read_photo(picture)
    monkeypatch.setattr(datasets, "MAX_PICTURE_BYTES", 10)
    with pytest.raises(DatasetError, match="larger than"):
        read_photo(picture)


def test_rows_without_captions_are_left_out(photo_folder):
    write_rows(photo_folder, [{**GOOD, "captions": []}, {**GOOD, "image": "1.png"}])
    assert [photo.name for photo in read_photos(photo_folder, "val")] == ["1.png"]


def test_an_empty_split_names_the_splits_there_are(photo_folder):
    with pytest.raises(DatasetError, match="'test'; splits here: train, val"):
        read_photos(photo_folder, "test")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"must hold captions.jsonl and images/"):
        read_photos(tmp_path, "val")


def test_pictures_come_as_upright_rgb(tmp_path):
    pixels = np.zeros((2, 4), np.uint8)
    pixels[:, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for viewing
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    picture = read_photo(tmp_path / "a.png")
    assert (picture.shape, picture.dtype) == ((4, 2, 3), np.uint8)
    assert (picture[:2] == 255).all()
    assert (picture[2:] == 0).all()


def test_a_broken_picture_is_an_error_of_ours(photo_folder):
    picture = photo_folder / "images" / "0.png"
    for content in (b"", b"text", picture.read_bytes()[:40], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        picture.write_bytes(content)
        with pytest.raises(DatasetError, match="cannot be read as a picture"):
            read_photo(picture)


def test_only_plain_picture_formats_are_decoded(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(DatasetError, match="cannot be read as a picture"):
        read_photo(tmp_path / "a.tiff")


@pytest.mark.parametrize("number", range(1, 12))
def test_batches_cover_all_and_leave_no_photo_alone(number):
    cut = list(batches(list(range(number)), size=3))
    assert [item for batch in cut for item in batch] == list(range(number))
    assert all(2 <= len(batch) <= 4 for batch in cut) or number == 1


def test_a_limit_below_one_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        EvaluationOptions(limit=0)


def test_rows_keep_other_keys_out(photo_folder):
    write_rows(photo_folder, [{**GOOD, "license": "CC", "qa": [[1]]}])
    assert json.dumps([photo.name for photo in read_photos(photo_folder, "val")]) == '["0.png"]'
