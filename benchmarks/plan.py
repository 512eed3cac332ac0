"""How well scenes are aligned to the steps of a plan: ``python -m benchmarks plan``.

Videos of known steps are composed from real clips: a step is a clip, its text the clip's sentence
in the manifest. Steps come in order, swapped, skipped, repeated, or interrupted by other clips.
Scenes are given (SceneTilling does not run); their keys are those of real frames. Options of both
methods are chosen on one half of the clips and reported on the other.

``--generator`` adds the language model's likelihood of a step's text as a caption of the scene,
less that of nothing shown, to the scores of the alignment; its weight is chosen likewise. The last
line has the figures as JSON.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streammem.memory.entry import Entry, visual_keys
from streammem.memory.retrieval import rate
from streammem.models.protocols import EvidenceItem
from streammem.models.registry import load
from streammem.perception.frames import BRIDGE_FRAMES, spread
from streammem.qa.plan import PLANNING, PlanConfig, PlanTracker, joint_scores, queries_of
from streammem.video import open_source

KINDS = ("in order", "swapped", "skipped", "repeated", "interrupted")
NUM_STEPS = 6
FPS = 4.0
SCENE_S = (1.5, 4.0)
WINDOWS = 4  # of a clip, of which the language model reads the one nearest to a scene
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # of its likelihood, in log-odds a nat a token


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene of a composed video: its true step, or None, and what it is compared by.

    Attributes:
        likelihoods: [S] nats a token, see ``likelihoods_of``; zeros without.
    """

    start: float
    end: float
    step: int | None
    scores: np.ndarray
    cosines: np.ndarray
    likelihoods: np.ndarray


@dataclass(frozen=True, eq=False)
class Video:
    """A composed video and what its order holds."""

    kind: str
    scenes: tuple[Scene, ...]
    skipped: tuple[int, ...]
    late: tuple[int, ...]


def keys_of(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Return each clip's sentence and the keys [T, D_key] of its frames."""
    model = load("streammem-tiny")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    found = {}
    for row in rows:
        with open_source(folder / row["file"], fps=FPS) as source:
            keys = [model.perceiver.perceive(frame.pixels).key for frame in source]
        found[row["file"]] = row["caption"], np.stack(keys)
    return found


def likelihoods_of(folder: Path, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return by clip's sentence how likely each text is as a caption of its windows.

    Returns:
        [WINDOWS, T] nats a token, less that of a prompt that shows nothing.
    """
    model: Any = load("streammem-tiny")

    def nats(tokens: torch.Tensor) -> np.ndarray:
        prompt = model.caption_prompt(EvidenceItem(0.0, 1.0, tokens))
        return np.array([np.mean(row) for row in model.log_probs(prompt, texts)])

    blank, found = nats(torch.zeros(model.token_shape)), {}
    for row in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines()):
        if row["caption"] not in texts:
            continue
        with open_source(folder / row["file"], fps=FPS) as source:
            pictures = [frame.pixels for frame in source]
        length, rows = round(np.mean(SCENE_S) * FPS), []
        for first in np.linspace(0, max(0, len(pictures) - length), WINDOWS).astype(int):
            shown = pictures[first : first + length]
            shown = [shown[i] for i in spread(len(shown), BRIDGE_FRAMES)]
            patches = [model.perceive(picture).patches for picture in shown]
            tokens = model.encode_frames(patches, np.linspace(0, 1, len(shown)).tolist())
            rows.append(nats(tokens) - blank)
        found[row["caption"]] = np.stack(rows)
    return found


def compose(
    clips: Sequence[tuple[str, np.ndarray]],
    encoder: Any,
    count: int,
    seed: int,
    likelihoods: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Video]:
    """Yield ``count`` videos of each kind."""
    rng = np.random.default_rng(seed)
    for kind, _ in product(KINDS, range(count)):
        chosen = rng.permutation(len(clips))
        steps, others = chosen[:NUM_STEPS], chosen[NUM_STEPS:]
        order, skipped, late = list(range(NUM_STEPS)), (), tuple[int, ...]()
        at = int(rng.integers(0, NUM_STEPS - 2))
        if kind == "swapped":
            order[at], order[at + 1] = at + 1, at
            late = (at,)
        elif kind == "skipped":
            order.remove(at)
            skipped = (at,)
        elif kind == "repeated":
            order.insert(at + 2, at)
        shown: list[tuple[int | None, int]] = []
        for step in order:
            shown.append((step, int(steps[step])))
            while rng.random() < (0.6 if kind == "interrupted" else 0.1):
                shown.append((None, int(rng.choice(others))))
        queries = queries_of(encoder, [clips[i][0] for i in steps])
        scenes, time = [], 0.0
        for step, clip in shown:
            keys = clips[clip][1]
            for _ in range(int(rng.integers(1, 4))):
                frames = max(2, round(float(rng.uniform(*SCENE_S)) * FPS))
                first = int(rng.integers(0, max(1, len(keys) - frames)))
                seen = visual_keys(keys[first : first + frames])
                none = seen[:0]
                entry = Entry(0, 0.0, 1.0, 1, seen, none, none, np.empty((0, 0), np.float16))
                hits = [rate([entry], query)[0] for query in queries]
                scores = np.array([hit.score for hit in hits])
                cosines = np.array([hit.visual for hit in hits])
                length = min(frames, len(keys)) / FPS
                likely = np.zeros(NUM_STEPS)
                if likelihoods is not None:
                    window = round((WINDOWS - 1) * first / max(1, len(keys) - frames))
                    likely = likelihoods[clips[clip][0]][window][steps]
                scenes.append(Scene(time, time + length, step, scores, cosines, likely))
                time += length
        yield Video(kind, tuple(scenes), skipped, late)


# -- what is compared: each returns a step, or None, for every scene --


def nearest(video: Video, least: float) -> list[int | None]:
    """The step whose sentence is nearest to the scene, from a cosine on."""
    best = [int(scene.cosines.argmax()) for scene in video.scenes]
    return [
        step if scene.cosines[step] >= least else None
        for step, scene in zip(best, video.scenes, strict=True)
    ]


def likeliest(video: Video, least: float) -> list[int | None]:
    """The likeliest step of each scene by itself: the alignment's scores without its order."""
    best = [int(scene.scores.argmax()) for scene in video.scenes]
    return [
        step if scene.scores[step] >= least else None
        for step, scene in zip(best, video.scenes, strict=True)
    ]


def aligned(
    video: Video, config: PlanConfig, weight: float = 0.0
) -> tuple[list[int | None], list[str]]:
    """The alignment's steps, and what it alerts to; ``weight`` is of the likelihoods."""
    names = [f"step {i}" for i in range(NUM_STEPS)]
    tracker = PlanTracker("goal", names, config)
    steps, alerts = list[int | None](), list[str]()
    for number, scene in enumerate(video.scenes):
        scores = joint_scores(scene.scores, scene.likelihoods, weight)
        plan = tracker.push(number, scene.start, scene.end, scores)
        alerts += plan.alerts
        now = [i for i, step in enumerate(plan.steps) if number in step.segments]
        steps.append(now[0] if now else None)
    return steps, alerts


def accuracy(videos: Sequence[Video], found: Sequence[Sequence[int | None]]) -> float:
    """Return the share of scenes that were given their true step, or rightly none."""
    right = [
        step == scene.step
        for video, steps in zip(videos, found, strict=True)
        for scene, step in zip(video.scenes, steps, strict=True)
    ]
    return float(np.mean(right))


def begins(scenes: Sequence[Scene], steps: Sequence[int | None], step: int) -> float | None:
    """Return when a step was first seen; None where it was not."""
    return next((s.start for s, i in zip(scenes, steps, strict=True) if i == step), None)


def figures(videos: Sequence[Video], found: Sequence[Sequence[int | None]]) -> dict[str, float]:
    """Return scene accuracy by kind, steps found, and the error of their begin in seconds."""
    errors, num_true, invented, num_absent = list[float](), 0, 0, 0
    for video, steps in zip(videos, found, strict=True):
        truth = [scene.step for scene in video.scenes]
        for step in range(NUM_STEPS):
            true_at = begins(video.scenes, truth, step)
            found_at = begins(video.scenes, steps, step)
            num_true += true_at is not None
            num_absent += true_at is None
            invented += true_at is None and found_at is not None
            if true_at is not None and found_at is not None:
                errors.append(abs(found_at - true_at))
    by_kind = {
        kind: accuracy(
            [v for v in videos if v.kind == kind],
            [s for v, s in zip(videos, found, strict=True) if v.kind == kind],
        )
        for kind in KINDS
    }
    return {
        "accuracy": accuracy(videos, found),
        **by_kind,
        "steps_found": len(errors) / num_true,
        "begin_error_s": float(np.mean(errors)),
        "begin_right": float(np.mean(np.array(errors) < 0.01)),
        "skipped_found": invented / max(1, num_absent),
    }


def alert_figures(videos: Sequence[Video], alerts: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return false alerts an hour, and the shares of skipped and of swapped steps alerted to.

    ``f1`` joins precision of all alerts and recall of skipped steps told as left out and of
    swapped ones told as out of order. That a swapped step is left out is true until it comes.
    """
    hours = sum(video.scenes[-1].end for video in videos) / 3600
    false, hits, number = 0, {"left out": 0, "out of order": 0}, {"left out": 0, "out of order": 0}
    for video, texts in zip(videos, alerts, strict=True):
        wanted = {f"left out: step {i}" for i in (*video.skipped, *video.late)}
        wanted |= {f"out of order: step {i}" for i in video.late}
        false += sum(text not in wanted for text in texts)
        number["left out"] += len(video.skipped)
        number["out of order"] += len(video.late)
        hits["left out"] += sum(f"left out: step {i}" in texts for i in video.skipped)
        hits["out of order"] += sum(f"out of order: step {i}" in texts for i in video.late)
    shares = {name: hits[name] / max(1, number[name]) for name in hits}
    num_told, recalled = sum(map(len, alerts)), sum(hits.values())
    precision = 1 - false / max(1, num_told)
    recall = recalled / max(1, sum(number.values()))
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return {"hours": hours, "false_an_hour": false / hours, **shares, "f1": f1}


def main(arguments: list[str]) -> int:
    """Choose options on one half, report on the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plan", description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="videos of each kind")
    parser.add_argument("--keys", type=Path, help="file to keep the frames' keys in, .npz")
    parser.add_argument("--generator", action="store_true", help="add the language model's word")
    options = parser.parse_args(arguments)
    folder = Path(os.environ["STREAMMEM_DATA"]) / "clips"
    clips = _clips(folder, options.keys)
    encoder = load("streammem-tiny").text_encoder
    halves = [clips[0::2], clips[1::2]]
    likely = [
        likelihoods_of(folder, [text for text, _ in half]) if options.generator else None
        for half in halves
    ]
    fitting = list(compose(halves[0], encoder, max(4, options.count // 2), 1, likely[0]))
    least_cosine = max(
        np.arange(0.05, 0.6, 0.02),
        key=lambda t: accuracy(fitting, [nearest(v, t) for v in fitting]),
    )
    least_score = max(
        np.arange(0.02, 0.9, 0.02),
        key=lambda t: accuracy(fitting, [likeliest(v, t) for v in fitting]),
    )
    grid = product((1.0, 2.0, 3.0, 4.0), (0.35, 0.5), (0.35, 0.5), (0.15, 0.3))
    configs = [
        replace(PLANNING, prior=prior, stay=stay, sure=sure, interrupt=interrupt)
        for prior, stay, sure, interrupt in grid
    ]
    best = max(configs, key=lambda c: accuracy(fitting, [aligned(v, c)[0] for v in fitting]))
    print(f"chosen on the other half: cosine {least_cosine:.2f}, score {least_score:.2f}, {best}")
    rules = [
        replace(PLANNING, confirm=confirm, confirm_late=late, alert_sure=sure)
        for confirm, late, sure in product((2, 3, 4, 5), (1, 2, 3), (0.8, 0.9, 0.95, 0.98))
    ]
    rule = max(
        rules, key=lambda c: alert_figures(fitting, [aligned(v, c)[1] for v in fitting])["f1"]
    )
    print(f"likewise, of alerts: {rule}")
    videos = list(compose(halves[1], encoder, options.count, 2, likely[1]))
    scenes = sum(len(video.scenes) for video in videos)
    shipped, tuned = ([aligned(v, c) for v in videos] for c in (PLANNING, best))
    report: dict[str, Any] = {
        "videos": len(videos),
        "scenes": scenes,
        "nearest key frame": figures(videos, [nearest(v, float(least_cosine)) for v in videos]),
        "scores without order": figures(videos, [likeliest(v, float(least_score)) for v in videos]),
        "alignment, as shipped": figures(videos, [steps for steps, _ in shipped]),
        "alignment, as chosen": figures(videos, [steps for steps, _ in tuned]),
        "alerts, chosen on the other half": alert_figures(
            videos, [aligned(v, rule)[1] for v in videos]
        ),
        "alerts of that rule on the other half itself": alert_figures(
            fitting, [aligned(v, rule)[1] for v in fitting]
        ),
        **{
            f"alerts, confirm {confirm}": alert_figures(
                videos, [aligned(v, replace(PLANNING, confirm=confirm))[1] for v in videos]
            )
            for confirm in (2, PLANNING.confirm, 5)
        },
    }
    if options.generator:
        report |= with_generator(fitting, videos, configs, shipped)
    for name, values in report.items():
        shown = values
        if isinstance(values, dict):
            shown = ", ".join(f"{key} {value:.3f}" for key, value in values.items())
        print(f"{name}: {shown}")
    print(json.dumps(report))
    return 0


def with_generator(
    fitting: Sequence[Video],
    videos: Sequence[Video],
    configs: Sequence[PlanConfig],
    shipped: Sequence[tuple[list[int | None], list[str]]],
) -> dict[str, Any]:
    """Choose a weight of the language model's likelihood on one half; report on the other."""
    pairs = [(config, weight) for config in configs for weight in WEIGHTS]
    found = {pair: accuracy(fitting, [aligned(v, *pair)[0] for v in fitting]) for pair in pairs}
    config, weight = max(found, key=lambda pair: found[pair])
    by_weight = {str(w): max(found[c, w] for c in configs) for w in WEIGHTS}
    steps = [aligned(video, config, weight)[0] for video in videos]
    gains = [
        accuracy([video], [new]) - accuracy([video], [old])
        for video, new, (old, _) in zip(videos, steps, shipped, strict=True)
    ]
    return {
        "accuracy on the other half by weight of the generator": by_weight,
        f"alignment with the generator, weight {weight:g}": figures(videos, steps),
        "what it gains on what ships, over videos": {
            "mean": float(np.mean(gains)),
            "error": float(np.std(gains) / np.sqrt(len(gains))),
        },
    }


def _clips(folder: Path, kept: Path | None) -> list[tuple[str, np.ndarray]]:
    if kept is None or not kept.is_file():
        found = keys_of(folder)
        if kept is None:
            return list(found.values())
        np.savez(kept, **{f"{text}": keys for text, keys in found.values()})  # type: ignore[arg-type]
    with np.load(kept) as arrays:
        return [(text, arrays[text]) for text in arrays]
