"""Which action comes next, from those before: ``python -m benchmarks next_action``.

Actions are those of EPIC-KITCHENS' training logs (verb and noun, in order, by people), split by
participant. True past actions are given: nothing is seen here, so that this is the best that a
model of pictures could do with these predictors. Every option was chosen on the validation
participants; figures are of the test participants, with standard errors over their videos.

    python -m benchmarks next_action --train adapter.safetensors --out run    # minutes
    python -m benchmarks next_action --adapter adapter.safetensors

The last line has the figures as JSON.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streammem.models.tiny.planning import (
    PLANNING_FILES,
    PlanningAdapter,
    open_planning,
    save_planning,
)
from streammem.qa.next_action import Ngram, cache
from streammem.training.loop import Schedule, train_stage
from streammem.training.planning import TERMS, PlanningStage, read_logs, read_words

TOP = 5
KINDS = ("verb", "noun", "action")
SCHEDULE = Schedule(steps=600, lr=3e-3, weight_decay=0.05, evaluate_every=100)
RESAMPLES = 1000


class Task:
    """The logs, with each pair of verb and noun that occurs in them as one number.

    A pair gets a chance from counts once it has occurred: of the training participants, or in the
    video before. The adapter is asked for pairs of the training participants alone, so that no
    predictor gains from the numbers of the others.

    Attributes:
        pairs: [A, 2], verb and noun of each number.
        trained: [A] bool, of those that the training participants did.
        uniform: [A], what each has before anything is counted: one of all verbs times nouns.
    """

    def __init__(self, folder: Path) -> None:
        self.words, self.logs = read_words(folder), read_logs(folder)
        self.sizes = len(self.words.verbs), len(self.words.nouns)
        every = np.concatenate([log.actions for logs in self.logs.values() for log in logs])
        self.pairs = np.unique(every, axis=0)
        self._number = {tuple(pair): number for number, pair in enumerate(self.pairs.tolist())}
        self.trained = np.zeros(len(self.pairs), bool)
        self.trained[[action for actions in self.videos("train") for action in actions]] = True
        self.uniform = np.full(len(self.pairs), 1 / (self.sizes[0] * self.sizes[1]))

    def videos(self, split: str) -> list[list[int]]:
        """Return each video's actions as numbers; those of a single action have none to tell."""
        pairs = (log.actions.tolist() for log in self.logs[split])
        flat = ([self._number[tuple(pair)] for pair in each] for each in pairs)
        return [actions for actions in flat if len(actions) > 1]


# -- components: each gives [T - 1, A] of a video, what comes after its first 1 ... T - 1 actions --

Component = Callable[[Sequence[int]], np.ndarray]


def of_logs(task: Task, order: int, scale: float) -> Component:
    """An interpolated n-gram of the training participants."""
    model = Ngram(order, scale)
    for actions in task.videos("train"):
        for at, action in enumerate(actions):
            model.push(actions[max(0, at - order) : at], action)

    def follow(actions: Sequence[int]) -> np.ndarray:
        rows = (model.probabilities(actions[:at], task.uniform) for at in range(1, len(actions)))
        return np.stack([row.astype(np.float32) for row in rows])

    return follow


def of_own_past(task: Task, order: int, scale: float, decay: float) -> Component:
    """An n-gram of the video itself, which learns as it goes, over a cache of what was lately."""

    def follow(actions: Sequence[int]) -> np.ndarray:
        model, rows = Ngram(order, scale), []
        for at in range(1, len(actions)):
            model.push(actions[: at - 1][-order:], actions[at - 1])
            base = cache(actions[:at], len(task.pairs), decay)
            rows.append(model.probabilities(actions[:at], base).astype(np.float32))
        return np.stack(rows)

    return follow


def of_adapter(task: Task, adapter: PlanningAdapter) -> Component:
    """The recurrent model."""

    def follow(actions: Sequence[int]) -> np.ndarray:
        chances = adapter.all_next(torch.from_numpy(task.pairs[actions[:-1]]))[1:].numpy()
        of_pairs: np.ndarray = chances[:, task.pairs[:, 0], task.pairs[:, 1]] * task.trained
        return of_pairs

    return follow


def of_true(component: Component, videos: Sequence[Sequence[int]]) -> np.ndarray:
    """Return how likely each action that came next was, over all videos."""
    found = [component(actions)[np.arange(len(actions) - 1), actions[1:]] for actions in videos]
    return np.concatenate(found)


def best_shares(likely: Sequence[np.ndarray]) -> tuple[list[float], float]:
    """Return the shares of sum 1, in twentieths, of the least loss, and that loss in nats."""
    steps = np.arange(21) / 20
    grids = product(steps, repeat=len(likely) - 1)
    every = [(*shares, 1 - sum(shares)) for shares in grids if sum(shares) <= 1 + 1e-9]

    def loss(shares: Sequence[float]) -> float:
        chance = sum(s * p for s, p in zip(shares, likely, strict=True))
        return float(-np.log(np.maximum(chance, 1e-12)).mean())

    best = min(every, key=loss)
    return [round(float(share), 2) for share in best], loss(best)


# -- figures --


@dataclass
class Hits:
    """Whether the true class was the first, and among the first five, by kind."""

    classes: dict[str, list[int]] = field(default_factory=lambda: {k: [] for k in KINDS})
    first: dict[str, list[bool]] = field(default_factory=lambda: {k: [] for k in KINDS})
    five: dict[str, list[bool]] = field(default_factory=lambda: {k: [] for k in KINDS})
    video: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, kind: str, true: int, likeliest: Sequence[int]) -> None:
        self.classes[kind].append(true)
        self.first[kind].append(true in likeliest[:1])
        self.five[kind].append(true in likeliest[:TOP])

    def figures(self) -> dict[str, dict[str, float]]:
        """Return instance and class-mean recall of the first and of five, by kind."""
        found = {}
        for kind in KINDS:
            classes = np.array(self.classes[kind])
            row = {}
            for name, hits in (("1", self.first[kind]), ("5", self.five[kind])):
                right = np.array(hits, float)
                by_class = np.bincount(classes, right)[np.unique(classes)]
                row[f"top{name}"] = float(right.mean())
                row[f"class_top{name}"] = float(
                    (by_class / np.bincount(classes)[np.unique(classes)]).mean()
                )
            found[kind] = row
        return found


def judged(
    task: Task,
    parts: Mapping[str, Component],
    mixes: Mapping[str, Mapping[str, float]],
    videos: Sequence[Sequence[int]],
) -> dict[str, Hits]:
    """Rank what weighted means of components give; verbs and nouns by the sums of their actions.

    Args:
        task: the logs.
        parts: components by name, each of which is computed once.
        mixes: of each mean the shares of its components.
        videos: the actions of each.
    """
    found = {name: Hits() for name in mixes}
    for number, actions in enumerate(videos):
        chances = {name: part(actions) for name, part in parts.items()}
        for name, shares in mixes.items():
            mean = sum(share * chances[part] for part, share in shares.items())
            for row, true in zip(np.asarray(mean), actions[1:], strict=True):
                found[name].losses.append(-float(np.log(max(row[true], 1e-12))))
                (verb, noun), (verbs, nouns) = task.pairs[true].tolist(), task.pairs.T
                ranked = (
                    (verb, np.bincount(verbs, row, task.sizes[0])),
                    (noun, np.bincount(nouns, row, task.sizes[1])),
                    (true, row),
                )
                for kind, (each, whole) in zip(KINDS, ranked, strict=True):
                    some = np.argpartition(-whole, TOP)[:TOP]
                    likeliest = some[np.argsort(-whole[some], kind="stable")].tolist()
                    found[name].add(kind, each, likeliest)
                found[name].video.append(number)
    return found


def simple(
    task: Task, videos: Sequence[Sequence[int]], likeliest: Callable[[str, list[int]], list[int]]
) -> Hits:
    """Judge a rule that gives five classes of a kind from the past of that kind."""
    hits = Hits()
    for number, actions in enumerate(videos):
        verbs, nouns = task.pairs[actions].T.tolist()
        for at in range(1, len(actions)):
            for kind, past in zip(KINDS, (verbs, nouns, actions), strict=True):
                hits.add(kind, past[at], likeliest(kind, list(past[:at])))
            hits.video.append(number)
    return hits


def majority(task: Task) -> Callable[[str, list[int]], list[int]]:
    """The commonest classes of the training participants."""
    every = [action for actions in task.videos("train") for action in actions]
    verbs, nouns = task.pairs[every].T.tolist()
    of = {"verb": verbs, "noun": nouns, "action": every}
    common = {kind: [c for c, _ in Counter(of[kind]).most_common(TOP)] for kind in KINDS}
    return lambda kind, past: common[kind]


def recent(kind: str, past: list[int]) -> list[int]:
    """The most recent distinct ones."""
    return list(dict.fromkeys(reversed(past)))[:TOP]


def gain(one: Hits, other: Hits) -> dict[str, tuple[float, float]]:
    """Return what ``one`` gains in top-5, by kind, with the error over resampled videos."""
    rng, videos = np.random.default_rng(0), np.array(one.video)
    found = {}
    for kind in KINDS:
        differs = np.array(one.five[kind], float) - np.array(other.five[kind], float)
        sums, counts = np.bincount(videos, differs), np.bincount(videos)
        drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
        means = sums[drawn].sum(1) / counts[drawn].sum(1)
        found[kind] = float(differs.mean()), float(means.std())
    return found


def train(task: Task, path: Path, out: Path, seed: int) -> None:
    """Train an adapter on the training participants; a killed run goes on from ``out``."""
    torch.manual_seed(seed)
    adapter = PlanningAdapter(task.words)
    stage = PlanningStage(adapter, task.logs["train"], task.logs["validation"])
    print(train_stage(stage, SCHEDULE, out))
    save_planning(adapter, path, TERMS)


def main(arguments: list[str]) -> int:
    """Train, or choose options on the validation participants and report on those of the test."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks next_action", description=__doc__)
    parser.add_argument("--train", type=Path, metavar="FILE", help="train an adapter, write it")
    parser.add_argument("--out", type=Path, default=Path("runs/planning"), help="of its training")
    parser.add_argument("--adapter", type=Path, default=PLANNING_FILES["kitchen"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = Task(Path(os.environ["STREAMMEM_DATA"]) / "text")
    if options.train:
        train(task, options.train, options.out, seed=0)
        return 0
    # 1. Options by the likelihood of what came next, on the validation participants.
    held = task.videos("validation")
    counted = [of_logs(task, 5, scale) for scale in (2.0, 4.0, 8.0)]
    five = max(counted, key=lambda component: np.log(of_true(component, held)).mean())
    log_chances = of_true(five, held)
    own_options = list(product((1, 2), (1.0,), (0.8, 0.9)))
    scored = {}
    for choice in own_options:
        scored[choice] = best_shares([log_chances, of_true(of_own_past(task, *choice), held)])
    own_choice = min(own_options, key=lambda choice: scored[choice][1])
    own = of_own_past(task, *own_choice)
    own_chances = of_true(own, held)
    parts = {"bigram": of_logs(task, 2, 1.0), "5-gram": five, "own past": own}
    likely = {"5-gram": log_chances, "own past": own_chances}
    wanted = {"5-gram with cache": ("5-gram", "own past")}
    if options.adapter.is_file():
        parts["adapter"] = of_adapter(task, open_planning(options.adapter))
        likely["adapter"] = of_true(parts["adapter"], held)
        wanted["adapter with own past"] = ("adapter", "own past")
        wanted["adapter, 5-gram and cache"] = ("adapter", "5-gram", "own past")
    mixes = {name: {name: 1.0} for name in parts if name != "own past"}
    for name, names in wanted.items():
        shares, _ = best_shares([likely[each] for each in names])
        mixes[name] = dict(zip(names, shares, strict=True))
    print(f"chosen on validation: own past {own_choice}, shares {mixes}")
    # 2. Figures on the test participants.
    videos = task.videos("test")
    hits = {
        "majority": simple(task, videos, majority(task)),
        "5 most recent": simple(task, videos, recent),
        **judged(task, parts, mixes, videos),
    }
    people = {split: sorted({log.participant for log in task.logs[split]}) for split in task.logs}
    report: dict[str, Any] = {
        "participants": people,
        "predicted": len(hits["majority"].video),
        "own past": own_choice,
        "shares": mixes,
        "figures": {name: each.figures() for name, each in hits.items()},
        "gain in top-5 on the 5-gram with cache": {
            name: gain(each, hits["5-gram with cache"]) for name, each in hits.items()
        },
        "loss": {name: float(np.mean(each.losses)) for name, each in hits.items() if each.losses},
    }
    print(f"{report['predicted']} actions of {len(videos)} videos; participants {people}")
    for name, rows in report["figures"].items():
        shown = (
            f"{kind} {row['top1']:.3f} {row['top5']:.3f} ({row['class_top1']:.3f} "
            f"{row['class_top5']:.3f})"
            for kind, row in rows.items()
        )
        print(f"{name}: {'; '.join(shown)}")
    for name, row in report["gain in top-5 on the 5-gram with cache"].items():
        print(
            f"gain of {name}: " + ", ".join(f"{k} {g:+.3f} ± {e:.3f}" for k, (g, e) in row.items())
        )
    print("loss in nats: " + ", ".join(f"{k} {v:.3f}" for k, v in report["loss"].items()))
    print(json.dumps(report))
    return 0
