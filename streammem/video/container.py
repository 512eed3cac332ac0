"""Opens media through PyAV, safely, and gives a file's packets: from any place, the needed ones.

A local file cannot open the network, and a remote one cannot read local files: either may be a
playlist that names others. A failure is one line with its reason.

A GOP (group of pictures) starts at a keyframe; to decode a frame, all packets of its GOP before
it are needed, none after it, and no other GOP. Only the first picture is decoded here, which proves
that there is one. Time is the container's, as players show it: 0 is where its first stream begins.
"""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from streammem.errors import SourceError
from streammem.video.joins import ByteSpan, StampCheck, has_joins
from streammem.video.pixels import check_size

OPEN_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 20.0  # without any data. A camera may send 1 frame in 10 s
# One thread: perception owns one core and the language model the other. Measured on two busy
# cores, ten minutes of 640x360 H.264 at 1 fps: 8.6 s of CPU with one thread, 11.4 s with frame
# threads on both cores, and the same wall time.
DECODE_THREADS = 1

REMOTE_OPTIONS = {
    "protocol_whitelist": "http,https,httpproxy,tls,tcp,crypto",
    "rw_timeout": str(int(READ_TIMEOUT_S * 1e6)),
    "reconnect": "1",  # a dropped connection goes on where it broke
    "reconnect_delay_max": "4",
}
LOCAL_OPTIONS = {"protocol_whitelist": "file,subfile"}
# Streams that lie beside the video: a cover, previews of its chapters, parts of a picture.
_BESIDE = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_VARIANT = "variant_bitrate"  # in an HLS stream's metadata: bits/s of the variant that holds it
_STILL_CODECS = {"png", "mjpeg", "bmp", "webp"}  # of previews, where another stream is beside
_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}  # demuxers that paint text as pictures
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2", b"avif"}  # of still pictures
# How much earlier to seek when the landing was too late.
_BACK_OFF_S = (0.0, 3.0, 12.0, 60.0, 300.0)
# Containers whose header states a duration; others have it estimated, which proves nothing.
_PROMISING = {"mov", "matroska", "avi", "flv", "asf"}
_STATES_END = {"matroska", "flv"}  # whose "duration" is the last time, wherever the first may be
# Containers whose clock may jump, as that of recordings that were joined. Of MPEG program streams
# and of remote files it is not known where.
_JUMPING = {"mpegts", "mpeg", "hls"}
_UNSEEKABLE = {"mpeg"}
# A first picture that comes later is not late: its clock and the container's have nothing in
# common, as where one stream's stamps have wrapped around.
_LATEST_START_S = 60.0
MAX_HELD = 512  # packets held back to find a GOP's last wanted one; bounds memory in endless GOPs

Item = tuple[Packet, bool]  # a packet in decode order, and whether its frame is wanted


class NoVideoError(SourceError):
    """Something is there, but nothing that FFmpeg takes for a video."""


class UnreadError(SourceError):
    """A file that breaks off before its first picture, or whose server cannot seek to it."""


def open_container(
    spec: str, name: str, *, remote: bool, span: tuple[int, int] | None = None
) -> tuple[InputContainer, VideoStream]:
    """Open a file or URL and choose its video stream.

    Args:
        spec: a path or URL, as FFmpeg is to see it.
        name: what messages call it: without credentials.
        remote: whether ``spec`` is a URL.
        span: the bytes [start, stop) of a file that are meant; None for all.

    Returns:
        The container and its video stream, whose decoder is set to DECODE_THREADS.

    Raises:
        SourceError: it cannot be opened or has no video.
    """
    try:
        container = open_media(spec, remote=remote, span=span)
    except (av.FFmpegError, ValueError) as error:
        kind = NoVideoError if isinstance(error, av.error.InvalidDataError) else SourceError
        raise kind(f"{name}: {_reason(error, None if remote or span else spec)}") from None
    return container, choose_stream(container, name)


def open_media(spec: str, *, remote: bool, span: tuple[int, int] | None = None) -> InputContainer:
    """Open a file or URL as ``open_container`` does, with whatever streams it has.

    Raises:
        av.FFmpegError, ValueError: it cannot be opened; the message may hold its address.
    """
    if remote:
        timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
        return av.open(spec, "r", options=dict(REMOTE_OPTIONS), timeout=timeout)
    return av.open(local_url(spec, span), "r", options=dict(LOCAL_OPTIONS))


def local_url(path: str | os.PathLike[str], span: tuple[int, int] | None = None) -> str:
    """Return how FFmpeg is to be given a local file, or the bytes [start, stop) of it."""
    # The prefix keeps a name such as "concat:a|b" or "-" from meaning anything else.
    part = "subfile,,start,{},end,{},,:".format(*span) if span else ""
    return f"{part}file:{os.fspath(path)}"


def choose_stream(container: InputContainer, name: str) -> VideoStream:
    """Choose a container's main video stream and set up its decoder; closes it if there is none.

    The other video streams are not read any more.

    Args:
        container: just opened.
        name: what messages call it.

    Raises:
        SourceError: it has no video.
    """
    try:
        stream = _video_stream(container, name)
    except SourceError:
        container.close()
        raise
    for other in container.streams.video:
        if other is not stream:
            other.discard = Discard.all
    if container.format.name == "hls":  # a variant is fetched as long as anything of it is read
        for sound in container.streams.audio:
            if sound.metadata.get(_VARIANT) != stream.metadata.get(_VARIANT):
                sound.discard = Discard.all
        for text in container.streams.subtitles:  # these are read by hls.py
            text.discard = Discard.all
    stream.codec_context.thread_type = "SLICE"
    stream.codec_context.thread_count = DECODE_THREADS
    return stream


def error_text(error: Exception) -> str:
    """Describe a failure of PyAV without the address that it may carry."""
    if isinstance(error, av.error.ExitError):
        return "timed out"
    return (getattr(error, "strerror", None) or type(error).__name__).rstrip(".").lower()


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    if container.format.name in _TEXT_FORMATS:
        raise SourceError(f"{name}: is text, not video; give a video file")
    streams = [s for s in container.streams.video if not s.disposition & _BESIDE]
    if not streams:
        kind = "has sound but no video" if container.streams.audio else "has no video"
        raise SourceError(f"{name}: {kind}; give a file with a video track")
    stream = streams[0]
    if len(streams) > 1:
        longest_s = max(_length(each) or 0.0 for each in streams)
        stream = max(streams, key=lambda each: _preference(each, longest_s))
    context = stream.codec_context
    if context is None:
        raise SourceError(f"{name}: no decoder for its video; convert it to H.264")
    if stream.time_base is None:
        raise SourceError(f"{name}: its video has no time base; convert it to MP4")
    if context.width or context.height:
        check_size(name, context.width, context.height)
    return stream


def _preference(stream: VideoStream, longest_s: float) -> tuple[bool, bool, bool, int, int]:
    """Return what makes a stream the main one: it lasts, is marked, is large; the first of equals.

    A cover, a preview or the still picture before a sequence is a stream of one picture.
    """
    length_s = _length(stream)
    lasts = stream.frames != 1 and (length_s is None or length_s >= longest_s / 2)
    is_default = bool(stream.disposition & Disposition.default)
    context = stream.codec_context
    area = context.width * context.height if context else 0
    is_film = context is not None and context.name not in _STILL_CODECS
    return lasts, is_film, is_default, area, int(stream.metadata.get(_VARIANT, 0))


def _length(stream: VideoStream) -> float | None:
    """Return the seconds that a stream states, if it does."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska states a track's length as a tag, which other programs may have written.
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _reason(error: Exception, path: str | None) -> str:
    if path is not None and _is_mp4(path):
        return (
            "an MP4 or MOV without its index (moov): it looks truncated or unfinished; "
            "let the recording finish, fetch it again, or repair it"
        )
    if isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return "is no video that FFmpeg can read; check that it is complete and not another format"
    return f"cannot be opened ({error_text(error)}); check the address and the rights"


def _is_mp4(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free")
    except OSError:
        return False


def check_file(path: str) -> None:
    """Refuse a path that is no file with something in it.

    Raises:
        SourceError: missing, empty, unreadable or not a regular file.
    """
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SourceError(f"{path}: {reason.lower()}; check the path") from None
    if not os.path.isfile(path):
        raise SourceError(f"{path}: is not a file; give a video, a picture or a folder of pictures")
    if size == 0:
        raise SourceError(f"{path}: is empty (0 bytes); fetch or record it again")


def is_still_picture(path: str | Path) -> bool:
    """Return whether a file's content is a still picture in HEIF, whatever its name."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


class PacketReader:
    """Reads the packets of one video stream in decode order.

    Args:
        spec: path or URL as FFmpeg is to see it.
        name: what messages call it: without credentials.
        remote: whether ``spec`` is a URL.
        span: the part of the file that is read; None for all of it.
        opened: what ``open_container`` gave for it, if it is open already.

    Attributes:
        stream: the PyAV video stream.
        tick: seconds a unit of pts.
        first_picture: as decoded.
        origin: pts of the first picture shown; 0 where the file has no times.
        zero: pts of time 0, <= ``origin``: a picture may come after the sound's beginning.
        has_texts: whether it has tracks of text, or of pictures of text.
        can_jump: whether decoding may start at any keyframe.
        can_seek: whether reading may start elsewhere than at the beginning.

    Raises:
        SourceError: it cannot be opened, or no picture can be decoded.
    """

    def __init__(
        self,
        spec: str,
        name: str,
        *,
        remote: bool = False,
        span: ByteSpan | None = None,
        opened: tuple[InputContainer, VideoStream] | None = None,
    ) -> None:
        self._spec, self._name, self._remote, self._span = spec, name, remote, span
        self._is_continuous: bool | None = None  # of MPEG-TS, once it was looked at
        self._open(opened)
        self.can_jump = self.can_seek = True  # until it turns out otherwise

    def reopen(self) -> None:
        """Start again at the beginning with a fresh decoder."""
        self._container.close()
        self._open()

    def _open(self, opened: tuple[InputContainer, VideoStream] | None = None) -> None:
        self._container, self.stream = opened or open_container(
            self._spec, self._name, remote=self._remote, span=self._span
        )
        self.tick = self.stream.time_base or Fraction(1, av.time_base)
        self._format = self._container.format.name.split(",")[0]
        self.has_texts = bool(self._container.streams.subtitles) and self._format != "hls"
        self._delivered = 0.0  # seconds on the container's clock, over all its streams
        self._break: str | None = None
        self._packets = self._demux()
        self._opening: list[Packet] = []
        try:
            self.first_picture = self._decode_first()
        except BaseException:
            self._container.close()
            raise
        self.origin = self.first_picture.pts or 0
        self.zero = self._zero()
        self.stream.codec_context.flush_buffers()

    def close(self) -> None:
        """Release the file; may be repeated."""
        self._container.close()

    def seconds(self, pts: int) -> float:
        """Convert a pts to seconds on the container's clock."""
        return self.length(pts - self.zero)

    def length(self, ticks: int) -> float:
        """Convert a number of the stream's ticks to seconds."""
        return ticks * self.tick.numerator / self.tick.denominator

    def duration(self) -> float | None:
        """Return the stated seconds from time 0 to the end, if any."""
        if self.stream.duration and self._format not in _STATES_END:
            end = self.length((self.stream.start_time or 0) + self.stream.duration)
        elif self._container.duration:
            end = self._stated_end()
        else:
            return None
        return max(0.0, end - self.length(self.zero))

    def is_continuous(self) -> bool:
        """Return whether times in the file lie in order, so that one can be sought."""
        if self._format in _UNSEEKABLE:
            return False
        if self._format != "mpegts":
            return True
        if self._is_continuous is None:
            self._is_continuous = not (self._remote or has_joins(self._spec, self._span))
        return self._is_continuous

    def _zero(self) -> int:
        """Return the pts of time 0, for players begin where the container's first stream does."""
        if self.first_picture.pts is None or self._container.start_time is None:
            return self.origin
        # What begins before 0, such as the priming of an audio codec, is not played.
        start = max(0, self._container.start_time)
        zero = round(Fraction(start, av.time_base) / self.tick)
        most_s = (self._container.duration or _LATEST_START_S * av.time_base) / av.time_base
        is_meant = 0 <= self.length(self.origin - zero) <= most_s
        return zero if is_meant else self.origin

    def _stated_end(self) -> float:
        start = 0 if self._format in _STATES_END else self._container.start_time or 0
        return (start + (self._container.duration or 0)) / av.time_base

    def packets(self) -> Iterator[Packet]:
        """Give all packets; only once after each ``reopen``."""
        opening, self._opening = self._opening, []
        return chain(opening, self._packets)

    def packets_from(self, time: float) -> Iterator[Packet] | None:
        """Give the packets from a keyframe shown at or before a time in seconds.

        Returns:
            None where seeking fails; then only ``reopen`` leads on.
        """
        if not self.is_continuous():
            self.can_seek = False
            return None
        for back in _BACK_OFF_S:
            target = self.zero + int((time - back) / self.length(1))
            if target <= self.origin:
                break
            try:
                self._container.seek(target, stream=self.stream)
            except av.FFmpegError:
                break
            self._packets = self._demux()
            keyframe = next((p for p in self._packets if p.is_keyframe), None)
            if keyframe is None or keyframe.pts is None:
                continue
            # Containers index by decoding time, so the landing may be shown after the target.
            if self.seconds(keyframe.pts) <= time:
                return chain([keyframe], self._packets)
        self.can_seek = False
        return None

    def decoded(self, packets: Iterable[Packet]) -> Iterator[av.VideoFrame]:
        """Decode all of some packets; what is damaged is left out."""
        for packet in chain(packets, [None]):
            try:
                yield from self.stream.codec_context.decode(packet)
            except av.FFmpegError:
                continue

    def shortfall(self) -> str | None:
        """Say, once the packets are exhausted, what is missing; None if nothing is."""
        if self._break is not None:
            return f"breaks off ({self._break})"
        if self._format not in _PROMISING or not self._container.duration:
            return None
        stated, delivered = self._stated_end(), self._delivered
        # Three frames, or 2% for the rounding of old headers, and never more than a second.
        rate = float(self.stream.average_rate or 25)
        if stated - delivered <= min(1.0, max(3 / rate, 0.02 * stated)):
            return None
        return f"ends after {delivered:.1f} s of the {stated:.1f} s that its header states"

    def _demux(self) -> Iterator[Packet]:
        stamps = StampCheck(self.tick, joins_ahead=self._format in _JUMPING)
        try:
            for packet in self._container.demux():
                if not packet.size:  # the flushing packets at the end; a decoder would stop at one
                    continue
                if packet.pts is not None and not packet.is_corrupt:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self._delivered = max(self._delivered, end)
                if packet.stream_index == self.stream.index:
                    yield from stamps.push(packet)
        except av.FFmpegError as error:
            self._break = error_text(error)
        yield from stamps.flush()

    def _decode_first(self) -> av.VideoFrame:
        context = self.stream.codec_context
        try:
            context.open(strict=False)
            for packet in chain(self._packets, [None]):
                if packet is not None:
                    self._opening.append(packet)
                for frame in _decoded(context, packet):
                    if not frame.is_corrupt:
                        return frame
        except av.FFmpegError as error:
            raise SourceError(
                f"{self._name}: its {context.name} video cannot be decoded "
                f"({error_text(error)}); convert it to H.264"
            ) from None
        if self._break:
            raise UnreadError(
                f"{self._name}: breaks off before its first picture ({self._break}); "
                "fetch it whole first"
            )
        raise SourceError(
            f"{self._name}: holds no picture that can be decoded; check that it is complete"
        )


def _decoded(context: av.VideoCodecContext, packet: Packet | None) -> list[av.VideoFrame]:
    try:
        return context.decode(packet)
    except av.error.InvalidDataError:
        return []


def needed_parts(items: Iterable[Item]) -> Iterator[tuple[list[Item], bool]]:
    """Cut a stream of packets before keyframes, and leave out what no wanted frame needs.

    Args:
        items: the video packets in decode order.

    Yields:
        The packets to decode next, and whether something was left out after them: then the
        decoder must be drained and flushed, and the next packet is a keyframe.
    """
    group: list[Item] = []
    lead: list[Item] = []  # a keyframe and those after it that are shown before it (open GOP)
    for item in items:
        if lead and _is_shown_before(item[0], lead[0][0]):
            lead.append(item)
            continue
        if lead:
            kept, is_cut = _before(lead, group)
            yield kept, is_cut
            group, lead = (lead[:1] if is_cut else lead), []
        if item[0].is_keyframe:
            lead = [item]
        else:
            group.append(item)
            if len(group) >= MAX_HELD:
                yield group, False
                group = []
    if lead:
        kept, is_cut = _before(lead, group)
        yield kept, is_cut
        group = lead[:1] if is_cut else lead
    yield group, False  # to its end: a truncated file shows there


def _is_shown_before(packet: Packet, keyframe: Packet) -> bool:
    return (
        not packet.is_keyframe
        and packet.pts is not None
        and keyframe.pts is not None
        and packet.pts < keyframe.pts
    )


def _before(lead: list[Item], group: list[Item]) -> tuple[list[Item], bool]:
    """Return what is needed of the group before a keyframe, and whether something is left out."""
    # Leading pictures refer to the GOP before: if one is wanted, that GOP is needed whole.
    if any(wanted for _, wanted in lead[1:]):
        return group, False
    last = max((i for i, (_, wanted) in enumerate(group) if wanted), default=-1)
    return group[: last + 1], last + 1 < len(group)
