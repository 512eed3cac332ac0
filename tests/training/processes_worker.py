"""One of several processes: trains a toy stage, or does a whole run. Started by the tests."""

import sys
from pathlib import Path

import torch
from torch import nn

from streammem.training import loop
from streammem.training.loop import Schedule, train_stage
from streammem.training.processes import join_processes

SCHEDULE = Schedule(steps=5, lr=1e-1, warmup=1)


class ToyStage:
    """Gradients larger than the clip; ``late`` has one in the second process only."""

    name = "toy"

    def __init__(self, rank: int) -> None:
        self.rank, self.steps = rank, 0
        self.module = nn.ParameterDict(
            {name: torch.full((3, 2), 1.0 + rank) for name in ("used", "late", "never")}
        )

    def parameter_groups(self):
        return [(list(self.module.values()), 1.0)]

    def loss(self, rng):
        x = torch.from_numpy(rng.normal(size=(4, 3)).astype("f4")) + torch.rand(4, 3)
        loss = 9 * ((x @ self.module["used"]) ** 2).mean()
        return loss + 5 * self.module["late"].square().sum() if self.rank else loss

    def evaluate(self):
        assert self.rank == 0
        torch.rand(1)  # what the first process alone does changes no draw
        return {}


class Killed(ToyStage):
    def loss(self, rng):
        self.steps += 1
        if self.steps == 4:
            raise KeyboardInterrupt
        return super().loss(rng)


def toy(out: Path) -> None:
    with join_processes("cpu") as (group, device):
        assert (group.size, device) == (2, "cpu")
        loop.CHECKPOINT_EVERY_S = -1.0
        if not group.is_first:
            loop.torch.save = loop.Path.write_text = None  # a second writer fails
        stage = ToyStage(group.rank)
        train_stage(stage, SCHEDULE, out / "whole", group=group)
        try:
            train_stage(Killed(group.rank), SCHEDULE, out / "killed", group=group)
        except KeyboardInterrupt:
            group.wait()
        resumed = ToyStage(group.rank)
        train_stage(resumed, SCHEDULE, out / "killed", group=group)
        kept = {"whole": stage.module.state_dict(), "resumed": resumed.module.state_dict()}
        with open(out / f"{group.rank}.weights", "wb") as file:
            torch.serialization.save(kept, file)
        group.wait()


def whole_run(recipe: Path) -> None:
    from streammem.training.run import run_recipe
    from tests.training.tiny_backbones import tiny_backbones

    figures = run_recipe(recipe, recipe.parent / "out", backbones=tiny_backbones(), device="cpu")
    sys.stdout.write(str(len(figures)))


def published_run(recipe: Path) -> None:
    from streammem.models import checkpoint
    from streammem.training.published import run_parent_recipe
    from tests.tiny import tiny_model

    checkpoint.load_own = lambda name="", *, device="cpu": tiny_model()
    figures = run_parent_recipe(recipe, recipe.parent / "out", device="cpu")
    sys.stdout.write(str(bool(figures)))


if __name__ == "__main__":
    {"toy": toy, "run": whole_run, "published": published_run}[sys.argv[1]](Path(sys.argv[2]))
