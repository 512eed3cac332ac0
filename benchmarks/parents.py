"""What streaming saves VideoLLaMB: its own way and ours, the same tiny model, scene by scene.

Its way: for each caption all frames so far are encoded again, bridged from an empty memory, and
the last segment is put into words. Ours: each frame is encoded once, each segment bridged once.
Both are given the same cuts (finding them is not on its clock), and scenes of eight frames, as
many as its video tower takes at a time, so both see the same frames and must give the same text.

The weights are random and tiny, so seconds mean nothing beside each other's ratio; the frames that
a tower encodes are what a large model is paid in. "same" counts captions whose words are equal, if
the bridge reads all past segments as the parent does, and if it reads four, which bounds its cost.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks.machine import machine
from streammem.commands.opening import quiet_libraries
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.models.backbones.language import GenerationConfig
from streammem.models.threads import limit_threads
from streammem.models.videollamb.offline import content, read
from streammem.models.videollamb.options import ParentOptions
from streammem.models.videollamb.published import ParentFile, open_model
from streammem.models.videollamb.videollamb import CAPTION_REQUEST, VideoLLaMB
from streammem.types import Frame, Segment
from tests.models.videollamb import published
from tests.tiny import film, tiny_model

SCENE = 8  # frames
COLOURS = ("red", "blue", "green", "white", "black", "yellow")
WORDS = GenerationConfig(max_new_tokens=8)
ALL, FOUR = 10_000, 4


@dataclass
class Run:
    """What watching took.

    Attributes:
        texts: by the number of the scene's last frame + 1.
        encoded: frames that went through the video tower.
        perceive_s: CPU seconds of all but words.
        last_s: of those, for the last caption.
        speak_s: CPU seconds of words.
        kept_bytes: held for the next caption: pixels, memory, keys.
    """

    texts: dict[int, str] = field(default_factory=dict)
    encoded: int = 0
    perceive_s: float = 0.0
    last_s: float = 0.0
    speak_s: float = 0.0
    kept_bytes: int = 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks parents", description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[10, 100, 1000])
    options = parser.parse_args(argv)
    quiet_libraries()
    limit_threads(busy=os.cpu_count() or 1)  # one thread
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = published.write(Path(scratch, "checkpoint"))
        file = ParentFile(str(folder), options=ParentOptions(pool=3, sees="last"))
        model = open_model("tiny", file, tiny_model())
        model.language.generate([model.prompt([], "Hello.")], WORDS)  # opens it
        print(f"{'frames':>7} {'captions':>8}  {'':8} {'encoded':>8} {'CPU s':>8} "
              f"{'last s':>8} {'kept MB':>8}  same: all, four")  # fmt: skip
        for count in options.frames:
            rows.append(compared(model, count, Path(scratch, str(count))))
    print(json.dumps({"benchmark": "parents", "rows": rows, "machine": machine()}))
    return 0


def compared(model: VideoLLaMB, count: int, scratch: Path) -> dict[str, object]:
    """Print and return what both ways take for so many frames."""
    scenes = ((colour, SCENE) for colour in cycle(COLOURS))
    frames = film(*islice(scenes, -(-count // SCENE)))[:count]
    ours = streamed(model, frames, FOUR, scratch)
    exact = streamed(model, frames, ALL, scratch.with_suffix(".all"))
    parent = again_and_again(model, frames, sorted(exact.texts))
    both = [end for end in parent.texts if end % SCENE == 0]
    same = [sum(parent.texts[e] == run.texts.get(e) for e in both) for run in (exact, ours)]
    for name, run in (("parent", parent), ("ours", ours)):
        tail = f"{same[0]}/{len(both)}, {same[1]}/{len(both)}" if run is ours else ""
        print(f"{count:7} {len(run.texts):8}  {name:8} {run.encoded:8} {run.perceive_s:8.2f} "
              f"{run.last_s:8.4f} {run.kept_bytes / 1e6:8.2f}  {tail}")  # fmt: skip
    sys.stdout.flush()
    return {
        "frames": count,
        "captions": len(ours.texts),
        "time_ratio": round(parent.perceive_s / ours.perceive_s, 2),
        "time_ratio_last_caption": round(parent.last_s / ours.last_s, 2),
        "encoded_ratio": round(parent.encoded / ours.encoded, 2),
        "both_see_the_same": len(both),
        "same_text_whole_cache": same[0],
        "same_text_four_retrieved": same[1],
        "different_texts": len({parent.texts[e] for e in both}),
        **{f"parent_{k}": v for k, v in numbers(parent).items()},
        **{f"ours_{k}": v for k, v in numbers(ours).items()},
    }


def numbers(run: Run) -> dict[str, float]:
    return {
        "encoded": run.encoded,
        "perceive_cpu_s": round(run.perceive_s, 4),
        "last_caption_cpu_s": round(run.last_s, 5),
        "speak_cpu_s": round(run.speak_s, 3),
        "kept_bytes": run.kept_bytes,
    }


def streamed(model: VideoLLaMB, frames: list[Frame], retrieved: int, scratch: Path) -> Run:
    """Push frame by frame; caption each scene when it closes."""
    run = Run()
    scenes = replace(model.scenes, flash_frames=0)  # so that a rest of two frames is a scene too
    config = SessionConfig(scenes=scenes, caption=WORDS, still=0.0, retrieved=retrieved)
    counter = model.video_tower.register_forward_pre_hook(lambda _, given: count(run, given[0]))
    with Session(model, config, memory=scratch) as session:
        began, since = time.process_time(), 0.0
        for frame in [*frames, None]:
            closed = session.push(frame) if frame else session.flush()
            if not closed:
                continue
            run.last_s = time.process_time() - began - since
            run.perceive_s += run.last_s
            before = time.process_time()
            for segment in closed:
                text = session.caption(segment).text
                run.texts[end_of(segment, frames)] = text
            run.speak_s += time.process_time() - before
            since = time.process_time() - began
        held = session.open_frames + session.snapshot().buffer.now
        run.kept_bytes = session.memory.num_bytes() + session.recurrent.nbytes
        run.kept_bytes += sum(f.patches.nbytes + f.picture.nbytes + f.key.nbytes for f in held)
    counter.remove()
    return run


def again_and_again(model: VideoLLaMB, frames: list[Frame], ends: list[int]) -> Run:
    """Read all frames so far for each caption."""
    run, kept = Run(), torch.empty(0)
    counter = model.video_tower.register_forward_pre_hook(lambda _, given: count(run, given[0]))
    options = replace(model.options, groups="stream")
    parent = replace(model, options=options, open_language=lambda: model.language)
    pixels = torch.stack([model.perceive(frame.pixels).patches for frame in frames])
    for end in ends:
        before = time.process_time()
        kept = pixels[:end]
        whole = kept[: max(SCENE, end // SCENE * SCENE)]
        reading = read(parent, whole, list(range(0, len(whole), SCENE)))
        run.last_s = time.process_time() - before
        run.perceive_s += run.last_s
        before = time.process_time()
        prompt = parent.prompt(content(parent, reading), CAPTION_REQUEST)
        run.texts[end] = parent.language.generate([prompt], WORDS)[0]
        run.speak_s += time.process_time() - before
    counter.remove()
    run.kept_bytes = kept.nbytes
    return run


def count(run: Run, pixels: torch.Tensor) -> None:
    run.encoded += len(pixels)


def end_of(segment: Segment, frames: list[Frame]) -> int:
    return sum(frame.time < segment.end for frame in frames)
