"""A folder that a recorder adds to: each file once, when it is complete, at its own time."""

import os
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from streammem.errors import SourceError
from streammem.video import open_source
from streammem.video.growing import GrowingFolder
from streammem.video.live_source import Time
from streammem.video.source import Sampling
from tests.tiny import moving_square
from tests.video.servers import write_stream

NOON = 1_700_000_000.0


@dataclass
class Recorder:
    """What adds files; a second passes while the source waits for a twentieth."""

    steps: dict
    seconds: float = 0.0

    def sleep(self, seconds):
        self.seconds += 1.0
        for at in [at for at in self.steps if at <= self.seconds]:
            self.steps.pop(at)()

    def as_time(self):
        return Time(lambda: self.seconds, lambda: NOON + self.seconds, self.sleep)


def save(folder, name, number, changed):
    path = folder / name
    Image.fromarray(moving_square("red", number)).save(path)
    os.utime(path, (NOON + changed, NOON + changed))


def test_pictures_come_in_the_order_in_which_they_were_made_each_once(tmp_path):
    for name, changed in (("z.png", 0.0), ("a.png", 5.0), ("m.png", 9.0)):
        save(tmp_path, name, round(changed), changed)
    source = open_source(f"growing:{tmp_path}")
    frames = list(source)
    assert [f.time for f in frames] == [0.0, 5.0, 9.0]
    for frame in frames:
        assert np.array_equal(frame.pixels, moving_square("red", round(frame.time)))


def test_without_waiting_all_that_is_there_is_read_but_what_is_hidden_or_empty(tmp_path):
    for name in ("a.png", ".part.png"):
        Image.fromarray(moving_square("red", 0)).save(tmp_path / name)  # just now
    (tmp_path / "empty.png").touch()
    source = open_source(f"growing:{tmp_path}")
    assert len(list(source)) == 1 and not source.notices


def test_stopping_an_empty_folder_is_no_error(tmp_path):
    recorder = Recorder({2.0: lambda: source.stop()})
    source = GrowingFolder(tmp_path, Sampling(), recorder.as_time())
    source.reconnect = True
    assert list(source) == []


def test_what_comes_later_is_waited_for_and_what_is_still_written_is_left_alone(tmp_path):
    save(tmp_path, "a.png", 0, -10.0)
    read_at = []
    steps = {
        3.0: lambda: save(tmp_path, "b.png", 3, 3.0),
        20.0: lambda: (tmp_path / "c.png").write_bytes(b""),  # nothing is in it yet
        30.0: lambda: save(tmp_path, "c.png", 30, 30.0),
    }
    recorder = Recorder(steps)
    source = GrowingFolder(tmp_path, Sampling(), recorder.as_time())
    source.reconnect = True
    times = []
    for frame in source:
        times.append(frame.time)
        read_at.append(recorder.seconds)
        if len(times) == 3:
            source.stop()
    assert times == [0.0, 13.0, 40.0]
    assert 5.0 <= read_at[1] <= 8.0 and 32.0 <= read_at[2] <= 35.0  # complete after two seconds
    assert source.wall_zero == NOON - 10.0


def test_videos_of_a_recording_that_goes_on_join_and_a_gap_stays(tmp_path):
    pictures = [moving_square("red", k, 64, 48) for k in range(50)]
    for name, ends in (("a.ts", 2.0), ("b.ts", 4.5), ("c.ts", 60.0)):
        os.utime(write_stream(tmp_path / name, pictures), (NOON + ends, NOON + ends))
    source = open_source(f"growing:{tmp_path}")
    frames = list(source)
    times = [f.time for f in frames]
    assert source.wall_zero == pytest.approx(NOON, abs=0.1)  # the first began there
    assert [f.index for f in frames] == list(range(150))
    assert times[:100] == pytest.approx([k * 0.04 for k in range(100)])  # no seam
    assert times[100:] == pytest.approx([58.0 + k * 0.04 for k in range(50)], abs=0.1)


def test_a_picture_behind_videos_that_ran_late_does_not_go_back(tmp_path):
    pictures = [moving_square("red", k, 64, 48) for k in range(50)]
    for name, ends in (("a.ts", 2.0), ("b.ts", 2.2)):
        os.utime(write_stream(tmp_path / name, pictures), (NOON + ends, NOON + ends))
    save(tmp_path, "c.png", 0, 3.0)
    times = [f.time for f in open_source(f"growing:{tmp_path}")]
    assert times == sorted(times) and times[-1] == times[-2]


def test_a_broken_file_is_told_and_the_next_is_read(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    os.utime(tmp_path / "a.png", (NOON, NOON))
    save(tmp_path, "b.png", 1, 1.0)
    source = open_source(f"growing:{tmp_path}")
    assert len(list(source)) == 1
    assert "a.png" in source.notices[0]


def test_a_folder_that_is_not_there_says_what_to_write(tmp_path):
    with pytest.raises(SourceError, match="growing:FOLDER"):
        open_source(f"growing:{tmp_path / 'nowhere'}")


# -- each file once, whatever its date --


def followed(tmp_path, recorder, count, seconds=60.0):
    """Follow the folder for some seconds; return the frames and the source."""
    recorder.steps[seconds] = lambda: source.stop()
    source = GrowingFolder(tmp_path, Sampling(), recorder.as_time())
    source.reconnect = True
    frames = list(source)
    assert len(frames) == count, [frame.time for frame in frames]
    assert [f.time for f in frames] == sorted(f.time for f in frames)
    return frames, source


def test_a_file_that_is_moved_in_with_an_older_date_is_read(tmp_path):
    save(tmp_path, "a.png", 0, 0.0)
    recorder = Recorder({10.0: lambda: save(tmp_path, "old.png", 1, -3600.0)})
    frames, _ = followed(tmp_path, recorder, 2)
    assert np.array_equal(frames[1].pixels, moving_square("red", 1))


def test_a_file_that_is_touched_or_renamed_is_not_read_again(tmp_path):
    write_stream(tmp_path / "a.ts", [moving_square("red", k, 64, 48) for k in range(50)])
    os.utime(tmp_path / "a.ts", (NOON, NOON))
    save(tmp_path, "b.png", 0, 1.0)
    recorder = Recorder(
        {
            10.0: lambda: os.utime(tmp_path / "a.ts", (NOON + 10, NOON + 10)),
            11.0: lambda: os.utime(tmp_path / "b.png", (NOON + 11, NOON + 11)),
            20.0: lambda: (tmp_path / "a.ts").rename(tmp_path / "c.ts"),
        }
    )
    followed(tmp_path, recorder, 51)


def test_a_picture_that_is_written_over_is_read_again(tmp_path):
    save(tmp_path, "now.png", 0, 0.0)
    recorder = Recorder({10.0: lambda: save(tmp_path, "now.png", 1, 10.0)})
    frames, _ = followed(tmp_path, recorder, 2)
    assert [frame.time for frame in frames] == [0.0, 10.0]


def test_a_recorder_that_pauses_is_read_on_where_it_was_left(tmp_path):
    pictures = [moving_square("red", k, 64, 48) for k in range(100)]
    whole = write_stream(tmp_path / "whole", pictures, gop=10).read_bytes()
    path = tmp_path / "a.ts"

    def add(begin, end, changed):
        with path.open("ab") as file:
            file.write(whole[begin:end])
        os.utime(path, (NOON + changed, NOON + changed))

    half = len(whole) // 2 // 188 * 188
    add(0, half, 0.0)
    recorder = Recorder({10.0: lambda: add(half, len(whole), 10.0)})
    frames, _ = followed(tmp_path, recorder, 100)
    times = [frame.time for frame in frames]
    assert times == pytest.approx([times[0] + k * 0.04 for k in range(100)])


def test_a_file_that_could_not_be_read_is_tried_again_when_it_is_whole(tmp_path):
    save(tmp_path, "a.png", 0, 0.0)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:60])
    os.utime(tmp_path / "a.png", (NOON, NOON))

    def complete():
        (tmp_path / "a.png").write_bytes(whole)
        os.utime(tmp_path / "a.png", (NOON + 10, NOON + 10))

    _, source = followed(tmp_path, Recorder({10.0: complete}), 1)
    assert len(source.notices) == 1


def test_a_file_dated_ahead_is_read_when_it_comes_and_that_is_told(tmp_path):
    save(tmp_path, "a.png", 0, 0.0)
    recorder = Recorder(
        {
            10.0: lambda: save(tmp_path, "ahead.png", 1, 10_000.0),
            20.0: lambda: save(tmp_path, "b.png", 2, 20.0),
        }
    )
    frames, source = followed(tmp_path, recorder, 3)
    assert 10 <= frames[1].time <= 15 and frames[2].time == 20
    assert len(source.notices) == 1 and "ahead.png" in source.notices[0]


def test_a_share_that_is_gone_is_told_once_and_nothing_is_read_again(tmp_path):
    folder, away = tmp_path / "share", tmp_path / "away"
    folder.mkdir()
    save(folder, "a.png", 0, 0.0)
    recorder = Recorder({5.0: lambda: folder.rename(away), 30.0: lambda: away.rename(folder)})
    _, source = followed(folder, recorder, 1)
    assert len(source.notices) == 1 and "no such file" in source.notices[0]
