"""Video files and URLs through PyAV: exact times, flat memory, and no more decoding than needed.

Live sources are not read here.
"""

import heapq
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import takewhile

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from streammem.errors import SourceError, TruncatedError
from streammem.types import Frame
from streammem.video.container import (
    PacketReader,
    check_file,
    is_still_picture,
    needed_parts,
    open_media,
)
from streammem.video.joins import DOUBTFUL_S, ByteSpan, recordings
from streammem.video.pixels import RgbConverter, check_size
from streammem.video.sound import SoundOfParts, file_sound
from streammem.video.source import HELD_S, Grid, Sampling, SourceOptions, VideoSource

log = logging.getLogger(__name__)

HOP_S = 5.0  # a sample further ahead than this is sought, not read up to
LOST_KEYFRAMES = 2  # without a picture of them
_MOST_DELAY = 16  # packets that a decoder takes before the picture of one comes out
_REORDERED = 32  # what is remembered while packets come out of order; codecs reorder <= 16


class LostPicturesError(Exception):
    """Something could not be decoded: another codec may have taken over."""


class _StartOverError(Exception):
    """Jumping or seeking failed, and what came of it cannot be trusted."""


class FileSource(VideoSource):
    """One pass over a video file or URL, on the container's clock, as players show it.

    Samples are exact: the frames, times and pixels that decoding everything would give. What no
    sample needs is not decoded: GOPs without a sample, the rest of a GOP after its last one, and
    unreferenced frames between. Should a keyframe prove unfit to start from, the file is read
    again from the beginning without such jumps.

    Times never decrease: a frame without a pts gets its predecessor's end, one with an earlier pts
    its predecessor's time; where the clock jumps back, as between two recordings that were joined,
    the second goes on where the first ends. ``Frame.index`` counts every frame of the file; after
    a seek it is estimated from the average rate. Where no picture begins within HELD_S after the
    sampling's start, the one that is on screen then is given, from there on.

    Args:
        spec: path or URL as FFmpeg is to see it.
        name: path or URL without credentials.
        sampling: what is wanted; ``sparse`` takes keyframes only.
        remote: whether ``spec`` is a URL.
        span: the part of the file that is read; None for all of it.
        opened: what ``open_container`` gave for it, if it is open already.

    Attributes:
        gives_up: whether a pass raises ``LostPicturesError`` where a packet cannot be decoded, or
            pictures stop coming.

    Raises:
        SourceError: it cannot be opened, or holds no picture.
    """

    gives_up = False

    def __init__(
        self,
        spec: str,
        name: str,
        sampling: Sampling,
        *,
        remote: bool = False,
        span: ByteSpan | None = None,
        opened: tuple[InputContainer, VideoStream] | None = None,
    ) -> None:
        self._spec, self._remote, self._part = spec, remote, span
        self._open = partial(PacketReader, spec, name, remote=remote, span=span)
        self._reader = self._open(opened=opened)
        super().__init__(name, sampling, duration=self._reader.duration())
        self.start_time = self._reader.seconds(self._reader.origin)
        self.text_clock = self._reader.length(self._reader.zero), 0.0
        self.has_texts = self._reader.has_texts
        self._grid = Grid(sampling, tick=self._reader.length(1))
        aspect = self._reader.stream.sample_aspect_ratio
        self._to_rgb = RgbConverter(self._reader.first_picture, sampling.max_side, aspect)
        rate = self._reader.stream.average_rate or self._reader.stream.guessed_rate
        self._frame_s = float(1 / rate) if rate else 0.04  # where a frame states no duration
        self._given_until = -1.0  # frames up to here were given before starting over
        self._rewind()

    def _release(self) -> None:
        self._reader.close()

    def sound_pass(
        self, *, first_channel: bool = False
    ) -> Iterator[tuple[float, np.ndarray]] | None:
        return file_sound(
            self._spec, self.name, remote=self._remote, span=self._part, first_channel=first_channel
        )

    def text_pass(self) -> Callable[[], InputContainer] | None:
        if not (self._remote and self.has_texts):
            return None
        return partial(open_media, self._spec, remote=True)

    def _rewind(self) -> None:
        """Set the state of a pass from the beginning; what was given already stays in the grid."""
        self._time = self._next_time = 0.0  # of the last picture: its time, and its end
        self._shown_until = 0.0
        self._index = -1
        self._num_before = 0  # packets shown before all those in the heap
        self._awaited: list[int] = []  # heap: pts of the packets whose pictures are not out yet
        self._key_pts: deque[int] = deque(maxlen=_REORDERED)  # of the last keyframes
        self._slot_firsts: dict[int, int] = {}  # slot -> smallest pts seen in it
        self._read_until = 0.0
        self._hopped_to = 0.0
        self.was_cut = False
        self._num_damaged = 0
        self._lost = self._lost_keyframes = 0  # packets since the last picture
        self._jumped = False  # whether the next packet follows a jump
        self._first_pts = self._reader.origin  # nothing before it can be shown
        self._sought = False  # whether the next packet's number must be estimated
        self._keyframe_pts: int | None = None  # of the picture that must come out next

    def _frames(self) -> Iterator[Frame]:
        num_taken = 0
        is_held = self._sampling.start > self.start_time  # whether one may be on screen then
        for picture, index in self._pictures():
            time, duration = self._span(picture)
            if is_held and (self._grid.is_past(time) or time > self._sampling.start + HELD_S):
                is_held = False
                for frame in self._held_at_start(until=time):
                    num_taken += 1
                    yield frame
            if self._grid.is_past(time):
                self.was_cut = True
                break
            self._shown_until = max(self._shown_until, time + duration)
            if self._sampling.sparse and not self._is_key(picture):
                continue
            if time > self._given_until and self._grid.takes(time):
                num_taken, is_held = num_taken + 1, False
                check_size(self.name, picture.width, picture.height)
                yield Frame(self._to_rgb(picture), time, duration, index)
        # Where a picture follows after the end, it does not matter what duration the last states.
        if is_held and (self.was_cut or self._shown_until > self._sampling.start):
            for frame in self._held_at_start(until=self._shown_until):
                num_taken += 1
                yield frame
        missing = None if self.was_cut else self._reader.shortfall()
        if missing is None and self._num_damaged:
            missing = f"has damaged frames ({self._num_damaged}), which were left out"
        if missing:
            missing += "; fetch or record it again"
        self._finish(self._shown_until, num_taken, missing)

    def _held_at_start(self, *, until: float) -> Iterator[Frame]:
        """Give the picture that is on screen at the sampling's start, if it is wanted."""
        start, held = float(self._sampling.start), None
        reader = self._open()
        try:
            packets = reader.packets_from(start)
            if packets is None:
                reader.reopen()
                packets = reader.packets()
            for picture in reader.decoded(packets):
                if picture.pts is None or picture.is_corrupt:
                    continue
                if reader.seconds(picture.pts) > start:
                    until = reader.seconds(picture.pts)
                    break
                held = picture
        finally:
            reader.close()
        if held is None or (self._sampling.sparse and not held.key_frame):
            return
        if self._grid.takes(start):
            since_first = reader.seconds(held.pts or 0) - self.start_time
            yield Frame(
                self._to_rgb(held), start, until - start, round(since_first / self._frame_s)
            )

    def _pictures(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """Give the good pictures in presentation order, at least all those that are wanted.

        Yields:
            Each with its number. One that the next one precedes has a wrong stamp, and loses it.
        """
        while True:
            try:
                held: tuple[av.VideoFrame, int] | None = None
                last: int | None = None
                for picture in self._runs():
                    pts, index = picture.pts, self._rank(picture.pts)
                    if held is not None:
                        stamp = held[0].pts
                        if pts is not None and stamp is not None and pts < stamp:
                            held[0].pts = stamp = None
                        last = last if stamp is None else stamp
                        yield held
                        held = None
                    step = 0 if pts is None or last is None else pts - last
                    if self._reader.length(step) > DOUBTFUL_S:
                        held = picture, index
                        continue
                    last = last if pts is None else pts
                    yield picture, index
                if held is not None:
                    yield held
                return
            except _StartOverError:
                self._given_until = self._time
                self._reader.reopen()
                self._rewind()

    def _runs(self) -> Iterator[av.VideoFrame]:
        target: float | None = self._sampling.start
        if not (target and self._reader.can_seek):
            target = yield from self._run(self._reader.packets())
        while target is not None:
            packets = self._reader.packets_from(target)
            if packets is None:
                raise _StartOverError
            self._awaited.clear()
            self._jumped = self._sought = True
            target = yield from self._run(packets)

    def _run(self, packets: Iterator[Packet]) -> Generator[av.VideoFrame, None, float | None]:
        """Decode what is needed of some packets; return the time to seek for more, or None."""
        items = ((p, self._wants(p)) for p in takewhile(self._is_before_end, packets))
        parts = needed_parts(items) if self._reader.can_jump else (([i], False) for i in items)
        for part, is_cut in parts:
            for packet, wanted in part:
                yield from self._decode(packet, wanted)
            if is_cut:
                yield from self._drain()
                target = self._hop()
                if target is not None:
                    return target
        yield from self._drain()
        return None

    def _hop(self) -> float | None:
        """Return the next sample's time if far ahead; each only once, as a seek may fall short."""
        target = self._grid.next_target
        if target is None or not self._reader.can_seek:
            return None
        is_near = target - self._read_until <= HOP_S
        if is_near or target <= self._hopped_to or self._grid.is_past(target):
            return None
        self._hopped_to = target
        return target

    def _is_before_end(self, packet: Packet) -> bool:
        """Return whether pictures before the sampling's end may still come."""
        if packet.dts is not None and self._grid.is_past(self._reader.seconds(packet.dts)):
            self.was_cut = True  # no later packet is shown before its decoding time
        return not self.was_cut

    def _wants(self, packet: Packet) -> bool:
        """Note a packet's place, and return whether its picture may be a sample."""
        pts = packet.pts
        if pts is None:
            return True
        time = self._reader.seconds(pts)
        if self._sought:
            since_first = time - self.start_time
            self._num_before = max(self._index + 1, round(since_first / self._frame_s))
            self._sought, self._first_pts = False, pts
        if packet.is_discard or pts < self._first_pts:  # decoded perhaps, never shown
            return False
        heapq.heappush(self._awaited, pts)
        if packet.is_keyframe:
            self._key_pts.append(pts)
        self._read_until = time
        wanted = self._may_be_sample(pts, time, packet.is_keyframe)
        if not (wanted or packet.is_corrupt or self._grid.is_past(time)):
            end = time + (self._reader.length(packet.duration or 0) or self._frame_s)
            self._shown_until = max(self._shown_until, end)
        return wanted

    def _may_be_sample(self, pts: int, time: float, is_keyframe: bool) -> bool:
        slot = self._grid.slot(time)
        if slot is None or (self._sampling.sparse and not is_keyframe):
            return False
        if self._sampling.fps is None:
            return True
        if pts >= self._slot_firsts.get(slot, pts + 1):
            return False
        self._slot_firsts[slot] = pts
        if len(self._slot_firsts) > _REORDERED:
            del self._slot_firsts[min(self._slot_firsts)]
        return True

    def _decode(self, packet: Packet, wanted: bool) -> Iterator[av.VideoFrame]:
        context = self._reader.stream.codec_context
        # Skipping what nothing refers to leaves all other pictures exactly as they are.
        context.skip_frame = "DEFAULT" if wanted else "NONREF"
        if self._jumped:
            self._jumped, self._keyframe_pts = False, packet.pts
        self._lost, self._lost_keyframes = self._lost + 1, self._lost_keyframes + packet.is_keyframe
        is_lost = self._lost > _MOST_DELAY and self._lost_keyframes >= LOST_KEYFRAMES
        if self.gives_up and is_lost and self._index >= 0:
            raise LostPicturesError
        try:
            pictures = context.decode(packet)
        except av.FFmpegError:
            if self.gives_up and self._index >= 0:
                raise LostPicturesError from None
            self._count_damage()
            return
        if pictures:
            self._lost = self._lost_keyframes = 0
        yield from self._checked(pictures)

    def _drain(self) -> Iterator[av.VideoFrame]:
        """Get the last pictures out, and make the decoder ready for a keyframe."""
        context = self._reader.stream.codec_context
        try:
            pictures = context.decode(None)
        except av.FFmpegError as error:
            pictures = []
            if not isinstance(error, EOFError):
                self._count_damage()
        yield from self._checked(pictures)
        if self._keyframe_pts is not None:
            self._give_up_jumps()
        context.flush_buffers()
        self._jumped = True

    def _checked(self, pictures: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for picture in pictures:
            if self._keyframe_pts not in (None, picture.pts):
                self._give_up_jumps()
            self._keyframe_pts = None
            if picture.is_corrupt:
                self._count_damage()
            else:
                yield picture

    def _count_damage(self) -> None:
        # A recording may begin in the middle of a GOP; what precedes its first picture is no loss.
        self._num_damaged += self._index >= 0

    def _give_up_jumps(self) -> None:
        """Leave this pass: a decoder that began at a keyframe did not give that picture first."""
        self._reader.can_jump = self._reader.can_seek = False
        raise _StartOverError

    def _span(self, picture: av.VideoFrame) -> tuple[float, float]:
        """Return the picture's time and duration in seconds."""
        duration = self._reader.length(picture.duration or 0) or self._frame_s
        time = self._next_time
        if picture.pts is not None:
            time = max(self._time, self._reader.seconds(picture.pts))
        self._time, self._next_time = time, time + duration
        return time, duration

    def _is_key(self, picture: av.VideoFrame) -> bool:
        return picture.key_frame or picture.pts in self._key_pts  # some decoders do not state it

    def _rank(self, pts: int | None) -> int:
        """Return the picture's number among all pictures, in presentation order."""
        awaited = self._awaited
        while pts is not None and awaited and awaited[0] < pts:
            heapq.heappop(awaited)
            self._num_before += 1
        self._index = max(self._index + 1, self._num_before)
        if awaited and awaited[0] == pts:
            heapq.heappop(awaited)
            self._num_before += 1
        return self._index


class PartsSource(VideoSource):
    """One pass over several videos; each begins at the end of the one before.

    After a video that breaks off the next one follows its last good frame, and the pass ends with
    ``TruncatedError``. ``Frame.index`` is estimated where frames are left out.

    Args:
        name: what evidence calls the whole.
        sampling: what is wanted of the whole.
        parts: how each is opened, with what is wanted of it, by what a message calls it.
        duration: seconds of the whole, if known.
    """

    def __init__(
        self,
        name: str,
        sampling: Sampling,
        parts: Mapping[str, Callable[[Sampling], VideoSource]],
        duration: float | None = None,
    ) -> None:
        super().__init__(name, sampling, duration)
        self._parts = parts
        self._video: VideoSource | None = None  # that is played
        self._sounds: list[SoundOfParts] = []

    def _release(self) -> None:
        if self._video:
            self._video.close()

    def sound_pass(
        self, *, first_channel: bool = False
    ) -> Iterator[tuple[float, np.ndarray]] | None:
        self._sounds.append(SoundOfParts(self, first_channel=first_channel))
        return self._sounds[-1].sound()

    def _frames(self) -> Iterator[Frame]:
        # The tick is the coarsest that a grid forgives: containers differ in theirs.
        grid, start, num_given = Grid(self._sampling, tick=1e-3), 0.0, 0
        next_time, next_index = 0.0, 0  # after the last given frame
        broken: list[str] = []
        for place, (label, open_part) in enumerate(self._parts.items()):
            video: VideoSource | None = None
            shift: int | None = None  # frames of the videos before
            try:
                video = self._video = open_part(self._sampling.after(start))
                self.starts[place] = start
                for sound in self._sounds:
                    sound.add(start, video)
                for frame in video:
                    for sound in self._sounds:
                        sound.shown = start + frame.time + frame.duration
                    time, is_first = start + frame.time, shift is None
                    if shift is None:
                        shift = next_index + round((start - next_time) / frame.duration)
                    # A video does not know that the slot in which it begins may be taken.
                    if grid.takes(time) or not is_first:
                        num_given += 1
                        next_time, next_index = time + frame.duration, shift + frame.index + 1
                        yield replace(frame, time=time, index=next_index - 1)
            except SourceError as error:
                is_before = video is not None and video.end is not None  # the wanted span
                if isinstance(error, TruncatedError) or not is_before:
                    broken.append(f"{label}: {error}")
            self._release()
            if video is not None:
                start += video.end or 0.0
                self.was_cut = video.was_cut or grid.is_past(start)
                if self.was_cut:
                    break
        missing = None
        if broken:
            missing = f"{len(broken)} of {len(self._parts)} videos incomplete; {broken[0]}"
        self._finish(start, num_given, missing)


def open_file(path: str, options: SourceOptions) -> VideoSource:
    """Open a video file with the decoder that the options name; a still picture in HEIF as one.

    Raises:
        SourceError: no such file, or no video.
        BackboneError: that decoder is not installed.
    """
    check_file(path)
    if is_still_picture(path):
        from streammem.video.pictures import open_picture

        return open_picture(path, options)
    if options.reader == "decord":
        from streammem.video.decord_file import DecordSource

        if len(recordings(path)) > 1:
            raise SourceError(f"{path}: holds several recordings; use reader='pyav'")
        return DecordSource(path, path, options)
    return open_recordings(path, path, options)


def open_recordings(path: str, name: str, sampling: Sampling) -> VideoSource:
    """Open a video file with PyAV: all the recordings in it, where several were joined.

    Raises:
        SourceError: no video.
    """
    spans = recordings(path)
    if len(spans) == 1:
        return FileSource(path, name, sampling)
    parts, durations, errors = {}, [], []
    for number, span in enumerate(spans, 1):
        open_part = partial(FileSource, path, name, span=span)
        parts[f"recording {number}"] = open_part
        try:
            with open_part(sampling) as video:
                durations.append(video.duration)
        except SourceError as error:
            errors.append(error)
    if not durations:
        raise errors[0]
    log.info("%s: holds %d recordings, which are read one after another", name, len(spans))
    is_known = not errors and None not in durations
    return PartsSource(
        name, sampling, parts, sum(d or 0.0 for d in durations) if is_known else None
    )
