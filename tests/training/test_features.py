import json

import numpy as np
import pytest
import torch

from streammem.errors import DatasetError
from streammem.training import features
from streammem.training.features import cache_features, embed_captions, patch_statistics
from streammem.training.generated import make_pictures
from streammem.training.pictures import FLIPPED, WHOLE, sample_views
from streammem.training.questions import QuestionRecord
from streammem.training.records import CaptionedSource, Record, read_source
from tests.tiny import TinySentences
from tests.training.tiny_backbones import CountingVision
from tests.video.clips import encode, plainly_decoded


@pytest.fixture
def source(tmp_path):
    return read_source(make_pictures(tmp_path / "shapes", 12))


class Killed(CountingVision):
    """Dies at the n-th call."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def encode(self, frames):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().encode(frames)


def test_a_killed_extraction_goes_on_where_it_stopped(source, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "FLUSH_EVERY", 2)
    whole = cache_features(source, CountingVision(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cache_features(source, Killed(1 + 7), tmp_path / "killed")
    rest = CountingVision()
    resumed = cache_features(source, rest, tmp_path / "killed")
    # A probe, then rows 6 to 11: five for training with four views, one for validation with one.
    assert rest.encoded == 1 + 5 * 4 + 1
    assert np.array_equal(resumed.patches, whole.patches)
    assert np.array_equal(resumed.frames, whole.frames)


def test_a_whole_cache_is_not_computed_again(source, tmp_path):
    cache_features(source, CountingVision(), tmp_path)
    encoder = CountingVision()
    cache_features(source, encoder, tmp_path)
    assert encoder.encoded == 1  # the probe


def test_a_stale_cache_is_refused_with_the_reason(source, tmp_path):
    cache_features(source, CountingVision(), tmp_path)
    with pytest.raises(DatasetError, match="another encoder"):
        cache_features(source, CountingVision(gain=1.2), tmp_path)
    with pytest.raises(DatasetError, match="its views are others"):
        cache_features(source, CountingVision(), tmp_path, crops=3)
    fewer = CaptionedSource(source.name, source.records[:-1])
    with pytest.raises(DatasetError, match="its pictures"):
        cache_features(fewer, CountingVision(), tmp_path)
    (tmp_path / "shapes.json").write_text(json.dumps({"names": []}))
    with pytest.raises(DatasetError, match="header"):
        cache_features(source, CountingVision(), tmp_path)


def test_rounding_of_another_processor_does_not_make_a_cache_stale(source, tmp_path):
    cache_features(source, CountingVision(), tmp_path)
    cache_features(source, CountingVision(gain=1.001), tmp_path)


def test_views_are_whole_mirrored_and_crops_drawn_by_name(source):
    record = source.records[1]
    whole, mirrored, crop = features.picture_views(record, 3)
    assert np.array_equal(mirrored, whole[:, ::-1])
    assert crop.shape[0] < whole.shape[0]
    assert crop.shape[1] < whole.shape[1]
    assert np.array_equal(crop, features.picture_views(record, 3)[2])
    other = Record("other", record.path, record.split, record.captions)
    assert not np.array_equal(crop, features.picture_views(other, 3)[2])


def test_views_of_a_video_are_its_middle_that_mirrored_and_other_frames(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=40)
    record = Record("a.mp4", path, "train", (), (QuestionRecord("Q?", "A."),), video=True)
    middle, mirrored, first, second = features.picture_views(record, 4)
    shots = [shot.pixels for shot in plainly_decoded(path)]
    assert np.array_equal(middle, shots[20])
    assert np.array_equal(mirrored, middle[:, ::-1])
    assert [np.array_equal(first, shots[0]), np.array_equal(second, shots[10])] == [True, True]
    assert np.array_equal(features.picture_views(record, 1)[0], middle)


def test_views_of_a_short_video_repeat_its_frames(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=1)
    views = features.picture_views(Record("a.mp4", path, "train", ("x",), video=True), 4)
    assert len(views) == 4


@pytest.mark.parametrize(("video", "kind"), [(False, "picture"), (True, "video")])
def test_a_file_that_is_no_picture_or_video_is_named(tmp_path, video, kind):
    (tmp_path / "a.jpg").write_text("no")
    record = Record("a.jpg", tmp_path / "a.jpg", "val", ("x",), video=video)
    with pytest.raises(DatasetError, match=rf"a\.jpg: cannot be read as a {kind}"):
        features.picture_views(record, 1)


def test_a_segment_never_mixes_a_picture_with_its_mirror_image(source, tmp_path):
    cached = cache_features(source, CountingVision(), tmp_path)
    pictures = cached.split("train")
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(50):
        chosen = pictures.draw(rng, 4)
        patches, _, mask = sample_views(pictures, chosen, rng)
        for picture, frames, there in zip(chosen, patches, mask, strict=True):
            flipped = torch.from_numpy(pictures.view(int(picture), FLIPPED).astype("f4"))
            # A shape in the middle is its own mirror image.
            if not np.array_equal(flipped.numpy(), pictures.view(int(picture), WHOLE)):
                equal = [torch.equal(frame, flipped) for frame in frames[there]]
                mirrored += sum(equal)
                assert not any(equal) or len(equal) == 1
    assert mirrored > 20


def test_patches_are_standardised_by_their_statistics(source, tmp_path):
    pictures = cache_features(source, CountingVision(), tmp_path).split("train")
    mean, std = patch_statistics(pictures, seed=0)
    patches, _ = pictures.whole(range(len(pictures)))
    scaled = (patches - mean) / std
    assert torch.allclose(scaled.mean((0, 1, 2)), torch.zeros(8), atol=1e-5)  # float32 sums
    assert torch.allclose(scaled.std((0, 1, 2), correction=0), torch.ones(8), atol=1e-4)


def test_captions_are_embedded_once(tmp_path):
    captions = [("A dog.",), ("A cat.", "A red cat.")]
    first = embed_captions(captions, TinySentences, "tiny", tmp_path)
    assert [rows.shape for rows in first] == [(1, 384), (2, 384)]
    again = embed_captions(captions, lambda: pytest.fail("opened again"), "tiny", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(pytest.fail.Exception):
        embed_captions(captions, lambda: pytest.fail("opened"), "another", tmp_path)


def test_pictures_of_one_name_in_two_folders_stay_apart(tmp_path):
    sets = []
    for folder in ("one", "two"):
        source = read_source(make_pictures(tmp_path / folder, 10))
        sets.append(cache_features(source, CountingVision(), tmp_path, crops=0).split("train"))
    both = sets[0] + sets[1]
    assert len({*both.names}) == len(both)
    assert {name.split("/")[0] for name in both.names} == {"one", "two"}
