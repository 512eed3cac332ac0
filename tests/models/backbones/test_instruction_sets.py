"""The laws of decoding hold on lesser processors too: each in a process that may use less."""

import os
import platform
import subprocess
import sys

import pytest

# Without AVX-512 FBGEMM's kernels of few rows sum in another order; without AVX2 all is float32.
LOWERED = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "DEFAULT": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
# With one thread: more of them than there are cores to spare take a minute.
LAWS = (
    "(whoever_stands_beside_it or prompts_beside_it or number_of_rows or rows_are_apart"
    " or in_one_batch or no_other or whoever_is_done or as_if_each_were_alone) and not [3-"
)
RUN = """
import sys, pytest, torch
assert torch.backends.cpu.get_cpu_capability() == sys.argv[1], "the variables have no effect"
sys.exit(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", "-x", *sys.argv[2:]]))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="lowers x86")
@pytest.mark.parametrize("name", ["AVX2", pytest.param("DEFAULT", marks=pytest.mark.heavy)])
def test_words_do_not_depend_on_what_is_said_beside_them_with_fewer_instructions(name):
    files = "tests/models/backbones/test_decoding.py", "tests/captioning/test_shared.py"
    run = subprocess.run(
        [sys.executable, "-c", RUN, name, *files, "-k", LAWS],
        env=os.environ | LOWERED[name],
        text=True,
        capture_output=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
