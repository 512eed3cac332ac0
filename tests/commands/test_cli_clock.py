"""One clock: segments, cues, evidence and clips have the times that a player shows."""

import io
from itertools import pairwise

import av
import pytest

from streammem.video.cut import cut
from streammem.video.file import FileSource
from streammem.video.source import Sampling
from tests.command_line import FPS, QUICK, SRT_CUE, VTT_CUE, events, record
from tests.video.clips import with_early_sound


@pytest.fixture(scope="module", params=["late picture", "edit list", "inside a group of pictures"])
def film(request, tmp_path_factory):
    """A film of red, blue and green, and the seconds at which a player shows each first."""
    folder = tmp_path_factory.mktemp("film")
    plain = record(folder / "plain.mp4")
    if request.param == "late picture":
        return with_early_sound(plain, folder / "late.mp4", lead_s=2.0), (2.0, 5.0, 9.0, 12.0)
    if request.param == "edit list":  # starts between two keyframes, which a player hides
        with (folder / "edited.mp4").open("w+b") as out:
            assert cut(plain, 1.5, 10.0, out) == "copied"
        return folder / "edited.mp4", (0.0, 1.5, 5.5, 8.5)
    with av.open(str(plain)) as inside, av.open(str(folder / "cut.ts"), "w") as container:
        copy = container.add_stream_from_template(inside.streams.video[0])
        for number, packet in enumerate(p for p in inside.demux(video=0) if p.size):
            packet.stream = copy
            if number >= FPS // 2:  # the first keyframe is lost, and what needs it
                container.mux(packet)
    with av.open(str(folder / "cut.ts")) as container:
        first = next(p for p in container.demux(video=0) if p.is_keyframe)
        start_s = float(first.pts * first.time_base) - container.start_time / av.time_base
    assert 0.3 < start_s < 0.6
    return folder / "cut.ts", (start_s, start_s + 2.0, start_s + 6.0, start_s + 9.0)


def seconds(stamp):
    hours, minutes, rest = stamp.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_segments_cues_and_evidence_agree_with_the_player(run, film):
    path, times = film
    spans = [pytest.approx(span, abs=2e-3) for span in pairwise(times)]
    _, out, _ = run("scenes", str(path), "--format", "jsonl")
    assert [(s["start"], s["end"]) for s in events(out)] == spans
    _, out, _ = run("caption", str(path), "--fps", str(FPS), "--format", "jsonl", *QUICK)
    assert [(c["start"], c["end"]) for c in events(out)] == spans
    for form, cue in (("srt", SRT_CUE), ("vtt", VTT_CUE)):
        _, out, _ = run("caption", str(path), "--fps", str(FPS), "--format", form, *QUICK)
        cues = [match[-3:-1] for match in cue.findall(out)]
        assert [(seconds(a), seconds(b)) for a, b in cues] == spans
    _, out, _ = run(
        "ask", str(path), "What was red?", "--fps", str(FPS), "--format", "jsonl", *QUICK
    )
    (answer,) = events(out)
    found = {item["segment"]: (item["start"], item["end"]) for item in answer["evidence"]}
    assert [found[number] for number in sorted(found)] == spans


def test_start_and_end_are_times_of_the_player(run, film):
    path, times = film
    span = ("--start", str(times[1]), "--end", str(times[2]))
    _, out, _ = run("scenes", str(path), "--format", "jsonl", *span)
    (segment,) = events(out)
    assert segment["start"] == pytest.approx(times[1], abs=0.13)
    assert segment["end"] == pytest.approx(times[2], abs=2e-3)


def test_a_clip_of_a_segment_shows_that_segment(film, tmp_path):
    path, times = film
    out = io.BytesIO()
    cut(path, times[1], times[2], out)
    (tmp_path / "clip.mp4").write_bytes(out.getvalue())
    with FileSource(str(tmp_path / "clip.mp4"), "clip", Sampling()) as clip:
        frames = list(clip)
    assert len(frames) == pytest.approx(4 * FPS, abs=1)
    reddish = [frame.pixels[..., 0].mean() > frame.pixels[..., 2].mean() for frame in frames]
    assert not any(reddish[:-1])
