"""Speech of one live camera: how late words come, and what it costs perception.

``python -m benchmarks listen`` makes sentences with espeak-ng, puts them under photos that go by,
and sends both in real time over HTTP (MPEG-TS, H.264 and AAC) from a process of its own. They are
watched as `streammem watch --speech whisper-base` does, with captions, then once more without
speech: the control of perception's pace and of the CPU.

A word's delay runs from the moment at which it has been spoken, by its share of its sentence's
letters, until the note that holds it comes; the sentence's own times are exact. With ``--file`` a
video of that length is written instead and watched as a file: wall time, memory, word error rate.
"""

import argparse
import difflib
import json
import multiprocessing
import os
import re
import resource
import socket
import subprocess
import tempfile
import time
import wave
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from benchmarks.machine import machine

RATE, FPS, CHUNK_S = 22_050, 10, 0.1
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Please open the front door and bring me the red book from the kitchen table.",
    "The train to London leaves at half past nine in the morning.",
    "We will sail to the old harbour before the storm begins.",
    "My brother sold his violin because he needed a new lantern.",
    "There is a castle on the island behind the church.",
    "The doctor said that the garden needs more water in summer.",
    "Nobody knows why the bridge was closed last winter.",
    "She wants to paint the house green and plant some apple trees.",
    "I will meet you at the station after the concert on Friday.",
)


def spoken(voice: str, pause_s: float) -> tuple[np.ndarray, list[tuple[float, float, str]]]:
    """Return the sentences as sound, with (start, end, text) of each in seconds."""
    parts, places, at = [np.zeros(RATE, np.float32)], [], 1.0
    for text in SENTENCES:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            command = ["espeak-ng", "-v", voice, "-s", "150", "-w", file.name, text]
            subprocess.run(command, check=True)
            with wave.open(file.name) as said:
                assert said.getframerate() == RATE
                samples = np.frombuffer(said.readframes(said.getnframes()), np.int16) / 32768
        loud = np.flatnonzero(np.abs(samples) > 0.02)
        places.append((at + loud[0] / RATE, at + loud[-1] / RATE, text))
        parts += [samples.astype(np.float32), np.zeros(round(pause_s * RATE), np.float32)]
        at += len(samples) / RATE + round(pause_s * RATE) / RATE
    return np.concatenate(parts), places


def media(
    seconds: float, voice: str, pause_s: float, path: str | None = None
) -> tuple[list[tuple[float, bytes]], list[tuple[float, float, str]]]:
    """Encode sentences, over and over, under photos.

    Args:
        path: of a file to write; None gives a live stream's pieces.

    Returns:
        (seconds at which it is there, bytes) of each piece, and each sentence's place.
    """
    from benchmarks.lag import pictures

    sound, once = spoken(voice, pause_s)
    places = [
        (a + k * len(sound) / RATE, b + k * len(sound) / RATE, text)
        for k in range(int(seconds * RATE / len(sound)) + 1)
        for a, b, text in once
    ]
    shown, pieces, block = pictures(0, min(seconds, 120.0)), [], round(CHUNK_S * RATE)
    out = BytesIO()
    with av.open(path or out, "w", format=None if path else "mpegts") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast",
                                     "tune": "zerolatency", "g": str(FPS)})  # fmt: skip
        video.height, video.width, video.pix_fmt = *shown[0].shape[:2], "yuv420p"
        heard = container.add_stream("aac", rate=RATE)
        heard.layout = "mono"
        for number in range(round(seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(shown[number % len(shown)], "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
            at = number * block
            samples = np.take(sound, range(at, at + block), mode="wrap")
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
            container.mux(heard.encode(frame))
            if not path:
                pieces.append(((number + 1) * CHUNK_S, out.getvalue()))
                out.seek(0)
                out.truncate()
    return pieces, [place for place in places if place[1] < seconds]


@contextmanager
def serving(pieces: Sequence[tuple[float, bytes]]):
    """Send the pieces in real time to each client, from a process of its own; gives the URL.

    The stream's Unix time 0 is put into the second value's ``value`` at each connection.
    """
    context = multiprocessing.get_context("fork")
    zero = context.Value("d", 0.0)
    listening = socket.create_server(("127.0.0.1", 0))
    process = context.Process(target=_serve, args=(listening, pieces, zero), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/live.ts", zero
    finally:
        listening.close()
        process.terminate()
        process.join()


def _serve(listening: socket.socket, pieces: Sequence[tuple[float, bytes]], zero) -> None:
    while True:
        client, _ = listening.accept()
        with client, suppress(OSError):
            client.recv(4096)
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
            zero.value = time.time()
            for at, data in pieces:
                time.sleep(max(0.0, zero.value + at - time.time()))
                client.sendall(data)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def word_ends(places: Sequence[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """Return each word with the second at which it has been spoken, by its share of the letters."""
    found = []
    for start, end, text in places:
        own = words(text)
        shares = np.cumsum([len(word) + 1 for word in own])
        found += [
            (w, start + (end - start) * s / shares[-1]) for w, s in zip(own, shares, strict=True)
        ]
    return found


def matched(true: list[tuple[str, float]], noted: list[tuple[str, float]]) -> tuple[list, float]:
    """Return (word's second, note's second) of the words that agree, and the word error rate."""
    ours, theirs = [w for w, _ in true], [w for w, _ in noted]
    pairs, wrong = [], 0
    for kind, a, b, c, d in difflib.SequenceMatcher(None, ours, theirs, False).get_opcodes():
        if kind == "equal":
            pairs += [(true[a + k][1], noted[c + k][1]) for k in range(b - a)]
        else:
            wrong += max(b - a, d - c)
    return pairs, wrong / max(1, len(ours))


def watched(source: str, speech: str, captions: bool, zero=None) -> dict:
    """Watch a source; return its counters, and when each note came."""
    from streammem.audio.track import SpeechOptions
    from streammem.engine.session import Session
    from streammem.engine.watch import watch
    from streammem.engine.watch_options import WatchOptions
    from streammem.models.checkpoint import load
    from streammem.types import Note, Stats

    options = WatchOptions(captions=captions, stats_s=1e9, speech=SpeechOptions(speech, "en"))
    session, noted, stats = Session(load()), [], None
    before, began = time.process_time(), time.monotonic()
    for event in watch(session, source, options):
        if isinstance(event, Note):
            noted.append((time.time() - zero.value if zero else event.start, event))
        if isinstance(event, Stats):
            stats = event
    return {"noted": noted, "stats": stats, "cpu_s": time.process_time() - before,
            "wall_s": time.monotonic() - began}  # fmt: skip


def quantiles(values: Sequence[float]) -> list[float]:
    return np.percentile(values, (50, 95, 100)).round(2).tolist()


def live(options: argparse.Namespace) -> dict:
    pieces, places = media(options.seconds, options.voice, options.pause)
    before = os.getloadavg()[0]
    found, counts = {}, ("captured", "frames", "dropped_full", "segments", "captions",
                         "captions_skipped", "sound_s", "sound_skipped_s")  # fmt: skip
    for name, speech in (("on", options.recogniser), ("off", "off")):
        with serving(pieces) as (url, zero):
            run = watched(url, speech, not options.no_captions, zero)
        found[name] = {key: getattr(run["stats"], key) for key in counts} | {
            "perceive_s": round(run["stats"].perceive_s, 2),
            "cores": round(run["cpu_s"] / run["wall_s"], 2),
        }
        if name == "on":
            noted = [(w, came) for came, note in run["noted"] for w in words(note.text)]
            pairs, errors = matched(word_ends(places), noted)
            late = [came - at for at, came in pairs]
            found |= {"notes": len(run["noted"]), "words": len(late), "word_error_rate": errors,
                      "delay_s": quantiles(late),
                      "within_5_s": float(np.mean(np.array(late) <= 5))}  # fmt: skip
            print(*(f"{came:7.2f} {note}" for came, note in run["noted"]), sep="\n")
    heard = found["on"]["cores"] - found["off"]["cores"]
    return found | {"real_time_factor": round(heard, 3), "load": [before, os.getloadavg()[0]]}


def recorded(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "talk.mp4")
        _, places = media(options.seconds, options.voice, options.pause, path)
        run = watched(path, options.recogniser, not options.no_captions)
    noted = [(word, at) for at, note in run["noted"] for word in words(note.text)]
    _, errors = matched(word_ends(places), noted)
    starts = np.array([note.start for _, note in run["noted"]])
    apart = [float(np.abs(starts - start).min()) for start, *_ in places if len(starts)]
    return {"seconds": options.seconds, "wall_s": round(run["wall_s"], 1),
            "cpu_s": round(run["cpu_s"], 1), "notes": len(run["noted"]), "word_error_rate": errors,
            "start_apart_s": quantiles(apart),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks listen", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--recogniser", default="whisper-base")
    parser.add_argument("--voice", default="en-us", help="of espeak-ng")
    parser.add_argument("--pause", type=float, default=0.8, help="seconds between sentences")
    parser.add_argument("--no-captions", action="store_true")
    parser.add_argument("--file", action="store_true", help="a file instead of a live stream")
    options = parser.parse_args(arguments)
    found = recorded(options) if options.file else live(options)
    print(json.dumps({"benchmark": "listen", **found, "machine": machine("av")}))
    return 0
