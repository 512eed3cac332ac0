"""The inputs that showed the faults of docs/research/faults.md: one test a row.

They are not part of the repository: set STREAMMEM_DATA to the folder that holds ``cases``.
"""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from streammem.errors import SourceError
from streammem.memory.folder import is_memory
from streammem.perception.scenes import SCENES_SIDE
from streammem.video import open_source
from streammem.video.cut import cut
from tests.command_line import QUICK, SRT_CUE, events

CASES = Path(os.environ.get("STREAMMEM_DATA", "data")) / "cases"

pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason=f"no {CASES}: set STREAMMEM_DATA to the folder that holds cases/"
)


def case(name: str) -> Path:
    path = CASES / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def colours(frames) -> list[str]:
    """The strongest of red, green and blue in each frame."""
    return [["red", "green", "blue"][int(f.pixels.mean((0, 1)).argmax())] for f in frames]


@pytest.mark.parametrize(
    ("name", "count"), [("rot.jfif", 1), ("exif.mjpeg", 10), ("exif-webp.bin", 1)]
)
def test_row_2_unknown_side_data_is_ignored(name, count):
    frames = list(open_source(case(name)))
    assert len(frames) == count
    assert name != "rot.jfif" or frames[0].pixels.shape == (320, 240, 3)


@pytest.mark.parametrize(("name", "end"), [("thumbfirst.mkv", 9.0), ("a.avif", 2.0)])
def test_row_3_the_main_stream_is_read(name, end):
    source = open_source(case(name))
    assert len(list(source)) >= 10
    assert source.end == pytest.approx(end, abs=0.1)


def test_row_3_of_an_hls_stream_the_best_variant_is_read():
    fetched = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            fetched.append(self.path)

    handler = partial(Handler, directory=str(case("hls")))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/master.m3u8"
        frames = list(open_source(address, fps=2))
        server.shutdown()
        thread.join()
    assert len(frames) == 18 and frames[0].pixels.shape == (480, 640, 3)
    assert "/high2.ts" in fetched and not {"/low1.ts", "/low2.ts"} & set(fetched)


def test_row_4_a_telephones_picture_is_whole():
    (frame,) = open_source(case("grid.heic"))
    assert frame.pixels.shape == (1024, 1024, 3)


def test_row_5_joined_recordings_are_sought_in(tmp_path):
    path = case("joined.ts")
    source = open_source(path, fps=0.1)
    assert colours(source) == ["red"] * 2 + ["green"] * 2 + ["blue"] * 2
    assert source.end == pytest.approx(60, abs=0.1)
    for start, end in ((21, 24), (25, 28)):
        frames = list(open_source(path, fps=1, start=start, end=end))
        assert [f.time for f in frames] == pytest.approx(range(start, end), abs=0.05)
        assert colours(frames) == ["green"] * 3
    with (tmp_path / "clip.mp4").open("w+b") as out:
        cut(path, 45, 48, out)
    assert set(colours(open_source(tmp_path / "clip.mp4"))) == {"blue"}


def test_row_6_one_wrong_stamp_costs_nothing():
    source = open_source(case("outlier.mp4"), fps=2)
    assert len(list(source)) == 18
    assert source.end == pytest.approx(9, abs=0.1)


def test_row_7_cues_are_on_the_players_clock(run):
    path = case("latevideo.mp4")
    code, out, _ = run("caption", path, "--format", "srt", *QUICK)
    cues = SRT_CUE.findall(out)
    assert code == 0 and cues[0][1] == "00:00:02,000" and cues[-1][2] == "00:00:11,000"
    code, out, _ = run("scenes", path, "--fps", 2, "--format", "jsonl")
    assert events(out)[0]["start"] == 2.0


def test_row_9_pixels_are_square():
    frame = next(iter(open_source(case("sar.mp4"))))
    height, width = frame.pixels.shape[:2]
    assert width / height == pytest.approx(16 / 9, rel=0.01)


def test_row_10_high_dynamic_range_looks_as_the_ordinary_version():
    bright = next(iter(open_source(case("hdr.mp4")))).pixels.astype(int)
    plain = next(iter(open_source(case("sdr.mp4")))).pixels.astype(int)
    assert np.abs(bright - plain).mean() < 6
    assert bright.max() > 230


def test_row_17_a_start_inside_a_still_picture_gives_it():
    path = case("slides.mp4")
    (frame,) = open_source(path, fps=2, start=12, end=18, max_side=SCENES_SIDE)
    whole = list(open_source(path, max_side=SCENES_SIDE))
    assert frame.time == 12 and np.array_equal(frame.pixels, whole[1].pixels)


def test_row_18_a_folder_of_mixed_formats_is_read(run):
    source = open_source(case("mix"))
    assert len(list(source)) == 7
    (notice,) = source.notices
    assert "fr7.mp4" in notice and "sub" in notice
    for options in ((), ("--fps", 1)):
        code, _, err = run("scenes", case("mix"), *options)
        assert code == 0 and "fr7.mp4" in err


def test_row_19_a_film_in_a_closed_folder_is_named(monkeypatch):
    path = case("base.mp4")

    def refuse(name, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("os.stat", refuse)
    assert not is_memory(path)
    with pytest.raises(SourceError, match=f"^{path}: permission denied"):
        open_source(path)
