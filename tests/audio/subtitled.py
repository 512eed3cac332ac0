"""Subtitles for the tests of speech, in each format, and video files that carry them."""

from fractions import Fraction

import av
from av.subtitles.subtitle import SubtitleSet

from tests.tiny import moving_square

CUES = ((0.5, 1.5, "The red car is mine."), (4.0, 5.5, "We sail to Bergen at dawn."))
ASS_HEADER = """[Script Info]
ScriptType: v4.00+

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def stamp(seconds, mark=","):
    ms = round(seconds * 1000)
    return f"{ms // 3600000:02d}:{ms // 60000 % 60:02d}:{ms // 1000 % 60:02d}{mark}{ms % 1000:03d}"


def srt(cues=CUES):
    return "".join(
        f"{number}\n{stamp(start)} --> {stamp(end)}\n{text}\n\n"
        for number, (start, end, text) in enumerate(cues, start=1)
    )


def vtt(cues=CUES):
    lines = (f"{stamp(a, '.')} --> {stamp(b, '.')} line:0\n{text}\n\n" for a, b, text in cues)
    return "WEBVTT\n\nNOTE made by hand\n\n" + "".join(lines)


def ass(cues=CUES):
    def time(seconds):
        return stamp(seconds, ".")[1:-1]

    return ASS_HEADER + "".join(
        f"Dialogue: 0,{time(start)},{time(end)},Default,,0,0,0,,{text}\n"
        for start, end, text in cues
    )


def with_tracks(path, tracks, seconds=10, codec="subrip"):
    """Write a video of ``seconds`` whose text tracks are (language, cues) each."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        texts = []
        for language, _ in tracks:
            text = container.add_stream(codec)
            text.metadata["language"] = language
            text.codec_context.subtitle_header = ASS_HEADER.encode()
            texts.append(text)
        for number in range(seconds * 4):
            pixels = moving_square("red" if number < 12 else "blue", number, 64, 48)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode())
        for text, (_, cues) in zip(texts, tracks, strict=True):
            for start, end, words in cues:
                line = f"0,0,Default,,0,0,0,,{words}".encode()
                cue = SubtitleSet.create(text=line, start=0, end=round((end - start) * 1000))
                cue.pts = round(start * 1e6)
                packet = text.codec_context.encode_subtitle(cue)
                packet.stream, packet.time_base = text, Fraction(1, 1000)
                packet.pts = packet.dts = round(start * 1000)
                packet.duration = round((end - start) * 1000)
                container.mux(packet)
    return path


def with_captions(path, cues, *, rolls=False):
    """Write a video with a track of closed captions (EIA-608), as cameras and editors write it."""

    def pair(first, second):
        odd = (byte | 0x80 * (bin(byte).count("1") % 2 == 0) for byte in (first, second))
        return bytes([0xFC, *odd])

    def commands(text):
        letters = [ord(letter) for letter in text] + [0] * (len(text) % 2)
        begins = [(0x14, 0x25), (0x14, 0x2D)] if rolls else [(0x14, 0x20), (0x14, 0x2E)]
        shows = [] if rolls else [(0x14, 0x2F)]
        pairs = [*begins, (0x14, 0x70), *zip(letters[::2], letters[1::2], strict=True), *shows]
        return b"".join(pair(*each) for each in pairs)

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        text = container.add_mux_stream("eia_608")
        text.time_base = Fraction(1, 1000)
        for number in range(40):
            pixels = moving_square("red", number, 64, 64)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode())
        ends = [start for start, *_ in cues[1:]] + [cues[-1][1]]
        packets = [(start, commands(words)) for start, _, words in cues]
        packets += [(end, pair(0x14, 0x2C)) for _, end, _ in cues if not rolls and end not in ends]
        for start, content in sorted([*packets, (cues[-1][1], pair(0x14, 0x2C))]):
            packet = av.Packet(content)
            packet.stream, packet.time_base = text, Fraction(1, 1000)
            packet.pts = packet.dts = round(start * 1000)
            packet.duration = 100
            container.mux(packet)
    return path
