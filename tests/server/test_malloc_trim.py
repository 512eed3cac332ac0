"""The process returns the memory that its threads have freed."""

import subprocess
import sys

import pytest

from streammem.server.malloc_trim import ARENAS

# A large block is freed first, as a cache of keys and values is; glibc then takes all smaller ones
# from its arenas. 6 threads at a time free 20 MB each in blocks of 1 to 6 MB, and keep a small one
# beside each, as a session keeps what came of a question.
WORK = """
import ctypes, sys, threading
from pathlib import Path
from streammem.server.malloc_trim import return_freed_memory
accepted = return_freed_memory() if sys.argv[1] == "set" else True

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

large = bytearray(30_000_000)
del large
together, kept = threading.Barrier(6), []
def work(number):
    together.wait()
    blocks = []
    for size in range(6):
        blocks.append(bytearray((size * 37 + number * 11) % 97 * 50_000 + 1_100_000))
        kept.append(bytearray(600))
    together.wait()

threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
before = resident()
for thread in threads: thread.start()
for thread in threads: thread.join()
print(accepted, resident() - before, flush=True)
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_threads_have_freed_is_given_back():
    grown, arenas = {}, {}
    for way in ("set", "as it is"):
        command = [sys.executable, "-c", WORK, way]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        accepted, mb, *_ = out.split()
        if accepted == "False":
            pytest.skip("not glibc")
        grown[way], arenas[way] = float(mb), out.count("<heap nr=")
    assert grown["set"] < 10 < 30 < grown["as it is"], grown
    assert arenas["set"] == ARENAS < arenas["as it is"]
