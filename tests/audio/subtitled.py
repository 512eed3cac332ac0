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
