"""Speech of one live camera: how late words come, and what it costs perception.

``python -m benchmarks listen`` makes sentences with espeak-ng, puts them under photos that go by,
and sends both in real time over HTTP (MPEG-TS, H.264 and AAC) from a process of its own. They are
watched as `streammem watch --speech whisper-base` does, with captions, then once more without
speech: the control of perception's pace and of the CPU.

A word's delay runs from the moment at which it has been spoken, by its share of its sentence's
letters, until the note that holds it comes; the sentence's own times are exact. With ``--file`` a
video of that length is written instead and watched as a file: wall time, memory, word error rate.
``--alone`` sends no stream: sound comes in computed time, and recognition takes as long as the CPU
seconds that it was measured to take, as if it had a core of its own; for machines that are busy.
"""

import argparse
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

from benchmarks import recognised
from benchmarks.machine import machine

RATE, FPS, CHUNK_S = 22_050, 10, 0.1
SENTENCES = recognised.SENTENCES["en"][:10]


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


def matched(
    true: Sequence[tuple[str, float]], noted: Sequence[tuple[str, float, float]]
) -> tuple[list[tuple[float, float]], float]:
    """Compare words, minute by minute, by the edit distance.

    Args:
        true: (word, second at which it has been spoken).
        noted: (word, second at which its note came, second at which its note begins).

    Returns:
        (spoken, came) of each word that agrees, and the word error rate.
    """
    pairs, wrong = [], 0
    for begin in np.arange(0.0, true[-1][1], 60.0):
        ours = [word for word in true if begin <= word[1] < begin + 60]
        theirs = [word for word in noted if begin <= word[2] + 0.5 < begin + 60]
        cost = np.zeros((len(ours) + 1, len(theirs) + 1), int)
        cost[:, 0], cost[0] = np.arange(len(ours) + 1), np.arange(len(theirs) + 1)
        for i, one in enumerate(ours, 1):
            for k, other in enumerate(theirs, 1):
                swap = cost[i - 1, k - 1] + (one[0] != other[0])
                cost[i, k] = min(cost[i - 1, k] + 1, cost[i, k - 1] + 1, swap)
        i, k, wrong = len(ours), len(theirs), wrong + int(cost[-1, -1])
        while i and k:
            if ours[i - 1][0] == theirs[k - 1][0] and cost[i, k] == cost[i - 1, k - 1]:
                pairs.append((ours[i - 1][1], theirs[k - 1][1]))
                i, k = i - 1, k - 1
            elif cost[i, k] == cost[i - 1, k - 1] + 1:
                i, k = i - 1, k - 1
            elif cost[i, k] == cost[i - 1, k] + 1:
                i -= 1
            else:
                k -= 1
    return pairs, round(wrong / len(true), 3)


def watched(source: str, speech: str, captions: bool, zero=None) -> dict:
    """Watch a source; return its counters, and when each note came."""
    from streammem.audio.track import SpeechOptions
    from streammem.engine.session import Session
    from streammem.engine.watch import watch
    from streammem.engine.watch_options import WatchOptions
    from streammem.models.checkpoint import load_checkpoint
    from streammem.types import Note, Stats

    options = WatchOptions(captions=captions, stats_s=1e9, speech=SpeechOptions(speech, "en"))
    session, noted, stats = Session(load_checkpoint()), [], None
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
            noted = [(w, came, note.start) for came, note in run["noted"] for w in words(note.text)]
            pairs, errors = matched(word_ends(places), noted)
            late = [came - at for at, came in pairs]
            found |= {"notes": len(run["noted"]), "words": len(late), "word_error_rate": errors,
                      "delay_s": quantiles(late),
                      "within_5_s": float(np.mean(np.array(late) <= 5))}  # fmt: skip
            print(*(f"{came:7.2f} {note}" for came, note in run["noted"]), sep="\n")
    heard = found["on"]["cores"] - found["off"]["cores"]
    return found | {"real_time_factor": round(heard, 3), "load": [before, os.getloadavg()[0]]}


def alone(options: argparse.Namespace) -> dict:
    from streammem.audio.recogniser import RATE as HEARD_RATE
    from streammem.audio.utterances import Utterances, silero
    from streammem.models.transcription import recogniser

    sound, once = spoken(options.voice, options.pause)
    count = int(options.seconds * RATE / len(sound)) + 1
    places = [(a + k * len(sound) / RATE, b + k * len(sound) / RATE, text)
              for k in range(count) for a, b, text in once]  # fmt: skip
    places = [place for place in places if place[1] < options.seconds]
    at = np.arange(round(options.seconds * HEARD_RATE)) / HEARD_RATE * RATE
    heard = np.interp(at, np.arange(count * len(sound)), np.tile(sound, count)).astype(np.float32)
    heard += np.random.default_rng(0).normal(0, options.noise, len(heard)).astype(np.float32)
    hears, utterances = recogniser(options.recogniser, "en")(), Utterances(silero())
    list(hears.transcribe(heard[: 2 * HEARD_RATE]))  # what is set up at the first use
    now, given, busy_s, noted, step = 0.0, 0, 0.0, [], round(CHUNK_S * HEARD_RATE)
    while given < len(heard):
        now = max(now, (given + step) / HEARD_RATE)
        while given < len(heard) and (given + step) / HEARD_RATE <= now:
            utterances.push(given / HEARD_RATE, heard[given : given + step])
            given += step
        began = time.process_time()
        for start, samples in utterances.ready():
            notes = [note.shifted(start) for note in hears.transcribe(samples)]
            took, began = time.process_time() - began, time.process_time()
            now, busy_s = now + took, busy_s + took
            noted += [(now, note) for note in notes]
        took = time.process_time() - began
        now, busy_s = now + took, busy_s + took
    print(*(f"{came:7.2f} {note}" for came, note in noted), sep="\n")
    told = [(word, came, note.start) for came, note in noted for word in words(note.text)]
    pairs, errors = matched(word_ends(places), told)
    late = np.array([came - at for at, came in pairs])
    return {"seconds": options.seconds, "notes": len(noted), "words": len(late),
            "word_error_rate": errors, "delay_s": quantiles(late),
            "within_5_s": round(float(np.mean(late <= 5)), 3),
            "real_time_factor": round(busy_s / options.seconds, 3),
            "load": os.getloadavg()[0]}  # fmt: skip


def recorded(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "talk.mp4")
        _, places = media(options.seconds, options.voice, options.pause, path)
        run = watched(path, options.recogniser, not options.no_captions)
    noted = [(word, at, note.start) for at, note in run["noted"] for word in words(note.text)]
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
    parser.add_argument("--alone", action="store_true", help="in computed time, sound only")
    parser.add_argument("--noise", type=float, default=0.0, help="of full scale, with --alone")
    options = parser.parse_args(arguments)
    kind = alone if options.alone else recorded if options.file else live
    found = kind(options)
    print(json.dumps({"benchmark": "listen", **found, "machine": machine("av")}))
    return 0
