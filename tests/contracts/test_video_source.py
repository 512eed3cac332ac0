"""One suite for every video source over every clip; a new source adds one line to SOURCES.

The truth is what plain decoding finds in a clip (tests/video/clips.py).
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.rtsp_server import RtspCamera, from_file
from streammem.errors import SourceError
from streammem.types import Frame
from streammem.video import VideoSource, open_source
from tests.video.clips import CLIPS, Shot, make, plainly_decoded

FOLDER_RATE = 20.0


@dataclass(frozen=True)
class Case:
    """A source kind over a clip: how to open it, and what all of it holds."""

    open: Callable[..., VideoSource]
    shots: list[Shot]
    samples: bool  # whether fps chooses among its frames, rather than being their rate


def at_rate(shots: list[Shot], rate: float) -> list[Shot]:
    return [Shot(k / rate, 1 / rate, shot.pixels) for k, shot in enumerate(shots)]


def by_pyav(path: Path, shots: list[Shot], folder: Path) -> Case:
    return Case(lambda **options: open_source(path, **options), shots, samples=True)


def by_decord(path: Path, shots: list[Shot], folder: Path) -> Case:
    pytest.importorskip("decord", reason="the extra streammem[decord] is not installed")
    if path.name in ("h264.ts", "mpeg2.ts", "turned.mp4", "moving.apng"):
        with pytest.raises(SourceError, match="use reader='pyav'"):
            open_source(path, reader="decord")
        pytest.skip("decord itself cannot read such files rightly, and is refused")
    return Case(lambda **options: open_source(path, reader="decord", **options), shots, True)


def by_folder(path: Path, shots: list[Shot], folder: Path) -> Case:
    for number, shot in enumerate(shots):
        Image.fromarray(shot.pixels).save(folder / f"picture {number}.png")
    rated = at_rate(shots, FOLDER_RATE)
    return Case(
        lambda **options: open_source(folder, **{"fps": FOLDER_RATE, **options}), rated, False
    )


def by_still(path: Path, shots: list[Shot], folder: Path) -> Case:
    Image.fromarray(shots[0].pixels).save(folder / "still.png")
    still = [Shot(0.0, 1.0, shots[0].pixels)]
    return Case(lambda **options: open_source(folder / "still.png", **options), still, False)


def by_arrays(path: Path, shots: list[Shot], folder: Path) -> Case:
    arrays = [shot.pixels for shot in shots]
    rated = at_rate(shots, FOLDER_RATE)
    return Case(
        lambda **options: open_source(arrays, **{"fps": FOLDER_RATE, **options}), rated, False
    )


def by_frames(path: Path, shots: list[Shot], folder: Path) -> Case:
    frames = [Frame(s.pixels, s.time, s.duration, k) for k, s in enumerate(shots)]
    shots = [replace(shot, is_key=True) for shot in shots]  # nothing refers to another one
    return Case(lambda **options: open_source(iter(frames), **options), shots, samples=True)


def by_fifo(path: Path, shots: list[Shot], folder: Path) -> Case:
    def open_piped(**options) -> VideoSource:
        fifo = folder / f"{len(list(folder.iterdir()))}.fifo"
        os.mkfifo(fifo)
        threading.Thread(target=pour, args=(path, fifo), daemon=True).start()
        return open_source(fifo, **options)

    return Case(open_piped, shots, samples=True)


def by_concat(path: Path, shots: list[Shot], folder: Path) -> Case:
    first = make("vfr.mkv", folder)
    before = plainly_decoded(first)
    end = before[-1].time + before[-1].duration
    (folder / "list").write_text(f"# two\n{first.name}\n\n{path}\n")
    film = before + [replace(shot, time=end + shot.time) for shot in shots]
    return Case(lambda **options: open_source(f"concat:{folder}/list", **options), film, True)


def pour(path: Path, fifo: Path) -> None:
    with suppress(BrokenPipeError), fifo.open("wb") as out:
        out.write(path.read_bytes())


def by_rtsp(path: Path, shots: list[Shot], folder: Path) -> Case:
    camera = RtspCamera(from_file(path), speed=None, loop=False, first_timestamp=2**32 - 90_000)
    cameras.append(camera)
    return Case(lambda **options: open_source(camera.url, **options), shots, samples=True)


cameras: list[RtspCamera] = []
SOURCES = {
    "pyav": (by_pyav, CLIPS),
    "decord": (by_decord, CLIPS),
    "folder": (by_folder, ("h264.mp4", "odd.mp4")),
    "still": (by_still, ("h264.mp4", "odd.mp4")),
    "arrays": (by_arrays, ("h264.mp4", "odd.mp4")),
    "frames": (by_frames, ("h264.mp4", "vfr.mkv")),
    "fifo": (by_fifo, ("h264.ts", "vfr.mkv", "mjpeg.mkv")),
    "concat": (by_concat, ("h264.mp4", "vfr.mkv", "h264.ts", "opengop.mp4", "mpeg4.avi")),
    "rtsp": (by_rtsp, ("live.mkv",)),
}


@pytest.fixture(scope="module")
def truths() -> dict[str, tuple[Path, list[Shot]]]:
    return {}


@pytest.fixture(
    scope="module",
    params=[(source, clip) for source, (_, clips) in SOURCES.items() for clip in clips],
    ids="-".join,
)
def case(request, truths, tmp_path_factory) -> Iterator[Case]:
    source, clip = request.param
    if clip not in truths:
        path = make(clip, tmp_path_factory.mktemp("clip"))
        truths[clip] = path, plainly_decoded(path)
    yield SOURCES[source][0](*truths[clip], tmp_path_factory.mktemp("pictures"))
    while cameras:
        cameras.pop().close()


def same(frames: list[Frame], case: Case, numbers: list[int]) -> None:
    assert [f.time for f in frames] == pytest.approx([case.shots[k].time for k in numbers])
    for frame, number in zip(frames, numbers, strict=True):
        assert frame.duration == pytest.approx(case.shots[number].duration)
        assert np.array_equal(frame.pixels, case.shots[number].pixels)


def within(case: Case, start: float, end: float = 1e9) -> list[int]:
    return [k for k, shot in enumerate(case.shots) if start - 1e-6 <= shot.time < end - 1e-6]


def on_grid(case: Case, fps: float, start: float = 0.0, end: float = 1e9) -> list[int]:
    """Numbers of the first frames at or after start + k / fps; half a millisecond is forgiven."""
    numbers = within(case, start, end)
    last = case.shots[numbers[-1]].time
    samples = []
    for k in range(int((last - start) * fps) + 2):
        later = [n for n in numbers if case.shots[n].time >= start + k / fps - 5e-4]
        samples += later[:1]
    return sorted(set(samples))


def test_every_frame_equals_plain_decoding(case):
    frames = list(case.open())
    same(frames, case, list(range(len(case.shots))))
    assert [f.index for f in frames] == list(range(len(case.shots)))


def test_the_first_frame_is_at_the_start_time_which_is_zero_unless_sound_comes_before(case):
    source = case.open()
    assert next(iter(source)).time == source.start_time == pytest.approx(case.shots[0].time)
    assert source.start_time == 0.0 or case.shots[0].time == pytest.approx(0.5)


def test_pixels_are_contiguous_writable_rgb(case):
    frame = next(iter(case.open()))
    assert frame.pixels.dtype == np.uint8 and frame.pixels.shape[2:] == (3,)
    assert frame.pixels.flags.c_contiguous and frame.pixels.flags.writeable


def test_end_is_known_after_the_last_frame(case):
    source = case.open()
    assert source.end is None
    frames = list(source)
    assert source.end == pytest.approx(frames[-1].time + frames[-1].duration)


def test_end_does_not_depend_on_sampling(case):
    if not case.samples:
        pytest.skip("fps is the rate of these frames")
    for span in ({}, {"end": 1.29}, {"start": 0.7, "end": 1.9}):
        sampled, whole = case.open(fps=0.9, **span), case.open(**span)
        assert len(list(sampled)) < len(list(whole))
        assert sampled.end == pytest.approx(whole.end)


def test_the_stated_duration_is_about_the_end(case):
    source = case.open()
    list(source)
    assert source.duration is None or -0.1 < source.duration - source.end < 0.6


@pytest.mark.parametrize("fps", [0.7, 3, 10])
@pytest.mark.parametrize("start", [0.0, 0.77])
def test_samples_are_the_first_frames_at_or_after_the_grid(case, fps, start):
    if not case.samples:
        pytest.skip("fps is the rate of these frames")
    same(list(case.open(fps=fps, start=start)), case, on_grid(case, fps, start))


def test_fps_above_the_rate_gives_every_frame_once(case):
    if not case.samples:
        pytest.skip("fps is the rate of these frames")
    same(list(case.open(fps=1000)), case, list(range(len(case.shots))))


def test_start_and_end_cut_a_half_open_span(case):
    span = {"start": 0.5, "end": 1.4} if len(case.shots) > 1 else {"start": 0.0, "end": 0.5}
    source = case.open(**span)
    same(list(source), case, within(case, **span))
    assert source.end == pytest.approx(span["end"], abs=0.11)
    assert source.end <= span["end"]


def test_a_span_without_frames_says_so(case):
    with pytest.raises(SourceError, match="no frame from 90 s on"):
        list(case.open(start=90))


def test_max_side_shrinks_and_keeps_aspect(case):
    height, width = case.shots[0].pixels.shape[:2]
    frame = next(iter(case.open(max_side=32)))
    assert max(frame.pixels.shape[:2]) == 32
    assert frame.pixels.shape[0] / frame.pixels.shape[1] == pytest.approx(height / width, rel=0.05)
    assert np.abs(frame.pixels.mean((0, 1)) - case.shots[0].pixels.mean((0, 1))).max() < 4


def test_max_side_never_enlarges(case):
    same(list(case.open(max_side=4000)), case, list(range(len(case.shots))))


def test_sparse_gives_the_keyframes(case):
    keyframes = [k for k, shot in enumerate(case.shots) if shot.is_key]
    same(list(case.open(sparse=True)), case, keyframes)


def test_sparse_samples_are_the_first_keyframes_at_or_after_the_grid(case):
    if not case.samples:
        pytest.skip("fps is the rate of these frames")
    keyframes = replace(case, shots=[shot for shot in case.shots if shot.is_key])
    same(list(case.open(sparse=True, fps=1.1)), keyframes, on_grid(keyframes, 1.1))


def test_a_second_pass_is_refused(case):
    source = case.open()
    next(iter(source))
    with pytest.raises(SourceError, match="read already"):
        iter(source)


def test_close_may_be_repeated_and_ends_the_pass(case):
    source = case.open()
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert next(frames, None) is None
    with pytest.raises(SourceError, match="closed"):
        iter(source)


def test_with_closes(case):
    with case.open() as source:
        assert source.name
    with pytest.raises(SourceError, match="closed"):
        iter(source)
