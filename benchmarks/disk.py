"""A small file system of its own, that fills up as a disk does; needs the right to mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(place: Path, num_bytes: int) -> Iterator[None]:
    """Put a file system of so many bytes at a folder, and take it away again.

    Args:
        place: made where it is not there; removed at the end.
        num_bytes: of its files; Linux counts pages of 4 KiB.

    Raises:
        PermissionError: this process may not mount.
    """
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermissionError("there is no program mount") from error
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()
