"""A clip shows what its video shows in that span, from the start on, in any container."""

import io

import av
import numpy as np
import pytest

from streammem.errors import ConfigError, SourceError
from streammem.video.cut import MAX_COPIED_S, MAX_ENCODED_S, cut
from streammem.video.file import FileSource
from streammem.video.source import Sampling
from tests.audio.clapper import clapper, with_sounds
from tests.video import clips


def frames(path, start=0.0, end=None):
    with FileSource(str(path), "clip", Sampling(start=start, end=end)) as source:
        return list(source)


def cut_to(path, folder, start, end):
    out = io.BytesIO()
    how = cut(path, start, end, out)
    made = folder / "cut.mp4"
    made.write_bytes(out.getvalue())
    return made, how


KINDS = {
    "mp4": ("libx264", clips.X264, "copied"),
    "mkv": ("libx264", clips.X264, "copied"),
    "ts": ("libx264", clips.X264, "copied"),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "g": "12"}, "copied"),
    "avi": ("mpeg4", {"g": "12"}, "encoded"),
}


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("span", [(0.0, 0.4), (0.6, 1.4), (1.24, 2.4), (2.2, 99.0)])
def test_a_clip_shows_the_span_from_its_first_picture_on(tmp_path, suffix, span):
    codec, options, how = KINDS[suffix]
    video = clips.encode(tmp_path / f"a.{suffix}", codec, options=options)
    made, done = cut_to(video, tmp_path, span[0], min(span[1], span[0] + MAX_ENCODED_S - 1))
    wanted, shown = frames(video, *span), frames(made)
    assert done == how
    assert len(shown) >= len(wanted)  # what is decoded later may be there too
    for old, new in zip(wanted, shown, strict=False):
        assert new.time == pytest.approx(old.time - wanted[0].time, abs=2e-3)
        lost = np.abs(new.pixels.astype(int) - old.pixels).mean()
        assert lost < (0.5 if how == "copied" else 8)
    if how == "encoded" or not options.get("bf"):
        assert len(shown) == len(wanted)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_times_are_the_files_own_and_sound_comes_along(tmp_path, suffix):
    plain = clips.encode(tmp_path / "plain.mp4", options=clips.X264)
    video = clips.with_early_sound(plain, tmp_path / f"a.{suffix}", lead_s=0.48)
    made, how = cut_to(video, tmp_path, 1.0, 2.0)
    with FileSource(str(video), "clip", Sampling()) as source:
        lead_s = source.start_time  # in MPEG-TS the codec's 64 ms of priming are played, too
    assert lead_s == pytest.approx(0.48 + 0.064 * (suffix == "ts"), abs=2e-3)
    wanted, shown = frames(plain, 1.0 - lead_s, 2.0 - lead_s), frames(made)
    assert frames(video, 1.0, 2.0)[0].time == pytest.approx(wanted[0].time + lead_s, abs=2e-3)
    assert how == "copied"
    np.testing.assert_allclose(shown[0].pixels, wanted[0].pixels, atol=2)
    with av.open(str(made)) as container:
        (sound,) = container.streams.audio
        length = float(sound.duration * sound.time_base)
        assert length == pytest.approx(1.0, abs=0.1)


def test_of_several_sounds_the_first_comes_along(tmp_path):
    plain, low = (
        clapper(tmp_path / f"{rate}.mp4", rate=rate, seconds=3) for rate in (16_000, 8_000)
    )
    made, _ = cut_to(with_sounds(tmp_path / "two.mp4", plain, low), tmp_path, 1.0, 2.0)
    with av.open(str(made)) as container:
        assert [sound.rate for sound in container.streams.audio] == [16_000]
    made, _ = cut_to(with_sounds(tmp_path / "two.mp4", low, plain), tmp_path, 1.0, 2.0)
    with av.open(str(made)) as container:
        assert [sound.rate for sound in container.streams.audio] == [8_000]


def test_a_turned_video_stays_turned(tmp_path):
    plain = clips.encode(tmp_path / "plain.mp4", options=clips.X264)
    video = clips.turned(plain, tmp_path / "a.mp4", (0, 1, -1, 0))
    made, _ = cut_to(video, tmp_path, 0.5, 1.0)
    assert frames(made)[0].pixels.shape == frames(video)[0].pixels.shape == (64, 48, 3)


@pytest.mark.parametrize("span", [(-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.0, MAX_COPIED_S + 1)])
def test_a_span_that_cannot_be_meant_is_refused(tmp_path, span):
    video = clips.encode(tmp_path / "a.mp4")
    with pytest.raises(ConfigError):
        cut(video, *span, io.BytesIO())


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_a_span_without_pictures_is_refused(tmp_path, suffix):
    codec = KINDS[suffix][0]
    video = clips.encode(tmp_path / f"a.{suffix}", codec)
    with pytest.raises(SourceError, match="no frame from 50 s"):
        cut(video, 50.0, 60.0, io.BytesIO())


def test_what_must_be_encoded_may_last_less(tmp_path):
    video = clips.encode(tmp_path / "a.avi", "mpeg4")
    with pytest.raises(ConfigError, match="30 s"):
        cut(video, 0.0, MAX_ENCODED_S + 1, io.BytesIO())


def test_what_is_no_video_is_refused_by_its_name_for_clients(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    with pytest.raises(SourceError) as refused:
        cut(tmp_path / "a.mp4", 0.0, 1.0, io.BytesIO(), "video")
    assert str(tmp_path) not in str(refused.value)
