"""A live source: pictures as they come, over stalls and lost connections, in one stream of time.

Which address is opened how stands in `cameras.py`; the threads that keep it from being waited for
stand above.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from io import IOBase

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from streammem.errors import SourceError
from streammem.types import Frame
from streammem.video.clock import StreamClock, follow_wall
from streammem.video.container import READ_TIMEOUT_S, error_text
from streammem.video.pixels import RgbConverter, check_size
from streammem.video.sound import SoundBeside, choose_sound
from streammem.video.source import Grid, Sampling, VideoSource

log = logging.getLogger(__name__)

STALL_S = READ_TIMEOUT_S  # without any data: the connection is given up
NO_PICTURE_S = 60.0  # data, but nothing that can be decoded
# Keyframes without a good picture, after which the decoder is taken to be the wrong one: a stream
# that changes its codec goes on under the old one's name until it is opened again.
LOST_KEYFRAMES = 6
DAMAGED_OF, DAMAGED_SHARE = 50, 0.2  # of so many pictures in a row; above that share it is reported
BACK_OFF_S = (0.5, 30.0)  # before the first and, doubling, before any later attempt
WAIT_SLICE_S = 0.05
# After so many bits the stamps of a container begin again.
_WRAP_BITS = {"mpegts": 33, "hls": 33, "rtsp": 32}
FRAME_S = 0.04  # where a picture states no duration and the stream no rate


@dataclass(frozen=True, slots=True)
class Time:
    """What passes while one waits; tests pass it faster.

    Attributes:
        now: seconds on a clock that never jumps.
        wall: Unix seconds.
        sleep: waits.
    """

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


REAL_TIME = Time()


@dataclass(frozen=True, slots=True)
class Connection:
    """What a live source is read from.

    Attributes:
        file: what the container reads from, if that must be closed too.
    """

    container: InputContainer
    stream: VideoStream
    file: IOBase | None = None

    def close(self) -> None:
        """Release it."""
        self.container.close()
        if self.file:
            self.file.close()


@dataclass(frozen=True, slots=True)
class Feed:
    """What a kind of live source needs and promises.

    Attributes:
        name: what evidence calls it: without credentials.
        open: connects, or raises ``SourceError``; it is given a function that returns whether to
            give up. Reads of the connection return or raise within STALL_S.
        live: pictures come when they are taken; one that is not taken then is lost.
        resumes: reading goes on after a time-out, which comes every second or so.
        again: it can be opened again, as standard input cannot.
        has_sound: it may have sound, as a screen never has.
        otherwise: connects in another way, at once where the data of a connection cannot be read;
            from then on instead of ``open``. None where there is no other way.
    """

    name: str
    open: Callable[[Callable[[], bool]], Connection]
    live: bool = True
    resumes: bool = False
    again: bool = True
    has_sound: bool = True
    otherwise: Callable[[Callable[[], bool]], Connection] | None = None


class LiveSource(VideoSource):
    """Pictures of a camera, a screen or a pipe.

    Damaged pictures are left out. A lost or stalled connection ends the pass; with ``reconnect``
    it is made again instead, for ever, after ever longer waits of which a random half keeps many
    sources from coming back at once. Resolution and codec may be others then.

    Args:
        feed: opened at once, so that a wrong address raises at the call.
        sampling: ``fps`` samples the stream's time; ``sparse`` takes keyframes only.
        passing: clocks.
        opened: the first connection, if it is there already.

    Raises:
        SourceError: it cannot be opened, or has no video.
    """

    def __init__(
        self,
        feed: Feed,
        sampling: Sampling,
        passing: Time = REAL_TIME,
        opened: Connection | None = None,
    ) -> None:
        super().__init__(feed.name, sampling, duration=None)
        self.live, self.sound_beside = feed.live, feed.has_sound
        self._feed, self._passing = feed, passing
        self._clock = StreamClock(real_time=feed.live)
        self._index, self._num_given = -1, 0
        self._shown_at = 0.0  # stream time of the last picture
        self._grid: Grid | None = None
        self._unreadable = False  # whether the last connection gave data that mean nothing
        self._recent: deque[bool] = deque(maxlen=DAMAGED_OF)  # whether pictures were damaged
        self._damage_reported = False
        self._sound: SoundBeside | None = None
        self._sound_stream: AudioStream | None = None  # of the connection
        self._is_mute = False  # whether it was reported that there is no sound
        self._told = ""  # why it could not be opened again, as it was reported
        self._opened: Connection | None = opened or feed.open(self._is_stopping)

    def _release(self) -> None:
        if self._opened:
            self._opened.close()
            self._opened = None

    def _frames(self) -> Iterator[Frame]:
        while True:
            before = self._index
            lost = yield from self._connection()
            self._release()
            if self._unreadable and self._feed.otherwise and not self.stopping:
                self._feed = replace(self._feed, open=self._feed.otherwise, otherwise=None)
                try:
                    self._opened = self._feed.open(self._is_stopping)
                    continue
                except SourceError as error:
                    if not self._num_given:
                        raise
                    lost = str(error)
            if self._at_end or self.stopping or not (self.reconnect and self._feed.again):
                break
            self._reconnect(lost or "ended", patient=self._index == before)
            if self.stopping:
                break
        missing = None
        if lost and not (self._at_end or self.stopping):
            missing = f"connection lost ({lost}); `streammem watch` would get it back"
        self._finish(self._clock.end, self._num_given or self.stopping, missing)

    def _is_stopping(self) -> bool:
        return self.stopping

    @property
    def _at_end(self) -> bool:
        return self._grid is not None and self._grid.is_past(self._clock.end)

    def _connection(self) -> Generator[Frame, None, str | None]:
        """Give the frames of one connection; return why it was lost, None where it ended."""
        assert self._opened is not None
        stream = self._opened.stream
        self._grid = self._grid or Grid(self._sampling, tick=float(_tick(stream)))
        if self._sampling.sparse:
            stream.codec_context.skip_frame = "NONKEY"
        form = self._opened.container.format.name.split(",")[0]
        is_counter = form == "mpjpeg" and self.live
        self.text_clock = None
        self._clock.connect(0 if is_counter else _WRAP_BITS.get(form, 64))
        self._listen(self._opened.container, stream)
        to_rgb: RgbConverter | None = None
        pictures = self._pictures(self._opened.container, stream)
        while True:
            try:
                picture = next(pictures)
            except StopIteration as ended:
                reason: str | None = ended.value
                return reason
            to_rgb = to_rgb or self._connected(picture, stream)
            time, duration = self._place(picture, stream)
            if self._grid.is_past(time):
                return None
            if self._grid.takes(time):
                check_size(self.name, picture.width, picture.height)
                self._num_given += 1
                yield Frame(to_rgb(picture), time, duration, self._index)

    def _listen(self, container: InputContainer, stream: VideoStream) -> None:
        """Read the sound of a connection, too, where it is wanted and there is some."""
        self._sound_stream = choose_sound(container, stream) if self.on_sound else None
        if self._sound_stream:
            self._sound = self._sound or SoundBeside(self._clock, self._hear)
            self._sound.connect(self._sound_stream)
            self._is_mute = False
        elif self.on_sound and not self._is_mute:
            self._is_mute = True
            self.notices.append(f"{self.name}: has no sound; nothing is heard")

    def _hear(self, time: float, samples: np.ndarray) -> None:
        if self.on_sound:
            self.on_sound(time, samples)

    def _connected(self, picture: av.VideoFrame, stream: VideoStream) -> RgbConverter:
        if self.num_connections:
            self.notices.append(f"{self.name}: the picture is back")
            log.info("%s", self.notices[-1])
        self.num_connections += 1
        self.wall_zero = None
        aspect = stream.sample_aspect_ratio
        return RgbConverter(picture, self._sampling.max_side, aspect)

    def _place(self, picture: av.VideoFrame, stream: VideoStream) -> tuple[float, float]:
        """Return a picture's time and duration in seconds."""
        duration = _duration(picture, stream)
        time = self._clock.place(picture.pts, _tick(stream), duration, self._passing.now())
        self._index += 1
        if self.playlist is not None and picture.pts is not None:
            self.text_clock = float(picture.pts * _tick(stream)), time
        if self.wall_zero is None:
            self.wall_zero = self._passing.wall() - time
        elif self.live:
            step_s = time - self._shown_at
            self.wall_zero = follow_wall(self.wall_zero, time, step_s, self._passing.wall())
        self._shown_at = time
        return time, duration

    def _pictures(
        self, container: InputContainer, stream: VideoStream
    ) -> Generator[av.VideoFrame, None, str | None]:
        """Give the good pictures until data ends (None) or is lost (why)."""
        last_data = last_picture = self._passing.now()
        num_lost, self._unreadable = 0, False
        read = [stream, self._sound_stream] if self._sound_stream else [stream]
        while not self.stopping:
            try:
                for packet in container.demux(*read):
                    last_data = self._passing.now()
                    if packet.stream_index != stream.index:
                        if self._sound and packet.size:
                            self._sound.push(packet, last_data)
                    else:
                        if self._sampling.sparse and packet.size:
                            self._track(packet, stream, last_data)
                        pictures = self._decoded(stream, packet)
                        yield from pictures
                        last_picture = last_data if pictures else last_picture
                        num_lost = 0 if pictures else num_lost + packet.is_keyframe
                    blank_s = last_data - last_picture
                    if blank_s > NO_PICTURE_S or num_lost >= LOST_KEYFRAMES:
                        return f"no picture for {blank_s:.0f} s"
                    if self.stopping:
                        return None
                return None
            except av.error.ExitError:
                silent_s = self._passing.now() - last_data
                if not self._feed.resumes or silent_s > STALL_S:
                    yield from self._decoded(stream, Packet())
                    return f"silent for {silent_s:.0f} s"
            except (av.FFmpegError, OSError) as error:
                self._unreadable = isinstance(error, av.error.InvalidDataError)
                # The decoder still holds the last pictures, above all those that B-frames reorder.
                yield from self._decoded(stream, Packet())
                return error_text(error)
        return None

    def _track(self, packet: Packet, stream: VideoStream, arrived: float) -> None:
        """Let the clock follow a coded picture: of most, nothing comes out of the decoder."""
        duration, kept = _duration(packet, stream), packet.is_keyframe
        self._clock.track(packet.pts, _tick(stream), duration, arrived, kept=kept)

    def _decoded(self, stream: VideoStream, packet: Packet) -> list[av.VideoFrame]:
        try:
            # An empty packet ends the data, and gets the last pictures out of the decoder.
            pictures = stream.codec_context.decode(packet if packet.size else None)
        except av.FFmpegError as error:
            self._count(damaged=[True] * (not isinstance(error, EOFError)))
            return []
        self._count(damaged=[picture.is_corrupt for picture in pictures])
        return [picture for picture in pictures if not picture.is_corrupt]

    def _count(self, damaged: list[bool]) -> None:
        """Count damaged pictures, and report once each time that many of the newest are."""
        self.num_damaged += sum(damaged)
        self._recent.extend(damaged)
        most = DAMAGED_SHARE * DAMAGED_OF
        if not self._damage_reported and sum(self._recent) > most:
            self._damage_reported = True
            text = f"{sum(self._recent)} of the last {len(self._recent)} pictures are damaged"
            self.notices.append(f"{self.name}: {text} and were left out; is the connection good?")
            log.info("%s", self.notices[-1])
        elif sum(self._recent) <= most / 2:
            self._damage_reported = False

    def _reconnect(self, lost: str, *, patient: bool) -> None:
        """Connect again, however long that takes, unless the source is to stop."""
        self.notices.append(f"{self.name}: connection lost ({lost}); trying to get it back")
        log.info("%s", self.notices[-1])
        first, longest = BACK_OFF_S
        # A camera that accepts and then gives nothing must not be opened twice a second.
        pause = longest / 2 if patient else first
        while not self.stopping:
            self._wait(pause * random.uniform(0.5, 1.0))
            if self.stopping:
                return
            try:
                self._opened = self._feed.open(self._is_stopping)
                return
            except SourceError as error:
                log.info("%s", error)
                if self.num_connections == 0 and str(error) != self._told:
                    # Never a picture of it: that is no outage, and its reason is what helps.
                    self._told = str(error)
                    self.notices.append(self._told)
                pause = min(2 * pause, longest)

    def _wait(self, seconds: float) -> None:
        until = self._passing.now() + seconds
        while not self.stopping and self._passing.now() < until:
            self._passing.sleep(WAIT_SLICE_S)


def _tick(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, av.time_base)


def _duration(picture: av.VideoFrame | Packet, stream: VideoStream) -> float:
    """Return the seconds that a picture is shown, coded or not."""
    rate = stream.average_rate or stream.guessed_rate
    stated = float((picture.duration or 0) * _tick(stream))
    return stated or (float(1 / rate) if rate else FRAME_S)
