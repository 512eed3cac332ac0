"""Laws of joined recordings and of wrong stamps: seeking gives what reading up to it gives."""

import io
from itertools import pairwise

import av
import numpy as np
import pytest

from streammem.errors import SourceError
from streammem.video import file, open_source
from streammem.video.cut import cut
from streammem.video.joins import has_joins
from streammem.video.packets import PacketReader
from tests.video.clips import X264, encode, make, plainly_decoded

# Three recordings of 6 s with 12 pictures a second would end in places that no GOP would share.
LENGTHS = (150, 90, 120)  # pictures at 25 a second


def recordings(folder, suffix="ts", lengths=LENGTHS):
    """Recordings in which each picture differs from those at its place in the others."""
    return [
        encode(folder / f"{number}.{suffix}", options=X264, frames=length, first=1000 * number)
        for number, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module", params=["same clock", "later clock", "m2ts"])
def joined(request, tmp_path_factory):
    """Joined recordings, and the picture at each frame of the whole."""
    folder = tmp_path_factory.mktemp("joined")
    parts = recordings(folder, "m2ts" if request.param == "m2ts" else "ts")
    if request.param == "later clock":
        parts = [delayed(part, 400.0 * number) for number, part in enumerate(parts)]
    path = folder / ("joined" + parts[0].suffix)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path, [shot.pixels for part in parts for shot in plainly_decoded(part)]


def delayed(part, seconds):
    """Copy a transport stream with later stamps, as a recorder that was stopped writes it."""
    path = part.with_name(f"late {part.name}")
    with av.open(str(part)) as inside, av.open(str(path), "w") as container:
        copy = container.add_stream_from_template(inside.streams.video[0])
        for packet in inside.demux(video=0):
            if packet.dts is not None:
                shift = int(seconds / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                container.mux(packet)
    return path


def test_joined_recordings_are_one_stream_of_time(joined):
    path, pixels = joined
    source = open_source(path)
    frames = list(source)
    assert [f.time for f in frames] == pytest.approx([k / 25 for k in range(sum(LENGTHS))], abs=0.1)
    assert source.end == pytest.approx(sum(LENGTHS) / 25, abs=0.1)
    for k in range(0, len(frames), 7):
        assert np.array_equal(frames[k].pixels, pixels[k])


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 0.3},
        {"start": 7.0, "end": 7.5},
        {"start": 11.0},
        {"fps": 1, "start": 5.3, "end": 6.9},
        {"start": 8.1, "sparse": True},
    ],
)
def test_a_part_of_joined_recordings_is_what_a_whole_pass_gives(joined, monkeypatch, options):
    path, _ = joined
    whole = {f.time: f for f in open_source(path, sparse=options.get("sparse", False))}
    monkeypatch.setattr(file, "HOP_S", 0.2)
    frames = list(open_source(path, **options))
    assert len(frames) >= 2
    start, end = options.get("start", 0.0), options.get("end", 99.0)
    for frame in frames:
        assert start <= frame.time < end
        assert np.array_equal(frame.pixels, whole[frame.time].pixels)
    if "fps" not in options:
        assert len(frames) == sum(start - 1e-6 <= time < end - 1e-6 for time in whole)


@pytest.mark.parametrize("span", [(1.0, 2.0), (7.0, 8.0), (5.6, 6.6), (10.0, 11.0)])
def test_a_clip_of_joined_recordings_shows_that_part(joined, tmp_path, span):
    path, pixels = joined
    out = io.BytesIO()
    assert cut(path, *span, out) == "encoded"
    (tmp_path / "clip.mp4").write_bytes(out.getvalue())
    shown = list(open_source(tmp_path / "clip.mp4"))
    assert len(shown) == 25
    for k, frame in enumerate(shown):
        wanted = pixels[round(span[0] * 25) + k].astype(int)
        assert np.abs(frame.pixels - wanted).mean() < 12


def test_one_recording_has_no_joins_and_is_sought_in(tmp_path):
    whole = encode(tmp_path / "a.ts", options=X264, frames=300)
    assert not has_joins(str(whole))
    assert PacketReader(str(whole), "a").packets_from(8.0) is not None


@pytest.mark.parametrize("whole_bytes", [0, 1 << 30])
def test_joins_are_found_in_files_of_which_parts_are_looked_at(tmp_path, monkeypatch, whole_bytes):
    monkeypatch.setattr("streammem.video.joins._READ_WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr("streammem.video.joins._BLOCK_BYTES", 188 * 40)
    monkeypatch.setattr("streammem.video.joins._SAMPLE_BYTES", 188 * 12)
    parts = recordings(tmp_path)
    long = encode(tmp_path / "long.ts", options=X264, frames=600)
    assert not has_joins(str(long))
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert has_joins(str(tmp_path / "joined.ts"))
    apart = delayed(parts[1], 60.0).read_bytes()
    (tmp_path / "ahead.ts").write_bytes(parts[0].read_bytes() + apart)
    assert has_joins(str(tmp_path / "ahead.ts"))


def restamped(source, path, wrong):
    """Copy a clip with other stamps: ``wrong`` maps a packet's number to seconds that are added."""
    with av.open(str(source)) as inside, av.open(str(path), "w") as container:
        copy = container.add_stream_from_template(inside.streams.video[0])
        packets = [p for p in inside.demux(video=0) if p.size]
        for number, packet in enumerate(packets):
            packet.pts += int(wrong.get(number, 0) / packet.time_base)
            packet.stream = copy
            container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("number", [5, 24, 30, 47])  # 24 is a keyframe
@pytest.mark.parametrize("ahead_s", [3600.0, 5.0])
@pytest.mark.parametrize("fps", [None, 5])
def test_one_wrong_stamp_leaves_all_other_times(tmp_path, suffix, bframes, number, ahead_s, fps):
    options = {**X264, "bf": str(bframes)}
    path = encode(tmp_path / f"a.{suffix}", options=options)
    wrong = restamped(path, tmp_path / f"wrong.{suffix}", {number: ahead_s})
    right = {f.time: f for f in open_source(path, fps=fps)}
    source = open_source(wrong, fps=fps)
    frames = list(source)
    same = [f for f in frames if f.time in right and np.array_equal(f.pixels, right[f.time].pixels)]
    assert len(same) >= len(right) - 1
    assert all(a.time <= b.time for a, b in pairwise(frames))
    assert source.end == pytest.approx(2.4, abs=0.05)


def test_a_gap_in_a_film_stays_a_gap(tmp_path):
    times = [*range(0, 1000, 40), *range(61_000, 62_000, 40)]
    for suffix in ("mp4", "mkv"):
        path = encode(tmp_path / f"gap.{suffix}", options=X264, times_ms=times, frames=len(times))
        frames = list(open_source(path))
        assert [f.time for f in frames] == pytest.approx([t / 1000 for t in times])


def test_a_file_that_starts_inside_a_group_of_pictures_keeps_the_containers_clock(tmp_path):
    content = make("h264.ts", tmp_path).read_bytes()
    whole = plainly_decoded(tmp_path / "h264.ts")
    with av.open(str(tmp_path / "h264.ts")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    head = content[: 2 * 188]  # the tables that say what the file holds
    (tmp_path / "cut.ts").write_bytes(content[: 3 * 188] + content[packets[4].pos :])
    assert head[0] == 0x47
    lost = float((min(p.pts for p in packets[4:]) - packets[0].pts) * packets[0].time_base)
    source = open_source(tmp_path / "cut.ts")
    first = next(iter(source))
    with av.open(str(tmp_path / "cut.ts")) as container:
        start = container.start_time / av.time_base
    expected = float(packets[12].pts * packets[12].time_base) - start
    assert first.time == source.start_time == pytest.approx(expected, abs=1e-3)
    assert 0 < first.time < 0.48 and lost > 0
    assert np.array_equal(first.pixels, whole[12].pixels)


def test_nothing_to_seek_in_is_an_error_and_no_loop(joined):
    path, _ = joined
    with pytest.raises(SourceError, match="no frame from 90 s"):
        list(open_source(path, start=90))
