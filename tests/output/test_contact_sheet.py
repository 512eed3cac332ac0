"""The sheet is looked at as pixels: where the pictures, the marks and the ink are."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from streammem.errors import BackboneError, install_command
from streammem.output.contact_sheet import Curve, contact_sheet
from streammem.types import Segment

COLORS = [(200, 30, 30), (30, 160, 60), (30, 60, 200), (210, 200, 30)]
CAPTION = "A MAN IN A WIDE WOOLLEN COAT WALKS, WAVES AND WONDERS"
# Sockets that other tests left to the garbage collector are not what these tests speak of.
QUIETLY = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")


def scenes(number, caption=None, shape=(90, 160)):
    return [
        (
            Segment(n, 10.0 * n, 10.0 * n + 10, None, "cut"),
            np.full((*shape, 3), COLORS[n % len(COLORS)], np.uint8),
            caption,
        )
        for n in range(number)
    ]


def curve(boundaries=(), threshold=None):
    times = np.arange(41.0)
    return Curve(times, np.full(41, 0.9), np.zeros(41), boundaries, threshold)


def draw(path, *args, **kwargs):
    contact_sheet(path, *args, **kwargs)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(pixels, color, tolerance=12):
    return (np.abs(pixels - np.array(color)) <= tolerance).all(axis=-1)


def test_keyframes_stand_in_time_order_from_left_to_right(tmp_path):
    pixels = draw(tmp_path / "a.png", scenes(4)[::-1])
    assert pixels.shape[1] == 1200
    middles = [np.argwhere(near(pixels, color))[:, 1].mean() for color in COLORS]
    assert middles == sorted(middles)


def test_a_picture_keeps_its_shape(tmp_path):
    for shape in ((90, 160), (160, 90), (40, 400)):
        pixels = draw(tmp_path / "a.png", scenes(2, shape=shape))
        rows, columns = np.nonzero(near(pixels, COLORS[1]))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.05)  # a pixel or two


def test_boundaries_are_marked_at_their_times(tmp_path):
    without = draw(tmp_path / "a.png", scenes(4), curve())
    marked = draw(tmp_path / "b.png", scenes(4), curve([10.0, 30.0]))
    columns = np.unique(np.nonzero((without != marked).any(axis=-1))[1])
    # The plot spans 90 to 1170 pixels for 0 to 40 seconds.
    expected = [90 + 1080 * seconds / 40 for seconds in (10, 30)]
    assert len(columns) <= 6
    assert all(min(abs(column - x) for x in expected) <= 2 for column in columns)
    assert all(min(abs(column - x) for column in columns) <= 1 for x in expected)


@pytest.mark.parametrize("threshold", [0.65, np.linspace(0.4, 0.8, 41)])
def test_a_threshold_is_drawn_where_there_is_one(tmp_path, threshold):
    without = draw(tmp_path / "a.png", scenes(2), curve())
    drawn = draw(tmp_path / "b.png", scenes(2), curve(threshold=threshold))
    assert (without != drawn).any()


def test_captions_stay_under_their_pictures(tmp_path):
    pixels = draw(tmp_path / "a.png", scenes(4, CAPTION))
    rows, columns = np.nonzero(near(pixels, COLORS[0]))
    below = pixels[rows.max() + 5 :]
    ink = below.sum(axis=2) < 3 * 200
    gap = slice(columns.max() + 2, columns.max() + 16)  # 18 pixels lie between two pictures
    assert not ink[:, gap].any()
    used = np.nonzero(ink[:, columns.min() : columns.max()].any(axis=0))[0]
    assert np.ptp(used) > 0.6 * np.ptp(columns)
    assert ink[-5:].sum() == 0


def test_a_longer_caption_makes_a_taller_page_up_to_a_bound(tmp_path):
    heights = [
        draw(tmp_path / "a.png", scenes(4, caption)).shape[0]
        for caption in (None, "Short.", CAPTION, CAPTION * 20, CAPTION * 40)
    ]
    assert heights == sorted(heights)
    assert heights[0] < heights[1] < heights[2]
    assert heights[3] == heights[4]


def test_of_many_scenes_an_even_choice_with_both_ends_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("streammem.output.contact_sheet.MAX_SCENES", 3)
    pixels = draw(tmp_path / "a.png", scenes(9))  # the first, the fifth, the ninth: one colour
    assert near(pixels, COLORS[0]).sum() > 3 * 300 * 200
    assert not any(near(pixels, color).sum() > 100 for color in COLORS[1:])


@QUIETLY
@pytest.mark.parametrize("caption", ["costs $x_{5 and$ 6", "漢字\x07 and \U0001f600", " ", ""])
def test_any_caption_is_only_text(tmp_path, caption):
    draw(tmp_path / "a.png", scenes(1, caption), title=caption)


@QUIETLY
def test_a_curve_without_values_or_frames_is_no_obstacle(tmp_path):
    nothing = np.full(3, np.nan)
    draw(tmp_path / "a.png", scenes(1), Curve(np.arange(3.0), nothing, nothing))
    draw(tmp_path / "a.png", scenes(1), Curve(np.empty(0), np.empty(0), np.empty(0), (), 0.5))


def test_the_users_matplotlib_settings_change_nothing(tmp_path):
    import matplotlib

    plain = draw(tmp_path / "a.png", scenes(2, "text"))
    with matplotlib.rc_context({"savefig.bbox": "tight", "font.size": 30, "savefig.dpi": 50}):
        assert (draw(tmp_path / "b.png", scenes(2, "text")) == plain).all()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="at least one keyframe"):
        contact_sheet(tmp_path / "a.png", [])
    uneven = Curve(np.arange(3.0), np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="equally long"):
        contact_sheet(tmp_path / "a.png", scenes(1), uneven)
    with pytest.raises(OSError, match="No such file"):
        contact_sheet(tmp_path / "no" / "a.png", scenes(1))


def test_without_matplotlib_the_error_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackboneError, match=re.escape(install_command("train"))):
        contact_sheet(tmp_path / "a.png", scenes(1))


def test_importing_it_imports_neither_torch_nor_matplotlib():
    code = "import streammem.output.contact_sheet, sys; sys.exit(any(m in sys.modules for m in M))"
    code = f"M = ('torch', 'matplotlib'); {code}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
