"""Laws of joined recordings and of wrong stamps: seeking gives what reading up to it gives."""

import io
from itertools import pairwise

import av
import numpy as np
import pytest

from streammem.errors import SourceError, TruncatedError
from streammem.video import file, open_source
from streammem.video.container import PacketReader
from streammem.video.cut import cut
from streammem.video.joins import has_joins, recordings
from tests.video.clips import X264, encode, make, open_below, plainly_decoded
from tests.video.servers import serving

# Three recordings of 6 s with 12 pictures a second would end in places that no GOP would share.
LENGTHS = (150, 90, 120)  # pictures at 25 a second


def three_recordings(folder, suffix="ts", lengths=LENGTHS):
    """Recordings in which each picture differs from those at its place in the others."""
    return [
        encode(folder / f"{number}.{suffix}", options=X264, frames=length, first=1000 * number)
        for number, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module", params=["same clock", "later clock", "m2ts"])
def joined(request, tmp_path_factory):
    """Joined recordings, and the picture at each frame of the whole."""
    folder = tmp_path_factory.mktemp("joined")
    parts = three_recordings(folder, "m2ts" if request.param == "m2ts" else "ts")
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
    parts = three_recordings(tmp_path)
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


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("number", [5, 24, 30, 47])
@pytest.mark.parametrize("ahead_s", [3600.0, 5.0])
@pytest.mark.parametrize("span", [(0.0, 2.4), (0.4, 1.4), (1.0, 2.0), (1.6, 2.2)])
def test_a_clip_through_a_wrong_stamp_lacks_that_picture_at_most(
    tmp_path, suffix, bframes, number, ahead_s, span
):
    path = encode(tmp_path / f"a.{suffix}", options={**X264, "bf": str(bframes)})
    wrong = restamped(path, tmp_path / f"wrong.{suffix}", {number: ahead_s})
    right = list(open_source(path, start=span[0], end=span[1]))
    out = io.BytesIO()
    cut(wrong, *span, out)
    (tmp_path / "clip.mp4").write_bytes(out.getvalue())
    shown = {round(f.time, 2): f.pixels for f in open_source(tmp_path / "clip.mp4")}
    places = [round(f.time - span[0], 2) for f in right]
    same = [
        np.abs(shown[place].astype(int) - frame.pixels).mean() < 12
        for place, frame in zip(places, right, strict=True)
        if place in shown
    ]
    assert sum(same) >= len(right) - 1
    assert max(shown) < span[1] - span[0] + 0.2  # what is decoded later may be there too


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


# -- recordings that are opened one by one --

# x265 writes beyond its memory at some sizes below a block of 64, such as 48 x 64.
X265 = {"preset": "ultrafast", "x265-params": "keyint=12:bframes=2:log-level=0"}
MPEG2 = {"g": "12", "bf": "2"}
WRITTEN = {  # what was joined: file, codec, options, size of each
    "codecs.ts": [("libx264", X264), ("libx265", X265), ("mpeg2video", MPEG2), ("libx264", X264)],
    "codecs.m2ts": [("mpeg2video", MPEG2), ("libx264", X264)],
    "sizes.ts": [("libx264", X264), ("libx264", X264, (96, 64)), ("libx265", X265, (64, 96))],
    "a.flv": [("libx264", X264), ("flv", {"g": "12"}), ("libx264", X264)],
    "a.mkv": [("libx264", X264), ("libx265", X265, (96, 64)), ("mpeg4", {"g": "12"})],
    "a.webm": [("libvpx", {"g": "12"}), ("libvpx", {"g": "12"})],
    "a.mp4": [("libx264", X264), ("libx265", X265, (96, 64))],
    "a.mov": [("libx264", X264), ("libx264", X264)],
    "a.avi": [("mpeg4", {"g": "12"}), ("mpeg4", {"g": "12"}, (96, 64))],
    "a.asf": [("wmv2", {"g": "12"}), ("wmv2", {"g": "12"})],
}


@pytest.fixture(scope="module", params=WRITTEN)
def pasted(request, tmp_path_factory):
    """A file of recordings pasted one behind the other, and what each of them shows."""
    folder, parts = tmp_path_factory.mktemp("pasted"), []
    for number, (codec, options, *size) in enumerate(WRITTEN[request.param]):
        part = folder / f"{number} {request.param}"
        encode(part, codec, options=options, size=size[0] if size else (64, 48), first=200 * number)
        parts.append(part)
    path = folder / request.param
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path, parts


def test_each_of_the_pasted_recordings_is_read(pasted):
    path, parts = pasted
    expected, start = [], 0.0
    for part in parts:
        with open_source(part) as alone:
            expected += [(start + f.time, f.pixels) for f in alone]
            start += alone.end
    source = open_source(path)
    frames = list(source)
    assert [f.time for f in frames] == pytest.approx([time for time, _ in expected], abs=2e-3)
    assert all(np.array_equal(f.pixels, e[1]) for f, e in zip(frames, expected, strict=True))
    assert [f.index for f in frames] == list(range(len(expected)))
    assert source.end == pytest.approx(start, abs=2e-3)


@pytest.mark.parametrize("options", [{"start": 3.0}, {"start": 2.0, "end": 2.8}, {"fps": 1.3}])
def test_a_part_of_pasted_recordings_is_what_a_whole_pass_gives(pasted, options):
    path, _ = pasted
    whole = {round(f.time, 3): f.pixels for f in open_source(path)}
    frames = list(open_source(path, **options))
    assert frames
    for frame in frames:
        assert np.array_equal(frame.pixels, whole[round(frame.time, 3)])
    if "fps" not in options:
        wanted = [t for t in whole if options["start"] <= t < options.get("end", 99) - 1e-6]
        assert [round(f.time, 3) for f in frames] == wanted


REMOTE = {  # as above, of a server; the last of what is joined comes back to the first codec
    "to MPEG-2": [("libx264", X264), ("mpeg2video", MPEG2), ("libx264", X264)],
    "to H.264": [("mpeg2video", MPEG2), ("libx264", X264)],
    "to H.265": [("mpeg2video", MPEG2), ("libx265", X265)],
}


@pytest.mark.parametrize("options", [{}, {"fps": 1.3}, {"start": 2.0, "end": 3.4}])
@pytest.mark.parametrize(
    "joined", ["to MPEG-2", *(pytest.param(k, marks=pytest.mark.heavy) for k in [*REMOTE][1:])]
)
def test_a_change_of_codec_in_a_file_of_a_server_is_read_as_in_one_of_this_computer(
    tmp_path, joined, options, monkeypatch
):
    path, copies = tmp_path / "joined.ts", tmp_path / "copies"
    for number, (codec, coding) in enumerate(REMOTE[joined]):
        part = encode(
            tmp_path / "part.ts", codec, options=coding, size=(64, 64), first=200 * number
        )
        path.write_bytes(b"".join(p.read_bytes() for p in (path, part) if p.exists()))
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    with serving(tmp_path) as url, open_source(f"{url}/joined.ts", **options) as source:
        frames = list(source)
    local = open_source(path, **options)
    wanted = list(local)
    assert [f.time for f in frames] == [f.time for f in wanted] and len(wanted) > 3
    assert all(np.array_equal(f.pixels, w.pixels) for f, w in zip(frames, wanted, strict=True))
    assert (source.end, source.was_cut) == (local.end, local.was_cut)
    assert list(copies.iterdir()) == open_below(copies) == []


def test_a_damaged_file_of_a_server_is_read_as_one_of_this_computer(tmp_path):
    content = bytearray(encode(tmp_path / "a.ts", "mpeg2video", options=MPEG2).read_bytes())
    rng = np.random.default_rng(0)
    for packet in range(len(content) // 376 * 188, len(content) // 376 * 188 + 9 * 188, 188):
        content[packet + 30 : packet + 188] = rng.bytes(158)
    (tmp_path / "damaged.ts").write_bytes(content)
    found = []
    with serving(tmp_path) as url:
        for spec in (tmp_path / "damaged.ts", f"{url}/damaged.ts"):
            times, broken = [], ""
            with open_source(spec) as source:
                try:
                    times.extend(frame.time for frame in source)
                except TruncatedError as error:
                    broken = str(error).split(": ")[-1]
            found.append((times, source.end, broken))
    assert found[0] == found[1]


def test_where_such_a_file_is_too_large_to_fetch_its_first_part_is_read(tmp_path, monkeypatch):
    first = encode(tmp_path / "a.ts", options=X264)
    second = encode(tmp_path / "b.ts", "mpeg2video", options=MPEG2)
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    monkeypatch.setattr("streammem.video.cameras.FETCHED_BYTES", 1000)
    frames = []
    with serving(tmp_path) as url, open_source(f"{url}/joined.ts") as source:
        with pytest.raises(TruncatedError, match="may change their codec, and it is larger"):
            frames.extend(source)
        assert 50 < len(frames) <= 60 and source.end >= frames[-1].time


def test_a_clip_of_pasted_recordings_shows_that_part(pasted, tmp_path):
    path, _ = pasted
    out = io.BytesIO()
    assert cut(path, 2.6, 3.2, out) == "encoded"
    (tmp_path / "clip.mp4").write_bytes(out.getvalue())
    for wanted, shown in zip(
        open_source(path, start=2.6, end=3.2), open_source(tmp_path / "clip.mp4"), strict=True
    ):
        assert np.abs(shown.pixels.astype(int) - wanted.pixels).mean() < 12


def test_of_pasted_recordings_one_that_cannot_be_read_is_reported(tmp_path):
    first, second = recordings_of(tmp_path, "flv")
    path = tmp_path / "joined.flv"
    path.write_bytes(first.read_bytes() + b"FLV\x01\x05\0\0\0\x09\0\0\0\0" + second.read_bytes())
    frames = []
    with pytest.raises(TruncatedError, match="1 of 3 videos incomplete; recording 2"):
        frames.extend(open_source(path))
    assert len(frames) == 2 * 60


def test_a_live_matroska_recording_whose_sizes_are_unknown_is_read_to_its_last(tmp_path):
    first, second = recordings_of(tmp_path, "mkv", {"live": "1"})
    (tmp_path / "joined.mkv").write_bytes(first.read_bytes() + second.read_bytes())
    assert b"\x18\x53\x80\x67\x01" + b"\xff" * 7 in first.read_bytes()
    assert len(list(open_source(tmp_path / "joined.mkv"))) == 2 * 60


def recordings_of(folder, suffix, container=None):
    made = [encode(folder / f"{n}.{suffix}", options=X264, first=200 * n) for n in range(2)]
    if container is None:
        return made
    for path in made:
        whole = path.with_name(f"plain {path.name}")
        path.rename(whole)
        with (
            av.open(str(whole)) as inside,
            av.open(str(path), "w", format="matroska", options=container) as out,
        ):
            copy = out.add_stream_from_template(inside.streams.video[0])
            for packet in inside.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    out.mux(packet)
    return made


@pytest.mark.parametrize("blocks", [0, 1 << 30])
def test_a_change_of_codec_is_found_where_parts_of_a_file_are_looked_at(
    tmp_path, monkeypatch, blocks
):
    monkeypatch.setattr("streammem.video.joins._READ_WHOLE_BYTES", blocks)
    monkeypatch.setattr("streammem.video.joins._BLOCK_BYTES", 188 * 60)
    monkeypatch.setattr("streammem.video.joins._SAMPLE_BYTES", 188 * 20)
    first = encode(tmp_path / "a.ts", options=X264, frames=400)
    second = encode(tmp_path / "b.ts", "mpeg2video", options=MPEG2, frames=400)
    assert [tuple(span) for span in recordings(str(first))] == [(0, first.stat().st_size)]
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    (_, size), (start, _) = recordings(str(path))
    assert size == start == pytest.approx(first.stat().st_size, abs=4 * 188)
    assert len(list(open_source(path, fps=5))) == 160


def test_a_damaged_table_changes_no_codec(tmp_path):
    content = bytearray(encode(tmp_path / "a.ts", options=X264).read_bytes())
    maps = [k for k in range(0, len(content), 188) if content[k + 1 : k + 3] == b"\x50\x00"]
    assert len(maps) > 3
    content[maps[2] + 17] ^= 0x3F  # the type of its stream
    (tmp_path / "damaged.ts").write_bytes(content)
    assert len(recordings(str(tmp_path / "damaged.ts"))) == 1


def test_nothing_to_seek_in_is_an_error_and_no_loop(joined):
    path, _ = joined
    with pytest.raises(SourceError, match="no frame from 90 s"):
        list(open_source(path, start=90))
