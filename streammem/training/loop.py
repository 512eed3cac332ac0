"""The training loop of one stage: optimise, log, save, resume after a kill, draw the loss.

    figures = train_stage(stage, Schedule(steps=100, lr=1e-3), Path("out"))
    draw_curves([stage.name], Path("out"))  # out/loss.png

Pictures and text are the stages' own.
"""

import json
import logging
import math
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from streammem.errors import BackboneError, CheckpointError, StreammemError, install_command
from streammem.training.processes import SINGLE_PROCESS, ProcessGroup

log = logging.getLogger(__name__)
CHECKPOINT_EVERY_S = 120.0
GRADIENT_NORM = 1.0
SMOOTHED_STEPS = 20  # of the drawn curves


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
        accumulate: batches whose mean gradient makes one step, one after another in memory.
        pace: share of ``lr`` at a step, in [0, 1], in place of warm-up and cosine.
        betas: AdamW's.
        save_every_s: seconds between interim weights; None takes ``CHECKPOINT_EVERY_S``.
    """

    steps: int
    lr: float
    warmup: int = 20
    weight_decay: float = 0.01
    evaluate_every: int = 0
    seed: int = 0
    accumulate: int = 1
    pace: Callable[[int], float] | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    save_every_s: float | None = None


class Stage(Protocol):
    """One stage of training: its weights, its loss on a batch, its figures."""

    name: str

    @property
    def module(self) -> nn.Module:
        """Exactly the parameters that are trained."""
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


class JointStage:
    """Several stages that train the same parameters at once, by the weighted sum of their losses.

    Args:
        stages: the first gives its name; each draws a batch of its own at every step.
        weights: of their losses.
    """

    def __init__(self, stages: Sequence[Stage], weights: Sequence[float]) -> None:
        self._stages, self._weights = stages, weights
        self.name, self.module = stages[0].name, stages[0].module

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return self._stages[0].parameter_groups()

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Return the weighted sum of the losses."""
        losses = [stage.loss(rng) for stage in self._stages]
        weighted = [w * loss for w, loss in zip(self._weights, losses, strict=True)]
        return torch.stack(weighted).sum()

    def evaluate(self) -> dict[str, float]:
        """Return the figures of all; those of the others begin with the name of their stage."""
        first, *others = self._stages
        figures = first.evaluate()
        for stage in others:
            figures |= {f"{stage.name}_{key}": value for key, value in stage.evaluate().items()}
        return figures


class StageProgress:
    """The step and files of a stage in training; only the first process writes."""

    def __init__(
        self,
        stage: Stage,
        optimizer: torch.optim.AdamW,
        out: Path,
        recipe: str,
        group: ProcessGroup,
    ) -> None:
        self.stage, self.optimizer, self.recipe, self.group = stage, optimizer, recipe, group
        self.path, self.record = out / f"{stage.name}.pt", out / f"{stage.name}.jsonl"
        self.step, self.saved_s = 0, time.monotonic()
        self.figures: dict[str, float] = {}

    def resume(self) -> None:
        """Load the interim weights, if there are any.

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
        self.group.share(self.stage.module)
        if not self.group.is_first:
            return
        # Steps after the last save are repeated, and logged again.
        kept = [entry for entry in read_log(self.record) if entry["step"] <= self.step]
        self.record.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    def write(self, entry: dict[str, float]) -> None:
        """Log a step."""
        if self.group.is_first:
            with open(self.record, "a") as record:
                record.write(json.dumps(entry) + "\n")

    def save(self, every_s: float | None, *, force: bool) -> None:
        """Write the interim weights if it is time."""
        every_s = CHECKPOINT_EVERY_S if every_s is None else every_s
        recent = time.monotonic() - self.saved_s <= every_s
        if not self.group.is_first or (recent and not force):
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


def train_stage(
    stage: Stage,
    schedule: Schedule,
    out: Path,
    *,
    recipe: str = "",
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, float]:
    """Train a stage, or continue a killed run of it.

    Every step draws its data and its dropout from (seed, step, rank), so that a resumed run equals
    an uninterrupted one. A step's gradient is the mean of the processes' own.

    Args:
        stage: what to train.
        schedule: how.
        out: folder of ``<stage>.pt`` (interim, with optimiser) and ``<stage>.jsonl`` (the log).
        recipe: text to store in the interim file.
        group: processes that share each step, each with a batch of its own.

    Returns:
        The last figures; empty in processes other than the first, which alone measures them.

    Raises:
        CheckpointError: interim weights of another recipe.
        StreammemError: the loss is no longer finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(stage, schedule)
    progress = StageProgress(stage, optimizer, out, recipe, group)
    progress.resume()
    stage.module.train()
    with tqdm(
        total=schedule.steps,
        initial=progress.step,
        desc=stage.name,
        unit="step",
        disable=not group.is_first,
    ) as bar:
        while progress.step < schedule.steps:
            began = time.monotonic()
            loss = _step(stage, optimizer, schedule, progress.step, group)
            progress.step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            entry: dict[str, float] = {"step": progress.step, "loss": round(loss, 4)}
            last = progress.step == schedule.steps
            due = schedule.evaluate_every and progress.step % schedule.evaluate_every == 0
            if group.is_first and (last or due):
                stage.module.eval()
                progress.figures = stage.evaluate()
                stage.module.train()
                entry |= progress.figures
                log.info("%s step %d: %s", stage.name, progress.step, progress.figures)
            entry["seconds"] = round(time.monotonic() - began, 3)
            progress.write(entry)
            progress.save(schedule.save_every_s, force=last)
    stage.module.eval()
    return progress.figures


def train_steps(stage: Stage, schedule: Schedule) -> None:
    """Train a stage from where it is to the end, at once and without files."""
    optimizer = _optimizer(stage, schedule)
    stage.module.train()
    for step in range(schedule.steps):
        _step(stage, optimizer, schedule, step)
    stage.module.eval()


def read_log(path: Path) -> list[dict[str, float]]:
    """Read a stage's log, one entry a step; a line cut off by a kill is skipped."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def check_matplotlib() -> None:
    """Check for matplotlib, so that its absence does not end a run of hours.

    Raises:
        BackboneError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackboneError(
            f"loss curves need matplotlib; run: {install_command('train')}"
        ) from error


def draw_curves(stages: Sequence[str], out: Path) -> None:
    """Draw ``<out>/loss.png`` from the logs of stages, one panel each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(stages), 3.2))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.14 / len(stages), right=0.98, bottom=0.16, top=0.9, wspace=0.25)
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for panel, stage in zip(panels, stages, strict=True):
        entries = read_log(out / f"{stage}.jsonl")
        steps = np.array([entry["step"] for entry in entries])
        losses = np.array([entry["loss"] for entry in entries])
        panel.plot(steps, losses, color="0.8", linewidth=0.8)
        window = min(SMOOTHED_STEPS, len(losses))
        if window:
            smooth = np.convolve(losses, np.full(window, 1 / window), "valid")
            panel.plot(steps[window - 1 :], smooth, color="tab:blue")
        panel.set(title=stage, xlabel="step", ylabel="loss")
    figure.savefig(out / "loss.png", dpi=120)


def _optimizer(stage: Stage, schedule: Schedule) -> torch.optim.AdamW:
    groups = []
    for parameters, factor in stage.parameter_groups():
        matrices = [p for p in parameters if p.ndim > 1]
        rest = [p for p in parameters if p.ndim <= 1]
        groups.append({"params": matrices, "factor": factor})
        groups.append({"params": rest, "factor": factor, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups, lr=schedule.lr, weight_decay=schedule.weight_decay, betas=schedule.betas
    )


def _step(
    stage: Stage,
    optimizer: torch.optim.AdamW,
    schedule: Schedule,
    step: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> float:
    warm = min(1.0, (step + 1) / max(1, schedule.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
    for part in optimizer.param_groups:
        pace = schedule.pace(step) if schedule.pace else warm * max(cosine, 0.02)
        part["lr"] = schedule.lr * part["factor"] * pace
    rng, value = _step_generator(schedule.seed, step, group.rank), 0.0
    optimizer.zero_grad(set_to_none=True)
    for _ in range(schedule.accumulate):
        loss = stage.loss(rng) / schedule.accumulate
        value += group.mean(loss.detach())  # the same in all, so all stop if not finite
        if not math.isfinite(value):
            raise StreammemError(
                f"{stage.name}: the loss is {value} at step {step}; try a lower lr"
            )
        loss.backward()
    learning = [p for part in optimizer.param_groups for p in part["params"] if p.requires_grad]
    group.average_gradients(learning)
    for part in optimizer.param_groups:
        nn.utils.clip_grad_norm_(part["params"], GRADIENT_NORM)
    optimizer.step()
    return value


def _step_generator(seed: int, step: int, rank: int) -> np.random.Generator:
    """Seed torch, for dropout, and return the generator with which a process draws its batch."""
    # Torch uses 32 bits of a seed only: modulo 2^32 the multiples of the last number lie far apart.
    torch.manual_seed(seed * 1_000_003 + step + rank * 2_654_435_761)
    return np.random.default_rng([seed, step, rank] if rank else [seed, step])
