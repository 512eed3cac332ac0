"""The sound of a source, as samples on its clock.

    for time, samples in file_sound("film.mp4"):     # [N] float32 at SOUND_RATE, mono
        ...

``SoundBeside`` places what comes beside the pictures of a live source, ``SoundOfParts`` that of
several files. No speech is recognised here.
"""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from streammem.errors import SourceError
from streammem.video.clock import StreamClock
from streammem.video.container import error_text, open_media
from streammem.video.joins import JUMP_AHEAD_S, JUMP_BACK_S, ByteSpan, has_joins

if TYPE_CHECKING:
    from streammem.video.source import VideoSource

SOUND_RATE = 16_000  # samples a second, Whisper's
MAX_GAP_S = 6 * 3600.0  # in a file; a longer one is a broken stamp
HELD_S = 10.0  # of a connection's sound that waits for its first picture, whose clock it is put on
APART_S = 2.0  # from the newest picture, of sound whose stamps have nothing in common with its
JITTER_S = 0.1  # beside its place, sound follows what came before it; see audio.SoundLine
MAX_PARTS = 1000  # videos that wait to be heard; beyond them the oldest go
NOTHING_YET = np.zeros(0, np.float32)  # a pass is asked again later

Sound = Iterator[tuple[float, np.ndarray]]


class SoundDecoder:
    """Decodes one stream's packets to mono samples at SOUND_RATE.

    What cannot be decoded is left out: its time passes without sound.

    Args:
        stream: of an open container.
        first_channel: give that alone, and not all channels mixed.
    """

    def __init__(self, stream: AudioStream, *, first_channel: bool = False) -> None:
        self._stream, self._resampler = stream, _resampler(first_channel)
        self._first_channel = first_channel

    def decode(self, packet: Packet) -> list[tuple[float | None, np.ndarray]]:
        """Return what a packet holds, each with its stamp in the container's seconds, if any.

        Args:
            packet: with something in it.
        """
        decoded = list[tuple[float | None, np.ndarray]]()
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.FFmpegError:
            return decoded
        for frame in frames:
            time = frame.time
            try:
                resampled = self._resampler.resample(frame)
            except (ValueError, av.FFmpegError):  # the rate or the channels are others from here on
                self._resampler = _resampler(self._first_channel)
                resampled = self._resampler.resample(frame)
            for out in resampled:
                samples = out.to_ndarray()[0]  # of all channels apart, or of the mix
                if len(samples):
                    decoded.append((time, samples))
                    time = None if time is None else time + len(samples) / SOUND_RATE
        return decoded


class SoundBeside:
    """Places the sound of a live source on the clock of its pictures, over all its connections.

    The stamps of sound and pictures count on one clock within a connection, so sound keeps the
    distance to the pictures that its stamps state, however long. Where the two have nothing in
    common, as in some cameras, sound counts from the picture that it came with.

    Args:
        clock: of the pictures.
        give: called with the seconds on that clock at which samples begin, >= 0, and the samples.
    """

    def __init__(self, clock: StreamClock, give: Callable[[float, np.ndarray], object]) -> None:
        self._clock, self._give = clock, give
        self._decoder: SoundDecoder | None = None
        self._held: deque[tuple[float, np.ndarray]] = deque()  # without a place so far
        self._held_samples = 0
        self._shift: float | None = None  # of stamps that have nothing in common with the pictures'
        self._end: float | None = None  # stamp at which the last samples end

    def connect(self, stream: AudioStream) -> None:
        """Take the sound of another connection from now on; what was not placed before goes."""
        self._decoder, self._shift, self._end = SoundDecoder(stream), None, None
        self._held.clear()
        self._held_samples = 0

    def push(self, packet: Packet, arrived: float) -> None:
        """Decode and place the next packet of the connection's sound.

        Args:
            packet: with something in it.
            arrived: seconds on a clock that never jumps.
        """
        assert self._decoder is not None
        for stamp, samples in self._decoder.decode(packet):
            stamp = self._end if stamp is None else stamp
            if stamp is None:
                continue
            self._end = stamp + len(samples) / SOUND_RATE
            self._held.append((stamp, samples))
            self._held_samples += len(samples)
        while self._held:
            stamp, samples = self._held[0]
            time = self._place(stamp, arrived)
            if time is None and self._held_samples < HELD_S * SOUND_RATE:
                return
            self._held.popleft()
            self._held_samples -= len(samples)
            early = round(max(0.0, -(time or 0.0)) * SOUND_RATE)  # before the first picture
            if time is not None and early < len(samples):
                self._give(time + early / SOUND_RATE, samples[early:])

    def _place(self, stamp: float, arrived: float) -> float | None:
        """Return where samples begin; None where that is not known."""
        time = self._clock.beside(stamp, arrived)
        if time is not None:
            self._shift = None
            return time
        waited = self._held_samples >= HELD_S * SOUND_RATE or self._shift is not None
        if not (waited and self._clock.has_stamps):
            return None
        assert self._end is not None
        shown = self._clock.end
        if self._shift is None or abs(self._end + self._shift - shown) > APART_S:
            self._shift = shown - self._end
        return stamp + self._shift


class SoundOfParts:
    """The sound of several videos that are played one after another, in a pass of its own.

    Where a video begins is known once the pass over the pictures has come there, so sound is given
    as far as pictures were shown; an empty piece each time that there is none yet.

        pictures  |----- a -----|----- b -----|
        sound     |aaaaaaaaaaaaa|bbbbbbbbb    |     of a, what outlasts its pictures is left out

    Args:
        whole: plays them; why one of them is not heard, where others are, is a notice of it.
        first_channel: give that alone, and not all channels mixed.

    Attributes:
        shown: seconds of the whole up to which pictures were shown.
    """

    def __init__(self, whole: "VideoSource", *, first_channel: bool = False) -> None:
        self._whole, self._first_channel = whole, first_channel
        self._parts: deque[tuple[float, float, Sound]] = deque(maxlen=MAX_PARTS)
        self.shown = 0.0

    def add(self, start: float, video: "VideoSource", after: float = 0.0) -> None:
        """Hear the next video.

        Args:
            start: seconds of the whole at time 0 of the video.
            video: gives its sound on its own clock, if it has any.
            after: seconds of its own; the sound before them goes.
        """
        sound = video.sound_pass(first_channel=self._first_channel)
        if sound is not None:
            self._parts.append((start, after, sound))

    def sound(self) -> Sound:
        """Give it, on the clock of the whole.

        Raises:
            SourceError: none of the videos has sound.
        """
        failure, some, end = None, False, 0.0
        while self._parts or not self._is_over():
            if not self._parts:
                yield 0.0, NOTHING_YET
                continue
            start, after, sound = self._parts.popleft()
            try:
                for time, samples in self._within(start, after, sound, end):
                    if len(samples):
                        some, end = True, time + len(samples) / SOUND_RATE
                    yield time, samples
            except SourceError as error:
                failure = error
                if some:
                    self._whole.notices.append(str(error))
        if failure and not some:
            raise failure

    def _within(self, start: float, after: float, sound: Sound, end: float) -> Sound:
        """Give the sound of a video on the clock of the whole, up to where the next one begins.

        Pieces follow each other, and what lacks at the beginning is silence: those who read them
        forgive JITTER_S, by which one video would be heard late after the other.
        """
        is_first = True
        for time, samples in sound:
            if not len(samples):
                yield 0.0, NOTHING_YET
                continue
            # 1. Place it.
            at = start + time
            if is_first:
                early = round((max(end, start + after) - at) * SOUND_RATE)
                if early >= len(samples):
                    continue
                if early > 0:
                    at, samples = at + early / SOUND_RATE, samples[early:]
                elif 0 < at - end <= JITTER_S:
                    silence = np.zeros(round((at - end) * SOUND_RATE), np.float32)
                    samples, at = np.concatenate([silence, samples]), end
                is_first = False
            elif abs(at - end) <= JITTER_S:
                at = end
            end = at + len(samples) / SOUND_RATE
            # 2. Give as much of it as is known to belong to this video.
            while len(samples):
                until = self._parts[0][0] + self._parts[0][1] if self._parts else self.shown
                count = len(samples)
                if self._parts or not self._is_over():
                    count = min(count, max(0, round((until - at) * SOUND_RATE)))
                if count:
                    yield at, samples[:count]
                    at, samples = at + count / SOUND_RATE, samples[count:]
                elif self._parts:
                    return
                else:
                    yield 0.0, NOTHING_YET

    def _is_over(self) -> bool:
        """Whether no other video comes."""
        whole = self._whole
        return whole.end is not None or whole.stopping or whole.is_closed


def _resampler(first_channel: bool) -> av.AudioResampler:
    layout = None if first_channel else "mono"  # None keeps that of the stream
    return av.AudioResampler(format="fltp", layout=layout, rate=SOUND_RATE)


def choose_sound(container: InputContainer, video: VideoStream | None) -> AudioStream | None:
    """Choose the sound that belongs to a video stream; None where there is none that can be read.

    The other sounds are not read any more.
    """
    streams = [s for s in container.streams.audio if s.discard != Discard.all and s.codec_context]
    if not streams:
        return None
    best = container.streams.best("audio", related=video)
    chosen = next((stream for stream in streams if best and stream.index == best.index), streams[0])
    for other in container.streams.audio:
        if other is not chosen:
            other.discard = Discard.all
    return chosen


def file_sound(
    spec: str | Path | IO[bytes],
    name: str,
    *,
    remote: bool = False,
    span: ByteSpan | None = None,
    first_channel: bool = False,
) -> Sound:
    """Give the sound of a file, on the clock that players show.

    Args:
        spec: path, URL or open file; opened with the first step.
        name: what messages call it: without credentials.
        remote: whether ``spec`` is a URL.
        span: the bytes [start, stop) of a file that are meant; None for all.
        first_channel: give that alone, and not all channels mixed.

    Yields:
        The second at which samples begin, and the samples.

    Raises:
        SourceError: no sound, or it cannot be decoded.
    """
    try:
        with _open(spec, remote=remote, span=span) as container:
            stream = choose_sound(container, next(iter(container.streams.video), None))
            if stream is None:
                raise SourceError(f"{name}: has no sound; leave out --speech")
            zero = max(0, container.start_time or 0) / av.time_base
            decoder, shift = SoundDecoder(stream, first_channel=first_channel), -zero
            end: float | None = None
            is_local = isinstance(spec, str | Path) and not remote
            jumps = container.format.name == "mpegts" and is_local and has_joins(str(spec), span)
            for packet in container.demux(stream):
                for stamp, samples in decoder.decode(packet):
                    time = (end or 0.0) if stamp is None else stamp + shift
                    end = time if end is None else end
                    # Another recording begins, which goes on where the one before ended.
                    if end - time > JUMP_BACK_S or (jumps and time - end > JUMP_AHEAD_S):
                        shift += end - time
                        time = end
                    if time <= end + MAX_GAP_S:
                        yield time, samples
                        end = time + len(samples) / SOUND_RATE
    except av.FFmpegError as error:
        raise SourceError(f"{name}: its sound cannot be read ({error_text(error)})") from None


def _open(spec: str | Path | IO[bytes], *, remote: bool, span: ByteSpan | None) -> InputContainer:
    if not isinstance(spec, str | Path):
        return av.open(spec, "r")
    return open_media(str(spec), remote=remote, span=span)
