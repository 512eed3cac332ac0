"""Loss curves of a run as one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streammem.errors import BackboneError
from streammem.training.loop import read_log

SMOOTHED = 20  # steps


def check_matplotlib() -> None:
    """Find matplotlib before a run of hours ends without it.

    Raises:
        BackboneError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackboneError(
            "loss curves need matplotlib; run: pip install 'streammem[train]'"
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
        log = read_log(out / f"{stage}.jsonl")
        steps = np.array([entry["step"] for entry in log])
        losses = np.array([entry["loss"] for entry in log])
        panel.plot(steps, losses, color="0.8", linewidth=0.8)
        window = min(SMOOTHED, len(losses))
        if window:
            smooth = np.convolve(losses, np.full(window, 1 / window), "valid")
            panel.plot(steps[window - 1 :], smooth, color="tab:blue")
        panel.set(title=stage, xlabel="step", ylabel="loss")
    figure.savefig(out / "loss.png", dpi=120)
