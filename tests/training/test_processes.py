"""Two processes learn what one would that sees both batches."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from streammem.errors import ConfigError
from streammem.training import loop
from streammem.training.loop import GRADIENT_NORM, read_log
from streammem.training.processes import join_processes
from tests.training.processes_worker import SCHEDULE, ToyStage
from tests.training.tiny_backbones import RECIPE


def launch(*arguments):
    """Run the worker as two processes, as ``accelerate launch`` and ``torchrun`` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env = os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "-m", "tests.training.processes_worker", *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True))
    said = [process.communicate(timeout=240) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return said


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch("toy", folder)
    return folder


@pytest.fixture(scope="module")
def kept(out):
    return [torch.load(out / f"{rank}.weights", weights_only=True) for rank in (0, 1)]


def test_all_processes_end_with_the_same_weights(kept):
    first, second = (kept[rank]["whole"] for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_learn_as_one_that_averages_their_gradients(kept):
    first, second = ToyStage(0), ToyStage(1)
    second.module = first.module
    optimizer = loop._optimizer(first, SCHEDULE)

    class Both(ToyStage):
        def loss(self, rng):
            own = first.loss(loop._step_generator(SCHEDULE.seed, self.steps, 0))
            total = own + second.loss(loop._step_generator(SCHEDULE.seed, self.steps, 1))
            self.steps += 1
            return total / 2

    both = Both(0)
    both.module = first.module
    for step in range(SCHEDULE.steps):
        loop._step(both, optimizer, SCHEDULE, step)
        norm = nn.utils.get_total_norm(p.grad for p in both.module.values() if p.grad is not None)
        assert norm > 0.99 * GRADIENT_NORM  # the clip was at work
    for name, tensor in both.module.items():
        assert torch.allclose(tensor, kept[0]["whole"][name], atol=1e-5), name


def test_what_has_no_gradient_in_any_process_stays_as_it_is(kept):
    assert torch.equal(kept[0]["whole"]["never"], torch.ones(3, 2))
    assert not torch.equal(kept[0]["whole"]["late"], torch.ones(3, 2))


def test_a_killed_run_goes_on_in_all_processes(kept):
    for weights in kept:
        assert all(torch.equal(weights["resumed"][n], t) for n, t in weights["whole"].items())


def test_each_step_is_logged_once(out):
    for folder in ("whole", "killed"):
        steps = [entry["step"] for entry in read_log(out / folder / "toy.jsonl")]
        assert steps == list(range(1, SCHEDULE.steps + 1))


def test_each_process_draws_its_own_part_and_the_first_draws_as_one_alone():
    drawn = []
    for rank in (0, 1):
        rng = loop._step_generator(3, 7, rank)
        drawn.append((rng.random(4), torch.rand(4)))
    assert not np.array_equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][1], drawn[1][1])
    torch.manual_seed(3 * 1_000_003 + 7)
    assert np.array_equal(drawn[0][0], np.random.default_rng([3, 7]).random(4))
    assert torch.equal(drawn[0][1], torch.rand(4))


def test_one_process_joins_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)  # importing it would fail
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes(None) as (group, device):
        assert (group.rank, group.size, device) == (0, 1, "cpu")
    with join_processes("cuda:1") as (_, device):
        assert device == "cuda:1"


def test_several_processes_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="cuda:1"), join_processes("cuda:1"):
        pass


@pytest.mark.heavy
def test_a_whole_run_in_two_processes_writes_everything_once(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    said = launch("run", tmp_path / "tiny.toml")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [text.split() for text, _ in said] == [[str(len(figures))], ["0"]]
    assert "unit" not in said[1][1] and "words" not in said[1][1]  # no bar
    for stage in ("words", "keys", "captions"):
        steps = [entry["step"] for entry in read_log(tmp_path / "out" / f"{stage}.jsonl")]
        assert steps == list(range(1, len(steps) + 1)) and steps
    tensors = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    assert all(tensor.float().isfinite().all() for tensor in tensors.values())
