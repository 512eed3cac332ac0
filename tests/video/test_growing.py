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
