"""Laws of stills and folders of pictures."""

import numpy as np
import pytest
from PIL import Image

from streammem.errors import SourceError, TruncatedError
from streammem.memory.folder import is_memory
from streammem.video import open_source
from tests.video import stills
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
    with pytest.raises(SourceError, match=r"a folder without pictures; .*streammem index"):
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 5.0}, [(5.0, 5.0, 0), (10.0, 10.0, 1)]),
        ({"start": 12.0, "end": 13.0}, [(12.0, 8.0, 1)]),
        ({"start": 9.5, "end": 11.0}, [(10.0, 10.0, 1)]),
    ],
)
def test_a_start_within_a_picture_of_a_folder_gives_it(tmp_path, options, expected):
    for number in range(2):
        save(picture(number), tmp_path / f"{number}.png")
    frames = list(open_source(tmp_path, fps=0.1, **options))
    assert [(f.time, f.duration, f.index) for f in frames] == expected


def test_a_start_within_a_single_picture_gives_it(tmp_path):
    path = save(picture(0), tmp_path / "a.png")
    (frame,) = open_source(path, start=0.4)
    assert (frame.time, frame.duration) == (0.4, 0.6)


@pytest.mark.parametrize("name", ["a.heic", "a.HIF", "a.jpg", "a.bin"])
def test_a_telephones_picture_in_tiles_is_read_whole_whatever_its_name(tmp_path, name):
    pixels = picture(0, 150, 100)
    path = stills.write_grid(tmp_path / name, pixels, tile=64)  # two rows of three, filled up
    (frame,) = open_source(path)
    assert frame.pixels.shape == pixels.shape and frame.duration == 1.0
    assert np.abs(frame.pixels.astype(int) - smooth(pixels)).mean() < 12


def smooth(pixels):
    """A picture with the colour resolution of 4:2:0."""
    chroma = Image.fromarray(pixels).convert("YCbCr").resize((75, 50)).resize((150, 100))
    luma = Image.fromarray(pixels).convert("YCbCr").split()[0]
    merged = Image.merge("YCbCr", (luma, *chroma.split()[1:]))
    return np.asarray(merged.convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("turns", "upright"),
    [
        (stills.box(b"irot", b"\1"), lambda p: np.rot90(p, 1)),
        (stills.box(b"imir", b"\1"), np.fliplr),
        (stills.box(b"irot", b"\2") + stills.box(b"imir", b"\0"), np.fliplr),
    ],
)
def test_a_picture_in_tiles_is_turned_as_a_whole(tmp_path, turns, upright):
    pixels = picture(0, 150, 100)
    (plain,) = open_source(stills.write_grid(tmp_path / "a.heic", pixels, tile=64))
    (frame,) = open_source(stills.write_grid(tmp_path / "b.heic", pixels, tile=64, turns=turns))
    assert np.array_equal(frame.pixels, upright(plain.pixels))


def test_a_picture_in_tiles_of_which_some_are_missing_is_refused_in_one_line(tmp_path):
    path = stills.write_grid(tmp_path / "a.heic", picture(0, 150, 100), tile=64)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(SourceError, match=r"a\.heic: cannot be read .*; convert it to JPEG"):
        open_source(path)


def test_a_folder_gives_pictures_of_every_format_and_names_what_is_none(tmp_path):
    formats = ("a.jpg", "b.jpeg", "c.avif", "e.jfif", "f.gif", "g.jp2", "h.png", "i.bmp", "j.WEBP")
    kinds = {"jfif": "JPEG", "WEBP": "WEBP"}
    for name in formats:
        save(picture(0), tmp_path / name, format=kinds.get(name.split(".")[1]))
    stills.write_grid(tmp_path / "d.HEIC", picture(0, 128, 64), tile=64)
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "more").mkdir()
    source = open_source(tmp_path)
    assert len(list(source)) == len(formats) + 1
    (notice,) = source.notices
    assert "2 of 12 entries are left out" in notice and notice.endswith("film.mp4, more")


def test_animations_in_a_folder_are_counted_and_named(tmp_path):
    still = Image.fromarray(picture(0))
    still.save(tmp_path / "a.gif", save_all=True, append_images=[still.rotate(180)])
    still.save(tmp_path / "b.png")
    with pytest.raises(TruncatedError, match=r"1 of 2 pictures lost; .*a\.gif: is an animation"):
        list(open_source(tmp_path))


def test_a_picture_of_floats_is_not_black(tmp_path):
    light = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    (frame,) = open_source(save(light, tmp_path / "light.tif"))
    assert frame.pixels[0, 0, 0] == 0 and frame.pixels[-1, -1, 0] == 255


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_a_file_that_may_not_be_read_is_named(tmp_path, name, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / name).touch()
    monkeypatch.setattr("os.stat", refuse)
    assert not is_memory(tmp_path / name)
    with pytest.raises(SourceError, match=rf"^{tmp_path / name}: permission denied"):
        open_source(tmp_path / name)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-2.0, 4000.0)])
def test_a_picture_of_floats_is_shown_in_its_range(tmp_path, low, high):
    ramp = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.tiff")
    shown = next(iter(open_source(tmp_path / "a.tiff"))).pixels
    expected = np.linspace(0, 255, 64).reshape(8, 8)
    assert np.abs(shown[..., 0] - expected).max() <= 1 and np.ptp(shown, axis=2).max() == 0
