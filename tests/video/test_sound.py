"""Sound keeps the clock of the pictures that it came with, whatever the stream does."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Discard

from benchmarks.rtsp_server import SOUND_HZ, RtspCamera, encode
from streammem.audio.recogniser import SoundLine
from streammem.audio.scene_sound import SoundWindow
from streammem.errors import SourceError
from streammem.video import open_source
from streammem.video import sound as sound_of
from streammem.video.clock import StreamClock
from streammem.video.sound import (
    HELD_S,
    SOUND_RATE,
    SoundBeside,
    SoundOfParts,
    choose_sound,
    file_sound,
)
from streammem.video.source import Sampling
from tests.audio.clapper import clapper, clicks, live, with_sounds
from tests.models.heard import noise, write_film
from tests.video.servers import serving

TOLERANCE_S = 0.05  # AAC's blocks are 0.023 s at 44.1 kHz, and 0.064 s at 16 kHz blur a click
WRAP_S = 2**33 / 90_000


def seen_and_heard(source):
    """Read a live source; return the times of its white pictures and of its clicks."""
    sound = []
    source.on_sound = lambda time, samples: sound.append((time, samples))
    frames = list(source)
    flashes = [frame.time for frame in frames if frame.pixels.mean() > 200]
    assert all(samples.dtype == np.float32 and samples.ndim == 1 for _, samples in sound)
    return flashes, clicks(sound), frames


def together(flashes, heard):
    return len(heard) == len(flashes) and np.allclose(flashes, heard, atol=TOLERANCE_S)


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"codec": "mp2", "rate": 48_000, "layout": "stereo"},
        {"rate": 8_000},
        {"rate": 48_000, "layout": "5.1"},
        {"first_s": WRAP_S - 2.5},  # the stamps begin again at 0 in the middle
        {"first_s": 40_000.0},
    ],
    ids=lambda made: " ".join(f"{k}={v}" for k, v in made.items()) or "plain",
)
@pytest.mark.parametrize("sparse", [False, True])
def test_sound_beside_the_pictures_is_on_their_clock(tmp_path, made, sparse):
    path = clapper(tmp_path / "clap.ts", **made)
    flashes, heard, _ = seen_and_heard(live([path], Sampling(sparse=sparse)))
    # The first click may lie before the first picture, at which time begins.
    assert together(flashes[-len(heard) :], heard) and len(flashes) - len(heard) in (0, 1)


@pytest.mark.heavy  # real time
def test_a_camera_over_rtsp_is_heard_beside_its_pictures_again_after_it_was_lost():
    level = [255 if number % 10 == 0 else 20 for number in range(20)]
    units = encode([np.full((48, 64, 3), one, np.uint8) for one in level], fps=10)
    sound = np.zeros(2 * SOUND_HZ, np.float32)
    sound[:400] = sound[SOUND_HZ : SOUND_HZ + 400] = 0.6
    heard, flashes = [], []
    with RtspCamera(units, sound=sound, speed=2.0) as camera:
        source = open_source(camera.url, reconnect=True)
        source.on_sound = lambda time, samples: heard.append((time, samples))
        with source:
            for frame in source:
                flashes += [frame.time] * bool(frame.pixels.mean() > 200)
                if len(flashes) == 5 and camera.num_connections == 1:
                    camera.drop()
                if len(flashes) == 10:
                    break
            source.stop()
    assert camera.num_connections == 2
    found = clicks(heard)
    assert len(found) >= 7
    # Each is sent when its last sample is there; a picture when it is first shown.
    assert max(min(abs(click - at) for at in flashes) for click in found[:-1]) < 0.15


def test_late_sound_begins_where_it_comes(tmp_path):
    path = clapper(tmp_path / "clap.ts", late_s=3)
    flashes, heard, _ = seen_and_heard(live([path], Sampling()))
    assert together(flashes[3:], heard)


@pytest.mark.parametrize("real_time", [False, True])
def test_a_lost_connection_keeps_one_clock(tmp_path, real_time):
    paths = [
        clapper(tmp_path / f"{number}.ts", first_s=first, bias=40 * number, seconds=4, **made)
        for number, (first, made) in enumerate(
            [(7.0, {}), (90_000.0, {"rate": 48_000, "layout": "stereo"}), (0.5, {"sound": False}),
             (3.0, {"rate": 8_000})]
        )
    ]  # fmt: skip
    source = live(paths, Sampling(), real_time=real_time)
    flashes, heard, _ = seen_and_heard(source)
    assert len(flashes) == 16 and flashes == sorted(flashes)
    wanted = [flash for number, flash in enumerate(flashes) if not 8 <= number < 12]
    missing = [at for at in wanted if min(abs(at - click) for click in heard) > TOLERANCE_S]
    assert len(missing) <= 3  # of each connection the first, which may precede its first picture
    assert all(min(abs(at - click) for at in wanted) <= TOLERANCE_S for click in heard)
    assert [n for n in source.notices if "no sound" in n] == [
        "camera: has no sound; nothing is heard"
    ]


class Decoded:
    """Takes what is decoded already: (stamp, samples)."""

    def __init__(self, stream=None):
        pass

    def decode(self, packet):
        return [packet]


@pytest.fixture
def beside(monkeypatch):
    """A clock of pictures, and the sound that comes beside them with its places."""
    monkeypatch.setattr(sound_of, "SoundDecoder", Decoded)
    clock, heard = StreamClock(), []
    return clock, SoundBeside(clock, lambda time, samples: heard.append((time, samples))), heard


def picture(clock, at, arrived, stamp=None):
    ticks = round((at if stamp is None else stamp) * 90_000) % 2**33
    clock.place(ticks, Fraction(1, 90_000), 0.1, arrived)


BLOCK = np.ones(SOUND_RATE // 10, np.float32)


def test_sound_whose_stamps_have_nothing_in_common_with_the_pictures_counts_from_when_it_came(
    beside,
):
    clock, sound, heard = beside
    clock.connect(33)
    sound.connect(None)
    for number in range(600):
        picture(clock, number / 10, number / 10)
        sound.push((5000 + number / 10, BLOCK), number / 10)
    assert len(heard) == 600
    apart = [time - number / 10 for number, (time, _) in enumerate(heard)]
    assert max(apart) - min(apart) < 1e-6 and abs(apart[0]) < 0.2


def test_where_the_clock_of_a_camera_jumps_sound_goes_with_its_own_pictures(beside):
    clock, sound, heard = beside
    clock.connect(33)
    sound.connect(None)
    for number in range(200):  # at 10 s it is set back to 3 s; sound comes 0.5 s after its picture
        seen = number / 10 if number < 100 else 3 + (number - 100) / 10
        picture(clock, seen, number / 10)
        said = number - 5
        if said >= 0:
            stamp = said / 10 if said < 100 else 3 + (said - 100) / 10
            sound.push((stamp, BLOCK), number / 10)
    assert [round(time, 3) for time, _ in heard] == [round(k / 10, 3) for k in range(195)]


def test_sound_before_the_first_picture_of_a_connection_waits_within_bounds(beside):
    clock, sound, heard = beside
    clock.connect(33)
    sound.connect(None)
    for number in range(3000):
        sound.push((number / 10, BLOCK), number / 10)
    assert heard == [] and sound._held_samples <= HELD_S * SOUND_RATE
    picture(clock, 0, 300.0, stamp=299.0)
    sound.push((300.0, BLOCK), 300.0)
    assert [round(time, 3) for time, _ in heard] == [round(k / 10, 3) for k in range(11)]


@pytest.mark.parametrize("wrap_s", [None, 1800.0])
@pytest.mark.parametrize("ppm", [-300, 300])
def test_an_hour_of_sound_stays_within_a_tenth_of_a_second_of_its_pictures(beside, ppm, wrap_s):
    clock, sound, heard = beside
    clock.connect(33)
    sound.connect(None)
    line, worst = SoundLine(), 0.0
    first = 0.0 if wrap_s is None else WRAP_S - wrap_s
    jitter = np.random.default_rng(1).uniform(-0.02, 0.02, 3600)
    block = np.zeros(round(SOUND_RATE * (1 + ppm * 1e-6)), np.float32)  # a card that is not exact
    for second in range(3600):
        picture(clock, second, second, stamp=first + second)
        sound.push(((first + second + jitter[second]) % WRAP_S, block), second)
        while heard:
            line.push(*heard.pop(0))
            # The sound of this second ends where the line does, whatever came before.
            worst = max(worst, abs(line.end - (second + 1)))
        line.take(len(line))
    assert worst < 0.15


@pytest.mark.parametrize("sampling", [{}, {"fps": 2.0}, {"sparse": True}, {"fps": 1.0, "end": 4.0}])
def test_frames_are_the_same_with_and_without_sound(tmp_path, sampling):
    paths = [clapper(tmp_path / f"{k}.ts", seconds=3, first_s=5.0 * k) for k in range(2)]
    without = list(live(paths, Sampling(**sampling)))
    *_, frames = seen_and_heard(live(paths, Sampling(**sampling)))
    assert len(frames) == len(without) > 3
    for one, other in zip(frames, without, strict=True):
        assert (one.time, one.duration, one.index) == (other.time, other.duration, other.index)
        assert np.array_equal(one.pixels, other.pixels)


def test_a_list_of_films_is_heard_on_the_clock_of_the_whole(tmp_path):
    made = [{"late_s": 1}, {"sound": False}, {"rate": 8_000}]
    for number, options in enumerate(made):
        clapper(tmp_path / f"{number}.mp4", seconds=3, **options)
    (tmp_path / "list.txt").write_text("0.mp4\n1.mp4\n2.mp4\n")
    with open_source(f"concat:{tmp_path / 'list.txt'}") as source:
        sound, again = source.sound_pass(), source.sound_pass()
        flashes = [frame.time for frame in source if frame.pixels.mean() > 200]
        heard = clicks(list(sound))
        assert clicks(list(again)) == heard
        assert any("1.mp4: has no sound" in notice for notice in source.notices)
    assert together([*flashes[1:3], *flashes[6:]], heard)


def test_films_without_any_sound_are_told_once(tmp_path):
    clapper(tmp_path / "mute.mp4", seconds=1, sound=False)
    (tmp_path / "list.txt").write_text("mute.mp4\nmute.mp4\n")
    with open_source(f"concat:{tmp_path / 'list.txt'}") as source:
        sound = source.sound_pass()
        list(source)
        with pytest.raises(SourceError, match="has no sound"):
            list(sound)


def test_a_growing_folder_is_heard_where_its_videos_stand(tmp_path):
    for number in range(2):
        clapper(tmp_path / f"{number}.mp4", seconds=3)
    with open_source(f"growing:{tmp_path}") as source:
        sound = source.sound_pass()
        flashes = [frame.time for frame in source if frame.pixels.mean() > 200]
        assert together(flashes, clicks(list(sound)))


# Seconds of sound beside pictures of 2 s: longer, shorter, by less and by more than what is
# forgiven within a recording.
LENGTHS = (2.03, 1.95, 1.97, None, 2.6, 1.2, 2.0, 2.09, 2.0)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of films whose sound is longer or shorter than their pictures; what is heard."""
    folder, heard = tmp_path_factory.mktemp("recordings"), []
    for number, length in enumerate(LENGTHS):
        sound = None if length is None else noise(length, seed=number)
        path = write_film(folder / f"{number}.mkv", seconds=2.0, sound=sound)
        os.utime(path, (1e9 + 2 * number,) * 2)  # each is written while it is shown
        whole = np.zeros(2 * SOUND_RATE, np.float32)
        if sound is not None:
            whole[: min(sound.shape[1], len(whole))] = sound[0, : len(whole)]
        heard.append(whole)
    (folder / "list.txt").write_text("\n".join(f"{n}.mkv" for n in range(len(LENGTHS))))
    return folder, np.concatenate(heard)


def pulled_first(source, sound):
    """Ask for sound again and again, and read on only where there is none yet."""
    frames, pieces = iter(source), []
    for piece in sound:
        if len(piece[1]):
            pieces.append(piece)
        else:
            next(frames, None)
    assert not list(frames)
    return iter(pieces)


def pictures_first(source, sound):
    list(source)
    return sound


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("growing", pulled_first),
        pytest.param("growing", pictures_first, marks=pytest.mark.heavy),
        pytest.param("concat", pulled_first, marks=pytest.mark.heavy),
        pytest.param("concat", pictures_first, marks=pytest.mark.heavy),
    ],
)
def test_joined_recordings_are_heard_to_the_sample_where_their_pictures_stand(
    recordings, kind, read
):
    folder, expected = recordings
    spec = f"concat:{folder / 'list.txt'}" if kind == "concat" else f"growing:{folder}"
    with open_source(spec, fps=2.0) as source:
        window = SoundWindow(read(source, source.sound_pass()), pytest.fail)
        found = window.read(0.0, 2.0 * len(LENGTHS))
        assert source.end == 2.0 * len(LENGTHS)  # also where most pictures are left out
    np.testing.assert_allclose(found, expected, atol=1e-4)  # what was written has 16 bits


def test_one_channel_of_joined_recordings_is_heard_where_asked(tmp_path):
    both = np.vstack([noise(1.0, seed=1), noise(1.0, seed=2)])
    write_film(tmp_path / "0.mkv", seconds=1.0, sound=both, layout="stereo")
    with open_source(f"growing:{tmp_path}") as source:
        sound = source.sound_pass(first_channel=True)
        list(source)
        heard = np.concatenate([samples for _, samples in sound])
    np.testing.assert_allclose(heard, both[0], atol=1e-4)


class Unseen:
    """A whole, or a part of it, without pictures."""

    end, stopping, is_closed = None, False, False

    def __init__(self, seconds=0.0, drift=0.0):
        self.notices, self.seconds, self.stamped = [], seconds, (1 + drift) / SOUND_RATE

    def sound_pass(self, *, first_channel=False):
        samples = np.arange(round(self.seconds * SOUND_RATE), dtype=np.float32)
        return ((at * self.stamped, samples[at : at + 1000]) for at in range(0, len(samples), 1000))


def test_a_recording_that_went_on_is_heard_once_even_if_it_is_read_late():
    whole = Unseen()
    parts = SoundOfParts(whole)
    parts.add(10.0, Unseen(5.0))  # of which 3.33 s were there, and their pictures shown
    parts.add(10.0, Unseen(5.0), after=3.33)
    whole.end = 15.0
    found = SoundWindow(parts.sound(), pytest.fail).read(10.0, 20.0)
    np.testing.assert_array_equal(found, np.arange(5 * SOUND_RATE))


def test_stamps_that_drift_in_a_recording_do_not_shift_the_next_one():
    whole = Unseen()
    parts = SoundOfParts(whole)
    parts.add(0.0, Unseen(2.0, drift=0.01))
    parts.add(2.05, Unseen(1.0))
    whole.end = 3.05
    found = SoundWindow(parts.sound(), pytest.fail).read(0.0, 4.0)
    np.testing.assert_array_equal(found[round(2.05 * SOUND_RATE) :], np.arange(SOUND_RATE))


def test_the_sound_of_a_url_is_read_by_its_own_pass(tmp_path):
    clapper(tmp_path / "clap.mp4")
    with serving(tmp_path) as url, open_source(f"{url}/clap.mp4") as source:
        assert source.sound_apart and not source.sound_beside
        heard = clicks(list(source.sound_pass()))
        flashes = [frame.time for frame in source if frame.pixels.mean() > 200]
    assert together(flashes, heard)


def test_recordings_in_one_file_are_heard_one_after_another(tmp_path):
    parts = [
        clapper(tmp_path / f"{k}.ts", seconds=3, first_s=900.0 * k).read_bytes() for k in (1, 2)
    ]
    (tmp_path / "two.ts").write_bytes(b"".join(parts))
    heard = clicks(list(file_sound(tmp_path / "two.ts", "two.ts")))
    with open_source(tmp_path / "two.ts") as source:
        flashes = [frame.time for frame in source if frame.pixels.mean() > 200]
    assert len(heard) == len(flashes) == 6
    assert np.allclose(flashes, heard, atol=0.3)  # of each join, what sound and pictures differ by


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("default", [None, 0, 1, 2])
def test_of_several_sounds_the_default_one_is_heard_and_the_first_of_equals(
    tmp_path, default, suffix
):
    late = (0.2, 0.4, 0.6)
    tracks = [clapper(tmp_path / f"{k}.mp4", apart_s=at) for k, at in enumerate(late)]
    path = with_sounds(tmp_path / f"three{suffix}", *tracks, default=default)
    heard = clicks(list(file_sound(path, "three")))
    assert np.allclose(heard, np.arange(6) + late[default or 0], atol=TOLERANCE_S)


def test_where_the_best_sound_is_left_out_the_first_of_the_others_is_chosen(tmp_path):
    one = clapper(tmp_path / "one.mp4", seconds=2)
    with av.open(str(with_sounds(tmp_path / "three.mkv", one, one, one))) as container:
        best, *others = container.streams.audio
        best.discard = Discard.all  # as what belongs to another variant of an HLS playlist
        assert choose_sound(container, container.streams.video[0]) is others[0]
        assert [other.discard == Discard.all for other in others] == [False, True]


def test_a_source_that_can_have_no_sound_says_so(tmp_path):
    with open_source(iter([np.zeros((8, 8, 3), np.uint8)])) as source:
        assert not source.sound_beside and not source.sound_apart and source.sound_pass() is None


def test_damaged_sound_is_left_out_and_the_rest_keeps_its_place(tmp_path):
    path = clapper(tmp_path / "clap.mkv", codec="pcm_s16le")
    whole = clicks(list(file_sound(path, "clap")))
    spoiled = bytearray(path.read_bytes())
    spoiled[len(spoiled) // 2 : len(spoiled) // 2 + 4000] = bytes(4000)
    path.write_bytes(spoiled)
    heard = clicks(list(file_sound(path, "clap")))
    assert len(heard) >= 4 and all(min(abs(at - one) for one in whole) < 0.03 for at in heard)
    assert sum(len(s) for _, s in file_sound(path, "clap")) <= 6 * SOUND_RATE + 2000
