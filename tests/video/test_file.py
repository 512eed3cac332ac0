"""Laws of files that no other source shares: cost, odd times, turning, damage."""

import gc
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from streammem.errors import SourceError, TruncatedError
from streammem.types import Frame
from streammem.video import file, open_source
from streammem.video.container import PacketReader
from tests.video.clips import (
    X264,
    encode,
    indexed_first,
    make,
    only_sound,
    plainly_decoded,
    turned,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name in ("h264.mp4", "h264.mkv", "h264.ts", "vp9.webm", "refresh.mkv"):
        make(name, folder)
    indexed_first(folder / "h264.mp4", folder / "fast.mp4")
    return folder


def collected(source):
    """The frames, and the error that ended them, if any."""
    frames = []
    try:
        frames.extend(source)  # keeps what came before an error
    except SourceError as error:
        return frames, error
    return frames, None


@pytest.mark.parametrize(
    ("options", "at_most"),
    [
        ({"fps": 1}, 30),  # GOPs of 12 frames: two partly needed, and the last for its ending
        ({"sparse": True}, 16),
        ({"start": 2.0}, 24),
        ({"end": 0.2}, 12),
    ],
)
def test_what_no_sample_needs_is_not_decoded(clips, monkeypatch, options, at_most):
    source = open_source(clips / "h264.mp4", **options)
    decoded = spied(monkeypatch, file.FileSource, "_decode")
    list(source)
    assert 0 < len(decoded) <= at_most


def test_frames_leave_nothing_to_the_garbage_collector(clips):
    source = open_source(clips / "h264.mp4")
    gc.collect()
    gc.disable()
    try:
        num_frames = sum(1 for _ in source)
        assert gc.collect() < num_frames / 2
    finally:
        gc.enable()


def spied(monkeypatch, kind, name) -> list:
    """Collect the arguments of every call of a method from here on."""
    calls = []
    plain = getattr(kind, name)

    def spy(self, *args):
        calls.append(args)
        assert len(calls) < 500, "going in circles"
        return plain(self, *args)

    monkeypatch.setattr(kind, name, spy)
    return calls


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "refresh.mkv"])
@pytest.mark.parametrize(
    "options", [{}, {"sparse": True}, {"end": 1.9}, {"start": 0.8, "end": 2.2}]
)
def test_hopping_to_far_samples_equals_reading_up_to_them(clips, monkeypatch, name, options):
    by_reading = open_source(clips / name, fps=0.9, **options)
    read = list(by_reading)
    monkeypatch.setattr(file, "HOP_S", 0.2)
    by_seeking = open_source(clips / name, fps=0.9, **options)
    seeks = spied(monkeypatch, PacketReader, "packets_from")
    sought = list(by_seeking)
    assert seeks
    assert [(f.time, f.index) for f in sought] == [(f.time, f.index) for f in read]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(sought, read, strict=True))
    assert by_seeking.end == by_reading.end


def test_seeks_that_fall_short_of_the_sample_do_not_go_in_circles(tmp_path, monkeypatch):
    path = encode(tmp_path / "long.ts", options=X264, frames=500)  # seeks in MPEG-TS are rough
    monkeypatch.setattr(file, "HOP_S", 0.2)
    seeks = spied(monkeypatch, PacketReader, "packets_from")
    frames = list(open_source(path, fps=0.2, start=5.0))
    assert [f.time for f in frames] == [5.0, 10.0, 15.0]
    assert 2 <= len(seeks) <= 5


@pytest.mark.parametrize("name", ["opengop.mp4", "hevc.mp4"])
def test_open_gops_are_entered_without_starting_over(tmp_path, monkeypatch, name):
    source = open_source(make(name, tmp_path), fps=2, start=1.3)
    seeks = spied(monkeypatch, PacketReader, "packets_from")
    restarts = spied(monkeypatch, PacketReader, "reopen")
    assert len(list(source)) == 3
    assert len(seeks) == 1 and not restarts


@pytest.mark.parametrize("options", [{"fps": 1}, {"start": 1.3}, {"sparse": True}])
def test_keyframes_that_are_none_cost_time_but_no_frame(clips, monkeypatch, options):
    whole = plainly_decoded(clips / "refresh.mkv")
    restarts = spied(monkeypatch, PacketReader, "reopen")
    frames = list(open_source(clips / "refresh.mkv", **options))
    assert len(restarts) == 1
    assert frames[0].time == next(s.time for s in whole if s.time >= options.get("start", 0.0))
    assert all(np.array_equal(f.pixels, whole[f.index].pixels) for f in frames)


def test_a_decoder_that_swallows_a_keyframe_costs_no_frame(clips):
    class Swallowing:
        """A decoder that gives nothing for the third GOP that it starts."""

        num_starts = 0

        def __init__(self, decoder):
            self.decoder = decoder

        def decode(self, packet):
            pictures = self.decoder.decode(packet)
            return [] if self.num_starts == 2 else pictures

        def flush_buffers(self):
            self.num_starts += 1
            self.decoder.flush_buffers()

    expected = [f.time for f in open_source(clips / "h264.mp4", sparse=True)]
    source = open_source(clips / "h264.mp4", sparse=True)
    decoder = Swallowing(source._reader.stream.codec_context)
    source._reader.stream = SimpleNamespace(codec_context=decoder, index=0)
    assert [f.time for f in source] == expected
    assert decoder.num_starts == 2


def test_numbers_do_not_depend_on_sampling(clips):
    for options in ({"fps": 3}, {"sparse": True}, {"fps": 4, "start": 1.0}):
        for frame in open_source(clips / "h264.mkv", **options):
            assert frame.index == round(frame.time * 25)


def test_backward_and_equal_pts_give_times_that_never_decrease(tmp_path):
    plain = encode(tmp_path / "plain.mp4", options={**X264, "bf": "0"})
    late = [0, 0, 3, 1, 0, 0, 2, 2, 1, 0]
    with av.open(str(plain)) as inside, av.open(str(tmp_path / "back.mkv"), "w") as container:
        copy = container.add_stream_from_template(inside.streams.video[0])
        packets = [p for p in inside.demux(video=0) if p.dts is not None]
        for number, packet in enumerate(packets):
            packet.pts += late[number % 10] * packet.duration
            packet.stream = copy
            container.mux(packet)
    frames = list(open_source(tmp_path / "back.mkv"))
    assert len(frames) == len(packets)
    assert [f.time for f in frames[:6]] == [0.0, 0.04, 0.2, 0.2, 0.2, 0.2]
    assert all(a.time <= b.time for a, b in pairwise(frames))


@pytest.mark.parametrize("fps", [None, 5])
def test_a_second_recording_in_one_file_goes_on_where_the_first_ends(clips, tmp_path, fps):
    content = (clips / "h264.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(content + content)
    source = open_source(tmp_path / "joined.ts", fps=fps)
    frames = list(source)
    times = [k / (fps or 25) for k in range(120 if fps is None else 24)]
    assert [f.time for f in frames] == pytest.approx(times)
    assert source.end == pytest.approx(4.8)


def test_frames_without_pts_follow_one_another(tmp_path):
    path = encode(tmp_path / "raw.h264", options=X264)
    assert [f.time for f in open_source(path, fps=5)] == pytest.approx([k / 5 for k in range(12)])
    assert next(iter(open_source(path, start=1.3))).time == pytest.approx(1.32)


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),  # a quarter turn clockwise
        ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
        ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda p: np.rot90(p.swapaxes(0, 1), 2)),
    ],
)
def test_the_display_matrix_is_applied(clips, tmp_path, matrix, upright):
    stored = plainly_decoded(clips / "h264.mp4")[0].pixels
    path = turned(clips / "h264.mp4", tmp_path / "turned.mp4", matrix)
    frame = next(iter(open_source(path)))
    assert np.array_equal(frame.pixels, upright(stored))


@pytest.mark.parametrize("name", ["fast.mp4", "h264.mkv", "vp9.webm"])
@pytest.mark.parametrize("share", [0.4, 0.7])
@pytest.mark.parametrize("fps", [None, 5])
def test_a_truncated_file_gives_its_good_frames_and_then_the_error(
    clips, tmp_path, name, share, fps
):
    whole = {frame.time: frame for frame in open_source(clips / name)}
    content = (clips / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(content[: int(len(content) * share)])
    source = open_source(cut, fps=fps)
    frames, error = collected(source)
    assert isinstance(error, TruncatedError)
    assert len(frames) >= (18 if fps is None else 4)
    assert all(np.array_equal(f.pixels, whole[f.time].pixels) for f in frames)
    assert frames[-1].time < source.end < 2.4


@pytest.mark.parametrize("fps", [None, 5])
def test_a_stream_without_stated_length_is_truncated_where_its_last_picture_is_broken(
    clips, tmp_path, fps
):
    with av.open(str(clips / "h264.ts")) as container:
        keyframes = [p.pos for p in container.demux(video=0) if p.is_keyframe]
    (tmp_path / "cut.ts").write_bytes((clips / "h264.ts").read_bytes()[: keyframes[3] + 500])
    frames, error = collected(open_source(tmp_path / "cut.ts", fps=fps))
    assert isinstance(error, TruncatedError)
    assert 1.2 < frames[-1].time < 1.44


def test_damage_in_the_middle_costs_only_the_damaged_frames(clips, tmp_path):
    content = bytearray((clips / "fast.mp4").read_bytes())
    middle = len(content) * 6 // 10
    content[middle : middle + 60] = b"\xff" * 60
    (tmp_path / "damaged.mp4").write_bytes(content)
    frames, error = collected(open_source(tmp_path / "damaged.mp4"))
    assert isinstance(error, TruncatedError) and "damaged" in str(error)
    assert 50 < len(frames) < 60 and frames[-1].time == pytest.approx(2.36)


@pytest.mark.parametrize("fps", [None, 5])
def test_damage_before_the_first_picture_is_no_loss(clips, tmp_path, fps):
    """A recording may begin in the middle of a GOP."""
    with av.open(str(clips / "h264.mkv")) as container:
        first = next(container.demux(video=0))
    content = bytearray((clips / "h264.mkv").read_bytes())
    middle = first.pos + first.size - 200
    content[middle : middle + 60] = b"\xff" * 60
    (tmp_path / "damaged.mkv").write_bytes(content)
    frames, error = collected(open_source(tmp_path / "damaged.mkv", fps=fps))
    assert error is None and len(frames) == (59 if fps is None else 12)
    assert frames[0].time == pytest.approx(0.04)


def test_of_a_damaged_file_that_breaks_off_the_break_is_told(clips, tmp_path):
    content = bytearray((clips / "fast.mp4").read_bytes())
    middle = len(content) * 4 // 10
    content[middle : middle + 60] = b"\xff" * 60
    (tmp_path / "both.mp4").write_bytes(content[: len(content) * 7 // 10])
    _, error = collected(open_source(tmp_path / "both.mp4"))
    assert isinstance(error, TruncatedError) and "ends after" in str(error)


def test_a_whole_file_is_not_called_truncated_when_its_sound_is_longer(tmp_path):
    for name in ("sound.mkv", "sound.mp4"):
        frames, error = collected(open_source(make(name, tmp_path)))
        assert error is None and len(frames) == 60


def test_the_duration_of_an_mp4_is_its_videos(tmp_path):
    assert open_source(make("sound.mp4", tmp_path)).duration == pytest.approx(0.5 + 2.4)


def test_an_mp4_without_its_index_looks_unfinished(clips, tmp_path):
    (tmp_path / "cut.mp4").write_bytes((clips / "h264.mp4").read_bytes()[:3000])
    with pytest.raises(SourceError, match=r"cut\.mp4: .* truncated or unfinished") as caught:
        open_source(tmp_path / "cut.mp4")
    assert not isinstance(caught.value, TruncatedError)


def missing(folder, clips):
    return folder / "missing.mp4", "no such file"


def empty(folder, clips):
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4", "is empty"


def text_called_mp4(folder, clips):
    (folder / "text.mp4").write_text("no video at all\n" * 50)
    return folder / "text.mp4", "no video that FFmpeg can read"


def text_called_txt(folder, clips):
    (folder / "text.txt").write_text("no video at all\n" * 50)
    return folder / "text.txt", "is text, not video"


def sound_only(folder, clips):
    return only_sound(folder / "sound.m4a"), "has sound but no video"


def no_frames(folder, clips):
    content = (clips / "fast.mp4").read_bytes()
    (folder / "head.mp4").write_bytes(content[: content.find(b"mdat") + 20])
    return folder / "head.mp4", "no picture that can be decoded"


def too_large(folder, clips):
    return encode(folder / "wide.mkv", "ffv1", size=(16400, 2), frames=1), "16400x2 pixels"


def device(folder, clips):
    return "/dev/zero", "is not a file"


@pytest.mark.parametrize(
    "bad",
    [missing, empty, text_called_mp4, text_called_txt, sound_only, no_frames, too_large, device],
)
@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_bad_files_are_named_in_one_line_at_open(clips, tmp_path, bad, reader):
    if reader == "decord":
        pytest.importorskip("decord", reason="the extra streammem[decord] is not installed")
    path, reason = bad(tmp_path, clips)
    with pytest.raises(SourceError, match=reason) as caught:
        open_source(path, reader=reader)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what failed; what to try


SLIDES_MS = [0, 10_000, 20_000, 30_000]  # the last is shown 10 s, too


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("bframes", ["0", "2"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 12, "end": 18}, [(12, 1)]),
        ({"start": 12, "end": 28}, [(12, 1), (20, 2)]),
        ({"start": 19.5}, [(20, 2), (30, 3)]),  # the next slide comes soon enough
        ({"start": 20, "end": 21}, [(20, 2)]),
        ({"start": 0, "end": 12}, [(0, 0), (10, 1)]),
        ({"start": 10.2, "end": 10.4}, [(10.2, 1)]),
    ],
)
def test_a_start_within_a_still_picture_gives_that_picture(
    tmp_path, suffix, bframes, options, expected
):
    path = encode(
        tmp_path / f"slides.{suffix}",
        options={"preset": "ultrafast", "bf": bframes},
        times_ms=SLIDES_MS,
        frames=4,
    )
    slides = plainly_decoded(path)
    pushed = [Frame(s.pixels, s.time, s.duration, k) for k, s in enumerate(slides)]
    sources = [open_source(path, fps=fps, **options) for fps in (None, 2)]
    sources += [open_source(pushed, fps=fps, **options) for fps in (None, 2)]
    if find_spec("decord"):
        sources += [open_source(path, fps=fps, reader="decord", **options) for fps in (None, 2)]
    for source in sources:
        frames = list(source)
        assert [f.time for f in frames] == [time for time, _ in expected]
        for frame, (_, number) in zip(frames, expected, strict=True):
            assert np.array_equal(frame.pixels, slides[number].pixels)
        if frames[0].time % 10:  # given in the middle: until the next slide
            assert frames[0].time + frames[0].duration == pytest.approx(20)


def test_a_start_after_the_last_picture_gives_none(tmp_path):
    path = encode(tmp_path / "slides.mp4", times_ms=SLIDES_MS, frames=4)
    with pytest.raises(SourceError, match="no frame from 60 s on"):
        list(open_source(path, start=60))
