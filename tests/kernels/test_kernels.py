"""Laws of `streammem_kernels`: the forms equal each other, and the seam takes the one that fits."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import streammem_kernels
import torch
from streammem_kernels import ops, state

from streammem.captioning.shared_tilling import SharedTilling
from streammem.commands import environment
from streammem.errors import ConfigError
from streammem.models.tiny.bridge import Attention

ROOT = Path(__file__).parents[2]
PACKAGE = Path(streammem_kernels.__file__).parent
needs_triton = pytest.mark.skipif(
    not find_spec("triton"), reason="Triton (1 GB) is not installed: pip install '.[kernels]'"
)


def python(*arguments, kernels=PACKAGE.parent, **environment):
    """Run Python with the package in ``kernels``; give the finished process."""
    path = os.pathsep.join([str(kernels), str(ROOT)])
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=variables | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def interpreted(law, kernels=PACKAGE.parent):
    return python("-m", "tests.kernels.laws", *law.split(), kernels=kernels, TRITON_INTERPRET="1")


PARTS = [f"tilling_more {part}" for part in range(12)]  # 3,000 sequences
HEAVY = [
    pytest.param(law, marks=pytest.mark.heavy)
    for law in ("topk_more", "read_more", *PARTS, "tilling_of_bad_frames")
]


@needs_triton
@pytest.mark.parametrize("law", ["topk", "read", "tilling", *HEAVY])
def test_the_triton_form_equals_the_reference(law):
    done = interpreted(law)
    assert done.returncode == 0, done.stderr


TOPK, TILLING = ("topk", "find_topk.py"), ("tilling_some", "tilling.py")
READ = ("read", "memory_read.py")
MUTANTS = [
    (*TOPK, "(0x7FFFFFFF - group)[None, :]", "group[None, :]"),  # ties by higher row
    (*TOPK, "n[None, :] >= start", "n[None, :] > start"),
    (*TOPK, "place = tl.maximum(lowest, of_group)", "place = lowest"),
    (*TOPK, "mask + at, is_inside", "mask + tenant[None, :], is_inside"),
    (*TOPK, "stop, 0)), tl.minimum", "stop - 1, 0)), tl.minimum"),
    (*READ, "is_key = is_key & (row >= 0)", "row = tl.maximum(row, 0)"),
    (*READ, "(products - own_shift[:, None])", "products"),
    (*READ, 'value = tl.where(total > 0, value, float("-inf"))  # no keys', ""),
    (*READ, "total = total * tl.exp(peak - higher)", "total = total + 0"),
    (*READ, "for source in tl.static_range(2):", "for source in tl.static_range(1):"),
    (*TILLING, "if similarity < last:", "if similarity <= last + 0.01:"),
    (*TILLING, "weight = tl.where(is_cut, weight, new_weight)", "weight = new_weight"),
    (*TILLING, "(gap + FLASH < frames) & ", ""),
    (*TILLING, "tl.store(numbers + stream * 5 + 1, frames)", ""),
    (*TILLING, "(first + length - 1) % MAX_LAG", "first % MAX_LAG"),
    (*TILLING, "base = tl.load(offsets + stream)", "base = tl.load(offsets + stream) * 0"),
    (*TILLING, "tl.store(arrived + stream, 0)", "tl.store(arrived + stream, 1)"),
]


@needs_triton
@pytest.mark.heavy
@pytest.mark.parametrize(("law", "file", "right", "wrong"), MUTANTS)
def test_a_wrong_kernel_is_noticed(law, file, right, wrong, tmp_path):
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / file).read_text()
    assert source.count(right) == 1
    (copy / file).write_text(source.replace(right, wrong))
    done = interpreted(law, kernels=tmp_path)
    assert done.returncode == 1 and "AssertionError" in done.stderr, done.stderr


@needs_triton
@pytest.mark.heavy
def test_the_kernels_compile_for_gpus_that_are_not_here():
    done = python("-m", "benchmarks", "kernels")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = {
        (line[0], line[1], int(line[2])): line[3:]
        for line in lines
        if len(line) == 7 and line[2].isdigit()
    }
    names = {name for name, _, _ in rows}
    assert names == set(ops.KERNELS) and {arch for _, _, arch in rows} == {80, 90, 100}
    for (name, dtype, _), (_, _, _, matrix) in rows.items():
        # float32 keys are not rounded for tensor cores.
        assert (int(matrix) > 0) == (name != "tilling_step" and dtype != "float32")


def test_the_seam_and_the_command_line_do_without_triton():
    code = (
        "import sys, importlib.util; find = importlib.util.find_spec\n"
        "class NoTriton:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'triton': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, NoTriton())\n"
        "is_triton = lambda name: name == 'triton'\n"
        "importlib.util.find_spec = lambda name, *more: None if is_triton(name) else find(name)\n"
        "import torch, streammem.commands.environment as environment\n"
        "from streammem_kernels import ops\n"
        "rows, _ = ops.find_topk(torch.eye(2), torch.eye(2), torch.tensor([[0, 2]] * 2), 1)\n"
        "assert rows.tolist() == [[0], [1]]\n"
        "print(environment.describe()['kernels'])"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


def test_the_seam_takes_what_fits_and_says_why(monkeypatch):
    monkeypatch.delenv("STREAMMEM_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(ops, "find_spec", lambda name: True)
    assert ops.choose("find_topk", "cpu") == ("torch", "the tensors are on the CPU")
    assert ops.choose("find_topk", "cuda") == ("triton", "the tensors are on CUDA")
    assert ops.choose("find_topk", "cuda", "k=65 is above 64") == ("torch", "k=65 is above 64")
    assert ops.choose("find_topk", "mps")[0] == "torch"
    monkeypatch.setenv("STREAMMEM_KERNELS", "torch")
    assert ops.choose("find_topk", "cuda") == ("torch", "STREAMMEM_KERNELS=torch")
    monkeypatch.setattr(ops, "find_spec", lambda name: None)
    monkeypatch.setenv("STREAMMEM_KERNELS", "auto")
    assert ops.choose("find_topk", "cuda") == ("torch", "Triton is not installed")


@pytest.mark.parametrize(
    ("value", "device", "unfit", "message"),
    [
        ("cutlass", "cpu", "", "STREAMMEM_KERNELS=cutlass: give auto, triton or torch"),
        ("triton", "cpu", "", "cannot run in Triton: the tensors are on the CPU; use auto"),
        ("triton", "cuda", "k=65 is above 64", "cannot run in Triton: k=65 is above 64"),
    ],
)
def test_a_choice_that_cannot_run_is_an_error(monkeypatch, value, device, unfit, message):
    monkeypatch.setattr(ops, "find_spec", lambda name: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("STREAMMEM_KERNELS", value)
    with pytest.raises(ops.KernelError, match=message):
        ops.choose("find_topk", device, unfit)


def test_info_says_which_form_each_kernel_takes_and_why(monkeypatch):
    monkeypatch.delenv("STREAMMEM_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    names = "find_topk, memory_read, tilling_step"
    assert environment._kernels() == f"{names} torch: the tensors are on the CPU"
    monkeypatch.setattr(ops, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    said = environment._kernels()
    assert said.startswith(f"{names} triton: the tensors are on CUDA; find_topk from 100,000 keys")
    assert "tilling_step from 64 open streams" in said
    monkeypatch.setenv("STREAMMEM_KERNELS", "cutlass")
    assert environment._kernels() == "STREAMMEM_KERNELS=cutlass: give auto, triton or torch"


def test_a_forced_kernel_that_cannot_run_is_an_error_where_a_model_would_use_it(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("STREAMMEM_KERNELS", "triton")
    with pytest.raises(ConfigError, match="memory_read cannot run in Triton: the tensors are on"):
        Attention(32, 2, 0.0).eval()(torch.ones(1, 3, 32), torch.ones(1, 9, 32))
    with pytest.raises(ConfigError, match="tilling_step cannot run in Triton: the tensors are on"):
        SharedTilling("cpu")


def test_shapes_that_do_not_fit_are_errors():
    questions, keys, ranges = torch.ones(2, 4), torch.ones(3, 4), torch.zeros(2, 2).long()
    for wrong in (
        (questions, keys.double(), ranges, 1),
        (questions, torch.ones(3, 5), ranges, 1),
        (questions, keys, ranges[:1], 1),
        (questions, keys, ranges.int(), 1),
        (questions, keys, ranges, 0),
    ):
        with pytest.raises(ValueError, match="give"):
            ops.find_topk(*wrong)
    mask, tenants = torch.ones(2, 5, dtype=torch.bool), torch.zeros(3).int()
    for named in (
        {"scales": torch.ones(4)},
        {"groups": torch.zeros(3).long()},
        {"mask": mask},
        {"tenants": tenants},
        {"mask": mask.int(), "tenants": tenants},
        {"mask": mask[:1], "tenants": tenants},
    ):
        with pytest.raises(ValueError, match="give"):
            ops.find_topk(questions, keys, ranges, 1, **named)
    state = ops.TillingState(2, 4)
    whole, mean = torch.ones(2, 1, 4), torch.zeros(4)
    for patches, center, active, offsets in (
        (torch.ones(2, 0, 4), mean, None, None),
        (torch.ones(3, 1, 4), mean, None, None),
        (whole, torch.zeros(5), None, None),
        (whole, mean, torch.ones(3, dtype=torch.bool), None),
        (whole, mean, None, torch.tensor([0, 1, 2])),
        (torch.ones(2, 4), mean, None, torch.tensor([0, 2])),
    ):
        with pytest.raises(ValueError, match="give"):
            ops.tilling_step(state, patches, center, active, offsets=offsets)
    with pytest.raises(ValueError, match="give"):
        ops.tilling_flush(state, torch.ones(3, dtype=torch.bool))


def test_reads_that_do_not_fit_are_errors():
    right = {
        "queries": torch.ones(2, 3, 2, 4),
        "patches": torch.ones(5, 4),
        "offsets": torch.tensor([0, 2, 5]),
        "own": torch.ones(2, 1, 4),
        "store": torch.ones(3, 4, dtype=torch.int8),
        "scales": torch.ones(3, 2),
        "past": torch.zeros(2, 1).long(),
    }
    read, lse = ops.memory_read(**right, scale=0.5)
    # Every key is ones: what is read is ones, and the sum is of as many as there are.
    assert torch.allclose(read, torch.ones(2, 3, 2, 4))
    assert torch.allclose(lse[:, 0, 0], 2 + torch.tensor([4.0, 5.0]).log())
    for name, wrong in (
        ("queries", torch.ones(2, 6, 4)),
        ("patches", torch.ones(5, 4).bfloat16()),
        ("offsets", torch.tensor([0, 5])),
        ("own", torch.ones(1, 1, 4)),
        ("store", torch.ones(3, 4)),
        ("scales", torch.ones(3, 3)),
        ("past", None),
    ):
        with pytest.raises(ValueError, match="give"):
            ops.memory_read(**right | {name: wrong}, scale=0.5)


def test_no_rows_give_no_rows():
    rows, scores = ops.find_topk(torch.ones(2, 4), torch.ones(0, 4), torch.zeros(2, 2).long(), 3)
    assert rows.tolist() == [[-1] * 3] * 2 and scores.isneginf().all()


def test_the_options_are_those_of_scenetilling_by_name_default_and_effect():
    """They are written twice, as the package runs without streammem."""
    from dataclasses import fields

    from streammem.perception import scenetilling

    def listed(options):
        return [(each.name, each.default) for each in fields(options)]

    assert listed(state.TillingOptions) == listed(scenetilling.SceneTillingConfig)
    assert state.OUTLASTING == scenetilling.OUTLASTING
