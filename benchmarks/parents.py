"""What streaming saves the parents: their own way and ours, tiny models, scene by scene.

Their way: for each caption all frames so far are read again. VideoLLaMB encodes all of them,
bridges them from an empty memory and puts the last segment into words; MiniGPT4-Video encodes at
most 45 of them, evenly, and puts all into one prompt, so that what it sees of a scene thins out;
Video-LLaMA encodes eight of them, evenly, into 32 tokens.
Ours: each frame is encoded at most once, each segment read once.

VideoLLaMB is given the same cuts both ways (finding them is not on its clock), and scenes of eight
frames, as many as its video tower takes at a time, so both see the same frames and must give the
same text. "same" counts captions whose words are equal, if the bridge reads all past segments as
the parent does, and if it reads four, which bounds its cost. MiniGPT4-Video's own way sees other
frames, so its words are compared for the first scene alone, of which both see all.

The weights are random and tiny, so seconds mean nothing beside each other's ratio; the frames that
a tower encodes are what a large model is paid in, and "tokens" of the last caption's prompt.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks.machine import machine
from streammem.commands.opening import quiet_libraries
from streammem.engine.session import Session
from streammem.engine.session_config import SessionConfig
from streammem.models.backbones.language import GenerationConfig
from streammem.models.minigpt4_video.published import open_model as open_minigpt4
from streammem.models.protocols import EvidenceItem, StreamModel
from streammem.models.published import CAPTION_REQUEST, find
from streammem.models.threads import limit_threads
from streammem.models.video_llama.published import open_model as open_video_llama
from streammem.models.videollamb.offline import content, read
from streammem.models.videollamb.options import ParentOptions
from streammem.models.videollamb.published import ParentFile, open_model
from streammem.models.videollamb.videollamb import VideoLLaMB
from streammem.perception.frames import SegmentFrames, spread
from streammem.types import Frame, Segment
from tests.models.minigpt4_video import published as minigpt4_files
from tests.models.video_llama import published as video_llama_files
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
        tokens: of the last caption's prompt.
    """

    texts: dict[int, str] = field(default_factory=dict)
    encoded: int = 0
    perceive_s: float = 0.0
    last_s: float = 0.0
    speak_s: float = 0.0
    kept_bytes: int = 0
    tokens: int = 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks parents", description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--parent", choices=PARENTS, nargs="+", default=list(PARENTS))
    options = parser.parse_args(argv)
    quiet_libraries()
    limit_threads(busy=os.cpu_count() or 1)  # one thread
    rows = []
    print(f"{'frames':>7} {'captions':>8}  {'':16} {'encoded':>8} {'CPU s':>8} "
          f"{'last s':>8} {'kept MB':>8} {'tokens':>6}  same")  # fmt: skip
    for name in options.parent:
        with tempfile.TemporaryDirectory() as scratch:
            compared = PARENTS[name](Path(scratch))
            for count in options.frames:
                frames = scenes_of(count)
                parent, ours, same = compared(frames, Path(scratch, str(count)))
                rows.append(row_of(name, count, parent, ours, same))
    print(json.dumps({"benchmark": "parents", "rows": rows, "machine": machine()}))
    return 0


def scenes_of(count: int) -> list[Frame]:
    scenes = ((colour, SCENE) for colour in cycle(COLOURS))
    return film(*islice(scenes, -(-count // SCENE)))[:count]


def row_of(
    name: str, count: int, parent: Run, ours: Run, same: dict[str, int]
) -> dict[str, object]:
    """Print and return what both ways take for so many frames."""
    for who, run in ((f"{name[:11]} own", parent), ("ours", ours)):
        tail = ", ".join(f"{value} {key}" for key, value in same.items()) if run is ours else ""
        print(f"{count:7} {len(run.texts):8}  {who:16} {run.encoded:8} {run.perceive_s:8.2f} "
              f"{run.last_s:8.4f} {run.kept_bytes / 1e6:8.2f} {run.tokens:6}  {tail}")  # fmt: skip
    sys.stdout.flush()
    return {
        "parent": name,
        "frames": count,
        "captions": len(ours.texts),
        "time_ratio": round(parent.perceive_s / ours.perceive_s, 2),
        "time_ratio_last_caption": round(parent.last_s / ours.last_s, 2),
        "encoded_ratio": round(parent.encoded / ours.encoded, 2),
        **{key.replace(" ", "_"): value for key, value in same.items()},
        "different_texts": len(set(parent.texts.values())),
        **{f"parent_{k}": v for k, v in numbers(parent).items()},
        **{f"ours_{k}": v for k, v in numbers(ours).items()},
    }


# -- the parents: each opens its model and returns what compares both ways on frames --

Compare = Callable[[list[Frame], Path], tuple[Run, Run, dict[str, int]]]


def videollamb(scratch: Path) -> Compare:
    folder = published.write(scratch / "checkpoint")
    file = ParentFile(weights=str(folder), options=ParentOptions(pool=3, sees="last"))
    model = open_model("tiny", file, tiny_model())
    model.language.generate([model.prompt([], "Hello.")], WORDS)  # opens it

    def compare(frames: list[Frame], place: Path) -> tuple[Run, Run, dict[str, int]]:
        ours = streamed(model, model.video_tower, frames, place, FOUR)
        exact = streamed(model, model.video_tower, frames, place.with_suffix(".all"), ALL)
        parent = again_and_again(model, frames, sorted(exact.texts))
        both = [end for end in parent.texts if end % SCENE == 0]
        whole, four = (
            sum(parent.texts[e] == run.texts.get(e) for e in both) for run in (exact, ours)
        )
        same = {"both see the same": len(both), "same text whole cache": whole}
        return parent, ours, same | {"same text four retrieved": four}

    return compare


def minigpt4_video(scratch: Path) -> Compare:
    said = find(minigpt4_files.write(scratch / "files"), scratch)
    assert said is not None
    model = open_minigpt4("tiny", said, tiny_model())
    model.language.generate([model.prompt(None, [], "Hello.")], WORDS)  # opens it

    def compare(frames: list[Frame], place: Path) -> tuple[Run, Run, dict[str, int]]:
        tower = model.encoder.visual_encoder
        ours = streamed(model, tower, frames, place, 0)
        run, most = Run(), model.limits[0]
        counter = tower.register_forward_pre_hook(lambda _, given: count(run, given[0]))
        pixels = [model.perceive(frame.pixels).patches for frame in frames]
        for end in sorted(ours.texts):
            before = time.process_time()
            chosen = spread(end, most)
            with torch.inference_mode():
                tokens = model.encoder(torch.stack([pixels[i] for i in chosen]))
            run.last_s = time.process_time() - before
            run.perceive_s += run.last_s
            before = time.process_time()
            prompt = model.prompt(tokens, [""] * len(chosen), CAPTION_REQUEST)
            run.texts[end] = model.language.generate([prompt], WORDS)[0]
            run.speak_s += time.process_time() - before
            run.tokens = len(model.language.embed(prompt))
        counter.remove()
        run.kept_bytes = sum(picture.nbytes for picture in pixels)
        first = min(ours.texts)
        return run, ours, {"same text first scene": int(run.texts[first] == ours.texts[first])}

    return compare


def video_llama(scratch: Path) -> Compare:
    said = find(video_llama_files.toml(video_llama_files.write(scratch)), scratch)
    assert said is not None
    model = open_video_llama("tiny", said, tiny_model())
    model.language.generate([["Hello."]], WORDS)  # opens it

    def compare(frames: list[Frame], place: Path) -> tuple[Run, Run, dict[str, int]]:
        ours = streamed(model, model.pictures.tower, frames, place, 0)
        run = Run()
        counter = model.pictures.tower.register_forward_pre_hook(
            lambda _, given: count(run, given[0])
        )
        pixels = [model.perceive(frame.pixels).patches for frame in frames]
        for end in sorted(ours.texts):
            before = time.process_time()
            chosen = model.choose(end)
            patches, times = [pixels[i] for i in chosen], [frames[i].time for i in chosen]
            whole = SegmentFrames(0, patches, [], times)
            tokens = model.encode_segment(whole, model.initial_memory(), None).tokens
            run.last_s = time.process_time() - before
            run.perceive_s += run.last_s
            before = time.process_time()
            until = frames[end].time if end < len(frames) else frames[-1].time
            prompt = model.caption_prompt(EvidenceItem(0.0, until, tokens))
            run.texts[end] = model.language.generate([prompt], WORDS)[0]
            run.speak_s += time.process_time() - before
            run.tokens = len(model.language.embed(prompt))
        counter.remove()
        run.kept_bytes = sum(picture.nbytes for picture in pixels)
        first = min(ours.texts)
        return run, ours, {"same text first scene": int(run.texts[first] == ours.texts[first])}

    return compare


PARENTS: dict[str, Callable[[Path], Compare]] = {
    "videollamb": videollamb,
    "minigpt4-video": minigpt4_video,
    "video-llama": video_llama,
}


def numbers(run: Run) -> dict[str, float]:
    return {
        "encoded": run.encoded,
        "perceive_cpu_s": round(run.perceive_s, 4),
        "last_caption_cpu_s": round(run.last_s, 5),
        "speak_cpu_s": round(run.speak_s, 3),
        "kept_bytes": run.kept_bytes,
        "last_prompt_tokens": run.tokens,
    }


def streamed(
    model: StreamModel, tower: torch.nn.Module, frames: list[Frame], scratch: Path, retrieved: int
) -> Run:
    """Push frame by frame; caption each scene when it closes."""
    run = Run()
    scenes = replace(
        model.perceiver.scenes, flash_frames=0
    )  # so that a rest of two frames is a scene too
    config = SessionConfig(scenes=scenes, caption=WORDS, still=0.0, retrieved=retrieved)
    counter = tower.register_forward_pre_hook(lambda _, given: count(run, given[0]))
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
                run.texts[end_of(segment, frames)] = session.caption(segment).text
                prompt = session.captioner.prompt(session.request(segment))
                run.tokens = len(model.generator.language.embed(prompt))  # type: ignore[attr-defined]
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
        run.tokens = len(parent.language.embed(prompt))
    counter.remove()
    run.kept_bytes = kept.nbytes
    return run


def count(run: Run, pixels: torch.Tensor) -> None:
    run.encoded += len(pixels)


def end_of(segment: Segment, frames: list[Frame]) -> int:
    return sum(frame.time < segment.end for frame in frames)
