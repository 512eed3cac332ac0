"""The training loop: optimise, log, checkpoint, resume after a kill.

It knows nothing of pictures or text; a ``Stage`` does.
"""

import json
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from streammem.errors import CheckpointError

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
    module: nn.Module

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return (parameters, factor on the learning rate)."""
        ...

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the loss of one batch drawn with ``rng``."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Return figures on validation data."""
        ...


def train(stage: Stage, schedule: Schedule, out: Path) -> dict[str, float]:
    """Train a stage, or go on where a killed run stopped.

    Every step draws its data and its dropout from (seed, step), so a resumed run sees what an
    uninterrupted one would have seen.

    Args:
        stage: what to train.
        schedule: how.
        out: folder of ``<stage>.pt`` (interim, with optimiser) and ``<stage>.jsonl`` (the log).

    Returns:
        The last figures.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(stage, schedule)
    step = _resume(stage, optimizer, schedule, out)
    stage.module.train()
    saved = time.monotonic()
    figures: dict[str, float] = {}
    with (
        tqdm(total=schedule.steps, initial=step, desc=stage.name, unit="step") as bar,
        open(out / f"{stage.name}.jsonl", "a") as record,
    ):
        while step < schedule.steps:
            loss = _step(stage, optimizer, schedule, step)
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            entry: dict[str, float] = {"step": step, "loss": round(loss, 4)}
            if step == schedule.steps or (
                schedule.evaluate_every and step % schedule.evaluate_every == 0
            ):
                stage.module.eval()
                figures = stage.evaluate()
                stage.module.train()
                entry |= figures
                log.info("%s step %d: %s", stage.name, step, figures)
            record.write(json.dumps(entry) + "\n")
            record.flush()
            if time.monotonic() - saved > CHECKPOINT_EVERY_S or step == schedule.steps:
                _save(stage, optimizer, step, out)
                saved = time.monotonic()
    stage.module.eval()
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
    stage: Stage, optimizer: torch.optim.AdamW, schedule: Schedule, step: int
) -> float:
    warm = min(1.0, (step + 1) / max(1, schedule.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr * group["factor"] * warm * max(cosine, 0.02)
    torch.manual_seed(schedule.seed * 1_000_003 + step)
    loss = stage.loss(np.random.default_rng([schedule.seed, step]))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], GRADIENT_NORM)
    optimizer.step()
    return float(loss.detach())


def _save(stage: Stage, optimizer: torch.optim.AdamW, step: int, out: Path) -> None:
    state = {
        "step": step,
        "module": {k: v for k, v in stage.module.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    scratch = out / f"{stage.name}.pt.part"
    torch.save(state, scratch)
    os.replace(scratch, out / f"{stage.name}.pt")  # a kill leaves the old file or the new one


def _resume(stage: Stage, optimizer: torch.optim.AdamW, schedule: Schedule, out: Path) -> int:
    path = out / f"{stage.name}.pt"
    if not path.exists():
        torch.manual_seed(schedule.seed)
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stage.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: does not fit this recipe ({reason}); move it away to start afresh"
        ) from error
    log.info("%s: resumed at step %d", stage.name, state["step"])
    return int(state["step"])
