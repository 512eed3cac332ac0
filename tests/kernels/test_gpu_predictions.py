"""Laws of `python -m benchmarks gpu`: a page shows what it prints, and its networks run."""

from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from tests.kernels.test_kernels import ROOT

GUIDE = Path(ROOT, "docs/research/gpu.md")


def test_the_guide_shows_the_predictions_that_the_benchmark_prints(capsys):
    assert gpu.main(["--predict"]) == 0
    printed = capsys.readouterr().out
    guide = GUIDE.read_text()
    for table in printed.strip().split("\n\n"):
        assert table in guide


def test_without_a_gpu_it_says_what_it_could_not_time(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "not timed: there is no CUDA device here" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["streammem-tiny", "qwen3-vl-8b", "videollamb-7b"])
def test_every_part_of_a_preset_is_measured(name, monkeypatch):
    monkeypatch.setattr(gpu, "FRAME_BATCH", 1)
    monkeypatch.setattr(gpu, "SIZE", 64)
    preset = gpu.PRESETS[name]
    times = gpu.measured(gpu.small(preset), "cpu", count=1)
    frame, pictures, *others = astuple(times)
    assert frame > 0 and min(others) > 0 and times.streams > 0
    assert (pictures > 0) == (preset.tower is not None and not preset.every_frame)


def test_counts_are_those_of_the_networks_that_are_timed():
    """Parameters by the formulas, against torch's own count of a small network."""
    preset = gpu.small(gpu.PRESETS["qwen3-vl-8b"])
    language = gpu.build_language(preset.language, "cpu", torch.float32)
    weights = [p.numel() for name, p in language.named_parameters() if "norm" not in name]
    assert 2 * sum(weights) == preset.language.read_bytes  # the words are one matrix
    tower = gpu.build_tower(preset.tower, "cpu", torch.float32)
    assert sum(p.numel() for p in tower.parameters() if p.ndim == 2) == preset.tower.parameters


def test_a_longer_prompt_and_a_slower_gpu_take_longer():
    preset = gpu.PRESETS["qwen3-vl-8b"]
    h100, a10 = gpu.predicted(preset, "H100"), gpu.predicted(preset, "A10")
    assert all(fast < slow for fast, slow in zip(astuple(h100), astuple(a10), strict=True))
    longer = gpu.predicted(gpu.replace(preset, tokens=880), "H100")
    assert longer.prefill > 3.9 * h100.prefill and longer.streams < h100.streams
