"""The training loop: optimise, log, checkpoint, resume after a kill.

It knows nothing of pictures or text; a ``Stage`` does.
"""

import json
import logging
import math
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from streammem.errors import CheckpointError, StreammemError
from streammem.training.processes import ALONE, Team

log = logging.getLogger(__name__)
CHECKPOINT_EVERY_S = 120.0
GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast a stage learns.

    Attributes:
        steps: optimiser steps.
        lr: peak learning rate; each parameter group multiplies it by its own factor.
        warmup: steps of linear warm-up before the cosine.
        weight_decay: AdamW's, on matrices only.
        evaluate_every: steps between evaluations; 0 evaluates at the end only.
        seed: of the order of the data, of dropout and of initial values.
    """

    steps: int
    lr: float
    warmup: int = 20
    weight_decay: float = 0.01
    evaluate_every: int = 0
    seed: int = 0


class Stage(Protocol):
    """One thing to learn: its weights, its loss on the next batch, its figures."""

    name: str

    @property
    def module(self) -> nn.Module:
        """All that is trained, and nothing else."""
        ...

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return (parameters, factor on the learning rate)."""
        ...

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of one batch drawn with ``rng``."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Return figures on validation data."""
        ...


class Progress:
    """Where a stage stands: its interim file and its log, which the first process writes."""

    def __init__(
        self, stage: Stage, optimizer: torch.optim.AdamW, out: Path, recipe: str, team: Team
    ) -> None:
        self.stage, self.optimizer, self.recipe, self.team = stage, optimizer, recipe, team
        self.path, self.record = out / f"{stage.name}.pt", out / f"{stage.name}.jsonl"
        self.step, self.saved_s = 0, time.monotonic()
        self.figures: dict[str, float] = {}

    def resume(self) -> None:
        """Take up the interim weights, if there are any.

        Raises:
            CheckpointError: they belong to another recipe, or are corrupt.
        """
        if self.path.exists():
            try:
                state = torch.load(self.path, map_location="cpu", weights_only=True)
                self.stage.module.load_state_dict(state["module"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.step, self.figures = int(state["step"]), state.get("figures", {})
            except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
                reason = str(error).splitlines()[0]
                raise CheckpointError(
                    f"{self.path}: does not fit this recipe ({reason}); move it away"
                ) from error
            log.info("%s: resumed at step %d", self.stage.name, self.step)
        self.team.share(self.stage.module)
        if not self.team.is_first:
            return
        # Steps after the last save are done again, and logged again.
        kept = [entry for entry in read_log(self.record) if entry["step"] <= self.step]
        self.record.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def write(self, entry: dict[str, float]) -> None:
        """Log a step."""
        if self.team.is_first:
            with open(self.record, "a") as record:
                record.write(json.dumps(entry) + "\n")

    def save(self, *, force: bool) -> None:
        """Write the interim weights if it is time."""
        recent = time.monotonic() - self.saved_s <= CHECKPOINT_EVERY_S
        if not self.team.is_first or (recent and not force):
            return
        state = {
            "step": self.step,
            "module": self.stage.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "figures": self.figures,
            "recipe": self.recipe,
        }
        scratch = self.path.with_name(f"{self.path.name}.part")
        torch.save(state, scratch)
        os.replace(scratch, self.path)  # a kill leaves the old file or the new one
        self.saved_s = time.monotonic()


def train(
    stage: Stage, schedule: Schedule, out: Path, *, recipe: str = "", team: Team = ALONE
) -> dict[str, float]:
    """Train a stage, or go on where a killed run stopped.

    Every step draws its data and its dropout from (seed, step, rank), so a resumed run sees what an
    uninterrupted one would have seen. A step's gradient is the mean of the processes' own.

    Args:
        stage: what to train.
        schedule: how.
        out: folder of ``<stage>.pt`` (interim, with optimiser) and ``<stage>.jsonl`` (the log).
        recipe: text that the interim file carries, for whoever finds it.
        team: the processes that do each step together, each with a batch of its own.

    Returns:
        The last figures; the first process alone measures them.

    Raises:
        CheckpointError: interim weights of another recipe.
        StreammemError: the loss is not a number any more.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(stage, schedule)
    progress = Progress(stage, optimizer, out, recipe, team)
    progress.resume()
    stage.module.train()
    with tqdm(
        total=schedule.steps,
        initial=progress.step,
        desc=stage.name,
        unit="step",
        disable=not team.is_first,
    ) as bar:
        while progress.step < schedule.steps:
            began = time.monotonic()
            loss = _step(stage, optimizer, schedule, progress.step, team)
            progress.step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            entry: dict[str, float] = {"step": progress.step, "loss": round(loss, 4)}
            last = progress.step == schedule.steps
            due = schedule.evaluate_every and progress.step % schedule.evaluate_every == 0
            if team.is_first and (last or due):
                progress.figures = _evaluate(stage)
                entry |= progress.figures
                log.info("%s step %d: %s", stage.name, progress.step, progress.figures)
            entry["seconds"] = round(time.monotonic() - began, 3)
            progress.write(entry)
            progress.save(force=last)
    stage.module.eval()
    return progress.figures


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a stage's log, one entry a step; a line that a kill cut off is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _evaluate(stage: Stage) -> dict[str, float]:
    stage.module.eval()
    figures = stage.evaluate()
    stage.module.train()
    return figures


def _optimizer(stage: Stage, schedule: Schedule) -> torch.optim.AdamW:
    groups = []
    for parameters, factor in stage.parameter_groups():
        matrices = [p for p in parameters if p.ndim > 1]
        rest = [p for p in parameters if p.ndim <= 1]
        groups.append({"params": matrices, "factor": factor})
        groups.append({"params": rest, "factor": factor, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups, lr=schedule.lr, weight_decay=schedule.weight_decay, betas=(0.9, 0.98)
    )


def _step(
    stage: Stage, optimizer: torch.optim.AdamW, schedule: Schedule, step: int, team: Team = ALONE
) -> float:
    warm = min(1.0, (step + 1) / max(1, schedule.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr * group["factor"] * warm * max(cosine, 0.02)
    loss = stage.loss(_draws(schedule.seed, step, team.rank))
    value = team.mean(loss.detach())  # of all, so that all stop where it is no number
    if not math.isfinite(value):
        raise StreammemError(f"{stage.name}: the loss is {value} at step {step}; try a lower lr")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    learning = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    team.average_gradients(learning)
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], GRADIENT_NORM)
    optimizer.step()
    return value


def _draws(seed: int, step: int, rank: int) -> np.random.Generator:
    """Seed torch, for dropout, and return what a process draws its batch with."""
    # Torch looks at 32 bits of a seed only: in these the multiples of this number lie far apart.
    torch.manual_seed(seed * 1_000_003 + step + rank * 2_654_435_761)
    return np.random.default_rng([seed, step, rank] if rank else [seed, step])
