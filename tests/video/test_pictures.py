"""Laws of stills and folders of pictures."""

import numpy as np
import pytest
from PIL import Image

from streammem.errors import SourceError, TruncatedError
from streammem.video import open_source
from tests.video.clips import picture


def save(pixels, path, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_folder_is_in_natural_order_at_one_picture_a_second(tmp_path):
    for number in (10, 9, 2, 1):
        save(picture(number), tmp_path / f"{'Shot' if number == 9 else 'shot'}{number}.png")
    save(picture(7), tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "shot3.png").mkdir()
    source = open_source(tmp_path)
    frames = list(source)
    assert [f.time for f in frames] == [0.0, 1.0, 2.0, 3.0]
    for frame, number in zip(frames, (1, 2, 9, 10), strict=True):
        assert np.array_equal(frame.pixels, picture(number))
    assert source.duration == source.end == 4.0


def test_a_folder_of_one_picture_has_its_rate_too(tmp_path):
    save(picture(0), tmp_path / "a.png")
    assert [f.duration for f in open_source(tmp_path, fps=4)] == [0.25]


def test_pictures_may_differ_in_size(tmp_path):
    save(picture(0, 64, 48), tmp_path / "a.png")
    save(picture(0, 30, 70), tmp_path / "b.png")
    assert [f.pixels.shape for f in open_source(tmp_path)] == [(48, 64, 3), (70, 30, 3)]


def test_broken_pictures_are_reported_after_the_good_ones(tmp_path):
    for name in "ac":
        save(picture(0), tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_text("no picture")
    source, times = open_source(tmp_path), []
    with pytest.raises(TruncatedError, match=r"1 of 3 .*b\.png"):
        times.extend(frame.time for frame in source)
    assert times == [0.0, 2.0] and source.end == 3.0


def test_a_folder_of_broken_pictures_is_no_source(tmp_path):
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(SourceError, match=r"b\.png: cannot be read") as caught:
        list(open_source(tmp_path))
    assert not isinstance(caught.value, TruncatedError)  # nothing of it is good


def test_a_line_of_pixels_stays_a_line_when_it_is_shrunk(tmp_path):
    path = save(picture(0, 64, 48)[:1], tmp_path / "line.png")
    (frame,) = open_source(path, max_side=16)
    assert frame.pixels.shape == (1, 16, 3)


def test_a_folder_without_pictures_says_so(tmp_path):
    with pytest.raises(SourceError, match="a folder without pictures"):
        open_source(tmp_path)


def test_the_orientation_in_a_photo_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    path = save(picture(3), tmp_path / "photo.png", exif=exif)
    (frame,) = open_source(path)
    assert np.array_equal(frame.pixels, np.rot90(picture(3), -1))


def test_sixteen_bits_are_scaled_and_transparency_is_white(tmp_path):
    deep = np.full((4, 5), 0x80FF, np.uint16)
    (frame,) = open_source(save(deep, tmp_path / "deep.png"))
    assert np.all(frame.pixels == 0x80) and frame.pixels.shape == (4, 5, 3)
    clear = np.zeros((4, 5, 4), np.uint8)
    (frame,) = open_source(save(clear, tmp_path / "clear.png"))
    assert np.all(frame.pixels == 255)


def test_a_bad_still_is_named_in_one_line_at_open(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = save(picture(0), tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    Image.new("1", (16400, 1)).save(tmp_path / "wide.png")
    still = Image.fromarray(picture(0))
    still.save(tmp_path / "moving.webp", save_all=True, append_images=[still.rotate(180)])
    still.save(tmp_path / "moving.png", save_all=True, append_images=[still.rotate(180)])
    bad = ("text.png", "cut.png", "empty.png", "wide.png", "missing.png")
    for name in (*bad, "moving.webp", "moving.png"):
        with pytest.raises(SourceError) as caught:
            open_source(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)
        assert ("no picture format that is known" in str(caught.value)) == (name == "text.png")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-2.0, 4000.0)])
def test_a_picture_of_floats_is_shown_in_its_range(tmp_path, low, high):
    ramp = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.tiff")
    shown = next(iter(open_source(tmp_path / "a.tiff"))).pixels
    expected = np.linspace(0, 255, 64).reshape(8, 8)
    assert np.abs(shown[..., 0] - expected).max() <= 1 and np.ptp(shown, axis=2).max() == 0
