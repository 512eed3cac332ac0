"""Laws of `python -m benchmarks gpu`: a page shows what it prints, and its networks run."""

from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, kernels
from tests.kernels.test_kernels import ROOT

RESEARCH, GUIDE = Path(ROOT, "docs/research/gpu.md"), Path(ROOT, "docs/guide/gpu.md")


def test_the_guide_shows_the_predictions_that_the_benchmark_prints(capsys):
    assert gpu.main(["--predict"]) == 0
    printed = capsys.readouterr().out
    counts, *others = printed.strip().split("\n\n")
    for table in (counts, *others):
        assert table in RESEARCH.read_text()
    assert others[0] in GUIDE.read_text()


def test_without_a_gpu_it_says_what_it_could_not_time(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "not timed: there is no CUDA device here" in capsys.readouterr().out


def test_on_a_gpu_it_shows_every_preset_switch_and_kernel_beside_its_prediction(monkeypatch):
    monkeypatch.setattr(gpu, "measured", lambda preset, device: gpu.predicted(preset, "H100"))
    switches = lambda preset, device: gpu.predicted_switches(preset, "A100")  # noqa: E731
    monkeypatch.setattr(gpu, "measured_switches", switches)
    calls = [(name, lambda: None) for name in kernels.bytes_read()]
    monkeypatch.setattr(kernels, "calls", lambda: iter(calls))
    monkeypatch.setattr(kernels, "microseconds", lambda call: 100.0)
    lines = list(gpu.measurements("H100", 85 * 10**9))
    for name in (*gpu.PRESETS, *(name for name, _ in calls)):
        assert any(line.startswith(f"| {name} | ") and "not measured" not in line for line in lines)
    for name in gpu.SWITCHED:
        row = gpu.shown_switches(
            f"{name}, predicted", gpu.predicted_switches(gpu.PRESETS[name], "H100")
        )
        assert lines[lines.index(row) + 1].startswith(f"| {name}, measured | ")
    small = list(gpu.measurements(None, 9 * 10**9))
    assert "| qwen3-vl-8b | not measured: it needs 17 GB |" in small


@pytest.mark.parametrize("name", ["streammem-tiny", "qwen3-vl-8b", "videollamb-7b"])
def test_every_part_of_a_preset_is_measured(name, monkeypatch):
    monkeypatch.setattr(gpu, "FRAME_BATCH", 1)
    monkeypatch.setattr(gpu, "SIZE", 64)
    preset = gpu.PRESETS[name]
    times = gpu.measured(gpu.small(preset), "cpu", count=1)
    frame, pictures, *others = astuple(times)
    assert frame > 0 and min(others) > 0 and times.caption_s > 0
    # Of a machine that is not busy with other things.
    assert gpu.replace(times, frame=1e-3, pictures=0.1, prefill=0.1, batch_step=0.01).streams > 0
    assert (pictures > 0) == (preset.tower is not None and not preset.every_frame)


@pytest.mark.parametrize("name", ["streammem-tiny", "videollamb-7b"])
def test_every_switch_is_measured_and_predicted_to_save(name, monkeypatch):
    monkeypatch.setattr(gpu, "FRAME_BATCH", 2)
    monkeypatch.setattr(gpu, "SIZE", 64)
    found = gpu.measured_switches(gpu.small(gpu.PRESETS[name]), "cpu", count=1)
    assert all(before > 0 and after > 0 for before, after in astuple(found))
    for before, after in astuple(gpu.predicted_switches(gpu.PRESETS[name], "H100")):
        assert before >= after
    row = gpu.shown_switches(name, gpu.Switches((2e-3, 1e-3), *[(1, 0.5)] * 3))
    assert row == f"| {name} | 2.00 > 1.00 |" + " 1000.00 > 500.00 |" * 3


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
