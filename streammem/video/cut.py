"""A part of a video file as an MP4 of its own, exact in time, whatever container it came from.

Packets are copied where a player of MP4 knows their codec, which costs next to nothing; they begin
with the keyframe before, and an edit list tells the player where to start. Else they are encoded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from streammem.errors import ConfigError, SourceError, TruncatedError
from streammem.video.container import DECODE_THREADS, PacketReader, error_text, open_container
from streammem.video.file import open_recordings
from streammem.video.joins import DOUBTFUL_S, StampCheck, recordings
from streammem.video.source import Sampling

MAX_COPIED_S = 600.0
MAX_ENCODED_S = 30.0  # of 1280 pixels: about as many seconds of CPU
CLIP_SIDE = 1280
_COPIED = {"h264", "hevc", "av1", "vp9"}
_COPIED_SOUND = {"aac", "mp3", "opus", "ac3"}
_BACK_OFF_S = (0.0, 3.0, 12.0, 60.0)  # how much earlier to seek when the landing was too late
_MILLISECOND = Fraction(1, 1000)

How = Literal["copied", "encoded"]


def cut(path: Path, start: float, end: float, out: IO[bytes], name: str | None = None) -> How:
    """Write the part [start, end) of a video file as an MP4.

    Args:
        path: of the file.
        start: seconds on the file's own clock, as players show it, >= 0.
        end: seconds; at most ``MAX_COPIED_S`` later.
        out: empty, open for writing at any place.
        name: what messages call the file; None for its path.

    Returns:
        ``encoded`` where the codec had to be changed: at most ``MAX_ENCODED_S``, shrunk to
        ``CLIP_SIDE`` pixels, without sound.

    Raises:
        ConfigError: a span that cannot be meant, or is too long.
        SourceError: the file cannot be read, or has nothing there.
    """
    shown = name or str(path)
    if not 0 <= start < end:
        raise ConfigError(f"{shown}: a clip must start at 0 s or later and end after that")
    if end - start > MAX_COPIED_S:
        raise ConfigError(f"{shown}: a clip may last {MAX_COPIED_S:g} s; ask for several")
    try:
        _copy(path, start, end, out, shown)
        return "copied"
    except _NotCopiedError as error:
        if end - start > MAX_ENCODED_S:
            text = f"{error}, so that a clip is encoded and may last {MAX_ENCODED_S:g} s"
            raise ConfigError(f"{shown}: {text}; ask for several") from None
    out.seek(0)
    out.truncate()
    _encode(path, start, end, out, shown)
    return "encoded"


class _NotCopiedError(Exception):
    """The packets are not for an MP4 as they are; the message says why."""


def _copy(path: Path, start: float, end: float, out: IO[bytes], name: str) -> None:
    reader = PacketReader(str(path), name)
    zero_s, is_continuous = reader.zero * reader.tick, reader.is_continuous()
    reader.close()
    if not is_continuous or len(recordings(str(path))) > 1:  # cannot be one stream of packets
        raise _NotCopiedError("it may hold several recordings")
    container, video = open_container(str(path), name, remote=False)
    with container:
        if video.codec.canonical_name not in _COPIED:
            raise _NotCopiedError(f"its codec ({video.codec.canonical_name}) does not go into MP4")
        sounds = [s for s in container.streams.audio if s.codec.canonical_name in _COPIED_SOUND]
        streams = [video, *sounds[:1]]
        # Rounded: 0.4 as a float lies above two fifths, and would let one more picture in.
        begin, until = (zero_s + Fraction(time).limit_denominator(10**6) for time in (start, end))
        try:
            with av.open(out, "w", format="mp4") as written:
                copies = {s.index: written.add_stream_from_template(s) for s in streams}
                packets = _from_keyframe(container, streams, begin)
                num_shown = _write(packets, copies, written, (begin, until))
        except (av.FFmpegError, ValueError) as error:
            raise _NotCopiedError("its packets do not go into MP4") from error
    if not num_shown:
        raise _nothing(name, start, end)


def _from_keyframe(
    container: InputContainer, streams: Sequence[Any], begin: Fraction
) -> Iterator[Packet]:
    """Give the packets of some streams, the first being video, from the keyframe before a time."""
    video = streams[0]
    for back_s in _BACK_OFF_S:
        container.seek(int((begin - Fraction(back_s)) / video.time_base), stream=video)
        packets = _with_dts((p for p in container.demux(*streams) if p.size), video)
        packets = _checked(packets, video)
        keyframe = next((p for p in packets if p.stream is video and p.is_keyframe), None)
        # Containers index by decoding time, so the landing may be shown after the target.
        if keyframe and keyframe.pts is not None and keyframe.pts * video.time_base <= begin:
            return chain([keyframe], packets)
    raise _NotCopiedError("it cannot be sought in")


def _with_dts(packets: Iterable[Packet], video: Any) -> Iterator[Packet]:
    """Give the first pictures of a Matroska file the decoding times that it does not state."""
    held: list[Packet] = []
    for packet in packets:
        if packet.dts is None:
            held.append(packet)
            continue
        if packet.stream is video:
            for before, early in zip(range(len(held), 0, -1), held, strict=True):
                early.dts = packet.dts - before * (packet.duration or 1)
                yield early
            held.clear()
        yield packet


def _checked(packets: Iterable[Packet], video: VideoStream) -> Iterator[Packet]:
    """Give packets as they are, up to a picture whose time stamp is wrong."""
    tick = video.time_base or Fraction(1, av.time_base)
    stamps = StampCheck(tick, joins_ahead=False)
    for packet in packets:
        for sure in stamps.push(packet) if packet.stream is video else [packet]:
            pts, dts, is_picture = sure.pts, sure.dts, sure.stream is video
            if dts is None or (is_picture and pts is not None and (pts - dts) * tick > DOUBTFUL_S):
                raise _NotCopiedError("a time stamp in it is wrong")
            yield sure
    yield from stamps.flush()


def _write(
    packets: Iterator[Packet],
    copies: Mapping[int, Any],
    written: OutputContainer,
    span: tuple[Fraction, Fraction],
) -> int:
    """Copy packets of a span so that it begins at 0; return how many pictures lie in it."""
    (begin, until), num_shown, over = span, 0, set[int]()
    for packet in packets:
        index, tick = packet.stream_index, packet.time_base
        assert packet.dts is not None
        if packet.dts * tick >= until:
            over.add(index)
            if len(over) == len(copies):
                break
            continue
        pts = packet.dts if packet.pts is None else packet.pts
        is_video = packet.stream.type == "video"
        is_shown = (pts + (packet.duration or 1)) * tick > begin
        if not (is_video or is_shown):
            continue
        num_shown += is_video and is_shown
        shift = round(begin / tick)
        packet.pts, packet.dts, packet.stream = pts - shift, packet.dts - shift, copies[index]
        written.mux(packet)
    return num_shown


def _encode(path: Path, start: float, end: float, out: IO[bytes], name: str) -> None:
    sampling = Sampling(start=start, end=end, max_side=CLIP_SIDE)
    stream = None
    try:
        with (
            open_recordings(str(path), name, sampling) as source,
            av.open(out, "w", format="mp4") as written,
        ):
            with suppress(TruncatedError):  # what came before it is good
                for frame in source:
                    height, width = (side // 2 * 2 for side in frame.pixels.shape[:2])
                    if stream is None:
                        stream = _encoder(written, width, height)
                    picture = av.VideoFrame.from_ndarray(frame.pixels[:height, :width], "rgb24")
                    picture.pts = round((frame.time - start) / _MILLISECOND)
                    picture.time_base = _MILLISECOND
                    written.mux(stream.encode(picture))
            if stream is not None:
                written.mux(stream.encode())
    except av.FFmpegError as error:
        raise SourceError(f"{name}: cannot be cut ({error_text(error)})") from None
    if stream is None:
        raise _nothing(name, start, end)


def _nothing(name: str, start: float, end: float) -> SourceError:
    return SourceError(f"{name}: no frame from {start:g} s to {end:g} s; choose another span")


def _encoder(written: OutputContainer, width: int, height: int) -> VideoStream:
    options = {"preset": "veryfast", "crf": "23"}
    stream = written.add_stream("libx264", rate=25, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = _MILLISECOND
    stream.codec_context.thread_count = DECODE_THREADS
    return stream
